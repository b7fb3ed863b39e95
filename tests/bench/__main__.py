"""``python -m tests.bench``: measure, print a table, write ``build/bench.json``.

``--short`` (``make bench SHORT=1``) measures less and fails below ``gates.toml``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Mapping
from importlib.util import find_spec
from math import isfinite
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.measure import Row, measure

HERE = Path(__file__).parent
OUTPUT = Path("build/bench.json")


def below(figures: Mapping[str, float], gates: Mapping[str, float]) -> list[str]:
    """Say which figures miss their gate, or were not measured at all."""
    lines = []
    for name, least in gates.items():
        if name not in figures:
            lines.append(f"{name}: not measured, at least {least:g} is asked")
        elif figures[name] < least:
            lines.append(f"{name}: {figures[name]:.2f}, at least {least:g} is asked")
    return lines


def _show(console: Console, rows: list[Row]) -> None:
    table = Table(title="Scrubbing, µs per event (fastest turn)", title_justify="left")
    others = [name for name in rows[0].times_s if name not in ("json", "scrub")]
    for column in (
        "workload",
        "bytes",
        "text",
        "json",
        "scrub",
        *others,
        "json / scrub",
        "gate MB/s",
    ):
        table.add_column(column, justify="left" if column == "workload" else "right")
    for row in rows:
        times = [f"{row.times_s[name] * 1e6:.1f}" for name in ("json", "scrub", *others)]
        speed = f"{row.text / row.gate_s / 1e6:.0f}" if isfinite(row.gate_s) else "hit"
        table.add_row(
            row.name,
            f"{row.size:.0f}",
            f"{row.text:.0f}",
            *times,
            f"{row.ratio:.2f}",
            speed,
        )
    console.print(table)


def main() -> int:
    """Measure and report; give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--short", action="store_true", help="measure less; fail below gates.toml")
    parser.add_argument("--no-end-to-end", action="store_true", help="scrubbing only")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    rows = measure(repeats=5 if options.short else 9, turn_s=0.05 if options.short else 0.2)
    figures = {f"json_round_trip/scrub {row.name}": row.ratio for row in rows}
    for row in rows:
        if "orjson" in row.times_s:
            figures[f"orjson/scrub {row.name}"] = row.times_s["orjson"] / row.times_s["scrub"]
    _show(console, rows)
    if not options.no_end_to_end and find_spec("telemetry.gateway"):
        from tests.bench.end_to_end import measure_end_to_end

        figures |= measure_end_to_end(console, short=options.short)
    OUTPUT.parent.mkdir(exist_ok=True)
    rounded = {name: round(value, 3) for name, value in figures.items()}
    OUTPUT.write_text(json.dumps(rounded, indent=1) + "\n", "utf-8")
    console.print(f"Written to {OUTPUT}.")
    if not options.short:
        return 0
    gates = tomllib.loads((HERE / "gates.toml").read_text("utf-8"))["at_least"]
    missed = below(figures, gates)
    for line in missed:
        console.print(f"[red]Too slow:[/] {line}")
    if not missed:
        console.print(f"All {len(gates)} gates are held.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
