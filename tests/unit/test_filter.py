"""The filter: what goes through it, what is cut, what is counted; and that memory stays small."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import shipped

from scrubbers.text import redact_text
from telemetry.dialects import Refusal
from telemetry.filter import LINE_BYTES, Filter, Form
from telemetry.testing import Canaries


class Dribble:
    """A stream that gives its bytes in pieces of its own choosing."""

    def __init__(self, data: bytes, sizes: list[int] | None = None) -> None:
        self._data, self._at, self._sizes = data, 0, sizes or []
        self.largest = 0

    def read1(self, size: int, /) -> bytes:
        size = min(size, self._sizes.pop(0) if self._sizes else size)
        piece = self._data[self._at : self._at + size]
        self._at += len(piece)
        return piece


def run(data: bytes, form: Form = "auto", kind: str = "", **more: Any) -> tuple[bytes, Filter]:
    filtering, out = Filter(shipped()[0], kind=kind), io.BytesIO()
    filtering.run(Dribble(data, more.get("sizes")), out, form)
    return out.getvalue(), filtering


def test_clean_text_goes_through_as_it_is() -> None:
    data = b"one\r\n\ntwo \xc3\xa9\nlast without an end"
    out, filtering = run(data)
    assert out == data
    assert not filtering.removed
    assert filtering.read == 4


def test_each_line_is_numbered_for_itself() -> None:
    out, filtering = run(b"from a@example.com to b@example.com\nb@example.com\n")
    assert out == b"from <email:1> to <email:2>\n<email:1>\n"
    assert filtering.removed == {"email": 3}


def test_the_body_of_a_private_key_goes_although_no_line_of_it_says_so() -> None:
    begin, end = b"-----BEGIN RSA PRIVATE " + b"KEY-----", b"-----END RSA PRIVATE " + b"KEY-----"
    body = b"MIIEowIBAAKCAQEAzqx\nqhkiG9w0BAQEFAASC\n"
    out, filtering = run(b"a\n" + begin + b"\n" + body + end + b"\nz\n")
    assert out == b"a\n" + begin + b"\n<key>\n<key>\n" + end + b"\nz\n"
    assert filtering.removed["private_key"] == 2


def test_a_key_that_never_ends_does_not_swallow_the_log() -> None:
    begin = b"-----BEGIN PRIVATE " + b"KEY-----\n"
    out, _ = run(begin + b"line\n" * 500)
    assert out.count(b"<key>\n") == 200
    assert out.count(b"line\n") == 300


LINES = st.lists(
    st.sampled_from(
        ["ok", "", "mail jane@example.com", "password=hunter2", "from 203.0.113.77", "é",
         "a\x1eb@example.com", "jane@", "example.com", "\r", "x@example.com\x1e"]
    ),
    max_size=8,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(lines=LINES, sizes=st.lists(st.integers(1, 9), max_size=30))
def test_blocks_are_treated_as_their_lines_would_be(lines: list[str], sizes: list[int]) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    out, _ = run(data, "text", sizes=sizes)
    detectors = Filter(shipped()[0])._detectors
    wanted = [
        redact_text(line.removesuffix("\r"), detectors)[0] + ("\r" if line.endswith("\r") else "")
        for line in lines
    ]
    assert out.decode() == "".join(f"{line}\n" for line in wanted)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=300), sizes=st.lists(st.integers(1, 50), max_size=10))
def test_any_bytes_come_out_as_text(data: bytes, sizes: list[int]) -> None:
    for form in ("text", "ndjson"):
        out, _ = run(data, form, sizes=list(sizes))  # type: ignore[arg-type] # both are forms
        out.decode()


def test_a_line_that_is_too_long_is_cut_before_a_word_and_counted() -> None:
    long = b"word " * 600_000
    out, filtering = run(b"one\n" + long + b"\ntwo\n" + long)
    lines = out.split(b"\n")
    assert [lines[0], lines[2]] == [b"one", b"two"]
    for line in (lines[1], lines[3]):
        assert LINE_BYTES - 2048 < len(line) <= LINE_BYTES
        assert line.endswith(b"word <truncated>")
    assert filtering.removed == {"truncated": 2}


def test_no_half_of_a_value_stays_where_a_line_is_cut() -> None:
    address = b"jane.doe@mail.example.org"
    for shift in range(0, 40, 3):
        line = b"x" * 10 + b" " + b"y " * ((LINE_BYTES - 40) // 2) + b"z" * shift + b" " + address
        out, _ = run(line + b" tail " * 100 + b"\n", "text")
        assert b"jane" not in out


def test_json_is_redacted_by_leaf_with_its_name_and_names_are_texts_too() -> None:
    line = {
        "password": "correct horse battery",
        "n": 4111111111111111,
        "msg": ["hi jane@example.com", {"deep": "203.0.113.77"}],
        "jane@example.com": 1,
        "ok": [1.5, None, True, "fine"],
    }
    out, filtering = run(json.dumps(line).encode() + b"\n")
    assert json.loads(out) == {
        "password": "<secret>",
        "n": "<card:1>",
        "msg": ["hi <email:1>", {"deep": "<ip>"}],
        "ok": [1.5, None, True, "fine"],
    }
    assert filtering.removed.total() == 5


def test_a_name_that_stands_twice_hides_nothing() -> None:
    out, _ = run(b'{"a":"jane@example.com","a":"x"}\n')
    assert out == b'{"a":"x"}\n'


def test_a_line_that_is_no_json_is_text() -> None:
    out, _ = run(b'{"a":1}\npanic: jane@example.com\n{"a":\n')
    assert out == b'{"a":1}\npanic: <email:1>\n{"a":\n'


def test_with_a_kind_the_record_decides_and_what_it_does_not_know_is_gone() -> None:
    event = {"message": "for jane@example.com", "user": {"id": 4711, "email": "jane@example.com"},
             "surprise": "Jane"}  # fmt: skip
    out, filtering = run(json.dumps(event).encode(), kind="error_event")
    assert json.loads(out) == {"message": "for <email:1>", "user": {}}
    assert filtering.removed == {"strip": 1, "known_value": 1, "pseudonymize": 1, "undeclared": 1}
    out, filtering = run(b"no json\n", kind="error_event")
    assert (out, filtering.dropped) == (b"", {"undecodable": 1})


def test_an_envelope_keeps_what_has_a_purpose_and_nothing_of_its_header_but_the_id() -> None:
    head = {"event_id": "ab" * 16, "dsn": "https://key@sentry.example/1", "trace": {"user": "Jane"}}
    event = json.dumps({"message": "for jane@example.com"}).encode()
    body = json.dumps(head).encode() + b'\n{"type":"event"}\n' + event
    body += b'\n{"type":"attachment","length":4}\nJane\n{"type":"user_report"}\n{"name":"Jane"}\n'
    out, filtering = run(body)
    first, item, payload = out.strip().split(b"\n")
    assert json.loads(first) == {"event_id": "ab" * 16}
    assert json.loads(item) == {
        "type": "event", "content_type": "application/json", "length": len(payload)
    }  # fmt: skip
    assert json.loads(payload) == {"message": "for <email:1>"}
    assert filtering.dropped == {"kind_attachment": 1, "kind_user_report": 1}
    assert filtering.read == 3
    assert run(out)[0] == out, "twice is the same as once"


def test_a_broken_envelope_is_refused() -> None:
    with pytest.raises(Refusal):
        run(b'{"event_id":"' + b"ab" * 16 + b'"}\n{"type":"event","length":99}\n{}\n')


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), form=st.sampled_from(["text", "ndjson"]))
def test_what_has_a_shape_never_comes_through(seed: int, form: Form) -> None:
    person = Canaries(seed)
    planted = ("email", "ipv4", "ipv6", "iban", "phone")
    values = {name: person.values[name] for name in planted}
    text = ", ".join(f"saw {value} again" for value in values.values())
    line = text if form == "text" else json.dumps({"list": list(values.values()), "text": text})
    out, _ = run(f"{line}\n".encode(), form)
    assert not [name for name in person.found_in(out) if name in planted]
