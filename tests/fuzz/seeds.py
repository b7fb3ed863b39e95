"""What fuzzers start from: our vectors, the detectors' examples, and an event for each record.

Also the words they may put in: without them a fuzzer would have to find ``password=`` by chance.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import tomllib
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import brotli
import zstandard

from scrubbers.shipped import detector_table
from telemetry.dialects import sentry
from telemetry.schema import Record, load_records
from tests.fuzz.properties import CANARY, DIALECTS, ENCODINGS, SESSION

__all__ = ["LONGEST", "dictionary", "seeds"]

_VECTORS: Final = Path(__file__).parents[1] / "vectors"
LONGEST: Final = 16_384
"""Most bytes of an input."""
_LONGEST_WORD: Final = 60
_DEEPEST: Final = 3

_URLS: Final = (
    "https://jane:pw@app.example.com:8443/users/jane/boards/4711/edit?token=x&a=1#top",
    "//203.0.113.7/a", "http://[2001:db8::1]:80/x", "localhost:3000/a/b", "/home/jane/app/views.py",
    "C:\\Users\\jane\\app.py", "\\\\server\\home\\jane\\x", "file:///Users/jane/x.js", "~jane/x",
    "GET /users/4711", "POST https://app.example.com/a?b", "blob:https://app.example.com/3fa85f64",
    "data:text/plain;base64,aGk=", "mailto:jane@example.com", "about:blank", "app.views.save",
    "generic WSGI request", "webpack://app/./src/users/list.js?4f3a", "/a;jsessionid=1/b;c",
    "/v1.2/{id}/[slug]/:name/*", "http:user@host", "/%2F%252Fhome%2Fjane", "/x@example.com/y",
    "https://ünïcode.example/straße", "/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17/18/19/20/21/22",
    "<id>/<ip>/<user>", "call <phone:1>", "/mnt/c/Users/jane/x", "0x7f000001/a", "1-2-3-4.example",
)  # fmt: skip
_AGENTS: Final = (
    "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/129.0.0.0 Safari/537.36 Edg/129.0.0.0",
    "Mozilla/5.0 (iPad; CPU OS 17_5 like Mac OS X) Version/17.5 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (Linux; Android 14; SM-S918B) Chrome/128.0 Mobile Safari/537.36",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "JaneDoe/1.0", "curl/8.5.0", "python-requests/2.32.3", "okhttp/4.12.0", "Wget/1.21", "other",
    "Firefox 130; Linux; desktop", "other; other; bot", "Slackbot-LinkExpanding 1.0",
    "Opera/9.80 (J2ME/MIDP; Opera Mini/7.1; U; en) Presto/2.8.119 Version/11.10",
    "Dalvik/2.1.0 (Linux; U; Android 9; Tablet)", "Thunderbird/115.0", "Electron/31.0.0",
    "Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 Chrome/127.0.0.0 Safari/537.36",
    "Mozilla/4.0 (compatible; MSIE 8.0; Windows NT 6.1; Trident/4.0)", "", "Java/17.0.2",
    "facebookexternalhit/1.1", "UptimeRobot/2.0", "axios/1.7.2", "Mozilla/5.0",
)  # fmt: skip
_FRAGMENTS: Final = (
    *("<email:1>", "<redacted>", "<secret>", "<truncated>", "<", ">", "\x1e", "%40", "%2540"),
    *("&#64;", "&commat;", "\\u0040", "\\x40", "\\100", "=40", "+AEA-", "\uff20", " [at] "),
    *("\u200b", "\u00ad", "\u0338", "\ud800", "\u202e", "password=", "token: "),
    *("Bearer ", "Basic ", "http://", "//", "\\u0000", "\\ud800"),
    *("-----BEGIN PRIVATE KEY-----", "-----END ", "eyJhbGciOi", "4111 1111 1111 1111", "+49 30 "),
    *("DE89 3704 0044 0532 0130 00", "203.0.113.7", "2001:db8::1", "0x", "/home/", "C:\\Users\\"),
    *("{{auto}}", "true", "null", "NaN", "1e999", "-0.0", "9007199254740993"),
    *("::ffff:", "2002:", "64:ff9b::", "5efe:", "%eth0", "[", "]:443", "/24", "/40"),
    *('{"type":"event"}\n', '{"type":"event","length":', '"items":[', '"_remarks":[[["message"],"'),
)  # fmt: skip


def seeds(target: str) -> Iterator[bytes]:
    """Give the inputs that a target starts from, each of at most `LONGEST` bytes."""
    made: Iterable[bytes] = {
        "text": _texts,
        "url": lambda: (one.encode() for one in (*_URLS, *_texts_of_detector("user_path"))),
        "address": _addresses,
        "user_agent": lambda: (one.encode() for one in _AGENTS),
        "body": _bodies,
    }[target]()
    yield from {data: None for data in made if len(data) <= LONGEST}


def _texts() -> Iterator[bytes]:
    for row in detector_table()["detector"].values():
        for text, _ in row.get("match", ()):
            yield text.encode()
        for text in row.get("clean", ()):
            yield text.encode()
    for name in ("positives", "negatives"):
        for text in _strings(
            tomllib.loads((_VECTORS / "score" / f"{name}.toml").read_text("utf-8"))
        ):
            yield text.replace("§", CANARY).encode()


def _texts_of_detector(name: str) -> Iterator[str]:
    row = detector_table()["detector"].get(name, {"match": [], "clean": []})
    yield from (text for text, _ in row["match"])
    yield from row.get("clean", ())


def _strings(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, list):
        for item in data:
            yield from _strings(item)
    elif isinstance(data, dict):
        yield from _strings(list(data.values()))


def _addresses() -> Iterator[bytes]:
    vectors = tomllib.loads((_VECTORS / "addresses.toml").read_text("utf-8"))
    for text in _strings(vectors):
        yield text.encode()


def _bodies() -> Iterator[bytes]:
    """Give each record's events in each dialect that can hold it, and some in each encoding."""
    places = {name: bytes((n,)) for n, name in enumerate(DIALECTS)}
    plain = b"\0"
    words = {kind: word.encode() for word, kind in sentry._KINDS.items()}
    for kind, record in load_records().items():
        for event in _events(kind, record):
            raw = json.dumps(event).encode()
            whole = json.dumps({**event, "kind": kind}).encode()
            yield places["events"] + plain + whole
            yield places["lines"] + plain + whole + b"\n" + whole
            if word := words.get(kind, b""):
                head = b'{"type":"%b","length":%d}' % (word, len(raw))
                yield places["envelope"] + plain + b'{"event_id":"%b"}\n%b\n%b' % (
                    b"5e" * 16, head, raw)  # fmt: skip
                container = b'{"version":2,"items":[%b]}' % raw
                yield places["envelope"] + plain + b'{}\n{"type":"%b"}\n%b\n' % (word, container)
            if kind == "error_event":
                yield places["store"] + plain + raw
                yield places["store"] + plain + base64.b64encode(zlib.compress(raw))
            if kind == "security_report":
                yield places["security"] + plain + b'{"csp-report":%b}' % raw
                yield places["security"] + plain + b'[{"type":"csp-violation","body":%b}]' % raw
    track = (
        b'{"app_id":"11","identity":"%b","event":"task created","properties":{"priority":"low"}}'
    )
    track = track % CANARY.encode()
    yield places["track"] + plain + track
    yield places["track"] + plain + b'{"app_id":11,"events":[%b,%b]}' % (track, track)
    yield places["users"] + plain + b'{"app_id":"11","users":[%b]}' % track
    yield places["accounts"] + plain + b'{"app_id":"11","accounts":[{"account_id":"x"}]}'
    for name, packed in (
        ("gzip", gzip.compress(track, mtime=0)),
        ("deflate", zlib.compress(track)),
        ("br", brotli.compress(track)),
        ("zstd", zstandard.compress(track)),
    ):
        yield places["track"] + bytes((ENCODINGS.index(name),)) + packed


