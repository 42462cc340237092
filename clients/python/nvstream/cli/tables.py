"""How do models and the daemon's status look on a terminal of 80 columns?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from nvstream.cli.output import printable
from nvstream.facts import Caller, DaemonStatus, EngineStatus, Model, ModelFacts, ModelList, Placement, UserShare
from nvstream.sizes import format_bytes, format_seconds

Row = tuple[str, str]
# Columns of a line that is as long as what it says: more than names, paths and notes together.
WHOLE = 1 << 14


class _Console(Console):
    """A console that leaves a broken pipe to its caller, where exit codes are decided."""

    def on_broken_pipe(self) -> NoReturn:
        """Called by rich inside its handler of BrokenPipeError."""
        raise  # noqa: PLE0704


def show(what: RenderableType, whole_lines: bool = False) -> None:
    """Writes to stdout. Raises BrokenPipeError.

    With `whole_lines`, and in a pipe always, no line is broken: a name that is, is no name any more.
    """
    width = WHOLE if whole_lines or not sys.stdout.isatty() else None
    _Console(highlight=False, markup=False, emoji=False, width=width).print(what)
    sys.stdout.flush()


def model_list(models: ModelList) -> RenderableType:
    """A table of models, and what is to be said about some of them, and about files that are none, below it."""
    notes = [_text(note) for note in [*(note for model in models for note in _remarks(model)), *models.notes]]
    if not models:
        return Group(Text("there are no models; import one: nvstream models import FILE.gguf"), *notes)
    table = _table("NAME", "STATE", ">WEIGHTS", "PATH", "KERNEL", ">EXPECTED", ">MEASURED")
    for model in models:
        table.add_row(*(_text(cell) for cell in _list_row(model)))
    return Group(table, *notes)


def _table(*columns: str) -> Table:
    """A table with these headings; the figures of those with a '>' are aligned at their right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name.lstrip(">"), no_wrap=True, justify="right" if name.startswith(">") else "left")
    return table


def model_sheet(model: Model) -> RenderableType:
    """Everything about one model."""
    rows = [("model", model.name), ("state", model.state.value), ("file", model.path)]
    rows += [("error", model.error)] if model.error else []
    rows += _facts_rows(model.facts) if model.facts else []
    rows += _placement_rows(model.placement) if model.placement else []
    return _sheet(rows)


def daemon(status: DaemonStatus) -> RenderableType:
    """The daemon and a sheet for each of its engines."""
    caller = f"you are uid {status.caller.uid}{', an administrator' if status.caller.administrator else ''}"
    head = f"nvstreamd {status.version}, up {format_seconds(status.uptime_seconds)}, {caller}"
    lines = [head, *(["shutting down: no new requests"] if status.draining else []), *status.notes]
    if not status.engines:
        lines.append("no model is loaded; load one: nvstream models load MODEL --budget 4GiB")
    sheets = [Group(Text(), _sheet(_engine_rows(engine))) for engine in status.engines]
    sheets += [Group(Text(), _sheet(_share_rows(share, status.caller))) for share in status.shares]
    return Group(*(_text(line) for line in lines), *sheets)


def _list_row(model: Model) -> tuple[str, ...]:
    weights = format_bytes(model.facts.weight_bytes) if model.facts else "-"
    placement = model.placement
    if placement is None:
        return model.name, model.state.value, weights, "-", "-", "-", "-"
    return (
        model.name,
        model.state.value,
        weights,
        placement.backend or "-",
        placement.kernel or "-",
        format_seconds(placement.predicted_pass_seconds),
        _measured(placement),
    )


def _remarks(model: Model) -> list[str]:
    notes = list(model.placement.notes) if model.placement else []
    return [f"{model.name}: {one}" for one in [*([model.error] if model.error else []), *notes]]


def _engine_rows(engine: EngineStatus) -> list[Row]:
    process = f"process {engine.pid}" if engine.pid is not None else "no process"
    rows = [("model", f"{engine.model.name} ({engine.model.state.value}, {process})")]
    rows += [("error", engine.model.error)] if engine.model.error else []
    rows += _placement_rows(engine.model.placement) if engine.model.placement else []
    rows += [("STALLED", engine.stall)] if engine.stall else []
    rows += [("pass", f"running for {format_seconds(engine.pass_seconds)}")] if engine.pass_seconds else []
    return [
        *rows,
        ("requests", f"{engine.running} running, {engine.queued} queued"),
        ("so far", f"{engine.tokens_generated} tokens, {engine.passes} passes, "
                   f"{format_bytes(engine.streamed_bytes)} streamed"),
        ("KV pages", f"{engine.kv_pages_used} of {engine.kv_pages_total} used"),
        *_expert_rows(engine),
        ("guesses", f"{engine.accepted_tokens} of {engine.proposed_tokens} tokens right"),
        ("peak", f"{format_bytes(engine.peak_weight_bytes)} of weights in memory"),
        ("restarts", str(engine.restarts)),
    ]  # fmt: skip


