"""One call to a server that answers anything at all."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.errors import ConfigError
from telemetry.sinks import Delivered, Refused, Retry
from telemetry.sinks.heap import HeapSink
from telemetry.sinks.sentry import SentrySink
from telemetry.sinks.wire import (
    ANSWER_BYTES,
    Answer,
    Wire,
    base_url,
    may_reach,
    outcome_of,
    retry_after_s,
)


def ask(answer: bytes, *, total_s: float = 1.0) -> tuple[Answer, bytes]:
    """Call a server that sends these bytes, whatever it is asked; give what it received too."""
    received = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        received = await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async def main() -> Answer:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        wire = Wire(total_s=total_s)
        try:
            return await wire.call("POST", f"http://127.0.0.1:{port}/x", body=b"{}")
        finally:
            await wire.close()
            server.close()

    return asyncio.run(main()), received


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"garbage",
        b"HTTP/9.9 banana\r\n\r\n",
        b"HTTP/1.1 999999 x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\x00\x00",
    ],
)
def test_a_head_that_is_none_is_no_answer(head: bytes) -> None:
    answer, _ = ask(head)
    assert answer.status == 0
    assert outcome_of(answer, several=False) == Retry()


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_of_a_server_raise(raw: bytes, headed: bool) -> None:
    answer, _ = ask(b"HTTP/1.1 503 x\r\n" + raw if headed else raw)
    assert isinstance(outcome_of(answer, several=False), Retry | Delivered | Refused)


def test_a_status_holds_even_when_its_body_breaks_off() -> None:
    answer, _ = ask(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    assert answer.status == 200
    assert outcome_of(answer, several=False) == Delivered()


def test_at_most_so_much_of_an_answer_is_read_and_none_of_it_unpacked() -> None:
    bomb = gzip.compress(b"\0" * 10**8)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    answer, _ = ask(head + bomb)
    assert len(answer.body) == ANSWER_BYTES
    assert answer.body == bomb[:ANSWER_BYTES]


def test_no_cookie_and_no_encoding_is_asked_for() -> None:
    answer, received = ask(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n")
    assert answer.status == 200
    assert b"Accept-Encoding: identity" in received
    assert b"Cookie" not in received
    assert b"aiohttp" not in received.lower()


def test_an_answer_shows_neither_headers_nor_body() -> None:
    assert repr(Answer(status=200, headers={"a": "secret"}, body=b"secret")) == "Answer(status=200)"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("Sun, 22 Nov 2026 12:00:10 GMT", 10.0),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 1.0),
        ("Sun, 22 Nov 2099 12:00:00 GMT", 3600.0),
        ("Sun, 22 Nov 2026 12:00:10", 10.0),
        ("Sun, 99 Nov 2026 12:00:10 GMT", 0.0),
        ("1e400", 3600.0),
        ("-1e400", 1.0),
        ("0", 1.0),
        ("nan", 0.0),
        ("", 0.0),
        ("9" * 5000, 3600.0),
    ],
)
def test_retry_after_is_read_within_bounds(header: str, seconds: float) -> None:
    now = datetime(2026, 11, 22, 12, tzinfo=UTC)
    assert retry_after_s(header, now=lambda: now) == seconds


@given(st.text(max_size=80))
def test_no_retry_after_raises(header: str) -> None:
    assert retry_after_s(header) == 0 or 1 <= retry_after_s(header) <= 3600


@given(st.integers(0, 999), st.booleans(), st.binary(max_size=60))
def test_nothing_but_a_2xx_is_a_delivery_and_nothing_but_a_refusal_is_final(
    status: int,
    several: bool,
    body: bytes,
) -> None:
    outcome = outcome_of(Answer(status=status, body=body), several=several)
    if isinstance(outcome, Delivered):
        assert 200 <= status < 300
    if isinstance(outcome, Refused):
        assert not several
        assert status in {400, 413, 422} or 200 <= status < 300


# Where it goes (row 84) ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",  # noqa: S104 - is refused
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1%2",
        "fec0::1",
        "fc00::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::",
        "::10.0.0.1",
    ],
)
def test_no_recipient_is_inside_a_network_unless_it_is_named(address: str) -> None:
    assert not may_reach(address)
    assert may_reach(address, [ip_network("0.0.0.0/0"), ip_network("::/0")])


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_a_recipient_may_be_on_the_public_internet(address: str) -> None:
    assert may_reach(address)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "https://heapanalytics.com@evil.example/",
        "https://user:word@heapanalytics.com",
        "gopher://heapanalytics.com",
        "https://",
        "http://169.254.169.254/latest",
        "http://heapanalytics.com",
        "https://heapanalytics.com?x=1",
    ],
)
def test_an_address_that_could_mean_something_else_is_refused_at_start(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        base_url(url)
    assert "evil" not in str(refused.value)
    assert "word" not in str(refused.value)


def resolving(
    monkeypatch: pytest.MonkeyPatch, answers: Callable[[], Sequence[str]], port: int
) -> None:
    """Let every name lead where a test wants it."""

    def look_up(*_: Any, **__: Any) -> list[Any]:
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (address, port, 0, 0) if ":" in address else (address, port),
            )
            for address in answers()
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


async def reached(url: str, **options: Any) -> tuple[Answer, int]:
    """Call a URL whose port is 1 where our own server listens; give how often that was reached."""
    connections = 0

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    wire = Wire(total_s=2.0, **options)
    try:
        return await wire.call("POST", url.replace(":1/", f":{port}/"), body=b"{}"), connections
    finally:
        await wire.close()
        server.close()


@pytest.mark.parametrize("answers", [["127.0.0.1"], ["::1", "127.0.0.1"], ["169.254.169.254"]])
async def test_a_name_that_leads_inside_gets_no_byte_and_keeps_every_event(
    monkeypatch: pytest.MonkeyPatch, answers: list[str]
) -> None:
    resolving(monkeypatch, lambda: answers, 9)
    answer, connections = await reached("http://rebound.example:1/x")
    assert (answer.status, answer.forbidden, connections) == (0, True, 0)
    assert outcome_of(answer, several=True) == Retry(blocked=True)


async def test_it_connects_to_the_address_that_was_checked_and_asks_no_second_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = 0

    def answers() -> list[str]:
        nonlocal asked
        asked += 1
        return ["127.0.0.1"] if asked == 1 else ["169.254.169.254"]

    connections: list[Any] = []

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer.get_extra_info("sockname")[0])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    resolving(monkeypatch, answers, port)
    wire = Wire(total_s=2.0, networks=["127.0.0.0/8"])
    try:
        assert (await wire.call("POST", f"http://rebound.example:{port}/x")).status == 200
        assert (asked, connections) == (1, ["127.0.0.1"])
    finally:
        await wire.close()
        server.close()


@pytest.mark.parametrize("address", ["169.254.169.254", "10.0.0.1", "[::ffff:10.0.0.1]"])
async def test_an_address_in_figures_is_checked_like_any_other(address: str) -> None:
    answer, _ = await reached(f"https://{address}:1/x")
    assert (answer.status, answer.forbidden) == (0, True)


async def test_this_machine_is_reached_by_its_own_names_only() -> None:
    answer, connections = await reached("http://127.0.0.1:1/x")
    assert (answer.status, connections) == (200, 1)
    answer, connections = await reached("http://localhost:1/x")
    assert (answer.status, connections) == (200, 1)


async def test_a_network_that_is_named_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telemetry.sinks.wire._is_loopback", lambda _host: False)
    answer, connections = await reached("http://127.0.0.1:1/x", networks=["127.0.0.0/8"])
    assert (answer.status, connections) == (200, 1)
    answer, connections = await reached("http://127.0.0.1:1/x", networks=["10.0.0.0/8"])
    assert (answer.forbidden, connections) == (True, 0)


def test_every_sink_hands_its_networks_on() -> None:
    for sink in (
        HeapSink(url="https://heapanalytics.com", app_id="11", networks=["10.20.0.0/16"]),
        SentrySink(dsn="https://abc@sentry.example/9", networks=["10.20.0.0/16"]),
    ):
        assert sink._wire._networks == (ip_network("10.20.0.0/16"),)


# What comes back ----------------------------------------------------------------------------------


async def test_a_redirect_is_not_followed_and_blocks() -> None:
    followed = False

    async def elsewhere(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal followed
        followed = True
        writer.close()

    other = await asyncio.start_server(elsewhere, "127.0.0.1", 0)
    where = other.sockets[0].getsockname()[1]

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = b"HTTP/1.1 307 x\r\nLocation: http://127.0.0.1:%d/\r\nContent-Length: 0\r\n\r\n"
        writer.write(head % where)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    wire = Wire(total_s=2.0)
    try:
        port = server.sockets[0].getsockname()[1]
        answer = await wire.call("POST", f"http://127.0.0.1:{port}/x", body=b"{}")
        assert answer.status == 307
        assert outcome_of(answer, several=True) == Retry(blocked=True)
        assert not followed
    finally:
        await wire.close()
        server.close()
        other.close()


async def test_an_answer_without_end_costs_64_kib_and_a_server_that_drips_the_deadline() -> None:
    sent = 0

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        try:
            while sent < 50_000_000:
                writer.write(b"a" * 65536)
                sent += 65536
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + b"a" * 9999:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.05)
        except OSError:
            pass
        finally:
            writer.close()

    for serve, status in ((flood, 200), (drip, 0)):
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        wire = Wire(total_s=0.5)
        try:
            port = server.sockets[0].getsockname()[1]
            begun = asyncio.get_running_loop().time()
            answer = await wire.call("POST", f"http://127.0.0.1:{port}/x")
            assert answer.status == status
            assert len(answer.body) <= ANSWER_BYTES
            assert asyncio.get_running_loop().time() - begun < 1.5
        finally:
            await wire.close()
            server.close()
    assert sent < 20_000_000
