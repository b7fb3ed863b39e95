"""The HTTP side of the edge: answers, limits, deadlines, credentials; and it repeats nothing."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import random
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import brotli
import pytest
import structlog
import zstandard

from scrubbers.detectors import Detectors
from scrubbers.shipped import detector_table
from telemetry.brokers import Entry
from telemetry.config import Project
from telemetry.dialects import BODY_BYTES, REFUSALS
from telemetry.edge import Connection, Edge, Item
from telemetry.errors import BrokerError, ConfigError, SpoolFull
from telemetry.gateway import Gateway, Limits, Projects
from telemetry.identity import initialise_development, load_dead_letter_sealer, load_sealer
from telemetry.intake import Intake, Taken
from telemetry.policy import load_policy
from telemetry.rules import Schemas

PLANTED = "alice.planted@example.org"
EVENT = b'{"event":"page viewed","account":"7"}'
KINDS = frozenset(
    ("analytics_event", "user_properties", "error_event", "sessions", "security_report")
)


class Recorder:
    """Stands for the intake: keeps what it was given."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.tenants: list[str] = []
        self.connection = Connection()
        self.fails: Exception | None = None

    def take(self, items: Sequence[Item], *, tenant: str, connection: Connection) -> Taken:
        if self.fails is not None:
            raise self.fails
        self.items += items
        self.tenants.append(tenant)
        self.connection = connection
        return Taken(counts=Counter({Entry("edge", "items_in"): len(items)}))


@dataclass
class Log:
    """Stands for the broker: durable when `open_gate` says so."""

    taken: list[Taken] = field(default_factory=list)
    fails: Exception | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def store(self, taken: Taken) -> None:
        await self.gate.wait()
        if self.fails is not None:
            raise self.fails
        self.taken.append(taken)


@dataclass
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Running:
    gateway: Gateway
    intake: Recorder
    log: Log
    port: int
    counts: Counter[tuple[str, tuple[str, ...]]]

    async def send(self, raw: bytes, *, timeout_s: float = 5) -> Reply:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(raw)
            return await asyncio.wait_for(read_reply(reader), timeout_s)
        finally:
            writer.close()

    async def post(
        self, path: str, body: bytes = EVENT, *, method: str = "POST", **headers: str
    ) -> Reply:
        lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return await self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode().strip().split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Reply(int(first.split()[1]), headers, body, head + body)


@asynccontextmanager
async def running(intake: Any = None, **options: Any) -> AsyncIterator[Running]:
    log, counts = Log(), Counter[tuple[str, tuple[str, ...]]]()
    log.gate.set()
    intake = intake or Recorder()

    def count(name: str, labels: tuple[str, ...], number: int) -> None:
        counts[name, labels] += number

    options = {
        "projects": Projects({}, open_to_all=True),
        "kinds": KINDS,
        "environment": "development",
        "count": count,
        **options,
    }
    gateway = Gateway(intake, log.store, **options)
    _, port = await gateway.start("127.0.0.1", 0)
    try:
        yield Running(gateway, intake, log, port, counts)
    finally:
        log.gate.set()
        await gateway.stop()


# Answers ------------------------------------------------------------------------------------------

ENVELOPE = b'{"event_id":"3be4a1c07d9f4a5b8c6d7e8f90a1b2c3"}\n{"type":"event"}\n{"level":"error"}\n'
CSP = b'{"csp-report":{"blocked-uri":"inline"}}'
HEAP = b'{"app_id":"11","event":"page viewed","identity":"7"}'


@pytest.mark.parametrize(
    ("path", "body", "answer", "kind"),
    [
        (
            "/api/1/envelope/",
            ENVELOPE,
            {"id": "3be4a1c07d9f4a5b8c6d7e8f90a1b2c3"},
            "error_event",
        ),
        ("/prefix/path/api/9/envelope/?sentry_key=k", ENVELOPE, None, "error_event"),
        ("/api/1/store/", b'{"level":40}', {}, "error_event"),
        ("/api/store/", b'{"level":40}', {}, "error_event"),
        ("/api/1/envelope/", b'{}\n{"type":"sessions"}\n{}', {}, "sessions"),
        ("/api/1/security/?sentry_key=k", CSP, {}, "security_report"),
        ("/api/1/csp-report/?sentry_key=k", CSP, {}, "security_report"),
        ("/api/1/nel/?sentry_key=k", b"[{}]", {}, "dropped"),
        ("/api/1/minidump/?sentry_key=k", b"MDMP\x00", {}, "dropped"),
        ("/api/1/unreal/k/", b"\x00", {}, "dropped"),
        ("/api/1/events/3be4/attachments/?sentry_key=k", b"\x00", {}, "dropped"),
        ("/api/track", HEAP, {}, "analytics_event"),
        ("/api/add_user_properties", b'{"app_id":"1","identity":"7"}', {}, "user_properties"),
        ("/api/add_account_properties", b'{"app_id":"1","account_id":"a"}', {}, "dropped"),
        ("/api/v1/identify", b'{"app_id":"1","identity":"7"}', {}, "dropped"),
        ("/v1/events", EVENT, {"taken": 0, "dropped": {}, "dead": {}}, "analytics_event"),
        ("//v1///events//", EVENT, None, "analytics_event"),
        ("//api//track/", HEAP, {}, "analytics_event"),
    ],
)
async def test_every_path_takes_its_dialect(
    path: str, body: bytes, answer: object, kind: str
) -> None:
    async with running() as it:
        reply = await it.post(path, body)
        assert reply.status == 200
        assert answer is None or reply.json == answer
        assert [item.kind for item in it.intake.items] == [kind]
        assert len(it.log.taken) == 1