def _expert_rows(engine: EngineStatus) -> list[Row]:
    """How often experts were in memory when they were needed, in all layers and in the one where that was rarest."""
    needs = [(hits, hits + misses) for hits, misses in zip(engine.expert_hits, engine.expert_misses, strict=False)]
    found, asked = sum(hits for hits, _ in needs), sum(each for _, each in needs)
    if not asked:
        return []
    worst = min(range(len(needs)), key=lambda layer: needs[layer][0] / max(1, needs[layer][1]))
    return [("experts", f"{found / asked:.0%} of {asked} needs were in memory, "
                        f"{needs[worst][0] / max(1, needs[worst][1]):.0%} in layer {worst} of those that have some")]


def _share_rows(share: UserShare, caller: Caller) -> list[Row]:
    """The rows on what a user has of what he may have."""
    whose = f"uid {share.uid}{', you' if share.uid == caller.uid else ''}"
    limit = share.longest_context
    context = f"{limit} tokens at most" if limit is not None else "as the models have it"
    return [
        ("share", f"{whose}: weight {share.weight:g}, {share.priority.value}"),
        ("requests", f"{_of(share.requests, share.most_requests)} open, {share.running} running, "
                     f"{share.queued} queued"),
        ("calls", f"{share.open_calls} open, {format_bytes(share.request_bytes)} of requests"),
        ("tokens", f"{_of(share.tokens_this_minute, share.tokens_per_minute)} this minute, "
                   f"{_of(share.tokens_today, share.tokens_per_day)} today"),
        ("context", context),
    ]  # fmt: skip


def _of(figure: int, limit: int | None) -> str:
    return str(figure) if limit is None else f"{figure} of {limit}"


def _placement_rows(placement: Placement) -> list[Row]:
    expected = f"{format_seconds(placement.predicted_pass_seconds)} expected, {_measured(placement)} measured"
    streamed = f"{format_bytes(placement.streamed_bytes_per_pass)} a pass"
    rate = f"{format_bytes(placement.read_bytes_per_second)}/s"
    return [
        ("path", placement.backend or "-"),
        ("kernel", placement.kernel or "-"),
        ("arithmetic", placement.arithmetic or "-"),
        ("budget", f"{format_bytes(placement.budget)} of weights, {format_bytes(placement.kv_budget)} of KV cache"),
        ("memory", f"{format_bytes(placement.resident_bytes)} resident, "
                   f"{format_bytes(placement.slot_bytes)} for streaming"),
        *([("VRAM", f"{format_bytes(placement.vram_resident_bytes)} of weights rest there, of "
                    f"{format_bytes(placement.vram)} that the model may have"),
           ("link", f"{format_bytes(placement.link_bytes_per_pass)} a pass at "
                    f"{format_bytes(placement.link_bytes_per_second)}/s")] if placement.vram else []),
        *([("processor", f"{format_bytes(placement.host_bytes_per_pass)} a pass at "
                         f"{format_bytes(placement.host_bytes_per_second)}/s")]
          if placement.host_bytes_per_pass else []),
        ("streamed", f"{streamed} at {rate}"),
        ("pass", expected),
        *(("note", one) for one in placement.notes),
    ]  # fmt: skip


def _facts_rows(facts: ModelFacts) -> list[Row]:
    types = ", ".join(f"{name} {format_bytes(size)}" for name, size in sorted(facts.bytes_by_type.items()))
    return [
        *([("about", facts.description)] if facts.description else []),
        *([("read by", facts.readers)] if facts.readers else []),
        ("kind", f"{facts.architecture}, {facts.format.value}, {facts.layers} layers"),
        ("weights", f"{format_bytes(facts.weight_bytes)}{': ' if types else ''}{types}"),
        ("a token", f"multiplies {format_bytes(facts.bytes_per_token)}, "
                    f"keeps {format_bytes(facts.kv_bytes_per_token)} of KV cache"),
        ("context", f"{facts.context_length} tokens; a vocabulary of {facts.vocabulary_size}"),
        ("needs", f"a budget of {facts.minimum_budget} or more ({format_bytes(facts.minimum_budget)})"),
    ]  # fmt: skip


def _measured(placement: Placement) -> str:
    seconds = placement.measured_pass_seconds
    return format_seconds(seconds) if seconds is not None else "not yet"


def _sheet(rows: Sequence[Row]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows:
        table.add_row(key, _text(value))
    return table


def _text(value: str) -> Text:
    return Text(printable(value), overflow="fold")
