"""``python -m tests.bench.vault``: what a vault of many subjects costs in time and space.

SQLite by default, in ``--folder``; ``--url`` names a PostgreSQL database instead, which must be
empty. Prints a table; what was measured, when and where stands in docs/vault.md.
"""

from __future__ import annotations

import argparse
import secrets
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

from telemetry.identity import initialise_development, open_vault
from telemetry.identity.keyring import Keyring
from telemetry.identity.vault import Vault, wrap
from telemetry.identity.vault.upkeep import backup, rewrap, rotate, stats

BATCH = 256  # what the pseudonymizer polls
TURNS = 60
ROUND = 1_000_000


def locators(number: int) -> list[bytes]:
    """Make locators: what they are, 32 bytes that look random."""
    raw = secrets.token_bytes(32 * number)
    return [raw[at : at + 32] for at in range(0, len(raw), 32)]


def fill(vault: Vault, subjects: int) -> list[bytes]:
    """Put subjects into a vault; give some of them.

    A round goes in sorted, the next between it: the pages are filled as by subjects who come one
    after the other.
    """
    some: list[bytes] = []
    path = vault.engine.url.database
    if vault.engine.dialect.name != "sqlite":
        for _ in range(0, subjects, 5000):
            fresh = locators(min(5000, subjects))
            vault.secrets(fresh)
            some += fresh[:20]
        return some
    vault.drain()
    key = vault.keyring.wrap(1).expose()
    assert path is not None
    writer = sqlite3.connect(path, isolation_level=None)
    for pragma in ("synchronous=OFF", "cache_size=-2000000"):
        writer.execute(f"PRAGMA {pragma}")
    for left in range(subjects, 0, -ROUND):
        fresh = sorted(locators(min(ROUND, left)))
        rows = (
            (one, wrap(key, secrets.token_bytes(32), locator=one, version=1), 1, "2026-11", 0)
            for one in fresh
        )
        writer.execute("BEGIN IMMEDIATE")
        writer.executemany(
            "INSERT INTO subjects (locator, wrapped, wrap_version, created_month, pins)"
            " VALUES (?, ?, ?, ?, ?)",
            rows,
        )
        writer.execute("COMMIT")
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        some += secrets.SystemRandom().sample(fresh, min(20 * TURNS, len(fresh)))
    writer.close()
    return some


def per_subject(work: Callable[[list[bytes]], object], batches: list[list[bytes]]) -> list[float]:
    """Time a work on each batch; µs per subject, fastest first."""
    times = []
    for batch in batches:
        began = time.perf_counter()
        work(batch)
        times.append((time.perf_counter() - began) / len(batch) * 1e6)
    return sorted(times)


def seconds(steps: Iterator[float]) -> tuple[float, float]:
    """Run a long work; give its seconds and those of its longest piece."""
    began = last = time.perf_counter()
    longest = 0.0
    for _ in steps:
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return time.perf_counter() - began, longest


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.vault", description=__doc__)
    parser.add_argument("--subjects", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where; by default a temporary folder")
    parser.add_argument("--url", help="an empty PostgreSQL database")
    parser.add_argument("--no-upkeep", action="store_true", help="no rewrapping, no backup")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        state = Path(folder)
        initialise_development(state)
        ring = Keyring.load(state / "keys" / "keyset.json", environment="development")
        vault = open_vault(state, ring, vault_url=options.url, cache_rows=0)
        began = time.perf_counter()
        some = fill(vault, options.subjects)
        console.print(f"{options.subjects:,} subjects made in {time.perf_counter() - began:.0f} s")
        table = Table(title=f"Vault on {vault.engine.dialect.name}", title_justify="left")
        for column in ("", "fastest", "median", "unit"):
            table.add_column(column)

        def row(name: str, times: list[float], unit: str) -> None:
            middle = statistics.median(times)
            table.add_row(name, f"{times[0]:,.1f}", f"{middle:,.1f}", unit)

        order = secrets.SystemRandom().sample(some, min(len(some), BATCH * TURNS))
        known = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]
        row("look up a known subject", per_subject(vault.secrets, known), "µs")
        row("again, pages in memory", per_subject(vault.secrets, known), "µs")
        fresh = [locators(BATCH) for _ in range(TURNS)]
        row(f"make a new subject, {BATCH} a batch", per_subject(vault.secrets, fresh), "µs")
        large = [locators(2048) for _ in range(10)]
        row("make a new subject, 2048 a batch", per_subject(vault.secrets, large), "µs")
        row("state of a subject", per_subject(vault.states, known), "µs")
        gone = [one[:1] for one in known[:20]]
        row("erase", per_subject(lambda batch: vault.erase(batch[0]), gone), "µs")
        counted = stats(vault)
        size = counted.bytes
        console.print(f"{size / 2**20:,.0f} MiB, {size / counted.subjects:.0f} bytes a subject")
        if not options.no_upkeep:
            rotate(vault, now=datetime.now(UTC), after=timedelta(0))
            for name, steps in (
                ("rewrap all, destroy the old key", rewrap(vault, keep=0)),
                ("back up", backup(vault, state / "copy.sqlite3")),
            ):
                whole, longest = seconds(steps)
                table.add_row(name, f"{whole:,.1f}", f"longest piece {longest * 1e3:.0f} ms", "s")
        began = time.perf_counter()
        stats(vault)
        table.add_row("stats", f"{time.perf_counter() - began:,.1f}", "", "s")
        console.print(table)
        vault.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
