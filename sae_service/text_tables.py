"""What the command line draws: tables, and the progress bar of a job. Names and messages are shown letter by letter."""

import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from sae_service.jobs import records
from sae_service.jobs.records import Checkpoint, Event, Job, JobSummary, Worker
from sae_service.storage.cached_stream import CachedStream

BARS = " ▁▂▃▄▅▆▇█"
FOUND = 0.9
NAMED = 3
"""SAEs of a job that a line names."""
LINE_EVERY_S = 60
TRAINED, LOOKED = ("loss", "fvu", "l0"), ("l0", "never_fired_share")
HELD_OUT = {"fvu": "held-out fvu", "fvu_by_row": "by row", "l0": "held-out l0", "ce_loss_recovered": "recovered"}
RESULTS = ("l0", "fvu", "fvu_by_row", "ce_loss_recovered", "dead_share", "tokens_per_s")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """A reader that has had enough is no failure; the default would exit with 1."""
        raise BrokenPipeError


def _console(is_error: bool = False, width: int | None = None) -> Console:
    # What looks like markup or an emoji in a name is a part of it.
    return _Console(stderr=is_error, width=width, markup=False, emoji=False, highlight=False)


def show(*parts: RenderableType, is_error: bool = False) -> None:
    """Prints to standard output, or to standard error; a pipe gets plain text of full width."""
    console = _console(is_error)
    if not console.is_terminal:
        console = _console(is_error, width=160)
    for part in parts:
        console.print(part)


def clock(seconds: int | None) -> str:
    """A Unix time for a reader."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def jobs(found: Iterable[JobSummary]) -> Table:
    """One line for each job."""
    saes = Column("saes", no_wrap=True, overflow="ellipsis")
    table = Table(Column("job", no_wrap=True), "status", "submitted", "progress", saes, "error", box=None)
    for one in found:
        share = f"{one.progress.tokens / one.progress.total_tokens:.0%}" if one.progress else ""
        names = [sae.name for sae in one.summary.saes]
        listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        table.add_row(one.id, one.status, clock(one.created_at), share, listed, one.error.code if one.error else "")
    return table


def job(one: Job) -> Table:
    """The state of one job."""
    table = Table(show_header=False, box=None)
    rows = {
        "job": one.id,
        "status": status_of(one),
        "attempt": str(one.attempt),
        "submitted": clock(one.created_at) + (f" by {one.submitter}" if one.submitter else ""),
        "started": clock(one.started_at),
        "finished": clock(one.finished_at),
        "expected": clock(one.estimated_finish),
        "labels": ", ".join(f"{name}={value}" for name, value in one.metadata.items()),
        "tokens": f"{one.progress.tokens:,} of {one.progress.total_tokens:,}" if one.progress else "",
        "kind": "" if one.is_training else one.spec["kind"],
        "model": (one.spec["stream"]["model"] or {"name": "none: synthetic activations"})["name"],
        "dataset": (one.spec.get("dataset") or one.spec["stream"]["dataset"] or {"path": ""})["path"],
        "goes on from": f"{one.origin.job_id}, step {one.origin.step:,}" if one.origin else "",
        "error": f"{one.error.code}: {one.error.message}" if one.error else "",
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    return table


def workers(found: Iterable[Worker]) -> Table:
    """One line for each worker."""
    table = Table("worker", "queue", "GPUs", "since", "job", box=None)
    for one in found:
        table.add_row(one.name, one.queue, str(one.gpus), clock(one.started_at), one.job_id or "")
    return table


def cached_streams(found: Iterable[CachedStream]) -> Table:
    """One line for each stream in the activation cache, or as many as its names need: they are never cut off."""
    names = (Column(name, overflow="fold") for name in ("model", "dataset", "hook points"))
    table = Table(Column("stream", no_wrap=True), *names, "MB", Column("last used", no_wrap=True), box=None)
    for one in found:
        size = f"{one.n_bytes / 1e6:.1f}"
        table.add_row(one.id, one.model or "", one.dataset or "", ", ".join(one.hook_names), size, clock(one.used_at))
    return table


def keys(found: Iterable[dict[str, Any]]) -> Table:
    """One line for each key of the API."""
    table = Table("key", "scopes", "project", "created", "expires", "revoked", box=None)
    for one in found:
        times = (clock(one[name]) for name in ("created_at", "expires_at", "revoked_at"))
        table.add_row(one["name"], ",".join(one["scopes"]), one["project"], *times)
    return table


def checkpoints(found: Iterable[Checkpoint]) -> Table:
    """One line for each checkpoint."""
    table = Table("checkpoint", "step", "tokens", "saved", "held-out fvu", "name", box=None)
    for one in found:
        fvu = "" if one.score is None else number(one.score)
        table.add_row(one.id, f"{one.step:,}", f"{one.tokens:,}", clock(one.created_at), fvu, ", ".join(one.names))
    return table


def events(found: Iterable[Event]) -> Table:
    """One line for each event."""
    table = Table("time", "event", box=None)
    for one in found:
        mark = "" if one.level == "info" else f"{one.level}: "
        table.add_row(clock(one.created_at), f"{mark}{one.message}")
    return table


def results(one: Job, final: Checkpoint) -> Table:
    """The held-out figures of each SAE."""
    table = Table("name", "architecture", *RESULTS)
    for sae in one.spec["saes"]:
        measured = final.metrics[sae["name"]]
        figures = [number(measured.get(name)) for name in RESULTS]
        table.add_row(sae["name"], sae["architecture"]["kind"], *figures)
    return table


def figures_of(measured: dict[str, Any]) -> Table:
    """Every held-out figure of one SAE that is a number."""
    table = Table(show_header=False, box=None)
    for name, value in measured.items():
        if not isinstance(value, dict):
            table.add_row(name, number(value))
    return table


def comparison(found: dict[str, Any]) -> Table:
    """How alike two SAEs are, in both directions, with the histograms of the best cosines from -1 to 1."""
    table = Table("", "a to b", "b to a", "a to random", "random to a", box=None)
    for title, name, draw in (
        ("mean max cosine similarity", "mmcs", number),
        (f"share above {FOUND}", "found_share", number),
        ("best cosines, -1 to 1", "max_cosines", bars),
    ):
        values = [found[f"{prefix}{name}_{way}"] for prefix in ("", "random_") for way in ("a_to_b", "b_to_a")]
        table.add_row(title, *map(draw, values))
    for title, name in (("mean |cosine| of the best pairs (MCC)", "mcc"), ("uniqueness", "uniqueness")):
        table.add_row(title, number(found[name]), "", number(found[f"random_{name}"]), "")
    return table


def bars(counts: list[int]) -> str:
    """A histogram in one line, two bins a letter; what holds anything is seen."""
    pairs = [sum(counts[index : index + 2]) for index in range(0, len(counts), 2)]
    return "".join(BARS[0 if pair == 0 else max(1, round(8 * pair / max(pairs)))] for pair in pairs)


def number(value: float | None) -> str:
    """A figure with as many digits as a reader wants."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.4f}"


