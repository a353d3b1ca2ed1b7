"""What the command line draws of jobs on prompts."""

from rich.table import Column, Table

from sae_service.analysis.attribution.records import Attribution
from sae_service.analysis.steering.records import ErrorTerm, Steering
from sae_service.text_tables import number

LINES = 21
"""Coefficients that are shown, of how many there are."""
NODES = 30
"""Latents that are shown, and edges between them."""
PARTS = 6
"""Parts of a difference that are shown: those that change most."""


def steering(found: Steering) -> list[Table | str]:
    """All that steering did."""
    shown: list[Table | str] = [_steered(found), "", _scan(found)]
    if len(found.coefficients) > LINES:
        shown.append(f"{LINES} of {len(found.coefficients)} coefficients; --json and --columns have all.")
    if found.error_term is not None:
        shown += ["", _error_term(found.error_term)]
    if found.continuations:
        shown += ["", _continuations(found)]
    return shown


def _steered(found: Steering) -> Table:
    what = "a direction" if found.latent is None else f"latent {found.latent} of {found.sae}"
    about = {
        "steered": f"{what}, at {' and '.join(found.hook_names)} of {found.model}",
        "mode": f"{found.mode}; a coefficient of 1 is {'a share' if found.mode == 'ablate' else f'{found.unit_size:.4g}'}",
        "beside": f"rows there have a norm of {found.row_norm:.4g}, the largest activation is {found.largest_activation:.4g}",
        "prompts": f"{len(found.prompts)}, of {sum(len(one.tokens) for one in found.prompts)} tokens",
    }
    table = Table(show_header=False, box=None)
    for name, value in about.items():
        table.add_row(name, value)
    return table


def _scan(found: Steering) -> Table:
    """One line for each coefficient, as far as there is room."""
    columns = [("loss", found.loss), ("KL", found.kl), *((f"logit of {one.token!r}", one.change) for one in found.logits)]
    if found.contrast is not None:
        parts = sorted(found.contrast.parts, key=lambda part: -max(map(abs, part.change)))[:PARTS]
        first, second = found.contrast.tokens
        columns += [(f"{first!r} - {second!r}", found.contrast.change), *((part.name, part.change) for part in parts)]
    table = Table(Column("coefficient", justify="right"), *(Column(name, justify="right") for name, _ in columns), box=None)
    n = len(found.coefficients)
    for index in sorted({round(line * (n - 1) / (LINES - 1)) for line in range(LINES)}):
        table.add_row(f"{found.coefficients[index]:.4g}", *(_signed(values[index]) for _, values in columns))
    return table


def _signed(value: float | None) -> str:
    return "-" if value is None else f"-{number(-value)}" if value < 0 else number(value)


def _error_term(found: ErrorTerm) -> Table:
    """The losses with parts of the SAE's reconstruction in place of the activations."""
    names = ("clean", "spliced", "error_added_back", "error_removed", "reconstruction_removed")
    table = Table("loss", *(Column(name.replace("_", " "), justify="right") for name in names), "error's share", box=None)
    table.add_row("", *(number(getattr(found, name)) for name in names), f"{found.error_share:.2%}")
    return table


def _continuations(found: Steering) -> Table:
    table = Table(Column("prompt", justify="right"), Column("coefficient", justify="right"), "goes on with", box=None)
    for one in found.continuations:
        table.add_row(str(one.prompt), f"{one.coefficient:.4g}", repr(one.text) if one.text is not None else str(one.tokens))
    return table


def attribution(found: Attribution) -> list[Table | str]:
    """All that was attributed."""
    shown: list[Table | str] = [_attributed(found), "", _nodes(found)]
    if len(found.nodes) > NODES:
        shown.append(f"{NODES} of {len(found.nodes)} latents at positions; --json has all.")
    shown += ["", _correlations(found)]
    if found.edges:
        shown += ["", _edges(found)]
    return shown


def _attributed(found: Attribution) -> Table:
    """One line for each prompt: the difference, and what all latents of each SAE have to do with it."""
    sums = [f"{what} of {name}" for name in found.saes for what in ("latents", "error")]
    table = Table("prompt", "difference of logits", "", *(Column(name, justify="right") for name in sums), box=None)
    for index, one in enumerate(found.prompts):
        totals = {total.sae: total for total in found.totals if total.prompt == index}
        effects = (value for name in found.saes for value in (totals[name].effect, totals[name].error_effect))
        first, second = one.contrast
        table.add_row(str(index), f"{first!r} - {second!r}", _signed(one.difference), *map(_signed, effects))
    return table


def _nodes(found: Attribution) -> Table:
    """One line for each latent at a position, those of the largest effects."""
    names = ("prompt", "position", "activation", "effect", "GradDrop", "with softmax", "exact")
    table = Table("", "latent", "token", *(Column(name, justify="right") for name in names), box=None)
    for index, one in enumerate(found.nodes[:NODES]):
        figures = (one.activation, one.effect, one.grad_drop, one.qk, one.exact)
        name = f"{one.sae}.{one.latent}"
        table.add_row(str(index), name, repr(one.token), str(one.prompt), str(one.position), *map(_signed, figures))
    return table


def _correlations(found: Attribution) -> Table:
    names = {"effect": "effect", "qk": "with softmax", "effect_size": "size of the effect", "grad_drop": "GradDrop, with the size"}
    n = sum(one.exact is not None for one in found.nodes)
    columns = (Column(name, justify="right") for name in ("Pearson", "Spearman", "error"))
    table = Table(f"with the exact effects of {n}", *columns, box=None)
    for name, of in found.correlations.items():
        table.add_row(names[name], *(_signed(value) for value in (of.pearson, of.spearman, of.mean_error)))
    return table


def _edges(found: Attribution) -> Table:
    table = Table("from", "to", Column("adds to its pre-activation", justify="right"), box=None)
    for edge in found.edges[:NODES]:
        ends = (found.nodes[end] for end in (edge.source, edge.target))
        table.add_row(*(f"{one.sae}.{one.latent} at {one.position} ({one.token!r})" for one in ends), _signed(edge.weight))
    return table
