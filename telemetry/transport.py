"""Hand-over to a gateway by HTTP: one bounded queue, one background thread, nothing on disk.

Owns when something is sent, sent again or dropped. Refuses to know what an event is: whoever
makes a `Handover` gives it a function that turns an `Entry` into bytes, and that function runs on
the background thread. A caller's thread does a few appends and never waits, whatever the gateway
does.
"""

from __future__ import annotations

import contextlib
import contextvars
import gzip
import os
import queue
import random
import re
import socket
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from telemetry.errors import ConfigError

if TYPE_CHECKING:
    import http.client

__all__ = ["DEFAULT_URL", "Destination", "Entry", "Handover"]

DEFAULT_URL: Final = "http://127.0.0.1:4180"
"""Where a gateway listens unless it is told otherwise."""

_KEY: Final = "local"
_PROJECT: Final = "1"
"""What a gateway takes that has no ``[project.…]`` in its settings."""

_CONNECT_S: Final = 2.0
_ANSWER_S: Final = 10.0
_LINGER_S: Final = 0.1
"""How long the first event of a batch waits for others."""
_IDLE_S: Final = 5.0
_BACKOFF_S: Final = (0.25, 15.0)
_LONGEST_WAIT_S: Final = 300.0
_BATCH_EVENTS: Final = 500
_BATCH_BYTES: Final = 256 * 1024
_GZIP_FROM_BYTES: Final = 1024
_ATTEMPTS_ANSWERED: Final = 10
"""After so many 5xx answers to the same request it is this request that the gateway cannot take."""
_FORK_WAIT_S: Final = 2.0

_LOOPBACK: Final = re.compile(r"127(?:\.[0-9]{1,3}){3}")

Lane = Literal["events", "envelope"]
_CONTENT_TYPES: Final[dict[Lane, str]] = {
    "events": "application/x-ndjson",
    "envelope": "application/x-sentry-envelope",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A gateway's address.

    Attributes:
        scheme: ``http``, ``https`` or ``unix``.
        host: Name or address; empty for ``unix``.
        port: TCP port.
        socket_path: Path of a Unix socket; empty otherwise.
        key: The public key that names the project's tenant.
        project: The project's id, as in a Sentry DSN.
    """

    scheme: str
    host: str = ""
    port: int = 0
    socket_path: str = ""
    key: str = _KEY
    project: str = _PROJECT

    @classmethod
    def parse(cls, url: str) -> Destination:
        """Read ``http[s]://[key@]host[:port][/project]`` or ``unix:/path``. A DSN is such a URL.

        Raises:
            ConfigError: It is neither. The message does not repeat it: it may hold a key.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme == "unix" and parts.path.startswith("/"):
            return cls(scheme="unix", socket_path=unquote(parts.path))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                "The gateway's url is neither http, https nor a Unix socket.",
                remedy=f"Write for example {DEFAULT_URL} or unix:/run/telemetry/gateway.sock.",
            )
        return cls(
            scheme=parts.scheme,
            host=parts.hostname,
            port=port or {"http": 80, "https": 443}[parts.scheme],
            key=unquote(parts.username or "") or _KEY,
            project=parts.path.strip("/").rpartition("/")[2] or _PROJECT,
        )

    @property
    def private(self) -> bool:
        """Tell whether nobody on the way can read along: loopback, Unix socket or TLS."""
        return self.scheme in ("unix", "https") or (
            self.host in ("localhost", "::1") or _LOOPBACK.fullmatch(self.host) is not None
        )

    @property
    def dsn(self) -> str:
        """The same gateway as Sentry SDKs want to be told."""
        if self.scheme == "unix":
            return f"http://{self.key}@localhost/{self.project}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{self.key}@{host}:{self.port}/{self.project}"

    def connect(self) -> http.client.HTTPConnection:
        """Make a connection that is opened by its first request."""
        import http.client  # noqa: PLC0415 - loads ssl: only who sends pays for it

        if self.scheme == "https":
            return http.client.HTTPSConnection(self.host, self.port, timeout=_CONNECT_S)
        if self.scheme == "http":
            return http.client.HTTPConnection(self.host, self.port, timeout=_CONNECT_S)
        connection = http.client.HTTPConnection("localhost", timeout=_CONNECT_S)
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.settimeout(_CONNECT_S)
        try:
            stream.connect(self.socket_path)
        except OSError:
            stream.close()
            raise
        connection.sock = stream
        return connection


class Entry(NamedTuple):
    """One event on its way to the background thread.

    Attributes:
        lane: Which of the gateway's dialects takes it. ``envelope`` carries errors: when the queue
            is full, analytics go first.
        kind: Name of a record.
        raw: JSON as the application gave it.
        address: The client's address or None.
        known: (kind, value) pairs that must appear in nothing that is sent.
    """

    lane: Lane
    kind: str
    raw: bytes
    address: str | None = None
    known: tuple[tuple[str, str], ...] = ()


