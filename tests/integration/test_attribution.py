"""Attribution to latents of SAEs of the demo's model: exact where the path is linear, and compared with patching elsewhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_service.activations.difference import Difference
from sae_service.activations.gradients import by_rows
from sae_service.activations.model import LanguageModel
from sae_service.activations.patched import Moves
from sae_service.analysis.attribution.records import Attribution
from sae_service.analysis.prompted import rows_at
from sae_service.errors import InvalidSpec
from sae_service.formats import folder
from sae_service.sae.inference import InferenceSAE
from sae_service.sae.sites import at
from sae_service.spec import ModelSpec
from tests.looked_at import in_folder
from tests.model_families import Families
from tests.steered import MODEL, PROMPTS, attributed, attribution_spec, sae_at

LAYERS = (0, 1, 3)
Folders = list[dict[str, str]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """SAEs of the residual stream after the blocks 0, 1 and 3, the last."""
    path = tmp_path_factory.mktemp("saes")
    return [sae_at(path / f"l{layer}", f"blocks.{layer}.hook_resid_post", seed=layer) for layer in LAYERS]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, folders: Folders) -> Attribution:
    made = attributed(tmp_path_factory.mktemp("out"), attribution_spec(*folders, graph=12))
    assert made is not None
    return made


def test_it_is_exact_where_the_path_is_linear(tmp_path: Path, folders: Folders) -> None:
    """After the last block comes the final norm alone, whose scale is frozen."""
    found = attributed(tmp_path, attribution_spec(folders[2], final_norm="frozen"))
    assert found is not None
    assert len(found.nodes) > 5
    for node in found.nodes:
        assert node.effect == pytest.approx(node.exact, abs=1e-5, rel=1e-5)
        assert node.qk == pytest.approx(node.exact, abs=1e-5, rel=1e-5), "no softmax comes after"
    assert found.correlations["effect"].pearson == pytest.approx(1)
    assert found.correlations["effect"].spearman == pytest.approx(1, abs=1e-3)


def test_live_norms_and_layers_between_make_it_an_approximation_that_the_corrections_improve(found: Attribution) -> None:
    of = found.correlations
    effect, qk, size, dropped = (of[name].pearson or 0 for name in ("effect", "qk", "effect_size", "grad_drop"))
    assert 0.5 < effect < 1
    assert qk > effect
    assert dropped > size - 0.2
    assert (of["qk"].mean_error or 0) < (of["effect"].mean_error or 0)
    sizes = [abs(node.effect) for node in found.nodes]
    assert sizes == sorted(sizes, reverse=True)
    assert [node.exact is not None for node in found.nodes] == [place < 50 for place in range(len(found.nodes))]


def test_latents_and_errors_sum_to_the_effect_of_all_that_an_sae_sees(found: Attribution, folders: Folders) -> None:
    """To the first order, what is taken away is x - b_dec at each position that counts."""
    model = _model()
    for total in found.totals:
        read, one = found.prompts[total.prompt], next(one for one in folders if one["name"] == total.sae)
        tokens, hook = np.array(read.tokens, np.int32), one["hook_name"]
        gradient = by_rows(model, tokens, Difference(read.position, read.first, read.second), (hook,))[hook]
        x = rows_at(model, tokens[None], (hook,))[hook][0] - np.asarray(folder.load(Path(one["path"])).b_dec)
        assert total.effect + total.error_effect == pytest.approx(-(x * gradient)[1:].sum(), abs=1e-3)


def test_positions_that_training_leaves_out_have_no_part_in_it(tmp_path: Path, folders: Folders, found: Attribution) -> None:
    assert all(node.position > 0 for node in found.nodes), "BOS is first"
    ids = list(found.prompts[0].tokens)
    base: dict[str, Any] = {"prompts": [ids], "exact": 0, "graph": 0, "top": 1000}
    with_all = attributed(tmp_path / "a", attribution_spec(folders[0], **base, exclude=[]))
    without = attributed(tmp_path / "b", attribution_spec(folders[0], **base, exclude=[ids[0], ids[2]]))
    assert with_all is not None
    assert without is not None
    assert {node.position for node in without.nodes} == {1, 3}
    kept = [node for node in with_all.nodes if node.position in (1, 3)]
    assert without.totals[0].effect == pytest.approx(sum(node.effect for node in kept), abs=1e-4)
    assert without.correlations["effect"].pearson is None


def test_a_counterfactual_of_the_same_prompt_changes_nothing_and_another_one_does(tmp_path: Path, folders: Folders) -> None:
    prompt, other = [0, 449, 410, 269], [0, 449, 1149, 269]
    same = attributed(tmp_path / "a", attribution_spec(*folders, prompts=[prompt], counterfactuals=[prompt]))
    assert same is not None
    assert (same.nodes, same.edges, same.patched_with) == ((), (), "counterfactual")
    assert all((total.n, total.effect, total.error_effect) == (0, 0, 0) for total in same.totals)
    found = attributed(
        tmp_path / "b", attribution_spec(folders[2], prompts=[prompt], counterfactuals=[other], final_norm="frozen")
    )
    assert found is not None
    read = found.prompts[0]
    assert read.counterfactual is not None
    assert read.counterfactual < read.difference, "it speaks of a lord"
    assert {node.position for node in found.nodes} == {3}, "the others do not reach the last logits from there"
    for node in found.nodes:
        assert node.activation != node.patched
        assert node.effect == pytest.approx(node.exact, abs=1e-5, rel=1e-4)


def test_the_graph_leads_from_earlier_saes_to_later_ones(found: Attribution) -> None:
    assert found.edges
    names = list(found.saes)
    for edge in found.edges:
        source, target = found.nodes[edge.source], found.nodes[edge.target]
        assert names.index(source.sae) < names.index(target.sae)
        assert source.prompt == target.prompt
        assert source.position <= target.position, "attention looks back"
        assert edge.weight


def test_an_edge_is_the_slope_of_a_later_pre_activation(tmp_path: Path, folders: Folders) -> None:
    """Within the residual stream and one block, against a small step along the decoder row."""
    found = attributed(tmp_path, attribution_spec(*folders[:2], prompts=PROMPTS[:1], graph=8, exact=0))
    assert found is not None
    assert found.edges
    first, second = (folder.load(Path(one["path"])) for one in folders[:2])
    model = _model()
    tokens = np.array([found.prompts[0].tokens], np.int32)
    names = [one["hook_name"] for one in folders[:2]]
    step = 1e-2
    for edge in found.edges[:4]:
        source, target = found.nodes[edge.source], found.nodes[edge.target]
        rows = np.asarray(first.W_dec)[[source.latent]] * step
        moves = Moves(np.array([source.position]), {names[0]: rows})
        z = [_pre_activation(model, tokens, names, sign, moves, second, target) for sign in (1, -1)]
        slope = (z[0] - z[1]) / (2 * step)
        assert edge.weight == pytest.approx(slope * source.activation, rel=0.02, abs=0.02)


def _model() -> LanguageModel:
    return LanguageModel(ModelSpec.model_validate(MODEL), "cpu")


def _pre_activation(model: Any, tokens: Any, names: list[str], sign: int, moves: Any, sae: Any, target: Any) -> float:
    """That of a latent in a run in which a row is moved."""
    seen: dict[str, Any] = {}
    edits = {
        names[0]: lambda rows: rows + sign * moves.at(names[0], rows),
        names[1]: lambda rows: seen.update(rows=rows.float().numpy()),
    }
    model.losses(tokens, edits)
    return float(seen["rows"][0, target.position] @ np.asarray(sae.W_enc)[:, target.latent])


def test_the_same_job_gives_the_same_record_and_one_that_is_to_stop_leaves_nothing(tmp_path: Path, folders: Folders) -> None:
    job = attribution_spec(*folders[:2], prompts=PROMPTS[:1], exact=5, graph=5)
    assert attributed(tmp_path / "a", job) == attributed(tmp_path / "b", job)
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    assert attributed(tmp_path / "c", job, should_stop=stop) is None
    assert not list((tmp_path / "c").rglob("*.json"))


@pytest.mark.parametrize(
    ("fields", "pointer", "text"),
    [
        ({"position": 4}, "/position", "has 4 tokens"),
        ({"position": -5}, "/position", "has 4 tokens"),
        ({"counterfactuals": ["A king"]}, "/counterfactuals/0", "its prompt has 4"),
        ({"contrasts": [[" king", " kingdoms of"]]}, "/contrasts/0/1", "tokens"),
        ({"contrasts": [[1, 2048]]}, "/contrasts/0/1", "0 to 2047"),
    ],
)
def test_what_cannot_be_attributed_says_its_field(
    tmp_path: Path, folders: Folders, fields: dict[str, Any], pointer: str, text: str
) -> None:
    with pytest.raises(InvalidSpec) as caught:
        attributed(tmp_path, attribution_spec(folders[0], **{"prompts": PROMPTS[:1]} | fields))
    assert (caught.value.param, text in caught.value.message) == (pointer, True), caught.value
    assert not list(tmp_path.rglob("*.json")), "nothing half-made stays"


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2", "falcon"])
def test_other_families_are_attributed_to_too(families: Families, tmp_path: Path, family: str) -> None:
    """Latents of the middle of the model, in directions of which nobody knows anything."""
    random, hook = np.random.default_rng(0), "blocks.0.hook_resid_post"
    W = random.normal(size=(40, 64)).astype(np.float32)
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    sae = InferenceSAE(W.T.copy(), np.zeros(40), W, np.zeros(64), np.zeros(40), sites=at(hook, 64))
    one = in_folder(tmp_path / "sae", sae, hook)
    found = attributed(tmp_path / "out", attribution_spec(one, model={"name": str(families.path(family))}, exact=20, graph=0))
    assert found is not None
    assert found.correlations["effect"].pearson is not None
    assert (found.correlations["effect"].pearson or 0) > 0.7
    assert (found.correlations["qk"].pearson or 0) > 0.7