@pytest.mark.parametrize(
    ("path", "content_type", "word"),
    [
        ("/api/1/minidump/?sentry_key=k", "multipart/form-data; boundary=x", "kind_minidump"),
        ("/api/1/unreal/k/", "application/octet-stream", "kind_unreal_report"),
        ("/api/1/nel/?sentry_key=k", "application/reports+json", "kind_nel"),
        ("/api/1/events/3be4/attachments/?sentry_key=k", "multipart/form-data", "kind_attachment"),
    ],
)
async def test_what_is_refused_by_policy_is_counted_and_never_held(
    path: str, content_type: str, word: str
) -> None:
    async with running() as it:
        dump = PLANTED.encode() * 800_000  # above what any body may have that is held
        assert len(dump) > BODY_BYTES
        request = asyncio.create_task(it.post(path, dump, Content_Type=content_type))
        while not request.done():
            assert it.gateway._held == 0
            await asyncio.sleep(0.005)
        assert (await request).status == 200
        assert it.intake.items == [Item("dropped", refused=word)]
        assert len(it.log.taken) == 1


async def test_what_is_only_counted_has_its_limits_too() -> None:
    async with running(limits=Limits(forgotten_bytes=1000, body_s=0.2)) as it:
        path = "/api/1/minidump/?sentry_key=k"
        assert (await it.post(path, b"x" * 1000)).status == 200
        assert (await it.post(path, b"x" * 1001)).status == 413
        assert (await it.post(path, b"")).status == 400
        slow = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx" % path.encode()
        assert (await it.send(slow)).status == 408
        assert len(it.intake.items) == 1


async def test_a_dump_needs_a_key_like_everything_else() -> None:
    projects = Projects({"1": Project(key="right", tenant="web")}, open_to_all=False)
    async with running(projects=projects) as it:
        for path, status in (
            ("/api/1/minidump/", 401),
            ("/api/1/minidump/?sentry_key=wrong", 403),
            ("/api/2/minidump/?sentry_key=right", 403),
            ("/api/1/minidump/?sentry_key=right", 200),
            ("/api/1/unreal/wrong/", 403),
            ("/api/1/unreal/right/", 200),
            ("/api/1/unreal/right/?sentry_key=wrong", 401),
            ("/api/1/security/", 401),
            ("/api/1/security/?sentry_key=right", 200),
        ):
            assert (await it.post(path, CSP)).status == status


async def test_nothing_is_acknowledged_before_it_is_durable() -> None:
    async with running() as it:
        it.log.gate.clear()
        request = asyncio.create_task(it.post("/v1/events"))
        await asyncio.sleep(0.1)
        assert it.intake.items
        assert not request.done()
        it.log.gate.set()
        assert (await request).status == 200


@pytest.mark.parametrize(
    ("error", "status", "wait"), [(BrokerError(PLANTED), 503, "5"), (SpoolFull(PLANTED), 429, "60")]
)
async def test_a_log_that_cannot_take_is_said_so_with_a_time(
    error: Exception, status: int, wait: str
) -> None:
    async with running() as it:
        it.log.fails = error
        reply = await it.post("/api/1/envelope/", ENVELOPE)
        assert reply.status == status
        assert reply.headers["retry-after"] == wait
        assert PLANTED not in reply.raw.decode()
        limited = reply.headers.get("x-sentry-rate-limits")
        assert limited == ("60::key:log_full" if status == 429 else None)


async def test_what_clients_report_to_have_lost_is_counted_once_it_is_stored() -> None:
    report = (
        b'{}\n{"type":"client_report"}\n'
        b'{"discarded_events":[{"reason":"queue_overflow","category":"error","quantity":4}]}'
    )
    async with running() as it:
        await it.post("/api/1/envelope/", report)
        assert it.counts["client_discarded", ("queue_overflow", "error")] == 4
        it.log.fails = BrokerError()
        await it.post("/api/1/envelope/", report)
        assert it.counts["client_discarded", ("queue_overflow", "error")] == 4


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "GZip": gzip.compress,
}


@pytest.mark.parametrize("encoding", sorted(PACKED))
@pytest.mark.parametrize("repeat", [1, 1000])
async def test_small_and_large_bodies_are_unpacked_alike(encoding: str, repeat: int) -> None:
    body = b"\n".join([EVENT] * repeat)
    async with running() as it:
        reply = await it.post("/v1/events", PACKED[encoding](body), Content_Encoding=encoding)
        assert reply.status == 200
        assert [item.raw for item in it.intake.items] == [EVENT] * repeat


