"""Hostile inputs, each run in a process of its own that says what it cost.

``python -m tests.integration.hostile`` loads what a gateway and an application load, takes an event
of each kind as every process does, and then reads names of `CASES` from standard input. For each it
forks: the child makes the input, and then measures the processor time of what is done with it, and
the largest resident memory of the whole process. Rows: the fault catalogue, 69 to 77.
"""

from __future__ import annotations

import gc
import gzip
import json
import os
import resource
import sys
import time
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import brotli
import zstandard

import telemetry
from scrubbers import KnownValues, redact_text, reduce_url, reduce_user_agent, truncate_ip
from telemetry.client import Client, activate
from telemetry.dialects import BODY_BYTES, Refusal, decompress
from telemetry.edge import Connection, Item
from telemetry.errors import EventError
from telemetry.integrations import sentry as sentry_integration
from tests.fuzz import properties
from tests.fuzz.seeds import seeds

__all__ = ["BODIES", "CASES", "PACKINGS", "packed", "request_body"]

_MIB: Final = 1024 * 1024
_MAIL: Final = "q7canary.vk@mail.example.org"
_MARK: Final = "q7canary"
_CONNECTION: Final = Connection("198.51.100.23", [("secret", "k7fjw0q2xz")])

Case = Callable[[], Callable[[], bytes | str]]
"""Makes an input; what it returns is measured, and returns what came out of it."""

CASES: Final[dict[str, Case]] = {}


def _through(dialect: str, body: bytes, encoding: str = "") -> bytes:
    """Do what a gateway does with a body; give what came out, or why nothing did."""
    try:
        items = properties.DIALECTS[dialect](decompress(body, encoding))
    except Refusal as refusal:
        return str(refusal).encode()
    return b"\n".join(_scrubbed(item) for item in items)


def _scrubbed(item: Item) -> bytes:
    if item.refused:
        return item.refused.encode()
    try:
        outcome = properties._edge().scrub(item, _CONNECTION)
    except EventError as error:
        return str(error).encode()
    return outcome.event + repr(outcome.remarks).encode()


