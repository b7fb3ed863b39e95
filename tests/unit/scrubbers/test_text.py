from __future__ import annotations

import pytest

from scrubbers import KnownValues, Numbering, redact_text
from scrubbers.model import Remark
from scrubbers.text import MAX_FIELD_BYTES


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "mail a@example.com to b@example.com, cc A@example.com",
            "mail <email:1> to <email:2>, cc <email:1>",
        ),
        ("<email:jane@example.com>", "<email:<email:1>>"),
        ("was <email:7>, is jane@example.com", "was <email:7>, is <email:8>"),
        ("password=+4930123456abc", "password=<secret>"),
        ("token=<secret>", "token=<secret>"),
        ("token=<secret>tail7", "token=<secret>"),
        ("jane\uff20example\u200b.com ist da", "<email:1> ist da"),
        ("4111\u00a01111\u00a01111\u00a01111", "<card:1>"),
        ("postgres://app:hunter2@db.example.com/x", "postgres://<credentials>@db.example.com/x"),
        ("Key (email)=(jane@example.com) exists", "Key (email)=(<email:1>) exists"),
        ("1 4111 1111 1111 1111", "1 <card:1>"),
        ("<account:x@example.org> <email:>", "<account:<email:1>> <email:>"),
        ("<jane.doe>", "<jane.doe>"),
    ],
)
def test_the_value_goes_and_the_message_stays(text: str, wanted: str) -> None:
    redacted, remarks = redact_text(text)
    assert redacted == wanted
    assert redact_text(redacted) == (redacted, ())
    for remark in remarks:
        assert remark.path == ()
        assert remark.action == "replace"
        placeholder = redacted.encode()[remark.start : remark.end]
        assert placeholder.startswith(b"<")
        assert placeholder.endswith(b">")


@pytest.mark.parametrize(
    "text",
    [
        "Invalid password for user",
        "password must contain at least 8 characters",
        "TypeError: unexpected token < in JSON at position 0",
        "KeyError: 'password'",
        "max_tokens=100 token_count: 5",
        "2026-11-22 10:11:12,345 INFO worker 12345 done in 12.5 ms",
        "npm ERR! code ENOENT node_modules/@sentry/node@7.1.2",
        "commit 3f2a1b4c5d6e7f8091a2b3c4d5e6f708192a3b4c",
        "urn:uuid:550e8400-e29b-41d4-a716-446655440000",
        "trace_id=4bf92f3577b34da6a3ce929d0e0e4736 span_id=00f067aa0ba902b7",
        '    password = form.cleaned_data["password"]',
        "def login(username: str, password: str) -> None:",
        'duplicate key value violates unique constraint "users_email_key"',
        "std::vector<a::b> at ::1",
        "listening on 127.0.0.1:8080 and 0.0.0.0:80",
        "public_key=abc cache_key=users:list primary_key=17",
        "Größe überschritten — 3 von 4 Dateien",
        "",
    ],
)
def test_a_text_without_personal_data_stays_as_it_is(text: str) -> None:
    assert redact_text(text) == (text, ())


def test_offsets_are_bytes_of_the_new_text() -> None:
    redacted, remarks = redact_text("für jürgen@example.com und 203.0.113.7")
    assert [redacted.encode()[r.start : r.end].decode() for r in remarks] == ["<email:1>", "<ip>"]


def test_fields_of_one_event_share_their_numbers() -> None:
    numbering = Numbering()
    assert redact_text("a@example.com", numbering=numbering)[0] == "<email:1>"
    assert redact_text("b@example.com", numbering=numbering)[0] == "<email:2>"
    assert redact_text("a@example.com", numbering=numbering)[0] == "<email:1>"
    assert "example" not in repr(numbering)


def test_a_long_text_with_a_finding_is_cut_and_a_clean_one_is_not() -> None:
    clean = "all is well " * 2_000
    assert redact_text(clean) == (clean, ())
    redacted, remarks = redact_text("jane@example.com " + clean)
    assert redacted.startswith("<email:1> all is well")
    assert redacted.endswith("<truncated>")
    assert len(redacted) <= MAX_FIELD_BYTES
    assert [remark.rule for remark in remarks] == ["email", "truncated"]