async def test_a_chunked_body_without_type_or_length_is_taken_as_node_sends_it() -> None:
    pieces = [ENVELOPE[:20], ENVELOPE[20:]]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    head = b"POST /api/1/envelope/?sentry_version=7&sentry_key=k HTTP/1.1\r\nHost: x\r\n"
    async with running() as it:
        reply = await it.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
        assert reply.json == {"id": "3be4a1c07d9f4a5b8c6d7e8f90a1b2c3"}
        assert it.intake.items[0].raw == b'{"level":"error"}'


async def test_a_client_that_waits_for_a_go_ahead_gets_one() -> None:
    async with running() as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(
            b"POST /v1/events HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Content-Length: %d\r\n\r\n" % len(EVENT)
        )
        assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")
        writer.write(EVENT)
        assert (await read_reply(reader)).status == 200
        writer.close()


async def test_a_connection_serves_many_requests() -> None:
    async with running() as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        one = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
        writer.write(one % (len(EVENT), EVENT) * 40)  # pipelined
        assert [(await read_reply(reader)).status for _ in range(40)] == [200] * 40
        assert len(it.intake.items) == 40
        writer.close()


async def test_browsers_may_post_from_any_origin_and_read_when_to_slow_down() -> None:
    async with running() as it:
        asked = await it.post(
            "/api/1/envelope/", b"", method="OPTIONS", Origin="https://example.com"
        )
        assert asked.status == 204
        assert asked.headers["access-control-allow-methods"] == "POST"
        reply = await it.post("/api/1/envelope/", ENVELOPE, Content_Type="text/plain;charset=UTF-8")
        assert reply.status == 200
        assert reply.headers["access-control-allow-origin"] == "*"
        assert "x-sentry-rate-limits" in reply.headers["access-control-expose-headers"]


async def test_ready_follows_what_it_was_told() -> None:
    ready = True
    async with running(ready=lambda: ready) as it:
        assert (await it.post("/health/ready", b"", method="GET")).status == 200
        ready = False
        assert (await it.post("/health/ready", b"", method="GET")).status == 503


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "path", "body", "headers"),
    [
        ("empty_body", "/v1/events", b"", {}),
        ("empty_body", "/v1/events", gzip.compress(b"", mtime=0), {"Content_Encoding": "gzip"}),
        ("not_json", "/v1/events", b"alice.planted@example.org", {}),
        ("not_json", "/api/track", b"alice.planted@example.org", {}),
        ("not_json", "/api/1/store/", b"alice.planted@example.org", {}),
        ("bad_envelope", "/api/1/envelope/", b"alice.planted@example.org", {}),
        ("bad_event_id", "/tunnel", b'{"event_id":"alice.planted@example.org"}', {}),
        ("bad_encoding", "/v1/events", b"alice.planted@example.org", {"Content_Encoding": "br"}),
        ("no_credentials", "/api/1/envelope/", b"{}", {"X_Sentry_Auth": PLANTED}),
        ("no_credentials", "/tunnel", b'{"dsn":"alice.planted@example.org"}', {}),
        ("no_credentials", "/api/1/envelope/", b'{"dsn":"https://k@example.com/2"}', {}),
        ("no_such_path", "/alice.planted@example.org", EVENT, {}),
        ("no_such_path", "/api/alice.planted@example.org/envelope/", EVENT, {}),
        ("no_such_path", "/", EVENT, {}),
        ("too_many_events", "/v1/events", b"\n".join([EVENT] * 1001), {}),
        ("too_many_values", "/v1/events", b"[" + b"[]," * 200_000 + b"[]]", {}),
        ("too_large", "/v1/events", b" " * (10 * 1024 * 1024 + 1), {}),
        ("too_large", "/v1/events", gzip.compress(bytes(2**24)), {"Content_Encoding": "gzip"}),
        ("wrong_type", "/v1/events", EVENT, {"Content_Type": f"image/{PLANTED}"}),
        ("wrong_encoding", "/v1/events", EVENT, {"Content_Encoding": PLANTED}),
        ("wrong_encoding", "/v1/events", EVENT, {"Content_Encoding": "gzip, gzip"}),
    ],
)
async def test_a_refusal_has_its_status_and_repeats_nothing(
    code: str, path: str, body: bytes, headers: dict[str, str]
) -> None:
    async with running() as it:
        reply = await it.post(path, body, X_Name=PLANTED, **headers)
        assert reply.status == REFUSALS[code].status
        assert reply.json == {"detail": REFUSALS[code].detail, "causes": []}
        assert PLANTED not in reply.raw.decode()
        assert it.counts["refusals", (code,)] == 1
        assert not it.intake.items
        assert not it.log.taken


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
async def test_only_post_is_taken(method: str) -> None:
    async with running() as it:
        raw = f"{method} /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(raw)
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        assert b" 405 " in head
        assert b"Allow: POST" in head