DEEP: Final = 10**5
BODIES: Final[dict[str, Callable[[], bytes]]] = {
    "69 lists, a hundred thousand deep": lambda: b"[" * DEEP + b"]" * DEEP,
    "69 maps, a hundred thousand deep": lambda: b'{"extra":' * DEEP + b"1" + b"}" * DEEP,
    "69 deep in what is stripped": lambda: b'{"extra":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "69 deep in what is kept": lambda: b'{"tags":' + b'{"a":' * DEEP + b"1" + b"}" * (DEEP + 1),
    "69 never closed": lambda: b'{"exception":{"values":[' * 40_000,
    "69 a number of 5,000 digits": lambda: (
        b'{"message":%b,"timestamp":%b}' % (b"9" * 5000, b"1" * 5000)
    ),
    "69 a number of a mebibyte": lambda: b'{"timestamp":%b}' % (b"9" * (_MIB - 64)),
    "69 no numbers": lambda: b'{"timestamp":NaN,"extra":Infinity,"message":-Infinity,"tags":1e999}',
    "69 one name, time and again": lambda: b"{" + b'"message":"x",' * 70_000 + b'"message":"y"}',
    "69 20 MB of empty lists": lambda: b"[" + b"[]," * 7_000_000 + b"[]]",
    "69 a mebibyte of empty lists": lambda: b'{"extra":[' + b"[]," * 340_000 + b"[]]}",
    "69 a mebibyte of pairs that are none": lambda: b'{"tags":[' + b"[]," * 340_000 + b"[]]}",
    "69 a mebibyte of empty frames": lambda: (
        b'{"stacktrace":{"frames":[' + b"{}," * 340_000 + b"{}]}}"
    ),
    "69 a mebibyte of tags": lambda: (
        b'{"tags":{' + b",".join(b'"k%d":"%d"' % (n, n) for n in range(60_000)) + b"}}"
    ),
    "69 a mebibyte of escaped quotes": lambda: b'{"message":"' + b'\\"' * 500_000 + b'"}',
    "71 a mebibyte of escaped NUL": lambda: b'{"message":"' + b"\\u0000" * 170_000 + b'"}',
    "71 a mebibyte of lone surrogates": lambda: b'{"message":"' + b"\\ud800" * 170_000 + b'"}',
    "71 a mebibyte of overlong UTF-8": lambda: b'{"message":"' + b"\xc0\xaf" * 500_000 + b'"}',
    "74 the slow path, many frames": lambda: (
        b'{"message":"\\ud800","stacktrace":{"frames":[' + b"{}," * 70_000 + b"{}]}}"
    ),
    "74 the slow path, many tags": lambda: (
        b'{"message":"\\ud800","tags":{'
        + b",".join(b'"k%d":"%d"' % (n, n) for n in range(60_000))
        + b"}}"
    ),
    "74 the slow path, many texts": lambda: (
        b'{"message":"\\ud800","fingerprint":[' + b",".join([b'"x"'] * 100_000) + b"]}"
    ),
    "74 many frames": lambda: b'{"stacktrace":{"frames":[' + b"{}," * 70_000 + b"{}]}}",
    "74 100 MB": lambda: b'{"message":"' + b"x" * (100 * 10**6) + b'"}',
    "74 a million names": lambda: b"{" + b",".join(b'"k%d":1' % n for n in range(10**6)) + b"}",
    "74 a million frames": lambda: b'{"stacktrace":{"frames":[' + b"{}," * 10**6 + b"{}]}}",
    "74 one line of 10 MB": lambda: b'{"message":"' + b"word " * (2 * 10**6) + b'"}',
}


def _body_cases() -> Iterator[tuple[str, Case]]:
    """Give each body to the scrubbers as an event, and to each dialect as a request."""
    for name, make in BODIES.items():
        yield f"{name}, as an event", partial(_made, make)
        for dialect in ("envelope", "store", "track", "events"):
            yield f"{name}, as {dialect}", partial(_posted, dialect, make)


def _made(make: Callable[[], bytes]) -> Callable[[], bytes]:
    return _event(make())


def _posted(dialect: str, make: Callable[[], bytes]) -> Callable[[], bytes]:
    body = make()
    # What is larger than any body never gets as far as here; a gateway shows that.
    return _request(dialect, body) if len(body) <= BODY_BYTES else lambda: b"too_large"


def _event(raw: bytes, kind: str = "error_event") -> Callable[[], bytes]:
    return lambda: _scrubbed(Item(kind, raw))


def request_body(dialect: str, event: bytes) -> bytes:
    """Give the body of a request that brings an event."""
    if dialect != "envelope":
        return event
    return b'{}\n{"type":"event","length":%d}\n%b' % (len(event), event)


def _request(dialect: str, event: bytes, encoding: str = "") -> Callable[[], bytes]:
    body = request_body(dialect, event)
    return lambda: _through(dialect, body, encoding)


PACKINGS: Final = ("gzip", "deflate", "deflate ", "br", "zstd")
"""Encodings of a body; ``deflate`` also without its head, as some clients send it."""


def packed(encoding: str, data: bytes) -> bytes:
    """Pack data in one of `PACKINGS`."""
    raw = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return {
        "gzip": lambda: gzip.compress(data, mtime=0),
        "deflate": lambda: zlib.compress(data, 9),
        "deflate ": lambda: raw.compress(data) + raw.flush(),
        "br": lambda: brotli.compress(data, quality=4),
        "zstd": lambda: zstandard.compress(data),
    }[encoding]()


def _bomb_cases() -> Iterator[tuple[str, Case]]:
    """Give what unpacks to far more, or to nothing."""
    for encoding in PACKINGS:
        how = encoding.strip()
        forms: dict[str, Callable[[bytes], bytes]] = {
            "100 MB of zeros": lambda packed: packed,
            "cut off": lambda packed: packed[: len(packed) // 2],
            "with data behind it": lambda packed: packed + b"x" * _MIB,
            "twice": lambda packed: packed * 20,
            "with a wrong head": lambda packed: b"\x1f\x8b\x08\xff" + packed,
        }
        for name, change in forms.items():
            yield (
                f"70 {encoding}, {name}",
                lambda encoding=encoding, change=change, how=how: _request(
                    "events", change(packed(encoding, bytes(100 * 10**6))), how
                ),
            )
        yield (
            f"70 {encoding}, a bomb in a bomb",
            lambda encoding=encoding, how=how: _request(
                "events", packed(encoding, packed(encoding, bytes(100 * 10**6))), how
            ),
        )


_SPLIT: Final = (
    "q7canary.vk@mail.example.org",
    "q7canary.vk\uff20mail.example.org",
    "q7can\u200bary.vk@mail.example.org",
    "q7canary.vk@mail\u00ad.example.org",
    "\u202eq7canary.vk@mail.example.org\u202c",
    "\uff51\uff17canary.vk@mail.example.org",
    "q7can\u0430ry.vk@mail.example.org",
    "q7cana\u0301ry.vk@mail.example.org",
    "q7can\u00e1ry.vk@mail.example.org",
    "q7canary.vk@ma\u0131l.example.org",
    "\ufeffq7canary.vk@mail.example.org",
    "q7canary.vk@mail\u3002example\uff0eorg",
    "q7canary.vk\u0000@mail.example.org",
    "q7canary.vk@mail.example.org\ud800",
    "q7canary.vk&#64;mail.example.org",
    "q7canary.vk%40mail.example.org",
    "q7canary.vk\\u0040mail.example.org",
)
_PILES: Final = {
    "marks out of order": ("a", "\u0301\u0316"),
    "marks out of order behind each letter": ("", "a" + "\u0301\u0316" * 200),
    "letters that stand for many": ("", "\ufdfa"),
    "squares that stand for words": ("", "\u3316"),
    "characters that show nothing": ("", "\u200b"),
    "Hangul in parts": ("", "\u1112\u1161\u11ab"),
    "emoji and joiners": ("", "\U0001f468\u200d"),
    "flags": ("", "\U0001f1e6"),
}


def _pile(name: str, characters: int) -> str:
    first, unit = _PILES[name]
    return (first + unit * (characters // len(unit) + 1))[:characters]


def _large(name: str) -> Callable[[], bytes]:
    head, tail = b'{"message":"', b'"}'
    text = _pile(name, _MIB).encode()[: _MIB - 32].decode("utf-8", "ignore").encode()
    return _event(head + text + tail)


def _many(name: str) -> Callable[[], bytes]:
    tags = {f"k{n}": _pile(name, 62 + n % 7) for n in range(2500)}
    return _event(json.dumps({"tags": tags}).encode())


def _unicode_cases() -> Iterator[tuple[str, Case]]:
    for number, text in enumerate(_SPLIT):
        raw = json.dumps({"message": f"no user {text} here", "tags": {text: text}}).encode()
        yield f"71 an address split in way {number}", partial(_event, raw)
    for name in _PILES:
        yield f"71 a mebibyte of {name}", partial(_large, name)
        yield f"71 many of {name}", partial(_many, name)
    for head in (b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\xed\xa0\x80"):
        raw = head + b'{"message":"to %b"}' % _MAIL.encode()
        yield f"71 {head!r} before an event", partial(_event, raw)


_INJECTED: Final = (
    "\r\nSet-Cookie: a=b",
    "\x1b[2J\x1b]0;x\x07",
    "%s%n%d%(message)s",
    "{0.__class__}{message}",
    "${jndi:x}",
    '","level":"info","x":"',
    "<script>alert(1)</script>",
    "\x00\x08\x7f\x9b",
    "\u2028\u2029\u0085",
)


def _injection_cases() -> Iterator[tuple[str, Case]]:
    for number, text in enumerate(_INJECTED):
        event = {
            "message": text,
            "level": text,
            "logger": text,
            "release": text,
            "tags": {text: text},
            "user": {"id": text, "email": text},
            "exception": {"values": [{"type": text, "value": text}]},
            "timestamp": text,
            "event_id": text,
            "platform": text,
            "_remarks": [[[text], text, text, 0, 0]],
        }
        yield f"72 injection {number}", lambda event=event: _event(json.dumps(event).encode())


_REPEATED: Final = (
    "a",
    "a@",
    "@",
    "a.",
    "(a+)+$",
    "aaaaaaaaaaaaaaaaaaaaaaaa!",
    "1",
    "1 ",
    "1-",
    "+49 30 ",
    "+1 ",
    "4111 1111 1111 1111 ",
    "DE89 ",
    "DE89370400440532013000 ",
    "password=",
    "password=x ",
    "token: ",
    '"',
    "'",
    "\\",
    "\\\\u0040",
    "%40",
    "%25",
    "&#64;",
    "<",
    ">",
    "<email:1>",
    "<secret>",
    "://",
    "http://a:b@",
    "a=b&",
    "?a=",
    ":",
    "::",
    "1:",
    "1.1.1.1 ",
    "0x7f.",
    "/",
    "/home/",
    "/home/a",
    "C:\\\\Users\\\\",
    "~a/",
    "eyJ",
    "eyJhbGciOiJub25lIn0.",
    "-----BEGIN PRIVATE KEY-----",
    "-----END ",
    "Bearer ",
    "Basic ",
    "Cookie: a=b; ",
    "q7@example.com ",
    "tel: 030 1 ",
    "\u00e9 ",
    "id=1 ",
    "user 1 ",
    "=40",
    " [at] ",
    "\n",
    "VISA 4",
    "=?UTF-8?Q?",
    "A",
    "AB12 ",
    "sk_live_",
    "AKIA",
    "ssh-rsa ",
    "jdbc:",
    "12.12.1980 ",
)


_KNOWN: Final = (("account", "4711"), ("name", "a"), ("email", _MAIL))
_SLOW: Final[dict[str, Callable[[str], bytes | str]]] = {
    "text": lambda text: redact_text(text)[0],
    "text with known values": lambda text: redact_text(text, known=KnownValues(_KNOWN))[0],
    "url": lambda text: reduce_url(text) + reduce_url(f"https://{text}"),
    "path": lambda text: reduce_url(text, keep_path=True) + reduce_url(f"/{text}", keep_path=True),
    # Of a query nothing is left, and that is right.
    "short url": lambda text: "".join(
        (reduce_url(text[:2048]), reduce_url(text[:2047], keep_path=True), ".")
    ),
    "agent": reduce_user_agent,
    "address": lambda text: _address(text[:99]),
    "event": lambda text: _scrubbed(
        Item(
            "error_event", json.dumps({"message": text, "transaction": text[:9000]}).encode()[:_MIB]
        )
    ),
    "frames": lambda text: _scrubbed(
        Item(
            "error_event",
            json.dumps(
                {
                    "stacktrace": {
                        "frames": [
                            {"abs_path": text[n : n + 200], "context_line": text[:200]}
                            for n in range(100)
                        ]
                    }
                }
            ).encode(),
        )
    ),
}


def _slow_cases() -> Iterator[tuple[str, Case]]:
    """Give texts that expressions could be slow on: to each treatment, and in events."""
    for unit in _REPEATED:
        for name in _SLOW:
            yield f"73 {name}, of {unit!r}", partial(_repeated, name, unit)


def _repeated(name: str, unit: str) -> Callable[[], bytes | str]:
    text = unit * (_MIB // 2 // len(unit.encode()))
    return lambda: _SLOW[name](text)


def _address(text: str) -> str:
    try:
        return truncate_ip(text)
    except ValueError as error:
        return str(error)


class _Evil:
    """Says something, or never stops, whenever anybody asks it anything."""

    def _shout(self, *_: object) -> Any:
        raise RuntimeError(_MAIL)

    __repr__ = __str__ = __hash__ = __len__ = __iter__ = __bool__ = __format__ = _shout
    __getattr__ = __eq__ = __call__ = __int__ = __float__ = __index__ = _shout


def _endless() -> Iterator[str]:
    while True:
        yield _MAIL


class _Dict(dict[Any, Any]):
    items = keys = values = __iter__ = __getitem__ = get = _Evil._shout


class _Text(str):
    __slots__ = ()
    __str__ = __repr__ = encode = __len__ = __format__ = _Evil._shout


class _Colliding:
    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        return self is other


class _BadError(ValueError):
    __str__ = __repr__ = _Evil._shout  # type: ignore[assignment]


def _sdk(work: Callable[[], object]) -> Callable[[], bytes]:
    """Do something with the SDK; what came out is what its background thread made of it."""
    made: list[bytes] = []

    def scrub(entry: Any) -> Any:
        try:
            outcome = properties._edge().scrub(Item(entry.kind, entry.raw))
        except EventError as error:
            made.append(str(error).encode())
            raise
        made.append(outcome.event + repr(outcome.remarks).encode())
        return outcome

    client = Client(service="test", environment="test", url="http://127.0.0.1:9", scrub=scrub)
    activate(client)
    client.handover.start()
    sentry_integration.connect(client)

    def run() -> bytes:
        work()
        client.handover.flush(0.01)  # the background thread need not wait for more
        end = time.monotonic() + 5
        while not made and time.monotonic() < end:
            time.sleep(0.002)
        return b"\n".join(made)

    return run


def _raised(make: Callable[[], object]) -> BaseException:
    try:
        make()
    except BaseException as error:  # noqa: BLE001 - whatever was raised is what is wanted
        return error
    raise AssertionError


def _chain(length: int) -> BaseException:
    error: BaseException = ValueError(f"for {_MAIL}")
    for n in range(length):
        after = KeyError(f"{n} {_MAIL}")
        after.__cause__, error = error, after
    return error


def _grouped(depth: int) -> BaseException:
    error: BaseException = ValueError(f"for {_MAIL}")
    for _ in range(depth):
        error = ExceptionGroup(f"group {_MAIL}", [error, ValueError(_MAIL), KeyError(_MAIL)])  # type: ignore[list-item]
    return error


def _recursing(depth: int = 0) -> int:
    return _recursing(depth + 1)


def _application_cases() -> Iterator[tuple[str, Case]]:
    cycle: list[Any] = [_MAIL]
    cycle.append(cycle)
    values: dict[str, Any] = {
        "an object that raises": _Evil(),
        "an endless iterator": _endless(),
        "a cycle": cycle,
        "a dict that raises": _Dict(priority=_MAIL),
        "a text that raises": _Text(_MAIL),
        "a million texts": [_MAIL] * 10**6,
        "a text of 50 MB": "x" * (50 * 10**6),
        "a number of 100,000 digits": 10**100_000,
    }
    for name, value in values.items():
        yield (
            f"75 {name} as a property",
            lambda value=value: _sdk(
                lambda: telemetry.track(
                    "task created", properties={"priority": value, "project": value}
                )
            ),
        )
        yield (
            f"75 {name} as properties",
            lambda value=value: _sdk(
                lambda: telemetry.track("task created", properties=value, account=value)
            ),
        )
    yield "75 names that collide", _sdk_with_colliding
    errors: dict[str, Callable[[], BaseException]] = {
        "75 an error that raises when it is shown": lambda: _raised(
            lambda: _throw(_BadError(_MAIL))
        ),
        "75 an error with an object that raises": lambda: _raised(
            lambda: _throw(ValueError(_Evil()))
        ),
        "76 10,000 causes": lambda: _chain(10_000),
        "76 groups, 60 deep": lambda: _grouped(60),
        "76 a group of 10,000": lambda: ExceptionGroup("many", [ValueError(_MAIL)] * 10_000),
        "76 an error that is its own context": _looped,
        "76 a recursion without end": lambda: _raised(_recursing),
        "76 a syntax error": lambda: _raised(
            lambda: compile(f"x = '{_MAIL}' 'pw' oops", f"/home/q7canary/{_MAIL}.py", "exec")
        ),
        "76 a message of 10 MB": lambda: ValueError(f"{_MAIL} " * 350_000),
    }
    for name, make in errors.items():
        yield name, lambda make=make: _captured(make())


def _captured(error: BaseException) -> Callable[[], bytes]:
    return _sdk(lambda: telemetry.capture_exception(error))


def _throw(error: BaseException) -> None:
    raise error


def _looped() -> BaseException:
    first, second = ValueError(_MAIL), KeyError(_MAIL)
    first.__context__, second.__context__ = second, first
    return first


def _sdk_with_colliding() -> Callable[[], bytes]:
    properties_ = {_Colliding(): _MAIL for _ in range(500)}
    return _sdk(lambda: telemetry.track("task created", properties=properties_))


_AT_ONCE: Final = 12


def _every_place(place: int) -> Callable[[], bytes]:
    """Run every seed of a dialect; what is measured is a few of them at once."""
    found = [data for data in seeds("body") if data[0] == place]
    parse = list(properties.DIALECTS)[place]

    def run() -> bytes:
        return b"\n".join(
            _through(parse, data[2:], properties.ENCODINGS[data[1] % len(properties.ENCODINGS)])
            for data in found[:_AT_ONCE]
        )

    for data in found[_AT_ONCE:]:
        properties.body(data)  # these fail by assertion
    return run


def _place_cases() -> Iterator[tuple[str, Case]]:
    for place, dialect in enumerate(properties.DIALECTS):
        yield f"77 each place of each record, as {dialect}", partial(_every_place, place)
    texts = {
        "SQL": f"INSERT INTO people (mail) VALUES ('{_MAIL}')",  # noqa: S608 - a text in a message
        "percent": _MAIL.replace("@", "%40"),
        "JSON in JSON": json.dumps({"note": json.dumps({"mail": _MAIL})}),
        "a header": f"Authorization: Basic {b64encode(f'{_MAIL}:pw'.encode()).decode()}",
        "a file": f"/srv/{_MAIL}/main.py",
        "a query": f"https://app.example.com/?mail={_MAIL}",
    }
    for name, text in texts.items():
        event = {
            "message": text,
            "transaction": text,
            "server_name": text,
            "modules": {text: text},
            "extra": {text: text},
            "breadcrumbs": {"values": [{"message": text, "data": {text: text}, "category": text}]},
            "threads": {"values": [{"name": text}]},
            "request": {"url": text, "headers": {text: text}, "data": text},
            "exception": {
                "values": [
                    {
                        "type": text,
                        "value": text,
                        "stacktrace": {
                            "frames": [
                                {
                                    "abs_path": text,
                                    "filename": text,
                                    "context_line": text,
                                    "vars": {text: text},
                                }
                            ]
                        },
                    }
                ]
            },
        }
        yield f"77 {name} in each place", lambda event=event: _event(json.dumps(event).encode())


# Cases are made when they are asked for: what forks holds none of their inputs.
for _cases in (
    _body_cases,
    _bomb_cases,
    _unicode_cases,
    _injection_cases,
    _slow_cases,
    _application_cases,
    _place_cases,
):
    CASES.update(_cases())


def _memory_mib(what: str) -> int:
    with Path("/proc/self/status").open(encoding="ascii") as status:
        found = next(line for line in status if line.startswith(what))
    return int(found.split()[1]) // 1024


def measure(name: str) -> dict[str, Any]:
    """Run one case here; give processor seconds, the largest size in MiB, and the outcome."""
    action = CASES[name]()
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # forgets the largest size so far
    began = time.process_time()
    before = _memory_mib("VmRSS")
    result = action()
    took = time.process_time() - began
    out = result.encode("utf-8", "surrogatepass") if isinstance(result, str) else result
    return {
        "case": name,
        "cpu_s": round(took, 4),
        "peak_mib": _memory_mib("VmHWM"),
        "before_mib": before,
        "out": len(out),
        "leaks": _MARK.encode() in out.lower(),
        "shown": out[:200].decode("utf-8", "replace"),
        "valid": _is_utf8(out),
        "raw": any(byte < 32 for byte in out.replace(b"\n", b"")),
    }


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def main() -> None:
    """Warm up, then fork for each name that comes in."""
    for data in seeds("body"):
        properties.body(data)
    reduce_user_agent("curl/8.5.0")
    redact_text("password=hunter2 é +49 30 901820 DE89 3704 0044 0532 0130 00")
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        name = line.rstrip("\n")
        child = os.fork()
        if not child:
            status = 1
            try:
                resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
                sys.stdout.write(json.dumps(measure(name)) + "\n")
                sys.stdout.flush()
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if status:
            sys.stdout.write(json.dumps({"case": name, "died": status}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
