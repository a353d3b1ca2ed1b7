"""What the service shows of latents. Times are whole Unix seconds; tokens are shown as they stand in a text."""

from typing import Literal

from pydantic import Field

from sae_service.jobs.records import Explanation
from sae_service.schema import Frozen

Sort = Literal["latent", "density", "largest", "mean"]
Order = Literal["asc", "desc"]
ExportFormat = Literal["neuronpedia", "saedashboard", "prompts"]
SORTS: tuple[Sort, ...] = ("latent", "density", "largest", "mean")


class Scored(Frozen):
    """A token with its logit, or with another score."""

    token: str
    id: int
    score: float


class Neighbour(Frozen):
    """Another latent, and how near it is."""

    latent: int
    similarity: float
    count: int | None = Field(default=None, description="On how many tokens both are among the strongest of the token.")
    cosine: float | None = Field(default=None, description="That count over the geometric mean of the counts of both.")
    sae: str | None = Field(default=None, description="The name of its SAE, if that is another one.")


class Neuron(Frozen):
    """A dimension of what the SAE reads, and how a latent goes with it."""

    neuron: int
    correlation: float = Field(description="Pearson's.")
    cosine: float = Field(description="Of the activations with what is read.")


class Aligned(Frozen):
    """A dimension of what the SAE writes, and the weight of a latent's decoder row there."""

    neuron: int
    weight: float
    share: float = Field(description="Of the sum of all absolute weights of the row.")


class Passage(Frozen):
    """A passage of text, and what a latent does on each of its tokens."""

    passage: int = Field(description="Its number in the text that was read.")
    quantile: int | None = Field(
        default=None, description="null: one of those with the largest activations. 1 to 10: drawn from this tenth of all passages "
        "in which the latent fires, by its largest activation there; 10 has the largest.",
    )  # fmt: skip
    largest: float
    position: int = Field(description="Where that is, counted from 0.")
    tokens: tuple[str, ...]
    ids: tuple[int, ...] = Field(description="The same tokens as the model has them.")
    activations: tuple[float, ...]


class Bins(Frozen):
    """A histogram with bins of one width, the first of which begins at `start`."""

    start: float
    width: float
    counts: tuple[int, ...]


class LatentEntry(Frozen):
    """What a list shows of a latent."""

    latent: int
    object: Literal["sae.latent"] = "sae.latent"
    count: int = Field(description="Tokens on which it fires.")
    density: float = Field(description="Share of the tokens on which it fires.")
    largest: float = Field(description="Its largest activation.")
    mean: float = Field(description="Its mean activation where it fires.")
    fires_on: tuple[str, ...] = Field(description="The tokens of its strongest passages on which it is strongest.")
    raises: tuple[str, ...] = Field(description="The tokens whose logits its direction raises most.")
    explanation: str | None = None

    @property
    def id(self) -> str:
        """Where it is in a list."""
        return str(self.latent)


class Latent(LatentEntry):
    """All that is known of a latent."""

    passages: tuple[Passage, ...] = Field(description="The strongest first, then those of the quantiles, the highest first.")
    histogram: Bins = Field(description="Of its activations above 0.")
    raised: tuple[Scored, ...]
    lowered: tuple[Scored, ...]
    logits: Bins | None = Field(description="Histogram of the logits of all tokens; null if it writes to no residual stream.")
    nearest: tuple[Neighbour, ...] = Field(description="Latents of the same SAE by the cosine of their decoder rows.")
    coactive: tuple[Neighbour, ...] = Field(
        description="Latents that fire together with it: the similarity is the correlation of being among the 8 strongest latents "
        "of a token.",
    )  # fmt: skip
    neurons: tuple[Neuron, ...] = Field(description="Those with the largest absolute correlations.")
    aligned: tuple[Aligned, ...] = Field(description="Those with the largest absolute weights.")
    reads: tuple[Scored, ...] = Field(default=(), description="Of a transcoder the tokens whose embeddings it reads most.")
    reads_latents: tuple[Neighbour, ...] = Field(
        default=(), description="Of a transcoder the latents, of SAEs before it, whose decoder rows are nearest to what it reads."
    )
    explanations: tuple[Explanation, ...] = ()


class SAEEntry(Frozen):
    """A finished SAE as a list shows it."""

    id: str = Field(description="The id of its job and its name: job_... .name")
    object: Literal["sae"] = "sae"
    job_id: str
    name: str
    hook_name: str | tuple[str, ...] | None
    kind: str | None = Field(description="Its architecture; null for one that others have trained.")
    d_sae: int | None
    model: str | None
    dataset: str | None
    tokens: int | None = Field(description="Tokens that it was trained on; null for one that others have trained.")
    finished_at: int | None
    latents_job: str | None = Field(description="The last job that has looked at its latents, if any.")


class SAE(SAEEntry):
    """A finished SAE."""

    checkpoint_id: str
    metrics: dict[str, object] = Field(description="Its held-out figures.")
    looked_at: dict[str, object] | None = Field(description="On what its latents were looked at, if they were.")
