"""Latents in the forms of other programs, and what these say of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from sae_service.cli import app
from sae_service.client import Client
from tests.finished_jobs import Finished
from tests.served import served


@pytest.fixture(scope="module")
def address(finished: Finished, looked: str) -> Iterator[str]:
    with served(finished.settings) as url:
        yield f"http://{url}"


@pytest.fixture
def often(finished_api: TestClient, trained: str, looked: str) -> list[int]:
    """The latents of the SAE a, those that fire most often first."""
    query = {"sort": "density", "order": "desc", "limit": 100}
    found = finished_api.get(f"/v1/saes/{trained}.a/latents", params=query).json()["data"]
    return [one["latent"] for one in found]


def exported(api: TestClient, sae_id: str, format: str, latent: int) -> str:
    answer = api.get(f"/v1/saes/{sae_id}/latents/export", params={"format": format, "first": latent, "last": latent})
    assert answer.status_code == 200, answer.text
    return answer.text


def test_neuronpedias_features_have_the_fields_that_its_importer_asks_for(
    finished_api: TestClient, trained: str, often: list[int]
) -> None:
    batch = json.loads(exported(finished_api, f"{trained}.a", "neuronpedia", often[0]))
    assert (batch["model_id"], batch["layer"], batch["sae_set"], batch["sae_id_suffix"]) == ("model", 2, "a", "")
    (feature,) = batch["features"]
    known = finished_api.get(f"/v1/saes/{trained}.a/latents/{often[0]}").json()
    assert (feature["feature_index"], feature["frac_nonzero"]) == (often[0], known["density"])
    assert feature["pos_str"] == [one["token"] for one in known["raised"]]
    for names in (
        ("neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1"),
        ("correlated_neurons_indices", "correlated_neurons_pearson", "correlated_neurons_l1"),
        ("correlated_features_indices", "correlated_features_pearson", "correlated_features_l1"),
        ("neg_str", "neg_values"), ("freq_hist_data_bar_heights", "freq_hist_data_bar_values"),
        ("logits_hist_data_bar_heights", "logits_hist_data_bar_values"),
    ):  # fmt: skip
        assert len({len(feature[name]) for name in names}) == 1
    assert {"n_prompts_total", "n_tokens_in_prompt", "dataset", "decoder_weights_dist"} < set(feature)
    best, *_, last = feature["activations"]
    assert (best["bin_min"], best["bin_contains"], last["bin_contains"]) == (-1, -1, 0.1)
    assert last["bin_min"] <= max(last["values"]) + 5e-4
    assert best["values"][best["qualifying_token_index"]] == max(best["values"])
    assert len(best["tokens"]) == len(best["values"]) == 32


def test_saedashboards_data_have_a_group_for_the_strongest_and_for_each_tenth(
    finished_api: TestClient, trained: str, often: list[int]
) -> None:
    found = json.loads(exported(finished_api, f"{trained}.a", "saedashboard", often[0]))
    feature = found["feature_data_dict"][str(often[0])]
    groups = feature["sequence_data"]["seq_group_data"]
    assert [group["title"].split("<br>")[0].split(" ")[0] for group in groups] == ["TOP"] + ["INTERVAL"] * 10
    assert [len(group["seq_data"]) for group in groups] == [20] + [5] * 10
    sequence = groups[0]["seq_data"][0]
    assert {len(sequence[name]) for name in ("token_ids", "feat_acts", "token_logits", "loss_contribution")} == {32}
    assert len(feature["logits_table_data"]["top_token_ids"]) == 10
    assert found["feature_stats"]["max"] == [max(sequence["feat_acts"])]


def test_prompts_are_a_line_for_each_latent_that_fires_with_marked_examples(
    finished_api: TestClient, trained: str, often: list[int]
) -> None:
    answer = finished_api.get(f"/v1/saes/{trained}.a/latents/export", params={"format": "prompts"})
    lines = [json.loads(line) for line in answer.text.splitlines()]
    fire = [one for one in often if finished_api.get(f"/v1/saes/{trained}.a/latents/{one}").json()["count"]]
    assert [line["latent"] for line in lines] == sorted(fire)
    line = next(line for line in lines if line["latent"] == often[0])
    assert line["prompt"].count("\n10. ") == 1
    assert "««" in line["prompt"]
    assert len(line["examples"][0]["tokens"]) == len(line["examples"][0]["activations"])


@pytest.mark.parametrize(
    ("query", "status", "param"),
    [
        ({"format": "html"}, 400, "format"), ({}, 400, "format"), ({"format": "prompts", "last": 64}, 404, "last"),
        ({"format": "prompts", "first": 99}, 404, "first"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_refused_with_the_parameter(
    finished_api: TestClient, trained: str, looked: str, query: dict[str, Any], status: int, param: str
) -> None:
    answer = finished_api.get(f"/v1/saes/{trained}.a/latents/export", params=query)
    assert (answer.status_code, answer.json()["param"]) == (status, param)


def test_explanations_are_shown_and_searched_and_the_best_comes_first(
    finished_api: TestClient, trained: str, looked: str
) -> None:
    path = f"/v1/saes/{trained}.a"

    def explain(*found: dict[str, Any]) -> Any:
        return finished_api.post(f"{path}/explanations", json={"explanations": found})

    first = explain(
        {"latent": 7, "text": "Names of kings", "author": "anna"},
        {"latent": 7, "text": "Rulers, 100%", "author": "a model", "score": 0.8},
        {"latent": 9, "text": "Commas", "author": "anna"},
    )
    assert (first.status_code, first.json()) == (201, {"stored": 3})
    one = finished_api.get(f"{path}/latents/7").json()
    assert one["explanation"] == "Rulers, 100%"
    assert [(said["author"], said["text"]) for said in one["explanations"]] == [
        ("a model", "Rulers, 100%"), ("anna", "Names of kings"),
    ]  # fmt: skip
    assert explain({"latent": 7, "text": "Names of queens", "author": "anna"}).status_code == 201
    assert finished_api.get(f"{path}/latents/7").json()["explanations"][1]["text"] == "Names of queens"

    def found_by(words: str) -> list[int]:
        return [one["latent"] for one in finished_api.get(f"{path}/latents", params={"explanation": words}).json()["data"]]

    assert found_by("QUEENS") == [7]
    assert found_by("commas") == [9]
    assert found_by("kings") == []
    assert found_by("100%") == [7]
    assert found_by("%") == [7], "it is no wildcard"
    listed = finished_api.get(f"{path}/latents", params={"limit": 10}).json()["data"]
    assert [one["explanation"] for one in listed][6:10] == [None, "Rulers, 100%", None, "Commas"]


@pytest.mark.parametrize(
    ("explanation", "status", "pointer"),
    [
        ({"latent": 64, "text": "x"}, 404, "/explanations/0/latent"),
        ({"latent": -1, "text": "x"}, 422, "/explanations/0/latent"),
        ({"latent": 1, "text": ""}, 422, "/explanations/0/text"),
        ({"latent": 1}, 422, "/explanations/0/text"),
        ({"latent": 1, "text": "x", "by": "me"}, 422, "/explanations/0/by"),
    ],
)
def test_an_explanation_that_is_wrong_is_refused_with_its_field_and_none_is_stored(
    finished_api: TestClient, trained: str, looked: str, explanation: dict[str, Any], status: int, pointer: str
) -> None:
    body = {"explanations": [explanation, {"latent": 3, "text": "right"}]}
    answer = finished_api.post(f"/v1/saes/{trained}.a/explanations", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (status, pointer)
    assert finished_api.get(f"/v1/saes/{trained}.a/latents/3").json()["explanation"] is None


def test_a_program_and_the_command_line_export_and_explain(address: str, trained: str, looked: str, tmp_path: Path) -> None:
    client, sae_id = Client(address), f"{trained}.a"

    def run(*arguments: str) -> str:
        ended = CliRunner().invoke(app, [*arguments, "--url", address])
        assert ended.exit_code == 0, ended.output
        return ended.output

    run("export", sae_id, "--format", "prompts", "--output", str(tmp_path / "prompts.jsonl"))
    prompts = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    said = [{"latent": line["latent"], "text": f"about {line['latent']}.", "author": "echo"} for line in prompts]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(line) + "\n" for line in said))
    assert run("explain", sae_id, str(tmp_path / "said.jsonl")).strip() == str(len(said))
    which = said[3]["latent"]
    assert [one.latent for one in client.latents(sae_id, explanation=said[3]["text"])] == [which]
    assert f"about {which}." in run("latent", sae_id, str(which))
    (tmp_path / "said.jsonl").write_text("no JSON\n")
    assert CliRunner().invoke(app, ["explain", sae_id, str(tmp_path / "said.jsonl"), "--url", address]).exit_code == 2