class _Request(NamedTuple):
    """What is being sent, and sent again until it is taken."""

    lane: Lane
    bodies: tuple[bytes, ...]
    sizes: tuple[int, ...]


class Handover:
    """Hands events over to a gateway, from one daemon thread. Never raises, never blocks a caller.

    At least once: a request whose answer was lost is sent again with the same event ids, which
    makes the repeat harmless. While the process lives it tries again; what the bounds of the queue
    do not take is dropped and counted, analytics before errors. Nothing survives the process.

    Args:
        destination: The gateway.
        prepare: Makes the bytes to send, or gives the reason (one word) why nothing is sent. Runs
            on the background thread only.
        warm: Run once by each background thread before its first entry: what would otherwise cost
            the application's first request.
        away: Called with the status, or 0 without any, whenever the gateway does not take what it
            was given, which is tried again; and with its status when it takes something again.
        name: Of the service, for the gateway's log.
        max_events: Most events that wait.
        max_bytes: Most bytes that wait.
    """

    def __init__(
        self,
        destination: Destination,
        prepare: Callable[[Entry], bytes | str],
        *,
        warm: Callable[[], object] = lambda: None,
        away: Callable[[int], object] = lambda _status: None,
        name: str = "",
        max_events: int = 10_000,
        max_bytes: int = 16 * 1024 * 1024,
    ) -> None:
        self.destination = destination
        self._prepare, self._warm, self._away = prepare, warm, away
        self._agent = f"milchglas-python {name}".strip().encode("ascii", "replace").decode()
        self._max_events, self._max_bytes = max_events, max_bytes
        self._start_empty()
        _handovers.add(self)
        _watch_forks()

    def _start_empty(self) -> None:
        """Set everything that a forked child must not share with its parent."""
        # Re-entrant, because a signal handler or a finalizer may call us in the middle of a call.
        self._lock = threading.RLock()
        self._preparing = threading.Lock()
        # SimpleQueue.put is re-entrant, unlike Event.set: see its documentation.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._sleeping = False
        self._precious: deque[Entry] = deque()
        self._plain: deque[Entry] = deque()
        self._taken: deque[Entry] = deque()
        self._requests: deque[_Request] = deque()
        self._events = self._bytes = 0
        self._counts: Counter[str] = Counter()
        self._thread: threading.Thread | None = None
        self._thread_id = 0
        self._connection: http.client.HTTPConnection | None = None
        self._closed = False
        self._hurried = False
        self._fruitless_s = 0.0

    # The caller's side ----------------------------------------------------------------------------

    def put(self, entry: Entry) -> bool:
        """Queue an entry; tell whether there was room."""
        if threading.get_ident() == self._thread_id:
            # What our own sending or logging causes would feed itself for ever.
            self.count("dropped:own_thread")
            return False
        size = len(entry.raw)
        with self._lock:
            self._counts["accepted"] += 1
            precious = entry.lane == "envelope"
            while self._plain and precious and self._is_full(size):
                self._finish([len(self._plain.popleft().raw)], "dropped:queue_full")
            if self._closed or self._is_full(size):
                self._counts["dropped:closed" if self._closed else "dropped:queue_full"] += 1
                return False
            (self._precious if precious else self._plain).append(entry)
            self._events += 1
            self._bytes += size
        self._ensure_thread()
        if self._sleeping:
            self._wake.put(None)
        return True

    def start(self) -> None:
        """Start the background thread before there is anything to send."""
        self._ensure_thread()

    def count(self, what: str, number: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self._counts[what] += number

    def stats(self) -> dict[str, int]:
        """Count what happened: ``accepted = handed_over + pending`` + what was ``dropped:…``.

        ``dropped:own_thread`` and whatever else never reached the queue stand beside that equation.
        """
        with self._lock:
            counts = {**self._counts, "pending": self._events}
        counts.pop("finished", None)
        return counts

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was queued before is handed over or dropped; tell whether it is."""
        with self._lock:
            goal = self._counts["finished"] + self._events
            begun_with = self._counts["handed_over"]
        if threading.get_ident() == self._thread_id:
            return False
        begun_at = time.monotonic()
        while self._counts["finished"] < goal:
            self._hurried = True
            self._ensure_thread()
            if self._counts["finished"] + self._events < goal:
                break  # forked, or reset: what we waited for is not ours any more
            if time.monotonic() - begun_at >= timeout_s:
                if self._counts["handed_over"] == begun_with:
                    self._fruitless_s += timeout_s
                self._hurried = False
                return False
            if self._sleeping:
                self._wake.put(None)
            time.sleep(0.005)
        self._hurried = False
        return True

    def close(self, timeout_s: float) -> bool:
        """Flush, then stop for good. What could not be handed over is dropped and counted.

        Time already waited in vain counts: an application that flushes and then exits while the
        gateway is away waits once.
        """
        emptied = self.flush(max(0.0, timeout_s - self._fruitless_s))
        with self._lock:
            self._closed = True
            waiting = [len(entry.raw) for entry in (*self._precious, *self._plain)]
            self._precious.clear()
            self._plain.clear()
            self._finish(waiting, "dropped:closed")
        self._wake.put(None)
        return emptied

    def _is_full(self, size: int) -> bool:
        return self._events >= self._max_events or self._bytes + size > self._max_bytes

    def _finish(self, sizes: list[int] | tuple[int, ...], outcome: str) -> None:
        """Take entries out of the account, whatever became of them."""
        with self._lock:
            self._events -= len(sizes)
            self._bytes -= sum(sizes)
            self._counts[outcome] += len(sizes)
            self._counts["finished"] += len(sizes)

    def _ensure_thread(self) -> None:
        thread = self._thread
        if thread is not None and thread.is_alive():
            return
        with self._lock:
            if self._closed or (self._thread is not None and self._thread.is_alive()):
                return
            self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no more threads, or the interpreter is going down
                self._thread = None
                self._counts["no_thread"] += 1

    # The background thread's side -----------------------------------------------------------------

    def _run(self) -> None:
        self._thread_id = threading.get_ident()
        try:
            # An empty context: breadcrumbs and spans that instrumentation of http.client makes of
            # our own requests stay here and never reach an event of the application.
            contextvars.Context().run(self._loop)
        except BaseException:  # noqa: BLE001 - the next put starts another thread
            self.count("thread_died")
        finally:
            self._thread_id = 0

    def _loop(self) -> None:
        with self._preparing, contextlib.suppress(Exception):
            self._warm()  # what fails here fails again with the first entry, and is counted there
        if self._taken:
            # A thread died over this one; it must not kill the next.
            self._finish([len(self._taken.popleft().raw)], "dropped:thread_died")
        while not self._closed:
            if not self._requests:
                self._collect()
            if self._requests:
                self._deliver()
            elif not (self._precious or self._plain):
                self._sleep(_IDLE_S)

    def _sleep(self, delay_s: float) -> None:
        self._sleeping = True
        try:
            if not (self._precious or self._plain or self._closed or self._hurried):
                self._wake.get(timeout=delay_s)
                self._sleeping = False
                self._linger()
        except queue.Empty:
            pass
        finally:
            self._sleeping = False

    def _linger(self) -> None:
        """Give the events of the same moment the chance to travel together."""
        until = time.monotonic() + _LINGER_S
        while time.monotonic() < until and not (self._hurried or self._closed or self._precious):
            time.sleep(0.01)

    def _collect(self) -> None:
        """Take from the queue, prepare, and make one request of it."""
        with self._lock:
            if self._precious and not self._taken:
                self._taken.append(self._precious.popleft())
            elif not self._taken:
                total = 0
                while self._plain and len(self._taken) < _BATCH_EVENTS and total < _BATCH_BYTES:
                    self._taken.append(self._plain.popleft())
                    total += len(self._taken[-1].raw)
        if not self._taken:
            return
        lane = self._taken[0].lane
        bodies: list[bytes] = []
        sizes: list[int] = []
        try:
            while self._taken:
                entry = self._taken[0]
                with self._preparing:
                    body = self._prepared(entry)
                self._taken.popleft()
                if isinstance(body, str):
                    self._finish([len(entry.raw)], f"dropped:{body}")
                else:
                    bodies.append(body)
                    sizes.append(len(entry.raw))
        finally:
            if bodies:
                self._requests.append(_Request(lane, tuple(bodies), tuple(sizes)))

    def _prepared(self, entry: Entry) -> bytes | str:
        try:
            return self._prepare(entry)
        except Exception:  # noqa: BLE001 - fail closed: what could not be scrubbed stays here
            return "scrub_failed"

    def _deliver(self) -> None:
        """Send the first request until it is taken, refused or given up."""
        attempt = answered = 0
        while not self._closed:
            request = self._requests[0]
            status, wait_s = self._post(request)
            if 200 <= status < 300:  # noqa: PLR2004 - HTTP, 15.3
                self._fruitless_s = 0.0
                self._away(status)
                self._finish_first("handed_over")
                return
            if status == 413 and len(request.bodies) > 1:  # noqa: PLR2004 - HTTP, 15.5.14
                self._halve_first()
                continue
            answered += status >= 500  # noqa: PLR2004 - HTTP, 15.6
            if status in (400, 413, 415, 422) or answered >= _ATTEMPTS_ANSWERED:
                self._finish_first("dropped:refused")
                return
            attempt += 1
            self.count("retries")
            self._away(status)
            self._back_off(attempt, wait_s)

    def _finish_first(self, outcome: str) -> None:
        self._finish(self._requests.popleft().sizes, outcome)

    def _halve_first(self) -> None:
        lane, bodies, sizes = self._requests.popleft()
        middle = len(bodies) // 2
        self._requests.appendleft(_Request(lane, bodies[middle:], sizes[middle:]))
        self._requests.appendleft(_Request(lane, bodies[:middle], sizes[:middle]))

    def _back_off(self, attempt: int, wait_s: float) -> None:
        """Wait with full jitter, or as long as the gateway asked for. A flush cuts it short."""
        first, longest = _BACKOFF_S
        delay_s = wait_s or random.uniform(0.02, min(longest, first * 2**attempt))  # noqa: S311
        until = time.monotonic() + delay_s
        while (left := until - time.monotonic()) > 0 and not self._closed:
            if wait_s and self._precious and self._requests[0].lane == "events":
                self._let_errors_pass()
                continue
            time.sleep(min(left, 0.05))
            if self._hurried and not wait_s:
                return

    def _let_errors_pass(self) -> None:
        """Send an error before analytics that must wait: a gateway short of room still takes it."""
        waiting = len(self._requests)
        self._collect()
        if len(self._requests) > waiting:
            self._requests.rotate()
            self._deliver()

    def _post(self, request: _Request) -> tuple[int, float]:
        """Send one request; give its status and how long to wait, or (0, 0.0) without an answer."""
        where = self.destination
        if request.lane == "events":
            path, body = "/v1/events", b"\n".join(request.bodies) + b"\n"
            credentials = {"Authorization": f"Bearer {where.key}"}
        else:
            path, body = f"/api/{where.project}/envelope/", request.bodies[0]
            credentials = {"X-Sentry-Auth": f"Sentry sentry_version=7, sentry_key={where.key}"}
        headers = {
            "Content-Type": _CONTENT_TYPES[request.lane],
            "User-Agent": self._agent,
            **credentials,
        }
        if len(body) > _GZIP_FROM_BYTES:
            body = gzip.compress(body, 1, mtime=0)
            headers["Content-Encoding"] = "gzip"
        reused = self._connection is not None
        answer = self._exchange(path, body, headers)
        if answer is None and reused:
            # A kept connection may have ended meanwhile: that says nothing about the gateway.
            answer = self._exchange(path, body, headers)
        return answer or (0, 0.0)

    def _exchange(
        self, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, float] | None:
        try:
            connection = self._connection or self.destination.connect()
            self._connection = connection
            if connection.sock is None:
                connection.connect()
            connection.sock.settimeout(_ANSWER_S)
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            response.read(65536)
            if not response.isclosed():
                self._hang_up()
            return response.status, _seconds(response.getheader("Retry-After"))
        except Exception:  # noqa: BLE001 - OSError, HTTPException, and what instrumentation adds
            self._hang_up()
            return None

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _seconds(text: str | None) -> float:
    """Read Retry-After in seconds; a date or anything else counts as not given."""
    if text is None or not (text.isascii() and text.isdigit() and len(text) < 10):  # noqa: PLR2004
        return 0.0
    return min(float(text), _LONGEST_WAIT_S)


# Fork ---------------------------------------------------------------------------------------------

_handovers: weakref.WeakSet[Handover] = weakref.WeakSet()
_watched = False
_held: list[Any] = []


def _watch_forks() -> None:
    global _watched  # noqa: PLW0603 - hooks can be registered but not removed
    if not _watched and hasattr(os, "register_at_fork"):
        _watched = True
        os.register_at_fork(
            before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child
        )


def _before_fork() -> None:
    """Let the thread finish the event it scrubs: a child would inherit RE2's locks as held."""
    for handover in list(_handovers):
        locks = (handover._preparing, handover._lock)  # noqa: SLF001 - same module
        _held.extend(lock for lock in locks if lock.acquire(timeout=_FORK_WAIT_S))


def _after_in_parent() -> None:
    while _held:
        _held.pop().release()


def _after_in_child() -> None:
    """A child begins with nothing queued: what its parent queued, its parent sends."""
    _held.clear()
    for handover in list(_handovers):
        connection, closed = handover._connection, handover._closed  # noqa: SLF001 - same module
        handover._start_empty()  # noqa: SLF001 - same module
        handover._closed = closed  # noqa: SLF001 - same module
        if connection is not None:
            connection.close()
