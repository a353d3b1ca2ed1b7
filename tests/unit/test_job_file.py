"""A job in a YAML file: what YAML allows and a job does not have is refused by its line, soon."""

from pathlib import Path

import pytest

from sae_service.cli.job_file import JobFile
from sae_service.errors import InvalidSpec
from sae_service.spec import JobSpec

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stream:\n  tokens: 4096\n  batch: 256\n  tokens: 8192\n", "line 4: tokens stands twice"),
        (BOMB, "has more than 100000 parts"),
        ("stream: &a [*a]\n", "contains itself"),
    ],
)
def test_a_file_that_says_too_much_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(InvalidSpec, match=said):
        JobFile(str(tmp_path / "job.yaml")).spec()


@pytest.mark.parametrize("place", ["tokens", "batch", "context_size"])
def test_true_is_no_number(spec: dict, place: str) -> None:
    spec["stream"][place] = True
    with pytest.raises(ValueError, match="must be a number, not true"):
        JobSpec.model_validate(spec)
