"""``python -m tests.soak [--minutes 30] [--kills 1000] [--seed N]``: break the pipeline at random.

Rounds (`tests.soak.round`) run side by side, each with a ``telemetry run`` of its own on an
embedded log of its own, until the minutes are over and enough kills have counted. Clients send
known events through a proxy that spoils connections; recipients follow a script of refusals; the
process is killed, stopped, frozen and denied disk space. At the end of each round everything that
was acknowledged must have arrived once or be a dead letter that the schedule explains, the books
must agree, and no planted value may be anywhere.

``--seed S --round K`` repeats one round and shows each step. Exit code 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.soak.stall import Compared, compare

ROOT: Final = Path(__file__).parents[2]
WORK: Final = ROOT / "build" / "soak"
ROUND_KILLS: Final = 25
CALM_EVERY: Final = 8
"""One round in so many has no kill, so that a process also grows old."""
RECOVERY_S: Final = 10.0
"""Longest from a start to the first delivery, p99, on a machine that has little else to do."""
_LATE_MINUTES: Final = 8.0
_SAY_EVERY_S: Final = 1.0


class Soak:
    """Runs rounds in `lanes` processes until there is enough.

    Args:
        seed: Decides every round. folder: For states; those of rounds without a finding go.
        minutes: How long new rounds are begun. kills: How many must count; more time is taken for
            them, but not without end.
        lanes: How many rounds at once. calm_s: Length of a round without kills; 0: none.
    """

    def __init__(
        self,
        *,
        seed: int,
        folder: Path,
        minutes: float,
        kills: int,
        lanes: int,
        calm_s: float,
        only: int | None = None,
    ) -> None:
        self.seed, self.folder, self.kills = seed, folder, kills
        self.lanes, self.calm_s, self.only = lanes, calm_s, only
        self.reports: list[dict[str, Any]] = []
        self.wrong: list[str] = []
        self._begun = time.monotonic()
        self._until = self._begun + 60 * minutes
        self._latest = self._until + 60 * max(2 * minutes, _LATE_MINUTES)
        self._number = 0
        self._now: dict[int, int] = {}
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self) -> None:
        """Do all rounds; what is wrong stands in `wrong`."""
        if self.only is not None:
            self._round(self.only, verbose=True)
            return
        threads = [
            threading.Thread(target=self._lane, name=f"lane {n}", daemon=True)
            for n in range(self.lanes)
        ]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                time.sleep(_SAY_EVERY_S)
                self._progress()
        except KeyboardInterrupt:
            for process in tuple(self._running):
                process.kill()
            self.wrong.append("interrupted")
            raise
        finally:
            if sys.stderr.isatty():
                print(file=sys.stderr)  # noqa: T201 - ends the line of progress
        if self.counted < self.kills:
            self.wrong.append(f"only {self.counted} of {self.kills} kills counted in the time")

    @property
    def counted(self) -> int:
        """How many kills have counted so far."""
        done = sum(int(report["kills"]) for report in self.reports)
        return done + sum(self._now.values())

    def _progress(self) -> None:
        if sys.stderr.isatty():
            passed = time.monotonic() - self._begun
            print(  # noqa: T201 - progress
                f"\r{passed:6.0f} s, {self.counted} kills, {len(self.reports)} rounds done, "
                f"{len(self._now)} running, {len(self.wrong)} findings ",
                end="",
                file=sys.stderr,
                flush=True,
            )

    def _lane(self) -> None:
        while True:
            with self._lock:
                now = time.monotonic()
                wanted = now < self._until or self.counted < self.kills
                if self.wrong or not wanted or now > self._latest:
                    return
                number, self._number = self._number, self._number + 1
                self._now[number] = 0
            self._round(number)

    def _round(self, number: int, *, verbose: bool = False) -> None:
        calm = self.calm_s > 0 and number % CALM_EVERY == CALM_EVERY - 1
        folder = self.folder / f"{self.seed}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        command = [
            *(sys.executable, "-m", "tests.soak.round"),
            *("--seed", str(self.seed), "--round", str(number), "--folder", str(folder)),
            *("--kills", "0" if calm else str(ROUND_KILLS), "--seconds", str(self.calm_s)),
            *(("--verbose",) if verbose else ()),
        ]
        report: dict[str, Any] | None = None
        with subprocess.Popen(  # noqa: S603 - ourselves
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
        ) as process:
            self._running.add(process)
            for line in process.stdout or ():
                told = json.loads(line)
                report = told.get("report", report)
                self._now[number] = told.get("kills", self._now.get(number, 0))
        self._running.discard(process)
        with self._lock:
            self._now.pop(number, None)
            if report is None:
                self.wrong.append(f"round {number} ended with {process.returncode} and no report")
                return
            self.reports.append(report)
            self.wrong += [f"round {number}: {what}" for what in report["wrong"]]
            if not sys.stderr.isatty():
                print(  # noqa: T201 - progress
                    f"soak: round {number}: {report['kills']} kills, "
                    f"{report['acknowledged']} events, {report['seconds']:.0f} s, "
                    f"{'WRONG' if report['wrong'] else 'nothing lost'}; {self.counted} kills",
                    file=sys.stderr,
                    flush=True,
                )


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """Give p50, p99 and the largest."""
    found = sorted(values)
    if not found:
        return {}
    at = {name: found[min(int(len(found) * share), len(found) - 1)] for name, share in _SHARES}
    return {**at, "max": found[-1], "n": len(found)}


_SHARES: Final = (("p50", 0.5), ("p99", 0.99))


def summary(soak: Soak, compared: Compared | None) -> dict[str, Any]:
    """Put the reports of all rounds together."""
    reports = sorted(soak.reports, key=lambda report: int(report["number"]))

    def total(name: str) -> int:
        return sum(report[name] for report in reports)

    def counts(name: str) -> dict[str, int]:
        found: Counter[str] = Counter()
        for report in reports:
            found.update(report[name])
        return dict(sorted(found.items()))

    def all_of(*names: str) -> list[float]:
        return [value for report in reports for name in names for value in report[name]]

    dead: Counter[str] = Counter()
    for report in reports:
        dead.update(report["books"].get("dead", {}))
    return {
        "seed": soak.seed,
        "rounds": len(reports),
        "kills": total("kills"),
        "kills_in_vain": total("kills_in_vain"),
        "kills_while_new": total("kills_while_new"),
        "starts": total("starts"),
        "starts_from_nothing": total("starts_from_nothing"),
        "steps": counts("steps"),
        "network": counts("struck"),
        "events_acknowledged": total("acknowledged"),
        "requests_without_answer": total("unanswered"),
        "requests_refused": total("refused"),
        "arrived": total("arrived"),
        "repeats_on_the_wire": total("repeats"),
        "without_room": sum(
            report["books"].get("dropped", {}).get("no_room", 0) for report in reports
        ),
        "dead": dict(sorted(dead.items())),
        "books_exact": all(report["books"].get("exact", False) for report in reports),
        "backlog_at_kill": percentiles(all_of("backlogs")),
        "ready_s": percentiles(all_of("ready_s")),
        "first_delivery_s": percentiles(
            all_of("first_delivery_s", "first_delivery_from_nothing_s")
        ),
        "first_delivery_from_nothing_s": percentiles(all_of("first_delivery_from_nothing_s")),
        "stop_s": percentiles(all_of("stop_s")),
        "acknowledged_s": percentiles(all_of("ack_s")),
        "delivered_s": percentiles(all_of("delivery_s")),
        "memory_mib": percentiles(all_of("rss_mib")),
        "stalled_heap": compared.as_json() if compared else None,
        "wrong": soak.wrong,
        "kept": [report["folder"] for report in reports if report["wrong"]],
    }


def show(figures: Mapping[str, Any], reports: Sequence[Mapping[str, Any]]) -> None:
    """Print the summary, and the timeline of what went wrong."""
    for report in reports:
        if report["wrong"]:
            print(f"round {report['number']}:", *report["timeline"], sep="\n  ")  # noqa: T201
    for name, value in figures.items():
        if name == "wrong" or not value:
            continue
        if isinstance(value, dict):
            shown = ", ".join(
                f"{k} {v:g}" if _is_number(v) else f"{k} {v}" for k, v in value.items()
            )
        else:
            shown = str(value)
        print(f"{name.replace('_', ' ')}: {shown}")  # noqa: T201


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def main() -> int:
    """Run the soak."""
    read = argparse.ArgumentParser(
        prog="tests.soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    read.add_argument("--minutes", type=float, default=30.0)
    read.add_argument("--kills", type=int, default=1000, help="how many must count")
    read.add_argument("--seed", type=int, help="drawn if it is not given")
    read.add_argument("--round", type=int, help="only this one, step by step")
    read.add_argument("--lanes", type=int, default=(os.cpu_count() or 1) + 1)
    read.add_argument("--calm-s", type=float, default=90.0, help="0: no round without kills")
    read.add_argument("--stall-s", type=float, default=60.0, help="0: no comparison with a stall")
    read.add_argument(
        "--recovery-s",
        type=float,
        default=RECOVERY_S,
        help="longest from a start to the first delivery, p99; more where others use the machine",
    )
    read.add_argument("--json", type=Path, help="write figures and all reports there")
    given = read.parse_args()
    seed = int.from_bytes(os.urandom(4), "big") if given.seed is None else given.seed
    print(f"soak: seed {seed}", file=sys.stderr, flush=True)  # noqa: T201
    WORK.mkdir(parents=True, exist_ok=True)
    soak = Soak(
        seed=seed,
        folder=WORK,
        minutes=given.minutes,
        kills=given.kills,
        lanes=given.lanes,
        calm_s=given.calm_s,
        only=given.round,
    )
    soak.run()
    compared = None
    if given.stall_s > 0 and given.round is None and not soak.wrong:
        compared = compare(WORK / f"{seed}-stall", seconds=given.stall_s)
        soak.wrong += compared.wrong
    figures = summary(soak, compared)
    first = figures["first_delivery_s"]
    if first and first["p99"] > given.recovery_s:
        soak.wrong.append(f"a hundredth of starts took {first['p99']:.1f} s to a first delivery")
    show(figures, soak.reports)
    if given.json:
        given.json.write_text(json.dumps({**figures, "reports": soak.reports}, indent=1), "utf-8")
    for what in soak.wrong:
        print(f"WRONG {what}")  # noqa: T201
    if soak.wrong:
        print(f"To see it again: make soak SEED={seed} ROUND=<the round>")  # noqa: T201
        return 1
    print(f"Nothing lost in {figures['kills']} kills.")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
