"""A real server that speaks Sentry's protocol makes one issue of one error.

Bugsink groups by the type and the first line of the message, never by the stack: what is most
exposed to whose data a message holds. Its first mechanism takes the message as it is; its second
puts placeholders of its own into it, as Sentry does.

Source:
    bugsink.com/docs, and `issues/grouping_mechanisms` of the package.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from telemetry.sinks import Delivered, Delivery
from telemetry.sinks.sentry import SentrySink
from telemetry.testing import Canaries
from tests.conftest import require
from tests.grouping.raised import KINDS, WAYS, capture, person
from tests.grouping.test_python import delivered

LOCK = Path(__file__).with_name("requirements-bugsink.lock")
# Not our own environment: nothing of Bugsink is needed to run or test anything else.
HOME = Path(__file__).parents[2] / "build" / "bugsink"
BIN = HOME / "bin"

CONF = """
from bugsink.settings.default import *

SECRET_KEY = "nothing here is secret" * 3
DATABASES["default"]["NAME"] = FOLDER + "/bugsink.sqlite3"
DATABASES["snappea"]["NAME"] = FOLDER + "/tasks.sqlite3"
SNAPPEA = {"TASK_ALWAYS_EAGER": True}  # what was answered is stored and grouped
EMAIL_BACKEND = "django.core.mail.backends.dummy.EmailBackend"
MANY = 1_000_000
BUGSINK = {
    "BASE_URL": "http://127.0.0.1:" + PORT,
    "INGEST_STORE_BASE_DIR": FOLDER + "/ingest",
    "PHONEHOME": False,
    "MAX_EVENTS_PER_PROJECT_PER_5_MINUTES": MANY,
    "MAX_EVENTS_PER_PROJECT_PER_HOUR": MANY,
    "MAX_EVENTS_PER_5_MINUTES": MANY,
    "MAX_EVENTS_PER_HOUR": MANY,
}
"""
PREPARE = """
import json
from bsmain.models import AuthToken
from projects.models import Project

