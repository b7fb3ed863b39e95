"""Who else does this: their packages in an environment of their own, raced in the same run.

``requirements.lock`` lies beside this file; what it names is installed into ``build/neighbours``,
once. A process of that Python (`next_door`) takes its turns between ours and says what processor
time they took. Nothing of it is needed to run or test anything else.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.bench.next_door import MAKERS

__all__ = ["NEIGHBOURS", "Absent", "Neighbour", "NextDoor", "install"]

LOCK: Final = Path(__file__).with_name("requirements.lock")
HOME: Final = Path("build/neighbours")
NEIGHBOURS: Final = frozenset(MAKERS)
_INSTALL_S: Final = 300
_GIVE_UP: Final = 10
_REQUIREMENT: Final = re.compile(r"^[a-z].*?(?=^[a-z]|\Z)", re.MULTILINE | re.DOTALL)


class Absent(Exception):  # noqa: N818 - a state of the machine, not a mistake
    """A neighbour cannot be had here; the message says which package is missing."""


def install(home: Path = HOME, lock: Path = LOCK) -> Path:
    """Install what the lock names, once; give the environment's Python.

    What has no wheel for this platform is left out: who misses it says so (`Absent`).
    """
    python = home / "bin" / "python"
    ready = home / ".ready"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    if ready.exists() and ready.read_text() == digest:
        return python
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--retries", "1", "--require-hashes", "--only-binary", ":all:"]
    if not _done([sys.executable, "-m", "venv", "--clear", str(home)]):
        return python
    whole = _done([*pip, "-r", str(lock)])
    if whole or _parts([*pip, "--no-deps", "-r"], home / "part.txt", lock):
        ready.write_text(digest)
    return python


def _parts(pip: Sequence[str], part: Path, lock: Path) -> bool:
    """Install what can be had, one by one; without a registry give up, to try again next time."""
    failed = 0
    for requirement in _REQUIREMENT.findall(lock.read_text()):
        part.write_text(requirement)
        failed += not _done([*pip, str(part)])
        if failed == _GIVE_UP:
            break
    return failed < _GIVE_UP


def _done(command: Sequence[str]) -> bool:
    try:
        done = subprocess.run(  # noqa: S603 - our own words
            command, capture_output=True, timeout=_INSTALL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


class NextDoor:
    """A process that answers orders, one JSON object a line. Use it as a context.

    Args:
        command: Without one: the neighbours' own Python.
    """

    def __init__(self, *command: str, python: Path = HOME / "bin" / "python") -> None:
        self._process: subprocess.Popen[str] | None = None
        script = Path(__file__).with_name("next_door.py")
        self._command = command or (str(python), "-I", str(script))
        self._numbers = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.communicate()

    def contender(self, name: str, events: Sequence[bytes], **more: Any) -> Neighbour:
        """Have a neighbour load events.

        Raises:
            Absent: Its package is not here.
        """
        self._numbers += 1
        number = f"{name} {self._numbers}"
        texts = [event.decode() for event in events]
        answer = self.ask({"make": name, "name": number, "events": texts, **more})
        if "absent" in answer:
            raise Absent(f"{name}: there is no package {answer['absent']} for this Python")
        return Neighbour(self, number, events=len(events), **answer)

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Put an order, wait for the answer.

        Raises:
            Absent: The process cannot be started, or died.
        """
        if self._process is None:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own words
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            except OSError:
                raise Absent("neighbours: their environment could not be made") from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline() or "null") or {}
        except OSError:
            answer = {}
        if not answer:
            raise Absent(f"{order.get('name')}: its process ended")
        return answer


class Neighbour:
    """A contender next door; see `tests.bench.race.Contender`.

    Attributes:
        first: What it made of the first event. taken: Patterns that it took, if it was given any.
    """

    def __init__(
        self, door: NextDoor, name: str, *, events: int = 1, first: str = "", taken: int = 0
    ) -> None:
        self._door, self._name, self.events = door, name, events
        self.first, self.taken = first, taken

    def turn(self, rounds: int) -> float:
        """Work; see `Contender`."""
        took_s: float = self._door.ask({"turn": rounds, "name": self._name})["cpu_s"]
        return took_s
