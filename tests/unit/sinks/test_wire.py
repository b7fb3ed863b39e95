"""One call to a server that answers anything at all."""

from __future__ import annotations

import asyncio
import gzip
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.sinks import Delivered, Refused, Retry
from telemetry.sinks.wire import ANSWER_BYTES, Answer, Wire, outcome_of, retry_after_s


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