made = {
    name: [project.id, project.sentry_key.hex]
    for name, mechanism in (("plain", "v1"), ("normalized", "v2"), ("unscrubbed", "v1"))
    for project in [Project.objects.create(name=name, grouping_mechanism="bugsink-" + mechanism)]
}
print(json.dumps({"projects": made, "token": AuthToken.create_full_access().token}))
"""


def installed() -> str:
    """Install Bugsink from its lock, once; say what is missing, if anything is."""
    ready = HOME / ".ready"
    lock = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if ready.exists() and ready.read_text() == lock:
        return ""
    pip = [str(BIN / "python"), "-m", "pip", "install", "--quiet", "--require-hashes"]
    for step in ([sys.executable, "-m", "venv", "--clear", str(HOME)], [*pip, "-r", str(LOCK)]):
        try:
            done = subprocess.run(step, capture_output=True, timeout=240, check=False)  # noqa: S603
        except subprocess.TimeoutExpired:
            return "its installation did not finish in time"
        if done.returncode:
            return "it cannot be installed (no package registry, or no wheel for this Python?)"
    ready.write_text(lock)
    return ""


class Bugsink:
    """A server on loopback with a database of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port: int = found.getsockname()[1]
        head = f"FOLDER = {str(folder)!r}\nPORT = {str(self.port)!r}\n"
        (folder / "bugsink_conf.py").write_text(head + CONF)
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self._environment = {
            **kept,
            "PYTHONPATH": str(folder),
            "DJANGO_SETTINGS_MODULE": "bugsink_conf",
        }
        self._manage("migrate", "-v0")
        made = json.loads(self._manage("shell", "-c", PREPARE).splitlines()[-1])
        self._projects: Mapping[str, tuple[int, str]] = made["projects"]
        self._token: str = made["token"]
        self._log = (folder / "server.log").open("wb")
        command = [BIN / "gunicorn", "bugsink.wsgi", "--bind", f"127.0.0.1:{self.port}"]
        self._process = subprocess.Popen(  # noqa: S603 - what we installed
            command, cwd=folder, env=self._environment, stdout=self._log, stderr=self._log
        )
        end = time.monotonic() + 60
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                break
            assert time.monotonic() < end, "Bugsink does not answer"
            time.sleep(0.1)

    def _manage(self, *arguments: str) -> str:
        done = subprocess.run(  # noqa: S603 - what we installed
            [BIN / "bugsink-manage", *arguments],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._log.close()

    def send(self, project: str, events: Sequence[Mapping[str, Any]]) -> None:
        """Deliver events by our own sink; all must be taken."""
        number, key = self._projects[project]
        deliveries = [
            Delivery(
                delivery_id=event["event_id"],
                kind="error_event",
                body=json.dumps(event).encode(),
                occurred_at=datetime.now(UTC),
            )
            for event in events
        ]

        async def deliver() -> Sequence[object]:
            sink = SentrySink(dsn=f"http://{key}@127.0.0.1:{self.port}/{number}", total_s=60)
            try:
                outcomes: list[object] = []
                for start in range(0, len(deliveries), sink.max_deliveries):
                    outcomes += await sink.send(deliveries[start : start + sink.max_deliveries])
            finally:
                await sink.close()
            return outcomes

        outcomes = asyncio.run(deliver())
        assert {type(outcome) for outcome in outcomes} == {Delivered}

    def issues(self, project: str) -> list[dict[str, Any]]:
        """Ask for the first 250 issues of a project."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/canonical/0/issues/"
            f"?project={self._projects[project][0]}",
            headers={"Authorization": f"Bearer {self._token}"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            found: list[dict[str, Any]] = json.load(answer)["results"]
        return found

    def database(self) -> bytes:
        """Give all bytes that it stores."""
        found = []
        for path in sorted(self.folder.glob("bugsink.sqlite3*")):
            with suppress(FileNotFoundError):  # SQLite removes what it no longer needs
                found.append(path.read_bytes())
        return b"".join(found)


@pytest.fixture(scope="module")
def bugsink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bugsink]:
    require("bugsink", installed())
    server = Bugsink(tmp_path_factory.mktemp("bugsink"))
    try:
        yield server
    finally:
        server.stop()


def now(event: dict[str, Any]) -> dict[str, Any]:
    """Give an event an id and a time of its own."""
    return event | {"event_id": uuid.uuid4().hex, "timestamp": datetime.now(UTC).isoformat()}


# Each person meets each error, each by another way through the program.
RAISED = [(kind, number, way) for kind in KINDS for number, way in enumerate(sorted(WAYS)[:10])]


@pytest.mark.bugsink
@pytest.mark.endurance
@pytest.mark.timeout(500)
@pytest.mark.xdist_group("bugsink")
def test_bugsink_makes_one_issue_of_one_error(bugsink: Bugsink) -> None:
    raws = [capture(kind, way, person(number)) for kind, number, way in RAISED]
    clean = [delivered(raw) for raw in raws]
    for project in ("plain", "normalized"):
        bugsink.send(project, [now(event) for event in clean])
        issues = bugsink.issues(project)
        counts = [issue["digested_event_count"] for issue in issues]
        assert counts == [10] * len(KINDS), [issue.get("calculated_value") for issue in issues]
    stored = bugsink.database()
    assert b"<email:1>" in stored
    assert [n for n in range(10) if Canaries(n).found_in(stored)] == []


@pytest.mark.bugsink
@pytest.mark.endurance
@pytest.mark.timeout(500)
@pytest.mark.xdist_group("bugsink")
def test_the_same_errors_unscrubbed_are_many_issues(bugsink: Bugsink) -> None:
    raws = [capture(kind, way, person(number)) for kind, number, way in RAISED]
    bugsink.send("unscrubbed", [now(json.loads(raw)) for raw in raws])
    assert len(bugsink.issues("unscrubbed")) > 3 * len(KINDS)
    assert all(Canaries(n).found_in(bugsink.database()) for n in range(10))