def follow(changes: Iterable[tuple[Job, str]], is_error: bool = False) -> Job | None:
    """Shows a job while it changes: a progress bar on a terminal, now and then a line elsewhere. Returns what it is at last.

    Args:
        changes: the job, and what it does before its first step.
        is_error: show it on standard error.
    """
    console = _console(is_error)
    return _follow_with_bar(changes, console) if console.is_terminal else _follow_with_lines(changes, console)


def _follow_with_bar(changes: Iterable[tuple[Job, str]], console: Console) -> Job | None:
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(),
        TextColumn("{task.fields[speed]}", markup=False), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    bar = Progress(*columns)
    line = bar.add_task("queued", total=None, speed="")
    last = None
    with Live(bar, console=console) as live:
        for last, phase in changes:
            progress = last.progress
            if progress is None:
                bar.update(line, description=status_of(last))
                live.update(Group(last.id, bar, phase))
                continue
            speed = f"{progress.tokens:,} tokens, {progress.tokens_per_s:,.0f}/s"
            bar.update(
                line, description=status_of(last), completed=progress.tokens, total=progress.total_tokens, speed=speed
            )
            live.update(Group(last.id, bar, figures(progress)))
    return last


def _follow_with_lines(changes: Iterable[tuple[Job, str]], console: Console) -> Job | None:
    last, state, shown_at, shown = None, ("", "", -1), 0.0, ""
    for last, phase in changes:
        if not state[0]:
            console.print(last.id)
        progress = last.progress
        if progress and (measured := held_out(progress)) != shown:
            shown = measured
            console.print(measured, soft_wrap=True)
        share = 10 * progress.tokens // progress.total_tokens if progress else 0
        if (status_of(last), phase, share) != state or (progress and time.monotonic() - shown_at > LINE_EVERY_S):
            state, shown_at = (status_of(last), phase, share), time.monotonic()
            doing = ": ".join(part for part in (status_of(last), phase) if part)
            console.print(f"{doing}{pace(progress) if progress else ''}", soft_wrap=True)
    return last


def status_of(one: Job) -> str:
    """The status of a job, with its reason if it has one."""
    return one.status + (f" ({one.status_reason})" if one.status_reason else "")


def pace(progress: records.Progress) -> str:
    """How far a job is, how fast, and the figures of its first SAEs, as the end of a line."""
    parts = [f", {progress.tokens:,} of {progress.total_tokens:,} tokens"]
    if progress.tokens_per_s and progress.tokens < progress.total_tokens:
        left = round((progress.total_tokens - progress.tokens) / progress.tokens_per_s)
        parts.append(f", {progress.tokens_per_s:,.0f}/s, {timedelta(seconds=left)} left")
    doing, metrics = _shown(progress)
    for name, row in list(progress.metrics.items())[:NAMED]:
        parts.append(f"; {name}: {doing}" + ", ".join(f"{metric} {number(row.get(metric))}" for metric in metrics))
    n_more = len(progress.metrics) - NAMED
    return "".join(parts) + (f"; and {n_more} more" if n_more > 0 else "")


def _shown(progress: records.Progress) -> tuple[str, tuple[str, ...]]:
    """What is done, and the metrics that say how it goes: SAEs are trained, their latents looked at, or a model is measured."""
    if any("mean_norm" in row for row in progress.metrics.values()):
        return "", ("mean_norm",)
    is_look = any("never_fired_share" in row for row in progress.metrics.values())
    return ("", LOOKED) if is_look else ("training ", TRAINED)


def figures(progress: records.Progress) -> Table:
    """Loss, FVU and L0 of each SAE while it trains, and its last held-out figures if there are."""
    doing, metrics = _shown(progress)
    table = Table("sae", *(f"{doing}{name}" for name in metrics), *(HELD_OUT.values() if progress.held_out else ()), box=None)
    for name, row in progress.metrics.items():
        measured = progress.held_out.get(name)
        shown = [] if measured is None else [number(measured.get(metric)) for metric in HELD_OUT]
        table.add_row(name, *(number(row.get(metric)) for metric in metrics), *shown)
    return table


def held_out(progress: records.Progress) -> str:
    """The last held-out figures of each SAE, in a line each."""
    return "\n".join(
        f"held out at step {figures['step']:,}: {name} "
        + ", ".join(f"{metric} {number(figures[metric])}" for metric in HELD_OUT if metric in figures)
        for name, figures in progress.held_out.items()
    )