@pytest.mark.parametrize(
    "raw",
    [
        b"alice.planted@example.org\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 alice.planted@example.org\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nalice.planted@example.org\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"POST /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/events HTTP/9.9 alice.planted@example.org\r\n\r\n",
        b"POST http://[alice.planted@example.org HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: alice.planted@example.org\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST /v1/events HTTP/1.1\r\nContent-Length: 4\r\n" + CHUNKED + b"0\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\n" + CHUNKED + b"alice.planted@example.org\r\n",
    ],
)
async def test_what_is_no_http_is_answered_in_fixed_words_and_not_logged(
    raw: bytes, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("aiohttp.server", "aiohttp.access", "aiohttp.web", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    async with running() as it:
        reply = await it.send(raw)
        assert reply.status == 400
        assert reply.json == {"detail": REFUSALS["not_http"].detail, "causes": []}
        assert it.counts["refusals", ("not_http",)] == 1
        assert not it.intake.items
    said = reply.raw.decode() + caplog.text + "".join(capfd.readouterr())
    assert "planted" not in said
    assert "Traceback" not in said


HIDDEN = b'{"event":"hidden"}'
INNER = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (
    len(HIDDEN),
    HIDDEN,
)


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: %d\r\n",
        b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n",
        b"Content-Length: %d\r\nTransfer-Encoding: xchunked\r\n",
        b"Content-Length: %d\r\nTransfer-Encoding: identity\r\n",
        b"Content-Length: %d\r\nTransfer-Encoding : chunked\r\n",
        b"Content-Length: %d\r\nTransfer-Encoding:\x0bchunked\r\n",
        b"Content-Length: %d\r\nTransfer-Encoding: chunked, identity\r\n",
        b"Content-Length: %d\r\n Transfer-Encoding: chunked\r\n",
        b"Content-Length: +%d\r\n",
        b"Content-Length: %d, 4\r\n",
        b"Content-Length: 4\r\nContent-Length: %d\r\n",
        b"Content-Length: 0x%d\r\n",
        b"Content-Length: -%d\r\n",
        b"Content_Length: 4\r\nContent-Length: %d\r\n",
        b"Content-Length: %d\nTransfer-Encoding: chunked\r\n",
    ],
)
async def test_no_request_hides_in_the_body_of_another(head: bytes) -> None:
    # A proxy before us that reads the length otherwise would take the rest for the next client's.
    body = b"0\r\n\r\n" + INNER
    lengths = (len(body),) if b"%d" in head else ()
    raw = b"POST /api/track HTTP/1.1\r\nHost: x\r\n" + head % lengths + b"\r\n" + body
    async with running(limits=SLOW) as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(raw)
        said = b""
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(0.5):
                while more := await reader.read(65536):
                    said += more
        writer.close()
        assert said[9:13] == b"400 "
        assert b" 200 OK" not in said
        assert not it.intake.items


async def test_requests_in_a_row_are_answered_one_by_one_in_their_order() -> None:
    async with running() as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        bad = b"POST /v1/nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        writer.write(INNER + bad + INNER)
        statuses = [(await asyncio.wait_for(read_reply(reader), 5)).status for _ in range(3)]
        assert statuses == [200, 404, 200]
        assert len(it.intake.items) == 2
        writer.close()


