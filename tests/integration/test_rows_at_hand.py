"""What is set by looking at rows, thresholds and the limit of their norms, is the same however often a job is stopped."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.recorder import Recorder
from tests.small_jobs import small_job, train, weights

LIMIT = 1.2


def job(**stream: Any) -> dict[str, Any]:
    """24 steps in three fills, measured in the middle of the second and after it; some rows are beyond the limit."""
    changed = small_job(max_activation_norm_multiple=LIMIT, **stream)
    for sae, kind in zip(changed["saes"], ("batchtopk", "matryoshka", "topk"), strict=True):
        sae |= {"architecture": {"kind": kind, "d_sae": 256, "k": 16}, "hook_name": "blocks.2.hook_resid_post"}
    return changed | {"evaluation": {"tokens": 4096, "every_tokens": 4 * 256}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, dict[str, bytes]]:
    return train(tmp_path_factory.mktemp("finished"), job())


@pytest.mark.parametrize("stop_after", [11, 16, 24])
def test_a_stopped_job_ends_with_the_same_thresholds(
    finished: tuple[Recorder, dict[str, bytes]], tmp_path: Path, stop_after: int
) -> None:
    recorder, nothing = train(tmp_path, job(), stop_after=stop_after)
    assert nothing == {}
    resumed, files = train(tmp_path, job(), resume_from=(recorder.checkpoints[-1].key,))
    assert weights(files) == weights(finished[1])
    without_speed = [
        [json.dumps({name: value for name, value in row.items() if name not in ("tokens_per_s", "held_out")}) for row in rows]
        for rows in (recorder.rows + resumed.rows, finished[0].rows)
    ]
    assert without_speed[0] == without_speed[1]


def test_checkpoints_in_the_middle_change_no_weight(finished: tuple[Recorder, dict[str, bytes]], tmp_path: Path) -> None:
    _, files = train(tmp_path, job() | {"checkpoints": {"every_tokens": 256}, "evaluation": {"tokens": 4096}})
    assert weights(files) == weights(finished[1])


def test_k_latents_are_active_on_held_out_text(finished: tuple[Recorder, dict[str, bytes]]) -> None:
    for kind in ("batchtopk", "matryoshka"):
        measured = json.loads(finished[1][f"saes/{kind}_256/metrics.json"])
        assert measured["l0"] == pytest.approx(16, rel=0.15), "24 steps of 256 rows"


def test_rows_beyond_the_limit_are_in_no_figure_of_reconstruction(finished: tuple[Recorder, dict[str, bytes]]) -> None:
    measured = json.loads(finished[1]["saes/topk_256/metrics.json"])
    assert measured["max_norm_ratio"] > LIMIT
    assert measured["outlier_share"] < 0.01
    assert 2000 < measured["evaluation_tokens"] < 4096
