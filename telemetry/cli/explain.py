"""``telemetry explain`` and ``telemetry policy try``: one event, field by field, and why."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from telemetry.cli import EXIT_CONFIG, EXIT_NO, Json, app
from telemetry.errors import ConfigError, EventError

if TYPE_CHECKING:
    from telemetry.compare import Change
    from telemetry.dialects.sample import Sample
    from telemetry.explain import Explainer, Explanation, Row

__all__ = ["policy_app"]

policy_app = typer.Typer(no_args_is_help=True, help="Look at policies, and take one back.")
app.add_typer(policy_app, name="policy")

_WIDTH: Final = 100
_SHOWN: Final = 160
_COLOURS: Final = {"kept": "green", "changed": "yellow", "removed": "red", "added": "blue"}
_DIRECTIONS: Final = {"NARROWS": "green", "WIDENS": "red", "EQUAL": "dim", "UNDECIDED": "yellow"}
_LOUD: Final = "THIS SHOWS THE ORIGINAL EVENT AND HOLDS PERSONAL DATA. Do not pass it on."

File = Annotated[
    str, typer.Argument(metavar="FILE|-", help="What was saved; - reads standard input.")
]
Kind = Annotated[
    str,
    typer.Option(help="Name of the record, where the event does not tell: error_event, …"),
]
Recipient = Annotated[str, typer.Option(help="Only this recipient.", show_default="all")]


@app.command()
def explain(
    file: File,
    *,
    recipient: Recipient = "",
    kind: Kind = "",
    policy: Annotated[
        Path | None,
        typer.Option(help="Folder of a policy.", show_default="TELEMETRY_POLICY, or the shipped"),
    ] = None,
    as_json: Json = False,
    html: Annotated[
        bool, typer.Option("--html", help="Print a page that needs nothing besides itself.")
    ] = False,
    show_original: Annotated[
        bool,
        typer.Option("--show-original", help="Show what stood there before: personal data."),
    ] = False,
) -> None:
    """Explain events field by field: kept, changed, removed, by which rule, why.

    FILE is a Sentry envelope, a Sentry event, a body of Heap's interface, an event of our own, or
    JSON a line; also gzipped. Only what leaves is shown; of what does not, its class. Nothing is
    sent, and no key is used: in place of a token stands ps1_heap_u_…

    Exit code 0; 2 if FILE cannot be read as an event, or there is no such file, policy or
    recipient.

    Examples:

      telemetry explain envelope.bin

      telemetry explain event.json --json | jq '.events[0].rows[] | select(.verdict == "removed")'

      telemetry explain event.json --html > event.html

      curl -s https://app.example.com/sample.json | telemetry explain - --kind error_event
    """
    if as_json and html:
        raise ConfigError("there is one output.", remedy="Use --json or --html, not both.")
    samples = _samples(file, kind)
    explanations = _explained(
        _explainer(policy), samples, recipient, now=datetime.now(UTC), reveal=show_original
    )
    if as_json:
        events = [_as_json(one) for one in explanations]
        typer.echo(json.dumps({"version": 1, "reveals": show_original, "events": events}))
    elif html:
        from telemetry.cli.page import page  # noqa: PLC0415 - only here

        typer.echo(page(explanations))
    else:
        console = Console(highlight=False, width=_width())
        if show_original:
            console.print(f"[bold red]{_LOUD}[/]")
        for one in explanations:
            _print(console, one)


@policy_app.command("try")
def try_policy(
    file: File,
    *,
    policy: Annotated[Path, typer.Option(help="Folder of the policy to be tried.")],
    against: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the policy to compare with.",
            show_default="TELEMETRY_POLICY, or the shipped",
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also show what is the same under both.")
    ] = False,
    recipient: Recipient = "",
    kind: Kind = "",
    as_json: Json = False,
) -> None:
    """Try a policy that is not live yet on saved events, and show what it would change.

    NARROWS lets less out than before, WIDENS more; UNDECIDED where neither result can be made from
    the other. Nothing is sent, stored or made live.

    Exit code 0 if nothing would leave otherwise than now; 1 if something would; 2 if a policy is
    refused, or FILE cannot be read as an event.

    Examples:

      telemetry policy try event.json --policy ./policy

      telemetry policy try events.ndjson --policy ./new --against ./old --json | jq .widens
    """
    first, second = _explainer(against), _explainer(policy)
    samples = _samples(file, kind)
    compared, now = [], datetime.now(UTC)
    for number, sample in enumerate(samples, 1):
        one = {e.recipient: e for e in _explained(first, [sample], recipient, now=now)}
        other = {e.recipient: e for e in _explained(second, [sample], recipient, now=now)}
        compared += [(number, *pair) for pair in _paired(one, other)]
    differs = [
        change for _, _, _, changes in compared for change in changes if _is_difference(change)
    ]
    if as_json:
        typer.echo(json.dumps(_compared_as_json(first, second, compared, everything=everything)))
    else:
        _print_compared(first, second, compared, everything=everything)
    if differs:
        raise typer.Exit(EXIT_NO)


_Compared = tuple[int, "Explanation", "Explanation", "list[Change]"]


def _explainer(folder: Path | None) -> Explainer:
    from telemetry.explain import Explainer  # noqa: PLC0415 - help must not wait for it
    from telemetry.policy import load_policy, policy_dir  # noqa: PLC0415

    if folder is not None and not folder.is_dir():
        raise ConfigError("is no folder.", path=folder, remedy="Name the folder of a policy.")
    return Explainer(load_policy(folder or policy_dir()))


def _samples(file: str, kind: str) -> list[Sample]:
    from telemetry.dialects import Refusal  # noqa: PLC0415
    from telemetry.dialects.sample import read_samples  # noqa: PLC0415
    from telemetry.schema import load_records  # noqa: PLC0415

    if kind and kind not in (kinds := sorted(load_records())):
        raise ConfigError("there is no such kind.", remedy=f"Use one of: {', '.join(kinds)}.")
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError:
        raise ConfigError(
            "is missing or unreadable.", path=Path(file), remedy="Name another one."
        ) from None
    try:
        return read_samples(data, kind)
    except (Refusal, EventError) as error:
        said = error.detail if isinstance(error, Refusal) else ""
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(
            f"[bold red]Not an event:[/] {escape(said or str(error))} "
            "If it is one, name its record with --kind."
        )
        raise typer.Exit(EXIT_CONFIG) from None


def _explained(
    explainer: Explainer,
    samples: Sequence[Sample],
    recipient: str,
    *,
    now: datetime,
    reveal: bool = False,
) -> list[Explanation]:
    return [
        one
        for sample in samples
        for one in explainer.explain(sample, now=now, recipient=recipient, reveal=reveal)
    ]


def _width() -> int | None:
    """As wide as the terminal; what is written to a file needs a hundred columns."""
    return None if Console().is_terminal else _WIDTH


# --- JSON -----------------------------------------------------------------------------------------


def _as_json(one: Explanation) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "purpose": one.purpose,
        "notice": one.notice,
        "basis": one.basis,
        "recipient": one.recipient,
        "entity": one.entity,
        "policy": one.policy,
        "outcome": one.outcome,
        "reason": one.reason,
        "counts": one.counts(),
        "unknown": list(one.unknown),
        "rows": [_row_as_json(row, reveal=one.reveals) for row in one.rows],
        "payload": one.payload,
    }


def _row_as_json(row: Row, *, reveal: bool = False) -> dict[str, Any]:
    told: dict[str, Any] = {
        "path": row.path,
        "verdict": row.verdict,
        "class": row.privacy,
        "type": row.shape,
        "at": row.at,
        "after": row.after,
        "rules": list(row.rules),
        "why": row.why,
        "source": row.source,
    }
    return told | ({"before": row.before} if reveal else {})


def _compared_as_json(
    first: Explainer, second: Explainer, compared: Sequence[_Compared], *, everything: bool
) -> dict[str, Any]:
    changes = [
        {
            "event": number,
            "recipient": other.recipient or one.recipient,
            "path": change.path,
            "direction": change.direction,
            "before": None if change.before is None else _row_as_json(change.before),
            "after": None if change.after is None else _row_as_json(change.after),
        }
        for number, one, other, listed in compared
        for change in listed
        if everything or _is_difference(change)
    ]
    return {
        "version": 1,
        "against": first.policy.digest[:12],
        "policy": second.policy.digest[:12],
        **{
            word.lower(): sum(
                change.direction == word and _is_difference(change)
                for _, _, _, listed in compared
                for change in listed
            )
            for word in ("NARROWS", "WIDENS", "UNDECIDED")
        },
        "changes": changes,
    }


# --- For people -----------------------------------------------------------------------------------


def _print(console: Console, one: Explanation) -> None:
    console.print(f"\n[bold]{escape(_title(one))}[/]")
    for line in _head(one):
        console.print(escape(line), style="dim")
    table = Table(show_lines=True, expand=True)
    table.add_column("field", ratio=26, overflow="fold")
    table.add_column("", width=7)
    table.add_column("before", ratio=20, overflow="fold", style="dim")
    table.add_column("after", ratio=27, overflow="fold")
    table.add_column("why", ratio=27, overflow="fold", style="dim")
    for row in one.rows:
        colour = _COLOURS[row.verdict]
        table.add_row(
            escape(row.path),
            f"[{colour}]{row.verdict}[/]",
            escape(before(row, reveals=one.reveals)),
            escape(after(row)) or "[dim]-[/]",
            escape(row.because),
        )
    console.print(table)
    counts = ", ".join(f"{number} {word}" for word, number in one.counts().items())
    console.print(f"{counts}.")
    if one.unknown:
        console.print(f"No schema declares: {escape(', '.join(one.unknown))}.", style="yellow")


def _title(one: Explanation) -> str:
    to = f" to {one.entity} ({one.recipient})" if one.recipient else ""
    if one.outcome != "delivered":
        return f"{one.kind}{to}: {one.outcome}, {one.reason}"
    return f"{one.kind}{to}: leaves"


def _head(one: Explanation) -> list[str]:
    lines = []
    if one.purpose:
        lines.append(f"{one.notice}: for {one.purpose}, Art. {one.basis} GDPR; policy {one.policy}")
    if one.outcome == "delivered" and one.reason == "expired":
        lines.append("It is older than its retention: it left in time, today it would be dropped.")
    return lines


def before(row: Row, *, reveals: bool) -> str:
    """Show what stood there: its class, or where it was asked for, the value."""
    if row.verdict == "added":
        return "-"
    if reveals:
        return shown(row.before)
    return f"{row.privacy.replace('_', ' ')}, {row.shape}"


def after(row: Row) -> str:
    """Show what leaves, and where it stands if that is another place."""
    if row.after is None:
        return ""
    moved = row.at if row.at != row.path and row.verdict != "added" else ""
    return shown(row.after) + (f"\nat {moved}" if moved else "")


def shown(value: Any) -> str:
    """Show a value within bounds; control characters as escapes."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[: _SHOWN * 2])
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _is_difference(change: Change) -> bool:
    return change.direction != "EQUAL"