async def test_our_own_fault_is_a_fixed_500_and_a_line_without_values(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    with structlog.testing.capture_logs() as lines:
        async with running() as it:
            it.intake.fails = ValueError(PLANTED)
            for body in (EVENT, b"\n".join([EVENT] * 2000)[:70_000]):
                reply = await it.post(f"/v1/events?{PLANTED}", body, X_Name=PLANTED)
                assert reply.status == (500 if body == EVENT else 413)
            assert reply.headers["content-type"] == "application/json"
    [failed] = [line for line in lines if line["event"] == "request_failed"]
    assert failed["error"] == "ValueError"
    assert failed["at"].startswith("test_gateway:")
    assert PLANTED not in str(lines) + caplog.text + reply.raw.decode()


async def test_what_aiohttp_logs_by_itself_loses_its_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with running():
        for name in ("aiohttp.server", "aiohttp.access", "aiohttp.web", "aiohttp.client"):
            caplog.set_level(logging.DEBUG, logger=name)  # others may have silenced it
            error = ValueError(PLANTED)
            logging.getLogger(name).error("from %s: %r", PLANTED, PLANTED, exc_info=error)
    assert len([r for r in caplog.records if r.name.startswith("aiohttp")]) == 4
    assert PLANTED not in caplog.text


async def test_no_bytes_on_a_connection_disturb_the_next_one(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    draw = random.Random(20261122)  # noqa: S311 - the same each time
    good = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nX-Name: %s\r\nContent-Length: %d\r\n\r\n%s"
    good %= PLANTED.encode(), len(EVENT), EVENT
    async with running(limits=Limits(head_s=0.5, body_s=0.5)) as it:

        async def disturb() -> None:
            raw = bytearray(good)
            for _ in range(draw.randint(1, 6)):
                raw[draw.randrange(len(raw))] = draw.randrange(256)
            reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
            writer.write(raw[: draw.randint(1, len(raw))])
            writer.write_eof()
            with suppress(ConnectionError):
                said.append(await asyncio.wait_for(reader.read(), 3))
            writer.close()

        said: list[bytes] = []
        for _ in range(15):
            await asyncio.gather(*(disturb() for _ in range(20)))
        assert (await it.post("/v1/events")).status == 200
        assert it.gateway._under_way == it.gateway._held == 0
        assert ("refusals", ("internal",)) not in it.counts
    answers = b"".join(said).decode() + caplog.text + "".join(capfd.readouterr())
    assert "planted" not in answers
    assert "Traceback" not in answers


# Deadlines and room -------------------------------------------------------------------------------


async def dribble(it: Running, head: bytes, then: bytes) -> tuple[Reply, float]:
    """Send `head`, then a byte of `then` every 20 ms, until there is an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
    started = time.monotonic()
    reply = asyncio.create_task(read_reply(reader))
    writer.write(head)
    for byte in then:
        if reply.done():
            break
        writer.write(bytes([byte]))
        await asyncio.sleep(0.02)
    found = await asyncio.wait_for(reply, 3)
    writer.close()
    return found, time.monotonic() - started


SLOW = Limits(head_s=0.3, body_s=0.3, stop_s=1)


async def test_a_head_that_dribbles_in_is_cut_off_in_time() -> None:
    async with running(limits=SLOW) as it:
        reply, took_s = await dribble(it, b"POST /v1/events HTTP/1.1\r\nX: ", b"a" * 200)
        assert reply.status == 408
        assert 0.25 < took_s < 1
        assert reply.json["detail"] == REFUSALS["too_slow"].detail
        assert it.counts["refusals", ("too_slow",)] == 1


async def test_a_connection_on_which_nothing_comes_is_closed_in_time() -> None:
    async with running(limits=SLOW) as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        assert (await asyncio.wait_for(read_reply(reader), 1)).status == 408
        assert await reader.read() == b""
        writer.close()


async def test_the_deadline_for_heads_holds_for_later_requests_too() -> None:
    request = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
    async with running(limits=SLOW) as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(request % (len(EVENT), EVENT))
        assert (await read_reply(reader)).status == 200
        await asyncio.sleep(0.5)  # idle: nothing is owed
        writer.write(b"POST /v1/ev")
        started = time.monotonic()
        assert (await asyncio.wait_for(read_reply(reader), 2)).status == 408
        assert 0.25 < time.monotonic() - started < 1
        assert await reader.read() == b""
        writer.close()


async def test_a_body_that_dribbles_in_is_cut_off_in_time() -> None:
    async with running(limits=SLOW) as it:
        head = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n"
        reply, took_s = await dribble(it, head, b"a" * 200)
        assert reply.status == 408
        assert 0.25 < took_s < 1
        chunked = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        reply, _ = await dribble(it, chunked, b"1\r\na\r\n" * 100)
        assert reply.status == 408
        assert not it.intake.items


async def test_a_chunked_body_without_end_is_cut_off_at_the_limit() -> None:
    async with running(limits=Limits(body_bytes=100_000)) as it:
        head = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        reply = await it.send(head + b"10000\r\n" + b"a" * 65536 + b"\r\n10000\r\n" + b"a" * 65536)
        assert reply.status == 413


async def test_bodies_under_way_may_take_only_so_much_room() -> None:
    async with running(limits=Limits(held_bytes=100_000)) as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n")
        writer.write(b"a" * 90_000)
        await asyncio.sleep(0.1)
        writer.write(b"a" * 20_000)
        reply = await read_reply(reader)
        assert reply.status == 503
        assert reply.headers["retry-after"] == "5"
        writer.close()
        # What it held is free again.
        assert (await it.post("/v1/events")).status == 200
        assert it.gateway._held == 0


async def test_what_waits_for_the_log_counts_as_under_way_too(real_intake: Intake) -> None:
    async with running(real_intake, limits=Limits(held_bytes=8000, yielding_bytes=8000)) as it:
        it.log.gate.clear()
        event = json.dumps({"event": "page viewed", "account": 7}).encode()
        waiting = [asyncio.create_task(it.post("/v1/events", event)) for _ in range(6)]
        await asyncio.sleep(0.3)
        assert it.gateway._held > 6 * 1024  # bytes of their bodies are gone, parcels are there
        more = [asyncio.create_task(it.post("/v1/events", event)) for _ in range(6)]
        await asyncio.sleep(0.3)
        it.log.gate.set()
        statuses = Counter([(await one).status for one in (*waiting, *more)])
        assert statuses[200] >= 6
        assert statuses[503] > 0
        assert it.gateway._held == 0
        assert (await it.post("/v1/events", event)).status == 200


async def test_memory_that_gets_short_is_kept_for_errors() -> None:
    async with running(limits=Limits(held_bytes=100_000, yielding_bytes=50_000)) as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        head = b"POST /api/1/envelope/ HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n"
        writer.write(head + b"a" * 60_000)
        await asyncio.sleep(0.1)
        for path, body in (("/api/track", HEAP), ("/v1/events", EVENT)):
            reply = await it.post(path, body)
            assert reply.status == 429
            assert reply.headers["retry-after"] == "5"
        assert it.counts["refusals", ("shed",)] == 2
        assert not it.intake.items
        assert (await it.post("/api/1/envelope/?sentry_key=k", ENVELOPE)).status == 200
        writer.close()
        await asyncio.sleep(0.1)
        assert (await it.post("/api/track", HEAP)).status == 200
        assert reader is not None


async def test_room_that_gets_short_is_kept_for_errors() -> None:
    short = True
    users = b'{"app_id":"11","identity":"7","properties":{"plan":"pro"}}'
    mixed = b'[{"event":"page viewed"},{"kind":"error_event","message":"x"}]'
    yields = ("analytics_event", "user_properties")
    async with running(yields=yields, short=lambda: short) as it:
        for path, body in (
            ("/api/track", HEAP),
            ("/api/add_user_properties", users),
            ("/v1/events", EVENT),
        ):
            reply = await it.post(path, body)
            assert reply.status == 429
            assert reply.headers["retry-after"] == "60"
            assert reply.json["detail"] == REFUSALS["shed"].detail
        assert not it.intake.items
        assert it.counts["refusals", ("shed",)] == 3
        for path, body in (
            ("/api/1/envelope/?sentry_key=k", ENVELOPE),
            ("/api/1/envelope/?sentry_key=k", b'{}\n{"type":"sessions"}\n{}'),
            ("/v1/events", mixed),  # what holds an error goes whole
            ("/v1/events", b"[]"),
        ):
            assert (await it.post(path, body)).status == 200, path
        short = False
        assert (await it.post("/api/track", HEAP)).status == 200


async def test_connections_on_which_nothing_comes_make_room_for_requests() -> None:
    async with running(limits=Limits(connections=20)) as it:
        idle = [await asyncio.open_connection("127.0.0.1", it.port) for _ in range(60)]
        await asyncio.sleep(0.1)
        assert len(it.gateway._server.connections) <= 20  # type: ignore[union-attr]
        it.log.gate.clear()
        waiting = [asyncio.create_task(it.post("/v1/events")) for _ in range(15)]
        await asyncio.sleep(0.2)
        idle += [await asyncio.open_connection("127.0.0.1", it.port) for _ in range(60)]
        it.log.gate.set()
        assert [(await one).status for one in waiting] == [200] * 15  # none that asked was closed
        assert (await it.post("/v1/events")).status == 200
        for _, writer in idle:
            writer.close()


async def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind() -> None:
    async with running() as it:
        _, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\nabc")
        await asyncio.sleep(0.05)
        writer.close()
        await asyncio.sleep(0.1)
        assert it.gateway._held == 0
        assert it.gateway._under_way == 0
        assert not it.intake.items
        assert it.counts["requests", ("native", "gone")] == 1


async def test_stopping_finishes_what_is_under_way_and_accepts_no_more() -> None:
    async with running() as it:
        idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", it.port)
        it.log.gate.clear()
        request = asyncio.create_task(it.post("/v1/events"))
        await asyncio.sleep(0.1)
        stop = asyncio.create_task(it.gateway.stop())
        await asyncio.sleep(0.1)
        assert not stop.done()
        with pytest.raises(OSError):  # noqa: PT011 - refused or reset, by system
            await it.post("/v1/events")
        it.log.gate.set()
        reply = await request
        assert reply.status == 200
        assert reply.headers["connection"] == "close"
        await asyncio.wait_for(stop, 3)
        assert await idle_reader.read() == b""
        idle_writer.close()
        assert len(it.log.taken) == 1


async def test_stopping_does_not_wait_for_ever() -> None:
    async with running(limits=SLOW) as it:
        it.log.gate.clear()
        request = asyncio.create_task(it.post("/v1/events"))
        await asyncio.sleep(0.1)
        started = time.monotonic()
        await it.gateway.stop()
        assert time.monotonic() - started < 5
        with pytest.raises((asyncio.IncompleteReadError, OSError)):
            await request
        assert not it.log.taken


# Who sends ----------------------------------------------------------------------------------------

PROJECTS = {
    "1": Project(key="first-key", tenant="first"),
    "2": Project(key="second-key", tenant="second"),
}


@asynccontextmanager
async def closed(**options: Any) -> AsyncIterator[Running]:
    projects = Projects(PROJECTS, open_to_all=False)
    async with running(projects=projects, environment="production", **options) as it:
        yield it


@pytest.mark.parametrize(
    ("path", "body", "headers", "tenant"),
    [
        ("/api/1/envelope/?sentry_key=first-key", ENVELOPE, {}, "first"),
        (
            "/api/2/envelope/",
            ENVELOPE,
            {"X_Sentry_Auth": "Sentry sentry_key=second-key"},
            "second",
        ),
        ("/tunnel", b'{"dsn":"https://second-key@t.example.com/2"}\n', {}, "second"),
        ("/api/1/envelope/", b'{"dsn":"https://first-key@t.example.com/1"}\n', {}, "first"),
        ("/api/store/?sentry_key=first-key", b"{}", {}, "first"),
        ("/api/track", HEAP.replace(b'"11"', b'"second-key"'), {}, "second"),
        ("/v1/events", EVENT, {"Authorization": "Bearer first-key"}, "first"),
        ("/v1/events", EVENT, {"Authorization": "Basic Zmlyc3Qta2V5Og=="}, "first"),
    ],
)
async def test_a_key_decides_the_tenant(
    path: str, body: bytes, headers: dict[str, str], tenant: str
) -> None:
    async with closed() as it:
        assert (await it.post(path, body, **headers)).status == 200
        assert it.intake.tenants == [tenant]


@pytest.mark.parametrize(
    ("path", "body", "headers", "code"),
    [
        ("/api/1/envelope/?sentry_key=wrong", ENVELOPE, {}, "unknown_project"),
        ("/api/2/envelope/?sentry_key=first-key", ENVELOPE, {}, "unknown_project"),
        ("/api/3/envelope/?sentry_key=first-key", ENVELOPE, {}, "unknown_project"),
        ("/api/1/envelope/", ENVELOPE, {}, "no_credentials"),
        ("/api/1/store/", b"{}", {}, "no_credentials"),
        ("/tunnel", ENVELOPE, {}, "no_credentials"),
        ("/tunnel", b'{"dsn":"https://wrong@t.example.com/2"}', {}, "unknown_project"),
        ("/tunnel", b'{"dsn":"https://first-key@t.example.com/2"}', {}, "unknown_project"),
        (
            "/api/1/envelope/?sentry_key=first-key",
            b'{"dsn":"https://second-key@t.example.com/1"}',
            {},
            "no_credentials",
        ),
        ("/api/track", HEAP, {}, "unknown_project"),
        ("/api/track", b'{"event":"e","identity":"7"}', {}, "no_credentials"),
        ("/v1/events", EVENT, {}, "no_credentials"),
        ("/v1/events", EVENT, {"Authorization": "Bearer wrong"}, "unknown_project"),
        ("/v1/events?key=first-key", EVENT, {}, "no_credentials"),
    ],
)
async def test_without_the_right_key_nothing_is_taken(
    path: str, body: bytes, headers: dict[str, str], code: str
) -> None:
    async with closed() as it:
        reply = await it.post(path, body, **headers)
        assert (reply.status, reply.json["detail"]) == (
            REFUSALS[code].status,
            REFUSALS[code].detail,
        )
        assert not it.intake.items


async def test_in_development_any_key_will_do_and_this_is_said() -> None:
    with structlog.testing.capture_logs() as lines:
        async with running(projects=Projects(PROJECTS, open_to_all=True)) as it:
            await it.post("/api/77/envelope/?sentry_key=anything", ENVELOPE)
            await it.post("/api/1/envelope/?sentry_key=first-key", ENVELOPE)
            assert it.intake.tenants == ["default", "first"]
    assert any(line["event"] == "gateway_open_to_all" for line in lines)


async def test_production_refuses_open_doors() -> None:
    def make(**options: Any) -> Gateway:
        return Gateway(
            Recorder(),  # type: ignore[arg-type]
            Log().store,
            kinds=KINDS,
            environment="production",
            **options,
        )

    with pytest.raises(ConfigError, match="unknown keys"):
        make(projects=Projects(PROJECTS, open_to_all=True))
    with pytest.raises(ConfigError, match="plain HTTP"):
        await make(projects=Projects(PROJECTS, open_to_all=False)).start("0.0.0.0", 0)  # noqa: S104 - is refused


async def test_a_key_that_sends_too_much_has_to_wait_and_others_do_not() -> None:
    async with closed(events_per_minute=60) as it:
        first, second = ({"Authorization": f"Bearer {key}-key"} for key in ("first", "second"))
        many = b"\n".join([EVENT] * 60)
        assert (await it.post("/v1/events", many, **first)).status == 200
        reply = await it.post("/v1/events", b"\n".join([EVENT] * 10), **first)
        assert reply.status == 429
        assert 9 <= int(reply.headers["retry-after"]) <= 10
        assert reply.headers["x-sentry-rate-limits"].endswith("::key:over_quota")
        assert len(it.intake.items) == 60
        assert (await it.post("/v1/events", many, **second)).status == 200
        await asyncio.sleep(1.1)
        assert (await it.post("/v1/events", EVENT, **first)).status == 200


async def test_a_key_may_have_a_quota_of_its_own() -> None:
    projects = {
        "one": Project(key="first-key", tenant="a", events_per_minute=5),
        "two": Project(key="second-key", tenant="b"),
    }
    known = Projects(projects, open_to_all=False)
    async with running(projects=known, events_per_minute=100) as it:
        many = b"\n".join([EVENT] * 6)
        for key, statuses in (("first", [200, 429]), ("second", [200, 200])):
            headers = {"Authorization": f"Bearer {key}-key"}
            assert [(await it.post("/v1/events", many, **headers)).status for _ in range(2)] == (
                statuses
            )


# Where from ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trusted", "forwarded", "address"),
    [
        (0, "203.0.113.7", "127.0.0.1"),
        (1, "198.51.100.1, 203.0.113.7", "203.0.113.7"),
        (2, "192.0.2.9, 198.51.100.1, 203.0.113.7", "198.51.100.1"),
        (2, "203.0.113.7", "127.0.0.1"),
        (1, "203.0.113.7:4711", "203.0.113.7"),
        (1, "[2001:db8::7]:4711", "2001:db8::7"),
        (1, "2001:db8::7", "2001:db8::7"),
        (1, "unknown", "127.0.0.1"),
        (1, "", "127.0.0.1"),
    ],
)
async def test_the_address_is_what_the_outermost_trusted_proxy_saw(
    trusted: int, forwarded: str, address: str
) -> None:
    async with running(trusted_proxies=trusted) as it:
        await it.post("/v1/events", X_Forwarded_For=forwarded)
        assert it.intake.connection.address == address


async def test_addresses_and_cookies_of_a_request_are_known_values() -> None:
    async with running(trusted_proxies=1) as it:
        await it.post(
            "/v1/events",
            X_Forwarded_For="198.51.100.1, 203.0.113.7",
            Cookie="session=0123456789abcdef; theme=dark",
        )
        assert set(it.intake.connection.known) == {
            ("ip", "198.51.100.1"),
            ("ip", "203.0.113.7"),
            ("secret", "0123456789abcdef"),
        }


async def test_an_application_of_this_machine_can_come_through_a_socket_file(
    tmp_path: Path,
) -> None:
    async with running() as it:
        path = tmp_path / "gateway.sock"
        await it.gateway.start_unix(path)
        assert path.stat().st_mode & 0o777 == 0o660
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(
            b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(EVENT)
        )
        writer.write(EVENT)
        assert (await read_reply(reader)).status == 200
        assert it.intake.connection == Connection(None, [])
        writer.close()


# With the real edge -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_intake(tmp_path_factory: pytest.TempPathFactory) -> Intake:
    state = tmp_path_factory.mktemp("state")
    initialise_development(state)
    [public] = state.rglob("public.json")
    policy = load_policy()
    edge = Edge(Schemas(policy, Detectors.compile(detector_table())))
    return Intake(policy, edge, load_sealer(public), load_dead_letter_sealer(public))


LEAKS = (
    "alice.planted@example.org",
    "203.0.113.77",
    "planted-cookie-value",
    "planted-session-id",
    "planted-account",
)


def planted_envelope() -> bytes:
    event = {
        "level": "error",
        "platform": "javascript",
        "exception": {
            "values": [{"type": "Error", "value": f"no mail to {LEAKS[0]} from {LEAKS[1]}"}]
        },
        "user": {"id": LEAKS[4], "email": LEAKS[0], "ip_address": "{{auto}}"},
        "request": {"url": f"https://app.example.com/u?mail={LEAKS[0]}", "cookies": LEAKS[2]},
        "breadcrumbs": [{"message": f"cookie {LEAKS[2]} was sent"}],
        "extra": {"mail": LEAKS[0]},
    }
    session = {"sid": LEAKS[3], "did": LEAKS[0], "attrs": {"ip_address": LEAKS[1]}}
    return b"\n".join(
        json.dumps(part).encode()
        for part in (
            {"trace": {"transaction": LEAKS[0]}},
            {"type": "event"},
            event,
            {"type": "session"},
            session,
            {"type": "attachment", "filename": LEAKS[0]},
            LEAKS,
        )
    )


async def test_no_planted_value_is_in_any_parcel_answer_count_or_log_line(
    real_intake: Intake, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    heap = {"app_id": "1", "event": "page viewed", "identity": LEAKS[4], "session_id": LEAKS[3]}
    broken = f'{{"kind":"error_event","level":{{}},"message":"{LEAKS[0]}"'
    async with running(intake=real_intake, trusted_proxies=1) as it:
        headers = {"X_Forwarded_For": LEAKS[1], "Cookie": f"sid={LEAKS[2]}"}
        replies = [
            await it.post("/api/1/envelope/?mail=" + LEAKS[0], planted_envelope(), **headers),
            await it.post("/api/track", json.dumps(heap).encode(), **headers),
            await it.post("/v1/events", EVENT + b"\n" + broken.encode(), **headers),
        ]
        assert [reply.status for reply in replies] == [200, 200, 200]
        parcels = [p for taken in it.log.taken for p in (*taken.parcels, *taken.dead)]
        assert len(parcels) >= 4
        counts = str(it.counts) + str([taken.counts for taken in it.log.taken])
    said = counts + caplog.text + "".join(capfd.readouterr())
    said += "".join(reply.raw.decode() for reply in replies)
    said += "".join(repr(parcel) + parcel.body.decode("latin-1") for parcel in parcels)
    said += "".join(
        parcel.remarks.decode() + parcel.capsule.decode("latin-1") for parcel in parcels
    )
    assert [leak for leak in LEAKS if leak in said] == []


async def test_an_event_without_an_id_is_found_under_the_one_it_was_given(
    real_intake: Intake,
) -> None:
    async with running(intake=real_intake) as it:
        reply = await it.post("/api/1/store/", b'{"level":"error","message":"no"}')
        [parcel] = it.log.taken[0].parcels
        assert reply.json == {"id": parcel.event_id}


async def test_native_clients_are_told_what_became_of_their_events(real_intake: Intake) -> None:
    lines = (
        b'{"event":"no_such_event"}\n{"kind":"nonsense"}\n{"kind":"error_event","message":"x"}\n{'
    )
    async with running(intake=real_intake) as it:
        reply = await it.post("/v1/events", lines)
        assert reply.json == {
            "taken": 1,
            "dropped": {"undeclared_event": 1, "unknown_kind": 1},
            "dead": {"undecodable": 1},
        }
