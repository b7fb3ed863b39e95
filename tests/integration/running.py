"""``telemetry run`` as a process of its own, and a client that remembers what was acknowledged."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from random import SystemRandom
from types import TracebackType
from typing import Any, Final, Self

from telemetry.admin import NoAnswerError, NotRunningError, ask
from telemetry.identity.audit import AUDIT_FILE, AuditLog
from telemetry.testing import HeapStandIn, SentryStandIn

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-c", "from telemetry.cli import main; main()")


def free_port() -> int:
    """Give a port that nobody listens on, below those that the system gives to clients.

    A client that asks for a port of theirs while nobody listens there may be given the same one as
    its own: it is then connected to itself, and whoever wants to listen there cannot.
    """
    draw = SystemRandom()
    while True:
        port = draw.randrange(_FIRST_PORT, _CLIENTS_FROM)
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port


def _clients_from() -> int:
    with suppress(OSError, ValueError):
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()[0])
    return 32_768


_FIRST_PORT: Final = 15_000
_CLIENTS_FROM: Final = max(_clients_from(), _FIRST_PORT + 1_000)


def environment(**more: str) -> dict[str, str]:
    """Give a process what it needs of ours and nothing of ``TELEMETRY_*``."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TELEMETRY_", "COV"))}
    return {**kept, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200", **more}


def command(
    *arguments: str, cwd: Path, timeout_s: float = 60.0, stdin: str | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run ``telemetry`` to its end."""
    return subprocess.run(  # noqa: S603 - our own command
        [*COMMAND, *arguments],
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        input=stdin,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait for a condition, at most so long."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


class Running:
    """A pipeline in a process, with recipients that live in the test."""

    def __init__(self, folder: Path, heap: HeapStandIn, sentry: SentryStandIn, **more: str) -> None:
        self.folder, self.state = folder, folder / "state"
        self.stderr = folder / "stderr.log"
        self.port, self.admin_port = free_port(), free_port()
        self.more: Mapping[str, str] = {
            "TELEMETRY_SENTRY_DSN": sentry.dsn,
            "TELEMETRY_HEAP_URL": heap.url,
            "TELEMETRY_HEAP_APP_ID": heap.settings["app_id"],
            "TELEMETRY_STATE": str(self.state),
            "TELEMETRY_BIND": f"127.0.0.1:{self.port}",
            "TELEMETRY_ADMIN_BIND": f"127.0.0.1:{self.admin_port}",
            **more,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.unanswered = ""
        self._client: HTTPConnection | None = None

    def start(self) -> Self:
        with self.stderr.open("ab") as errors:
            self.process = subprocess.Popen(  # noqa: S603 - our own command
                [*COMMAND, "run"],
                cwd=self.folder,
                env=environment(**self.more),
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        until(self._ready, 30.0, "ready")
        return self

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.stderr.read_text("utf-8")[-2000:]
        try:
            return self.get("/health/ready", self.port)[0] == 200
        except (OSError, HTTPException):
            return False

    def witnessed(self, action: str) -> list[tuple[str, Mapping[str, str | int] | None]]:
        """Give who did something, and what the audit log says of it."""
        log = AuditLog(self.state / AUDIT_FILE)
        try:
            return [(entry.actor, entry.body) for entry in log.entries(action=action)]
        finally:
            log.close()

    def get(self, path: str, port: int | None = None) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", port or self.admin_port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def post(self, path: str, body: bytes) -> Any:
        """Send; give the answer, or None if the process died before it answered."""
        headers = {"Content-Type": "application/json", "X-Sentry-Auth": "Sentry sentry_key=demo"}
        try:
            # Kept by name: whoever kills the process forgets the connection meanwhile.
            client = self._client or HTTPConnection("127.0.0.1", self.port, timeout=20)
            self._client = client
            client.request("POST", path, body, headers)
            answer = client.getresponse()
            text = answer.read()
        except (OSError, HTTPException) as error:
            self._client = None
            self.unanswered = f"{error!r}, process: {self.process and self.process.poll()}"
            return None
        assert answer.status == 200, text
        return json.loads(text)

    def events(self, found: Iterable[Mapping[str, Any]]) -> bool:
        """Send native events; tell whether all were acknowledged."""
        sent = list(found)
        answer = self.post("/v1/events", json.dumps(sent).encode())
        if answer is None:
            return False
        assert answer == {"taken": len(sent), "dropped": {}, "dead": {}}
        return True

    def envelope(self, event: Mapping[str, Any]) -> bool:
        """Send one Sentry event; tell whether it was acknowledged."""
        lines = [{"event_id": event["event_id"]}, {"type": "event"}, event]
        return self.post("/api/1/envelope/", b"\n".join(json.dumps(o).encode() for o in lines)) == {
            "id": event["event_id"]
        }

    def books(self) -> dict[str, Any]:
        try:
            figures: dict[str, Any] = ask(self.state, "GET", "/books")
        except (NoAnswerError, NotRunningError):
            return {}
        return figures

    def drain(self, timeout_s: float = 30.0) -> dict[str, Any]:
        """Wait until nothing is under way; give the books."""
        until(lambda: not any(self.books()["pending"].values()), timeout_s, "drained")
        return self.books()

    def signal(self, number: signal.Signals, timeout_s: float = 20.0) -> int:
        """Send a signal to the process we started; give its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        self._client = None
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        assert self.signal(signal.SIGKILL) == -signal.SIGKILL

    def stop(self) -> int:
        return self.signal(signal.SIGTERM)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def everything_written(self) -> bytes:
        """Give every byte on disk and in the log, and the metrics while it runs."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return b"\n".join(path.read_bytes() for path in files)