def _paired(
    one: dict[str, Explanation], other: dict[str, Explanation]
) -> list[tuple[Explanation, Explanation, list[Change]]]:
    """Put together what one recipient gets under two policies; who gets nothing counts too."""
    from telemetry.compare import compare  # noqa: PLC0415
    from telemetry.explain import Explanation  # noqa: PLC0415

    pairs = []
    for name in dict.fromkeys([*one, *other]):
        kind = next(iter((one | other).values())).kind
        first = one.get(name) or Explanation(kind=kind, outcome="dropped")
        second = other.get(name) or Explanation(kind=kind, outcome="dropped")
        if name or len(one) == len(other) == 1:
            pairs.append((first, second, compare(first, second)))
    return pairs


def _print_compared(
    first: Explainer, second: Explainer, compared: Sequence[_Compared], *, everything: bool
) -> None:
    console = Console(highlight=False, width=_width())
    console.print(f"Policy {second.policy.digest[:12]} against {first.policy.digest[:12]}")
    total = 0
    for number, one, other, changes in compared:
        listed = [change for change in changes if everything or _is_difference(change)]
        total += sum(map(_is_difference, changes))
        if not listed:
            continue
        name = other.recipient or one.recipient or "nobody"
        console.print(f"\n[bold]Event {number}, {one.kind}, to {escape(name)}[/]")
        if (one.outcome, one.reason) != (other.outcome, other.reason):
            console.print(f"{one.outcome} {one.reason} → {other.outcome} {other.reason}")
        table = Table(show_lines=True, expand=True)
        table.add_column("field", ratio=24, overflow="fold")
        table.add_column("", width=9)
        table.add_column("now", ratio=26, overflow="fold")
        table.add_column("then", ratio=26, overflow="fold")
        table.add_column("why", ratio=24, overflow="fold", style="dim")
        for change in listed:
            colour = _DIRECTIONS[change.direction]
            last = change.after or change.before
            table.add_row(
                escape(change.path),
                f"[{colour}]{change.direction}[/]",
                _result(change.before),
                _result(change.after),
                escape(last.because) if last else "",
            )
        console.print(table)
    if total:
        console.print("1 difference." if total == 1 else f"{total} differences.")
    else:
        console.print("Nothing would leave otherwise than it does now.")


def _result(row: Row | None) -> str:
    if row is None:
        return "[dim]-[/]"
    if row.verdict == "removed":
        return "[red]removed[/]"
    return f"{row.verdict}: {escape(after(row))}"
