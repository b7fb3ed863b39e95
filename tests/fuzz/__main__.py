"""``python -m tests.fuzz [TARGET…] [--seconds 60] [--jobs 2]``: look for what breaks a promise.

Targets: ``text``, ``url``, ``address``, ``user_agent`` and ``body``, guided by coverage with
atheris, which is installed into build/ from its own lock; and ``anchors``, which needs nothing.

What is found lies in build/fuzz/TARGET. Copy it to tests/fuzz/regressions/TARGET under a name that
says what it is: from then on ``make test`` knows it. The corpus in build/fuzz grows with each run.

Exit code 1 if something was found, or if atheris is missing although ``TELEMETRY_REQUIRE``
names it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from tests.fuzz.anchors import search
from tests.fuzz.properties import PROPERTIES
from tests.fuzz.seeds import LONGEST, dictionary, seeds

ROOT: Final = Path(__file__).parents[2]
LOCK: Final = Path(__file__).with_name("requirements.lock")
HOME: Final = ROOT / "build" / "atheris"
WORK: Final = ROOT / "build" / "fuzz"
ANCHORS: Final = "anchors"
INPUT_S: Final = 5
"""Longest that one input may take, under instrumentation, on a machine that others use too."""
MEMORY_MB: Final = 1024
_TAIL: Final = 40
_ARTIFACTS: Final = ("crash-", "timeout-", "oom-", "leak-", "slow-unit-")


class Ran(NamedTuple):
    """How a target went: `found` says what broke, `said` what the fuzzer printed last."""

    target: str
    seconds: float
    said: str
    found: Sequence[str] = ()


def install() -> str:
    """Install atheris from its lock, once; say what is missing, if anything is."""
    ready = HOME / f".ready-{sys.version_info.major}.{sys.version_info.minor}"
    lock = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if ready.exists() and ready.read_text() == lock:
        return ""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    how = ["--require-hashes", "--only-binary", ":all:", "--no-deps", "--upgrade"]
    where = ["--target", str(HOME), "-r", str(LOCK)]
    try:
        done = subprocess.run(  # noqa: S603 - from our lock
            [*pip, *how, *where], capture_output=True, timeout=240, check=False
        )
    except subprocess.TimeoutExpired:
        return "its installation did not finish in time"
    if done.returncode:
        return (
            "it cannot be installed (no package registry, or no wheel for this Python or machine?)"
        )
    ready.write_text(lock)
    return ""


def guided(target: str, seconds: int) -> Ran:
    """Run a target under atheris."""
    folder = WORK / target
    corpus, started = folder / "corpus", folder / "seeds"
    for needed in (corpus, started):
        needed.mkdir(parents=True, exist_ok=True)
    for data in seeds(target):
        (started / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    words = folder / "words.dict"
    words.write_text(dictionary(target), "ascii")
    before = set(_artifacts(folder))
    began = time.monotonic()
    known = Path(__file__).with_name("regressions") / target
    command = [
        *(sys.executable, "-m", "tests.fuzz.guided", target),
        *(str(corpus), str(started), *([str(known)] if known.is_dir() else ())),
        f"-max_total_time={seconds}",
        f"-timeout={INPUT_S}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-dict={words}",
        f"-artifact_prefix={folder}/",
        f"-max_len={LONGEST}",
        "-len_control=20",
        "-print_final_stats=1",
        # A change is judged from the same beginning; engineers' machines look for new ones.
        f"-seed={1 if os.environ.get('CI') == 'true' else 0}",
    ]
    path = os.pathsep.join((str(HOME), str(ROOT)))
    try:
        done = subprocess.run(  # noqa: S603 - ourselves
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=4 * seconds + 300,
            check=False,
        )
        said, failed = done.stdout.decode("utf-8", "replace"), done.returncode != 0
    except subprocess.TimeoutExpired:
        said, failed = "it did not end in time", True
    (folder / "last.log").write_text(said, "utf-8")
    found = sorted(str(path.relative_to(ROOT)) for path in set(_artifacts(folder)) - before)
    if failed and not found:
        found = ["it ended with an error"]
    return Ran(target, time.monotonic() - began, said, found)


def _artifacts(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(_ARTIFACTS)]


def anchors(seconds: int) -> Ran:
    """Make texts from the detectors' patterns; see `tests.fuzz.anchors`."""
    began = time.monotonic()
    seed = 1 if os.environ.get("CI") == "true" else int.from_bytes(os.urandom(4), "big")
    misses, claimed = search(seconds, seed=seed)
    return Ran(
        ANCHORS,
        time.monotonic() - began,
        f"{claimed} texts in which a pattern matched, seed {seed}",
        [f"{miss.detector}: no gate hits {miss.text!r}" for miss in misses],
    )


def _executions(said: str) -> str:
    for line in reversed(said.splitlines()):
        if line.startswith("stat::number_of_executed_units:"):
            return f"{line.rpartition(':')[2].strip()} inputs"
    return said.splitlines()[-1] if said else ""


def main() -> int:
    """Run what was asked for, `jobs` at a time."""
    targets = (*PROPERTIES, ANCHORS)
    read = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    read.add_argument("target", nargs="*", help=", ".join(targets))
    read.add_argument("--seconds", type=int, default=60, help="for each target")
    read.add_argument("--jobs", type=int, default=2, help="targets at a time")
    given = read.parse_args()
    wanted = given.target or targets
    if unknown := set(wanted) - set(targets):
        read.error(f"no target {', '.join(sorted(unknown))}")
    missing = install() if set(wanted) - {ANCHORS} else ""
    if missing:
        sys.stderr.write(
            f"fuzz: NOT RUN: {', '.join(sorted({*wanted} - {ANCHORS}))}: needs atheris: {missing}\n"
        )
        wanted = [target for target in wanted if target == ANCHORS]

    def run(target: str) -> Ran:
        return anchors(given.seconds) if target == ANCHORS else guided(target, given.seconds)

    failed = bool(missing) and "atheris" in os.environ.get("TELEMETRY_REQUIRE", "").lower()
    with ThreadPoolExecutor(max(1, given.jobs)) as pool:
        for ran in pool.map(run, wanted):
            verdict = "FAILED" if ran.found else "ok"
            sys.stdout.write(
                f"fuzz: {ran.target}: {verdict}, {ran.seconds:.0f} s, {_executions(ran.said)}\n"
            )
            if ran.found:
                failed = True
                sys.stdout.write("\n".join(ran.said.splitlines()[-_TAIL:]) + "\n")
                sys.stdout.writelines(f"fuzz: {ran.target}: {what}\n" for what in ran.found)
            sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
