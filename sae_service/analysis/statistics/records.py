"""What a model's activations are like, as the service shows it. Figures are of the rows that count, unless they say otherwise."""

from typing import Any, Literal

from pydantic import Field

from sae_service.schema import Frozen

Quantiles = dict[str, float]
"""By share, such as "0.5" for the median: to within the width of a bin, 1/128 of the number."""


class NormFigures(Frozen):
    """The norms of some rows."""

    n: int = Field(description="Rows.")
    mean: float
    deviation: float = Field(description="Standard deviation.")
    smallest: float
    largest: float
    quantiles: Quantiles


class PositionNorms(Frozen):
    """The norms of the rows at a group of positions in their rows of the model, from `first` to `last`."""

    first: int
    last: int
    n: int
    mean: float
    quantiles: Quantiles


class TokenNorms(Frozen):
    """The norms of the rows of one special token, whether it is left out or not."""

    id: int
    token: str
    is_excluded: bool
    n: int
    mean: float
    largest: float
    of_median: float = Field(description="Its mean norm over the median norm of the rows that count.")


class TokenCount(Frozen):
    """A token, and how many rows of it there are."""

    id: int
    token: str
    n: int


class PositionCount(Frozen):
    """A position, and how many rows there are."""

    position: int
    n: int


class Outliers(Frozen):
    """Rows that are longer than `multiple` times `median`."""

    multiple: float
    median: float = Field(description="That of the first 8192 rows, as max_activation_norm_multiple takes it.")
    n: int
    share: float = Field(description="Of the rows.")
    square_share: float = Field(description="Of the sum of all squared norms.")
    largest_ratio: float = Field(description="The largest norm over the median.")
    tokens: tuple[TokenCount, ...] = Field(description="The most frequent of them.")
    positions: tuple[PositionCount, ...] = Field(description="The most frequent of them.")


class Dimension(Frozen):
    """A dimension of the rows."""

    dimension: int
    variance_share: float = Field(description="Of the sum of the variances of all dimensions.")
    mean: float
    deviation: float = Field(description="Standard deviation.")
    kurtosis: float


class HookStatistics(Frozen):
    """The distribution of the rows of a hook point."""

    hook_name: str
    d_in: int
    norm: NormFigures
    by_position: tuple[PositionNorms, ...]
    special_tokens: tuple[TokenNorms, ...]
    mean: float = Field(description="Of all numbers of the rows, as are rms, deviation, skewness, kurtosis and quantiles.")
    rms: float = Field(description="The root of the mean square.")
    deviation: float = Field(description="Standard deviation.")
    skewness: float = Field(description="Mean third power of the deviation, over that of the standard deviation.")
    kurtosis: float = Field(description="Mean fourth power of the deviation, over the square of the variance; normal: 3.")
    quantiles: Quantiles
    smallest: float
    largest: float
    largest_magnitude: float = Field(description="Of all rows, those that are left out too: what a number type has to hold.")
    not_finite: int = Field(description="Rows, of all, with NaN or infinity, which are in no other figure.")
    small_shares: dict[str, float] = Field(description="Share of the numbers below so many times the rms, by that multiple.")
    total_variance: float = Field(description="Sum of the variances of all dimensions: what FVU divides by.")
    mean_share: float = Field(description="The squared norm of the mean row, over the mean squared norm.")
    dimension_kurtosis: Quantiles = Field(description="Quantiles, over the dimensions, of the kurtosis of each.")
    dimensions: tuple[Dimension, ...] = Field(description="Those with the largest shares of the variance.")
    outliers: Outliers


class HeadFigures(Frozen):
    """Figures of the heads of a layer, one number each; null where the model has none of this form."""

    ov_frobenius: tuple[float, ...] | None = Field(description="Frobenius norm of W_V W_O, the weights as they are.")
    ov_spectral: tuple[float, ...] | None = Field(description="Its largest singular value.")
    distance: tuple[float, ...] | None = Field(description="Mean number of positions between what reads and what is read.")
    first_share: tuple[float, ...] | None = Field(description="Share of the attention on the first position of the row.")
    separator_share: tuple[float, ...] | None = Field(description="Share of the attention on BOS, wherever it stands.")
    entropy: tuple[float, ...] | None = Field(description="Mean entropy of the attention, in nats.")


class Layer(Frozen):
    """A block of the model."""

    layer: int
    residual: NormFigures | None = Field(description="The residual stream after it.")
    growth: float | None = Field(description="The mean norm after it, over that before it.")
    median_growth: float | None = Field(description="The same of the medians.")
    attention: NormFigures | None = Field(description="What its attention writes.")
    mlp: NormFigures | None = Field(description="What its MLP writes.")
    heads: HeadFigures
    cut_cosines: tuple[float, ...] | None = Field(
        description="Mean cosine of the residual stream after it with that of the last tokens alone, for each of cut_lengths."
    )


class Advice(Frozen):
    """Something to do, and the figure that it rests on."""

    about: Literal["dtype", "normalization", "exclude", "max_activation_norm_multiple"]
    says: str
    value: Any = Field(description="What the field should be; null leaves it as it is.")
    figure: str = Field(description="The name of the figure.")
    number: float | None
    hook_name: str | None = Field(description="Where it was measured.")


class Statistics(Frozen):
    """What a model's activations are like on a text."""

    object: Literal["job.statistics"] = "job.statistics"
    model: str
    dataset: str
    dtype: str
    context_size: int
    exclude: tuple[str | int, ...]
    tokens: int = Field(description="Tokens that were read.")
    rows: int = Field(description="Rows that count: tokens that are not left out.")
    attention_rows: int = Field(description="Those whose attention was measured.")
    even_distance: float | None = Field(description="The mean distance of a head that attends evenly, at the same positions.")
    even_entropy: float | None = Field(description="Its mean entropy.")
    cut_lengths: tuple[int, ...] = Field(description="So many of the last tokens were read alone, after the first one of the row.")
    cut_positions: int = Field(description="Positions at which that was done.")
    embedding: NormFigures | None = Field(description="The residual stream before the first block.")
    layers: tuple[Layer, ...]
    hook_points: tuple[HookStatistics, ...]
    advice: tuple[Advice, ...]
