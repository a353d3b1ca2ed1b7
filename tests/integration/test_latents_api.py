"""What the service shows of finished SAEs and their latents, over REST, to a program and on the command line."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import load_file
from typer.testing import CliRunner

from sae_service.analysis.records import Passage
from sae_service.cli import app
from sae_service.client import Client
from sae_service.errors import NotFound
from sae_service.latent_tables import marked
from tests.finished_jobs import Finished
from tests.looked_at import STREAM, in_folder
from tests.saes import random_sae
from tests.served import served


@pytest.fixture(scope="module")
def address(finished: Finished, looked: str) -> Iterator[str]:
    with served(finished.settings) as url:
        yield f"http://{url}"


def get(finished_api: TestClient, path: str, **query: Any) -> Any:
    answer = finished_api.get(f"/v1/saes{path}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_every_finished_sae_is_listed_and_says_who_has_looked_at_it(
    finished: Finished, finished_api: TestClient, trained: str, looked: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = in_folder(finished.settings.data_dir / "foreign", random_sae("topk", d_in=128))
    foreign = finished.submitted(finished_api, {"kind": "latents", "folders": [folder], "stream": STREAM, "tokens": 1000})
    first = get(finished_api, "", limit=2)
    assert [one["id"] for one in first["data"]] == [f"{foreign}.foreign", f"{trained}.a"]
    assert first["has_more"]
    rest = get(finished_api, "", limit=2, after=first["last_id"])
    assert [one["id"] for one in rest["data"]] == [f"{trained}.b", f"{trained}.c"]
    assert [one["latents_job"] for one in (*first["data"], rest["data"][0])] == [foreign, looked, None]
    assert finished_api.get("/v1/saes", params={"after": "job_x.a"}).status_code == 400
    assert get(finished_api, f"/{foreign}.foreign")["d_sae"] == 24


def test_one_sae_has_its_figures_and_says_on_what_it_was_looked_at(finished_api: TestClient, trained: str, looked: str) -> None:
    found = get(finished_api, f"/{trained}.a")
    assert (found["kind"], found["d_sae"], found["hook_name"]) == ("topk", 64, "blocks.2.hook_resid_post")
    assert found["metrics"]["fvu"] > 0
    assert found["looked_at"]["n_prompts"] == 6000 // 64
    assert get(finished_api, f"/{trained}.b")["looked_at"] is None
    assert finished_api.get(f"/v1/saes/{trained}.d").status_code == 404
    assert finished_api.get(f"/v1/saes/{looked}.a").status_code == 404, "the SAE is the training job's"


def test_latents_are_sorted_filtered_and_paged(finished_api: TestClient, trained: str, looked: str) -> None:
    path = f"/{trained}.a/latents"
    whole = get(finished_api, path, limit=100)["data"]
    assert [one["latent"] for one in whole] == list(range(64))
    by_density = get(finished_api, path, sort="density", order="desc", limit=100)["data"]
    densities = [one["density"] for one in by_density]
    assert densities == sorted(densities, reverse=True)
    assert densities[0] > 0
    pages, after = list[int](), None
    while True:
        part = get(finished_api, path, sort="density", order="desc", limit=25, **({} if after is None else {"after": after}))
        pages += [one["latent"] for one in part["data"]]
        after = part["last_id"]
        if not part["has_more"]:
            break
    assert pages == [one["latent"] for one in by_density]
    middle = sorted(densities)[32]
    few = get(finished_api, path, max_density=middle, limit=100)["data"]
    assert {one["latent"] for one in few} == {one["latent"] for one in whole if one["density"] <= middle}
    assert finished_api.get(f"/v1/saes{path}", params={"after": 64}).status_code == 400


def test_latents_are_found_by_the_tokens_that_they_fire_on_or_raise(finished_api: TestClient, trained: str, looked: str) -> None:
    path = f"/{trained}.a/latents"
    one = get(finished_api, path, sort="density", order="desc", limit=1)["data"][0]
    on = get(finished_api, path, token=one["fires_on"][0], limit=100)["data"]
    assert one["latent"] in [other["latent"] for other in on]
    assert len(on) < 64
    for other in on:
        best = [passage for passage in get(finished_api, f"{path}/{other['latent']}")["passages"] if passage["quantile"] is None]
        assert one["fires_on"][0].strip() in [passage["tokens"][passage["position"]].strip() for passage in best]
    raising = get(finished_api, path, raises=one["raises"][0], limit=100)["data"]
    assert one["latent"] in [other["latent"] for other in raising]
    answer = finished_api.get(f"/v1/saes{path}", params={"token": "no such token"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "token")


def test_one_latent_comes_with_its_passages_and_quickly(finished_api: TestClient, trained: str, looked: str) -> None:
    path = f"/{trained}.a/latents"
    which = get(finished_api, path, sort="density", order="desc", limit=1)["data"][0]["latent"]
    began = time.monotonic()
    found = get(finished_api, f"{path}/{which}")
    assert time.monotonic() - began < 1
    assert found["count"] == sum(found["histogram"]["counts"])
    best = [one for one in found["passages"] if one["quantile"] is None]
    peaks = [one["largest"] for one in best]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] == found["largest"]
    assert [one["quantile"] for one in found["passages"][len(best) :]] == sorted(
        [tenth for tenth in range(1, 11) for _ in range(5)], reverse=True
    )
    for one in found["passages"]:
        assert len(one["tokens"]) == len(one["activations"]) == 32
        assert one["activations"][one["position"]] == one["largest"] == max(one["activations"])
    assert len(found["raised"]) == len(found["lowered"]) == len(found["nearest"]) == 10
    assert sum(found["logits"]["counts"]) == 2048


@pytest.mark.parametrize(("number", "status"), [("64", 404), ("-1", 400), ("x", 400)])
def test_a_latent_that_is_not_there_is_an_error_with_the_field(
    finished_api: TestClient, trained: str, looked: str, number: str, status: int
) -> None:
    answer = finished_api.get(f"/v1/saes/{trained}.a/latents/{number}")
    assert (answer.status_code, answer.json()["param"]) == (status, "latent")


def test_an_sae_that_nobody_has_looked_at_says_what_to_do(finished_api: TestClient, trained: str, looked: str) -> None:
    answer = finished_api.get(f"/v1/saes/{trained}.b/latents")
    assert answer.status_code == 404
    assert f"sae-service look {trained}" in answer.json()["detail"]


def test_a_range_of_the_file_is_the_rows_of_some_latents(
    finished_api: TestClient, trained: str, looked: str, tmp_path: Path
) -> None:
    url = f"/v1/saes/{trained}.a/latents/file"
    whole = finished_api.get(url)
    (tmp_path / "columns").write_bytes(whole.content)
    columns = load_file(tmp_path / "columns")
    length = int.from_bytes(whole.content[:8], "little")
    start = 8 + length + json.loads(whole.content[8 : 8 + length])["density"]["data_offsets"][0]
    part = finished_api.get(url, headers={"Range": f"bytes={start + 4 * 10}-{start + 4 * 20 - 1}"})
    assert part.status_code == 206
    np.testing.assert_array_equal(np.frombuffer(part.content, np.float32), columns["density"][10:20])
    assert finished_api.head(url).headers["ETag"] == whole.headers["ETag"]
    assert finished_api.get(url, headers={"If-None-Match": whole.headers["ETag"]}).status_code == 304


def test_a_program_gets_the_same(address: str, finished_api: TestClient, trained: str, looked: str, tmp_path: Path) -> None:
    client, sae_id = Client(address), f"{trained}.a"
    assert sae_id in [one.id for one in client.saes()]
    assert client.sae(sae_id).latents_job == looked
    listed = list(client.latents(sae_id, sort="density", order="desc", limit=3))
    assert [one.model_dump(mode="json") for one in listed] == get(
        finished_api, f"/{sae_id}/latents", sort="density", order="desc", limit=3
    )["data"]
    assert len(list(client.latents(sae_id))) == 64
    assert client.latent(sae_id, 5).model_dump(mode="json") == get(finished_api, f"/{sae_id}/latents/5")
    with pytest.raises(NotFound, match="0 to 63"):
        client.latent(sae_id, 64)
    path = client.download_latents(sae_id, tmp_path / "columns")
    assert load_file(path)["density"].shape == (64,)


def test_the_command_line_shows_passages_with_the_activating_tokens_marked(address: str, trained: str, looked: str) -> None:
    def run(*arguments: str) -> str:
        ended = CliRunner().invoke(app, [*arguments, "--url", address])
        assert ended.exit_code == 0, ended.output
        return ended.output

    assert f"{trained}.a" in run("saes")
    which = run("latents", f"{trained}.a", "--sort", "density", "--order", "desc", "--limit", "1").splitlines()[1].split()[0]
    shown = run("latent", f"{trained}.a", which, "--passages", "3")
    assert shown.count("««") == 3
    assert json.loads(run("latent", f"{trained}.a", which, "--json"))["latent"] == int(which)
    job_id = run("look", trained, "--sae", "a", "--tokens", "2k").strip()
    assert Client(address).job(job_id).spec["tokens"] == 2000
    Client(address).cancel(job_id)
    missing = CliRunner().invoke(app, ["latent", f"{trained}.a", "999", "--url", address])
    assert (missing.exit_code, "0 to 63" in missing.output) == (3, True)
    unclear = CliRunner().invoke(app, ["latents", trained, "--url", address])
    assert (unclear.exit_code, "a, b, c" in unclear.output) == (3, True)


def test_marks_are_around_the_tokens_that_the_latent_fires_on() -> None:
    tokens = ("Once", " upon", " a", "\n", " time")
    acts = (1, 2, 0, 0, 0.5)
    passage = Passage(passage=3, quantile=None, largest=2, position=1, tokens=tokens, ids=(1, 2, 3, 4, 5), activations=acts)
    assert marked(passage).plain == "«Once»«« upon»» a⏎« time»"
