"""The values of construction tps/v1, bit for bit, and what canonical identifiers refuse."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from telemetry.errors import IdentifierError, KeyringError, PolicyError
from telemetry.identity import pseudonym

VECTORS: Any = json.loads(
    (Path(__file__).parents[2] / "vectors" / "identity.json").read_text("utf-8")
)
KEYS = {name: bytes.fromhex(value) for name, value in VECTORS["keys"].items()}


@pytest.mark.parametrize("vector", VECTORS["tokens"], ids=lambda vector: vector["name"])
def test_a_token_has_the_value_of_its_vector(vector: dict[str, str]) -> None:
    given = {k: v for k, v in vector.items() if k not in {"name", "key", "secret", "token"}}
    made = pseudonym.token(KEYS[vector["key"]], secret=KEYS[vector["secret"]], **given)
    assert made == vector["token"]
    assert pseudonym.check(made)


def test_the_frame_of_the_first_vector_is_as_published() -> None:
    made = pseudonym.frame(
        "tps/v1/token", "analytics@heap", "rel", "account", "app:user", "4711", KEYS["S"]
    )
    assert made.hex() == VECTORS["frame_v1"]


def test_migration_locator_and_suppression_tag_have_the_values_of_their_vectors() -> None:
    vector = dict(VECTORS["migrate_v8"])
    key, expected = KEYS[vector.pop("key")], vector.pop("token")
    assert pseudonym.migrate(key, **vector) == expected
    vector = dict(VECTORS["locator"])
    key, expected = KEYS[vector.pop("key")], vector.pop("value")
    assert pseudonym.locator(key, **vector).hex() == expected
    vector = dict(VECTORS["suppression_tag"])
    key, expected = KEYS[vector.pop("key")], vector.pop("value")
    assert pseudonym.suppression_tag(key, **vector).hex() == expected


def test_each_kind_has_its_letter_and_its_own_token() -> None:
    made = {
        kind: pseudonym.token(
            KEYS["heap_rel"],
            domain="analytics@heap",
            epoch="rel",
            kind=kind,
            namespace="app:user",
            canonical_id="4711",
            secret=KEYS["S"],
            label="heap",
        )
        for kind in ("account", "organization", "membership", "session", "device", "object")
    }
    assert "".join(token[9] for token in made.values()) == "uomsdx"
    assert len({token[11:] for token in made.values()}) == len(made)


@pytest.mark.parametrize(
    "change",
    [
        {"domain": "analytics@other"},
        {"epoch": "2026q4"},
        {"namespace": "app:use"},
        {"canonical_id": "4712"},
        {"secret": KEYS["S2"]},
    ],
)
def test_each_part_of_the_frame_changes_the_token(change: dict[str, Any]) -> None:
    base: dict[str, Any] = {
        "domain": "analytics@heap",
        "epoch": "rel",
        "kind": "account",
        "namespace": "app:user",
        "canonical_id": "4711",
        "secret": KEYS["S"],
        "label": "heap",
    }
    assert pseudonym.token(KEYS["heap_rel"], **base) != pseudonym.token(
        KEYS["heap_rel"], **(base | change)
    )


def test_the_same_event_has_ids_at_two_recipients_that_do_not_join() -> None:
    event_id = "0192f0c1d2e37a4b8c5d6e7f80910203"
    one = pseudonym.delivery_id(KEYS["heap_rel"], domain="analytics@heap", event_id=event_id)
    two = pseudonym.delivery_id(KEYS["sentry_2026q4"], domain="errors@sentry", event_id=event_id)
    copied = pseudonym.delivery_id(KEYS["heap_rel"], domain="errors@sentry", event_id=event_id)
    assert len({one, two, copied, event_id}) == 4
    assert all(len(value) == 32 and int(value, 16) for value in (one, two, copied))


def test_a_token_that_is_cut_changed_or_in_upper_case_does_not_check() -> None:
    whole = VECTORS["tokens"][0]["token"]
    assert not pseudonym.check(whole[:-1])
    assert not pseudonym.check(whole + "\n")
    assert not pseudonym.check(whole.upper())
    assert not pseudonym.check(whole.replace("_u_", "_o_"))
    assert not pseudonym.check("ps1_heap_u_")
    with pytest.raises(IdentifierError):
        pseudonym.migrate(KEYS["new"], domain="analytics@heap", old_token=whole[:-1])


def test_a_key_or_secret_of_a_wrong_length_is_refused() -> None:
    for key in (b"", b"k" * 31, b"k" * 33):
        with pytest.raises(KeyringError):
            pseudonym.locator(key, kind="account", namespace="n", canonical_id="1")
    with pytest.raises(KeyringError):
        pseudonym.token(
            KEYS["heap_rel"],
            domain="d",
            epoch="rel",
            kind="account",
            namespace="n",
            canonical_id="1",
            secret=b"short",
            label="heap",
        )


def test_unknown_kind_and_unframeable_parts_are_refused_without_their_value() -> None:
    for kind, value in (("person", "1"), ("account", "\ud800"), ("account", "x" * 70_000)):
        with pytest.raises(IdentifierError) as caught:
            pseudonym.locator(KEYS["locator"], kind=kind, namespace="n", canonical_id=value)
        assert value not in str(caught.value) or value == "1"
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("profile", "value", "canonical"),
    [
        ("integer", 4711, "4711"),
        ("integer", "4711", "4711"),
        ("integer", 0, "0"),
        ("integer", "-17", "-17"),
        ("integer", "9007199254740993", "9007199254740993"),
        ("uuid", "F81D4FAE-7DEC-11D0-A765-00A0C91E6BF6", "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"),
        ("opaque", "user-42", "user-42"),
        ("opaque", "42", "42"),
        ("opaque", "Müller", "Müller"),
        ("opaque", "two words", "two words"),
        ("nocase", "Erika.Muster", "erika.muster"),
        ("nocase", "STRASSE", "strasse"),
        ("nocase", "Straße", "strasse"),
        ("email", "Erika.Muster@Example.COM", "erika.muster@example.com"),
        ("email", "erika@bücher.example", "erika@xn--bcher-kva.example"),
        ("email", "erika@XN--bcher-kva.example", "erika@xn--bcher-kva.example"),
    ],
)
def test_an_identifier_that_fits_its_profile_has_one_form(
    profile: pseudonym.Profile, value: str | int, canonical: str
) -> None:
    assert pseudonym.canonicalize(profile, value) == canonical


REFUSED: list[tuple[pseudonym.Profile, Any]] = [
    *(
        ("integer", value)
        for value in (
            "042",
            "+42",
            "4_711",
            " 42",
            "42\n",
            "４７１１",  # noqa: RUF001 - full-width digits are the point
            "42.0",
            "-0",
            "",
            "1" * 20,
            True,
            42.0,
            2**53 + 1,
            -(2**53) - 1,
            10**5000,
            None,
        )
    ),
    *(
        ("uuid", value)
        for value in (
            "f81d4fae7dec11d0a76500a0c91e6bf6",
            "{f81d4fae-7dec-11d0-a765-00a0c91e6bf6}",
            "f81d4fae-7dec-11d0-a765-00a0c91e6bf6\n",
            "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
            7,
        )
    ),
    *(
        ("opaque", value)
        for value in (
            "",
            " a",
            "a ",
            "a\x00b",
            "a\x7fb",
            "a\u200db",
            "a\ud800b",
            "a\ue000b",
            "a\u0378b",
            "u\u0308",
            "\ufb01x",
            "a\u00a0b",
            "x" * 257,
            "ü" * 129,
            42,
            None,
        )
    ),
    ("nocase", "A\u0301b"),
    ("nocase", 42),
    *(
        ("email", value)
        for value in (
            "erika",
            "@example.com",
            "erika@",
            "a@b@example.com",
            "erika@exa mple.com",
            "erika muster@example.com",
            "erika@example.com.",
            "erika@-example.com",
            "erika@straße.example",
            "erika@[192.0.2.1]",
            "erika@xn--\u00fc.example",
            f"{'e' * 65}@example.com",
            f"e@{'a' * 64}.example",
        )
    ),
]


@pytest.mark.parametrize(
    ("profile", "value"), REFUSED, ids=[f"{case[0]}-{n}" for n, case in enumerate(REFUSED)]
)
def test_an_identifier_that_does_not_fit_is_refused_not_repaired(
    profile: pseudonym.Profile, value: Any
) -> None:
    with pytest.raises(IdentifierError) as caught:
        pseudonym.canonicalize(profile, value)
    assert str(caught.value) == "invalid_identifier"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_an_unknown_profile_is_an_error_of_the_policy() -> None:
    with pytest.raises(PolicyError):
        pseudonym.canonicalize("free", "x")  # type: ignore[arg-type]


def test_the_epoch_is_the_utc_quarter_of_the_event() -> None:
    late = datetime(2026, 12, 31, 23, 30, tzinfo=timezone(timedelta(hours=-5)))
    assert pseudonym.epoch_label("quarter", late) == "2027q1"
    assert pseudonym.epoch_label("quarter", datetime(2026, 12, 31, tzinfo=UTC)) == "2026q4"
    assert [
        pseudonym.epoch_label("quarter", datetime(2026, month, 1, tzinfo=UTC))
        for month in range(1, 13)
    ] == [f"2026q{n}" for n in (1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4)]
    assert pseudonym.epoch_label("rel", late) == "rel"
    with pytest.raises(PolicyError):
        pseudonym.epoch_label("quarter", datetime(2026, 1, 1))  # noqa: DTZ001 - naive on purpose