def _events(kind: str, record: Record) -> Iterator[dict[str, Any]]:
    """Give an event with all fields, and one for each field, which is easier to change."""
    beside: dict[str, Any] = {}
    if kind == "analytics_event":
        beside["event"] = "task created"
        beside["properties"] = {"priority": "high", "project": "p1", "mail": CANARY}
    full = _event(record)
    yield {**full, **beside}
    for name, value in full.items():
        yield {name: value, **beside}


def _event(record: Record, depth: int = 0) -> dict[str, Any]:
    """Make an event with a value at each place."""
    event: dict[str, Any] = {}
    for number, entry in enumerate(record.fields):
        value: Any
        if depth > _DEEPEST:
            continue
        if entry.record is not None:
            below = _event(entry.record, depth + 1)
            value = [below] if entry.shape == "records" else below
        elif entry.values:
            value = min(entry.values)
        elif entry.shape == "map" or entry.treatment == "shape":
            value = {"note": f"to {CANARY} {SESSION}", "n": 1}
        else:
            value = {"list": ["a", CANARY], "long": 1, "double": 0.5, "boolean": True}.get(
                entry.shape, CANARY if number % 3 else "2026-03-31T09:15:42Z"
            )
        event[entry.wire] = value
    return event


def dictionary(target: str) -> str:
    """Give the words of a target in libFuzzer's form: quoted, a line each."""
    words = {*_FRAGMENTS}
    if target in ("text", "body"):
        for row in detector_table()["detector"].values():
            words.update(re.findall(r"[A-Za-z][A-Za-z0-9_.-]{2,}", row["anchor"] + row["pattern"]))
    if target == "body":
        words.update(f'"{name}":' for name in _names(load_records().values()))
        words.update((CANARY, SESSION))
    if target == "user_agent":
        words.update(re.findall(r"[\w.]+/?", " ".join(_AGENTS)))
    encoded = {word.encode("utf-8", "surrogatepass") for word in words}
    lines = (
        '"' + "".join(f"\\x{byte:02X}" for byte in word) + '"'
        for word in sorted(encoded)
        if 0 < len(word) <= _LONGEST_WORD
    )
    return "\n".join(lines) + "\n"


def _names(records: Iterable[Record]) -> Iterator[str]:
    for record in records:
        for entry in record.fields:
            yield entry.wire
            if entry.record is not None:
                yield from _names([entry.record])