@pytest.mark.parametrize("before", range(MAX_FIELD_BYTES - 40, MAX_FIELD_BYTES + 2))
def test_a_value_on_the_cut_leaves_no_half(before: int) -> None:
    text = "x " * (before // 2) + "jane.doe@example.com" + " y" * 2_000
    assert "jane" not in redact_text(text)[0]


def test_more_findings_than_a_message_has_leave_nothing() -> None:
    text = " ".join(f"a{n}@example.com" for n in range(300))
    redacted, (remark,) = redact_text(text)
    assert redacted == "<redacted>"
    assert (remark.start, remark.end) == (0, 10)
    assert redact_text(redacted) == (redacted, ())


def test_text_that_no_encoding_can_write_becomes_valid() -> None:
    assert redact_text("\ud800 ok")[0] == "? ok"
    assert redact_text("\ud800 jane@example.com")[0] == "? <email:1>"


def test_known_values_go_before_any_detector() -> None:
    known = KnownValues([("account", "4711"), ("email", "jane@example.com")])
    redacted, remarks = redact_text("4711 is jane@example.com at 203.0.113.7", known=known)
    assert redacted == "<account> is <email:1> at <ip>"
    assert [remark.rule for remark in remarks] == ["known_value", "known_value", "ipv4"]
    assert redact_text(redacted, known=known) == (redacted, ())


def test_a_known_value_reads_as_if_it_were_found() -> None:
    known = KnownValues([("account", "jane@example.com"), ("user", "jdoe")])
    for text in ("no mail to {}", "email={}&x=1", "{} is not john@example.com"):
        own = redact_text(text.format("jane@example.com"), known=known)[0]
        assert own == redact_text(text.format("anna@example.com"), known=known)[0]
    assert redact_text("username=jdoe", known=known) == (
        redact_text("username=anna", known=known)[0],
        (Remark((), "known_value", "replace", 9, 15),),
    )


def test_numbers_stand_from_left_to_right_whoever_finds_the_value() -> None:
    numbering = Numbering()
    known = KnownValues([("email", "jane@example.com")])
    text, remarks = redact_text(
        "john@example.com, jane@example.com, john@example.com", known=known, numbering=numbering
    )
    assert text == "<email:1>, <email:2>, <email:1>"
    assert [text[one.start : one.end] for one in remarks] == text.split(", ")
    assert redact_text("jane@example.com", numbering=numbering)[0] == "<email:2>"
    assert redact_text("anna@example.com", numbering=numbering)[0] == "<email:3>"


def test_numbers_that_nobody_sees_are_given_again() -> None:
    numbering = Numbering()
    known = KnownValues([("email", "jane@example.com")])
    swallowed = redact_text("password=jane@example.com", known=known, numbering=numbering)[0]
    assert swallowed == "password=<secret>"
    many = " ".join(f"a{n}@example.com" for n in range(300))
    assert redact_text(many, numbering=numbering)[0] == "<redacted>"
    assert redact_text("john@example.com", numbering=numbering)[0] == "<email:1>"


@pytest.mark.parametrize(
    ("known", "text", "wanted"),
    [
        (("name", "Example"), "mail to k7canary@mail.example.org", "mail to <email:1>"),
        (("account", "4711"), "password=ab-4711-canary given", "password=<secret> given"),
        (("name", "Jane Doe"), "Jane.Doe+canary@example.com wrote", "<email:1> wrote"),
        (("account", "4711"), "4711 wrote to k7@example.com", "<account> wrote to <email:1>"),
    ],
)
def test_a_known_value_inside_a_longer_finding_goes_with_the_whole_of_it(
    known: tuple[str, str], text: str, wanted: str
) -> None:
    """What a placeholder leaves of an address has no shape that anybody could find."""
    assert redact_text(text, known=KnownValues([known]))[0] == wanted
