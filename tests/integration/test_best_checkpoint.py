"""Which checkpoint of a job is its best, that it is kept, and what of held-out figures is shown while a job trains."""

from typing import Any

import pytest

from sae_service import text_tables
from sae_service.errors import NotFound
from sae_service.jobs.attempts import Attempt
from sae_service.jobs.database import Database
from sae_service.jobs.records import Progress
from sae_service.jobs.store import JobStore
from tests.attempts import checkpoint, claimed


def commit(attempt: Attempt, step: int, score: float | None, is_final: bool = False) -> list[str]:
    written = checkpoint(step, is_final) | {"key": f"{attempt.job_id}/{step}", "score": score}
    return [key.rsplit("/")[-1] for key in attempt.commit(written, keep=1)]


def test_the_best_and_the_last_checkpoint_are_kept_and_named(database: Database, store: JobStore) -> None:
    attempt = claimed(database, store)
    scores = {1: 0.5, 2: 0.2, 3: None, 4: 0.3, 5: 0.1}
    given_up = {step: commit(attempt, step, score) for step, score in scores.items()}
    assert given_up == {1: [], 2: [], 3: ["1"], 4: ["3"], 5: ["2"]}, "one is kept beside the best"
    assert store.checkpoint(attempt.job_id, "best").step == store.checkpoint(attempt.job_id, "latest").step == 5

    def named() -> list[tuple[int, tuple[str, ...]]]:
        return [(found.step, found.names) for found in store.checkpoints(attempt.job_id)]

    assert commit(attempt, 6, 0.1) == ["4"], "of equals the later one is the best"
    assert named() == [(6, ("latest", "best")), (5, ())]
    assert commit(attempt, 7, None) == ["5"]
    assert named() == [(7, ("latest",)), (6, ("best",))]
    assert commit(attempt, 8, 0.4, is_final=True) == []
    assert named() == [(8, ("latest",)), (7, ()), (6, ("best",))]


def test_where_nothing_was_measured_no_checkpoint_is_the_best(database: Database, store: JobStore) -> None:
    attempt = claimed(database, store)
    commit(attempt, 1, None)
    with pytest.raises(NotFound, match="best"):
        store.checkpoint(attempt.job_id, "best")


def progress(step: int, **more: Any) -> dict[str, Any]:
    row = {"sae": "a", "step": step, "loss": 1.0, "fvu": 0.25, "l0": 30.0}
    return {
        "step": step, "total_steps": 9, "tokens": step, "total_tokens": 9, "tokens_per_s": 1.0, "metrics": {"a": row}, **more,
    }  # fmt: skip


def test_held_out_figures_are_shown_until_there_are_others_or_the_job_is_before_them_again(
    database: Database, store: JobStore
) -> None:
    attempt = claimed(database, store)
    figures = {"a": {"step": 4, "fvu": 0.125, "fvu_by_row": 0.25, "l0": 31.0, "ce_loss_recovered": None}}

    def after(step: int, **more: Any) -> Progress:
        attempt.metrics([{"sae": "a", "step": step}], progress(step, **more))
        found = store.get(attempt.job_id).progress
        assert found is not None
        return found

    assert after(3).held_out == {}
    assert after(4, held_out=figures).held_out == figures
    assert after(5).held_out == figures
    shown = text_tables.figures(after(6))
    headers = ["sae", "training loss", "training fvu", "training l0", "held-out fvu", "by row", "held-out l0", "recovered"]
    assert [column.header for column in shown.columns] == headers
    cells = ["a", "1.0000", "0.2500", "30.0", "0.1250", "0.2500", "31.0", "-"]
    assert [next(iter(column.cells)) for column in shown.columns] == cells
    assert text_tables.held_out(after(6)) == "held out at step 4: a fvu 0.1250, fvu_by_row 0.2500, l0 31.0, ce_loss_recovered -"
    assert after(2).held_out == {}
