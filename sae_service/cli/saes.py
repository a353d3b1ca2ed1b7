"""The commands on SAEs in folders, whoever has trained them. They need no service; what computes is imported when asked for."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sae_service.cli.common import AsJson, count, reported
from sae_service.schema import Dtype, FormatName, WeightProcessing

Folder = Annotated[Path, typer.Argument(help="The folder of an SAE.")]
Other = Annotated[Path, typer.Argument(help="The folder of the other SAE.")]
Format = Annotated[FormatName | None, typer.Option(help="The SAE's file format. Default: the one whose files are there.")]


def evaluate(
    folder: Folder,
    model: Annotated[str, typer.Option(help="The language model: a folder, or a hub name.")],
    dataset: Annotated[str, typer.Option(help="The text: a file, a folder, or a hub name.")],
    hook: Annotated[str, typer.Option(help="The hook point that the SAE reads, such as blocks.8.hook_resid_post.")],
    format: Format = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a hub model.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="The number type of the language model.")] = "float32",
    weight_processing: Annotated[
        WeightProcessing, typer.Option(help="compatibility: TransformerLens folds layer norms and centres weights.")
    ] = "none",
    split: Annotated[str, typer.Option(help="The split of the text.")] = "train",
    held_out_split: Annotated[
        str | None, typer.Option(help="The split to measure on. Default: a share of the documents, chosen by their hash.")
    ] = None,
    column: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    context_size: Annotated[int, typer.Option(help="Tokens in each row that the model reads.")] = 128,
    tokens: Annotated[
        int, typer.Option(parser=count, metavar="TOKENS", help="Tokens to measure on; all that there are, if fewer.")
    ] = 65_536,
    as_json: AsJson = False,
) -> None:
    """Measures an SAE on held-out text, as every job measures those that it has trained."""
    from sae_service import text_tables
    from sae_service.evaluation import of_folders

    stream = {
        "model": {"name": model, "revision": revision, "dtype": dtype, "weight_processing": weight_processing},
        "dataset": {"path": dataset, "split": split, "held_out_split": held_out_split, "column": column},
        "context_size": context_size,
        "tokens": tokens,
        "batch": 1,
    }
    with reported():
        figures = of_folders.measured(folder, format, hook, stream)
        if as_json:
            typer.echo(json.dumps(figures, indent=1))
        else:
            text_tables.show(text_tables.figures_of(figures))


def compare(
    folder: Folder,
    other: Other,
    format: Format = None,
    other_format: Annotated[FormatName | None, typer.Option(help="The other SAE's file format.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compares the directions (decoder rows) of two SAEs, each in any format: how many of one are in the other.

    Beside them, what as many random directions reach. The time and the memory grow fast with the number of latents.
    """
    from sae_service import text_tables
    from sae_service.evaluation import of_folders

    with reported():
        figures = of_folders.compared(folder, other, format, other_format)
        if as_json:
            typer.echo(json.dumps(figures, indent=1))
        else:
            text_tables.show(text_tables.comparison(figures))
