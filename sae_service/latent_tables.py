"""What the command line draws of SAEs and latents. Tokens are shown as they stand in the text, but for the ends of lines."""

from collections.abc import Iterable

from rich.table import Column, Table
from rich.text import Text

from sae_service.analysis.records import Bins, Latent, LatentEntry, Passage, SAEEntry
from sae_service.text_tables import bars, clock, number

BEFORE, BEHIND = 24, 12
"""Tokens of a passage that are shown around the one on which the latent is strongest."""
ENDS = str.maketrans({"\n": "⏎", "\r": "", "\t": " "})


def saes(found: Iterable[SAEEntry]) -> Table:
    """One line for each SAE."""
    table = Table(Column("sae", no_wrap=True), "hook point", "architecture", "d_sae", "tokens", "finished", "latents", box=None)
    for one in found:
        hooks = one.hook_name if isinstance(one.hook_name, str) else ", ".join(one.hook_name or ())
        sizes = ("" if value is None else f"{value:,}" for value in (one.d_sae, one.tokens))
        table.add_row(one.id, hooks, one.kind or "", *sizes, clock(one.finished_at), "yes" if one.latents_job else "")
    return table


def latents(found: Iterable[LatentEntry]) -> Table:
    """One line for each latent."""
    table = Table("latent", "density", "largest", "fires on", "raises", "explanation", box=None)
    for one in found:
        words = (" ".join(repr(token) for token in tokens) for tokens in (one.fires_on, one.raises))
        table.add_row(str(one.latent), f"{one.density:.2e}", number(one.largest), *words, one.explanation or "")
    return table


def latent(one: Latent) -> Table:
    """The figures of a latent, the tokens that it raises and lowers, and its neighbours."""
    table = Table(show_header=False, box=None)
    rows = {
        "latent": str(one.latent),
        "explanation": one.explanation or "",
        "fires on": f"{one.count:,} tokens, {one.density:.3%}",
        "activations": f"mean {number(one.mean)}, largest {number(one.largest)}  {_bars(one.histogram)}",
        "raises": ", ".join(f"{scored.token!r} {scored.score:.2f}" for scored in one.raised),
        "lowers": ", ".join(f"{scored.token!r} {scored.score:.2f}" for scored in one.lowered),
        "reads": ", ".join(f"{scored.token!r} {scored.score:.2f}" for scored in one.reads),
        "nearest": ", ".join(f"{other.latent} ({other.similarity:.2f})" for other in one.nearest),
        "fires with": ", ".join(f"{other.latent} ({other.similarity:.2f})" for other in one.coactive),
        "neurons": ", ".join(f"{other.neuron} ({other.correlation:+.2f})" for other in one.neurons),
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    return table


def _bars(histogram: Bins) -> str:
    return bars(list(histogram.counts)) if histogram.counts else ""


def passages(found: Iterable[Passage]) -> Table:
    """One line for each passage, in which tokens on which the latent fires are «marked», the strongest one twice."""
    table = Table("", "largest", Column("passage", overflow="fold"), box=None)
    for one in found:
        table.add_row("" if one.quantile is None else f"tenth {one.quantile}", number(one.largest), marked(one))
    return table


def marked(one: Passage) -> Text:
    """The tokens around the strongest one."""
    text = Text()
    first = max(0, one.position - BEFORE)
    for place in range(first, min(len(one.tokens), one.position + BEHIND + 1)):
        token = one.tokens[place].translate(ENDS)
        if place == one.position:
            text.append(f"««{token}»»", style="bold reverse")
        elif one.activations[place] > 0:
            text.append(f"«{token}»", style="bold")
        else:
            text.append(token)
    return text
