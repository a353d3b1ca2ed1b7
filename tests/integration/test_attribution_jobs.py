"""Jobs that attribute, through the service: what is refused, and what is shown to a program and on the command line."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from sae_service.analysis.attribution.records import Attribution
from sae_service.cli import app
from sae_service.client import Client
from sae_service.errors import NotFound
from tests.finished_jobs import Finished
from tests.served import served

PROMPT = "The king of"


def spec(job: str) -> dict[str, Any]:
    return {"kind": "attribution", "job": job, "prompts": [PROMPT], "contrasts": [[" king", " lord"]], "exact": 10, "graph": 6}


@pytest.fixture(scope="module")
def done(finished: Finished, finished_api: TestClient, trained: str) -> str:
    return finished.submitted(finished_api, spec(trained) | {"saes": ["a", "c"]})


@pytest.fixture(scope="module")
def address(finished: Finished, done: str) -> Iterator[str]:
    with served(finished.settings) as url:
        yield f"http://{url}"


@pytest.mark.parametrize(
    ("fields", "pointer", "text"),
    [
        ({"saes": ["d"]}, "/saes/0", "it has a, b, c"),
        ({"job": None}, "/model", "required"),
        ({"contrasts": []}, "/contrasts", "1 or more"),
        ({"contrasts": [[" a"]]}, "/contrasts/0", "two tokens"),
        ({"contrasts": [[1, 2]] * 3}, "/contrasts", "as many as there are prompts (1)"),
        ({"counterfactuals": [PROMPT, PROMPT]}, "/counterfactuals", "as many as there are prompts (1)"),
        ({"prompts": [[1, 2]], "counterfactuals": [[1, 2, 3]]}, "/counterfactuals/0", "as many tokens"),
        ({"prompts": [[1] * 129]}, "/prompts/0", "context is 128"),
        ({"exact": -1}, "/exact", "at least 0"),
        ({"contrast": [1, 2]}, "/contrast", "did you mean 'contrasts'"),
    ],
)
def test_what_cannot_be_attributed_is_refused_with_its_field(
    finished_api: TestClient, trained: str, fields: dict[str, Any], pointer: str, text: str
) -> None:
    answer = finished_api.post("/v1/jobs", json=spec(trained) | fields)
    assert answer.status_code == 422, answer.text
    found = [(error["pointer"], error["detail"]) for error in answer.json()["errors"]]
    assert any(place == pointer and text in detail for place, detail in found), found


def test_what_was_found_is_told_over_rest(finished_api: TestClient, done: str, trained: str) -> None:
    answer = finished_api.get(f"/v1/jobs/{done}/attribution")
    assert answer.status_code == 200, answer.text
    found = Attribution.model_validate(answer.json())
    assert (found.saes, len(found.prompts)) == (("a", "c"), 1)
    assert found.edges == (), "both are at one hook point"
    assert [one.sae for one in found.totals] == ["a", "c"]
    whole = finished_api.get(f"/v1/jobs/{done}").json()
    assert whole["spec"]["exclude"] == ["bos", "eos", "pad"]
    other = finished_api.get(f"/v1/jobs/{trained}/attribution")
    assert (other.status_code, "its kind is train" in other.json()["detail"]) == (404, True)
    every = finished_api.post("/v1/jobs", json=spec(trained)).json()
    assert every["spec"]["saes"] == ["a", "b", "c"], "all of them, if none is named"
    finished_api.post(f"/v1/jobs/{every['id']}/cancel")
    again = finished_api.post(f"/v1/jobs/{every['id']}/retry").json()
    assert again["spec"] == every["spec"]
    finished_api.post(f"/v1/jobs/{again['id']}/cancel")


def test_a_program_and_the_command_line_read_it(address: str, done: str, trained: str) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, [*arguments, "--url", address])

    client = Client(address)
    assert client.attribution(done).object == "job.attribution"
    with pytest.raises(NotFound):
        client.attribution("job_x")
    shown = run("attribution", done)
    assert shown.exit_code == 0, shown.output
    for word in ("' king' - ' lord'", "GradDrop", "with softmax", "exact", "Pearson", "error of c"):
        assert word in shown.output, shown.output
    assert json.loads(run("attribution", done, "--json").output)["object"] == "job.attribution"
    made = run("attribute", trained, "--sae", "a", "--prompt", PROMPT, "--contrast", " king", " lord", "--no-wait")
    assert made.exit_code == 0, made.output
    assert client.job(made.output.strip()).spec["contrasts"] == [[" king", " lord"]]
    client.cancel(made.output.strip())
    wrong = run("attribute", trained, "--sae", "z", "--prompt", PROMPT, "--contrast", " king", " lord", "--no-wait")
    assert (wrong.exit_code, "no SAE 'z'" in wrong.output) == (2, True), wrong.output
