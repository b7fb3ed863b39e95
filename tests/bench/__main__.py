"""Speed as ratios that are taken in one run: a table, and ``build/bench.json``.

Without options everything is measured, which takes a few minutes. Of each work the fastest of nine
turns counts (five with --short), in processor time; who is compared works in turns. Neighbours
(orjson, Relay's Rust, Vector's VRL, Presidio) are installed into build/neighbours from
tests/bench/requirements.lock. The rows over Kafka need java and Maven; whether a second
pseudonymizer helps needs PostgreSQL too and is measured in the long form only.

Examples:
  python -m tests.bench                          everything, as committed in RESULTS.md
  python -m tests.bench --short                  as continuous integration: fails below gates.toml
  python -m tests.bench --list                   names of the rows, and what is asked of each
  python -m tests.bench --only 'json/*' --short  rows that match, quickly
  python -m tests.bench --only '*B8 clean' --json | jq .

Exit codes: 0 held, or nothing asked; 1 a gate or floor is missed, or a neighbour is missing that
TELEMETRY_REQUIRE=neighbours says is here; 2 wrong options.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table

from tests.bench import distributed, end_to_end, log, scrubbing, sdk
from tests.bench.gates import Gate, Verdict, judge, load
from tests.bench.neighbours import NEIGHBOURS, NextDoor, install
from tests.bench.workloads import HOSTILE

OUTPUT: Final = Path("build/bench.json")
_KAFKA: Final = "Kafka"
NAMES: Final = (
    *(row.name for row in scrubbing.ROWS),
    *sdk.ROWS,
    *log.ROWS,
    *end_to_end.ROWS,
    *distributed.ROWS,
)


class Measured(NamedTuple):
    """What a run found.

    Attributes:
        figures: By row, in the order of the rows.
        absent: Neighbours (or Kafka) that are missing, and why.
        times_s: Seconds per event, by workload and contender.
    """

    figures: dict[str, float]
    absent: Mapping[str, str]
    times_s: Mapping[str, Mapping[str, float]]


def measure(names: Sequence[str], *, short: bool, tell: Callable[[str], None]) -> Measured:
    """Measure the rows that are named."""
    repeats, turn_s = (5, 0.04) if short else (9, 0.2)
    rows = [row for row in scrubbing.ROWS if row.name in names]
    if any(row.over in NEIGHBOURS for row in rows):
        tell("installing the neighbours")
        install()
    with NextDoor() as door:
        work = scrubbing.Scrubbing(door)
        figures = work.figures(rows, repeats=repeats, turn_s=turn_s, tell=tell)
    figures |= sdk.measure_sdk(names, repeats=repeats, turn_s=turn_s, tell=tell)
    if whole := [name for name in names if name in end_to_end.ROWS]:
        found = end_to_end.measure_end_to_end(short=short, tell=tell)
        figures |= {name: found[name] for name in whole}
    if single := [name for name in names if name in log.ROWS]:
        figures |= log.measure_log(single, short=short, tell=tell)
    absent = dict(work.absent)
    if apart := [name for name in names if name in distributed.ROWS]:
        if lacks := distributed.missing(apart):
            absent[_KAFKA] = lacks
        else:
            figures |= distributed.measure_distributed(apart, short=short, tell=tell)
    return Measured(figures, absent, work.times_s)


def failures(verdicts: Sequence[Verdict], absent: Sequence[str], *, required: str) -> list[str]:
    """Say what keeps a change from landing.

    Args:
        verdicts: How the rows stand.
        absent: Neighbours that are missing.
        required: ``TELEMETRY_REQUIRE``.
    """
    lines = []
    for one in verdicts:
        bar = one.gate.gate if one.gate.floor is None else one.gate.floor
        bound = f"at {'most' if one.gate.less else 'least'} {bar:g} is asked" if bar else ""
        if one.failed:
            found = "not measured" if one.figure is None else f"{one.figure:.3g}"
            lines.append(f"{one.name}: {found}, {bound}")
    if "neighbours" in {word.strip().lower() for word in required.split(",")}:
        lines += [f"{line}, but TELEMETRY_REQUIRE says that it is here" for line in absent]
    return lines


_COLOURS: Final = {
    "moonshot": "bold green",
    "gate": "green",
    "below gate": "yellow",
    "too slow": "bold red",
    "not measured": "bold red",
    "absent": "magenta",
}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def show(console: Console, verdicts: Sequence[Verdict]) -> None:
    """Print the rows."""
    table = Table(title="Ratios of one run; how many times longer", title_justify="left")
    table.add_column("row")
    for column in ("ratio", "gate", "moonshot"):
        table.add_column(column, justify="right")
    table.add_column("")
    for one in verdicts:
        colour = _COLOURS.get(one.state, "none")
        sign = "≤ " if one.gate.less else ""
        table.add_row(
            one.name,
            f"[{colour}]{_number(one.figure)}[/]",
            *(
                sign * (bar is not None) + _number(bar)
                for bar in (one.gate.gate, one.gate.moonshot)
            ),
            f"[{colour}]{one.state}[/]",
        )
    console.print(table)


def show_times(console: Console, times_s: Mapping[str, Mapping[str, float]]) -> None:
    """Print processor time per event of everybody, by workload; and what was worst."""
    if hostile := {name: s for name, s in times_s.get("hostile", {}).items() if name in HOSTILE}:
        worst = max(hostile, key=hostile.__getitem__)
        took_ms = hostile[worst] * scrubbing.HOSTILE_BYTES * 1e3
        console.print(
            f"Slowest of {len(hostile)} hostile texts of 64 KB: {worst}, {took_ms:.1f} ms."
        )
    workloads = {name: times_s[name] for name in scrubbing.WORKLOADS if name in times_s}
    names = dict.fromkeys(who for times in workloads.values() for who in times)
    if not names:
        return
    table = Table(title="µs of processor time per event, fastest turn", title_justify="left")
    table.add_column("")
    for workload in workloads:
        table.add_column(workload, justify="right")
    for name in names:
        cells = (times.get(name) for times in workloads.values())
        table.add_row(name, *("" if s is None else f"{s * 1e6:,.1f}" for s in cells))
    console.print(table)


def _list(console: Console, gates: Mapping[str, Gate], names: Sequence[str]) -> None:
    for name in names:
        row = gates.get(name, Gate())
        asked = [
            f"{word} {_number(bar)}"
            for word, bar in (
                ("floor", row.floor),
                ("gate", row.gate),
                ("moonshot", row.moonshot),
            )
            if bar is not None
        ]
        console.print(f"{name:<52} {', '.join(asked)}{' (less is better)' * row.less}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; give the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--short", action="store_true", help="measure less; fail below gates.toml")
    parser.add_argument(
        "--only", metavar="PATTERN", action="append", help="rows, as in a shell; writes no file"
    )
    parser.add_argument("--list", action="store_true", help="name the rows, measure nothing")
    parser.add_argument("--json", action="store_true", help="print build/bench.json, no tables")
    options = parser.parse_args(arguments)
    gates = load()
    names = [
        name
        for name in NAMES
        if not options.only or any(fnmatch.fnmatchcase(name, one) for one in options.only)
    ]
    if options.short and not options.only:
        names = [name for name in names if name not in distributed.LONG]
    if not names:
        parser.error(f"no row matches {', '.join(options.only)}; --list names them")
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    aside = Console(stderr=True, highlight=False)
    if options.list:
        _list(console, gates, names)
        return 0
    with aside.status("measuring") as status:
        found = measure(
            names, short=options.short, tell=lambda what: status.update(what, spinner="dots")
        )
    asked = {name: gates[name] for name in names if name in gates}
    excused = {row.name for row in scrubbing.ROWS if row.over in found.absent}
    excused |= set(distributed.ROWS) if _KAFKA in found.absent else set()
    verdicts = judge(found.figures, asked, excused=excused)
    rounded = {name: float(f"{value:.4g}") for name, value in found.figures.items()}
    text = json.dumps(rounded, indent=1, ensure_ascii=False) + "\n"
    if not options.only:
        OUTPUT.parent.mkdir(exist_ok=True)
        OUTPUT.write_text(text, "utf-8")
    if options.json:
        sys.stdout.write(text)
    else:
        show(console, verdicts)
        show_times(console, found.times_s)
        if not options.only:
            console.print(f"Written to {OUTPUT}.")
    for line in dict.fromkeys(found.absent.values()):
        aside.print(f"[bold magenta]Not here:[/] {line}")
    required = os.environ.get("TELEMETRY_REQUIRE", "")
    missed = failures(
        verdicts if options.short else (),
        list(dict.fromkeys(line for who, line in found.absent.items() if who != _KAFKA)),
        required=required,
    )
    if _KAFKA in found.absent and "kafka" in required.lower():
        missed.append(f"{found.absent[_KAFKA]}, but TELEMETRY_REQUIRE says that it is here")
    for line in missed:
        aside.print(f"[bold red]Not good enough:[/] {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
