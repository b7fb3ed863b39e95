"""Properties of identifiers, frames, capsules and the vault."""

from __future__ import annotations

import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from telemetry.errors import CapsuleError, IdentifierError
from telemetry.identity import Identifier, initialise_development, pseudonym
from telemetry.identity.capsule import Opener, Sealer
from telemetry.identity.keyring import Keyring, Secret
from telemetry.identity.vault import Tombstoned, Vault

PROFILES: Sequence[pseudonym.Profile] = ("integer", "uuid", "opaque", "nocase", "email")
KEY = bytes(range(32))

anything = st.one_of(
    st.text(max_size=40),
    st.integers(),
    st.from_regex(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", fullmatch=True),
    st.emails(),
    st.from_regex(r"[+-]?[0-9_ ]{1,21}", fullmatch=True),
)
names = st.text(st.characters(codec="utf-8"), max_size=30)
kinds = st.sampled_from(sorted(pseudonym.KINDS))
people = st.lists(
    st.builds(Identifier, kinds, names, names),
    min_size=1,
    max_size=8,
    unique_by=lambda one: one.canonical_id if one.kind == "object" else one.kind,
)
events = st.fixed_dictionaries(
    {
        "event_id": names,
        "schema": names,
        "occurred_ms": st.integers(-(2**63), 2**63 - 1),
        "tenant": names,
    }
)


@pytest.fixture(scope="module")
def ring() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        initialise_development(Path(folder))
        yield Keyring.load(Path(folder) / "keys" / "keyset.json", environment="development")


@given(st.sampled_from(PROFILES), anything)
@example("nocase", "ŉ")
@example("nocase", "İ")
@example("email", "a@ß.example")
def test_a_canonical_identifier_is_its_own_canonical_form_or_there_is_none(
    profile: pseudonym.Profile, value: str | int
) -> None:
    try:
        canonical = pseudonym.canonicalize(profile, value)
    except IdentifierError:
        return
    assert pseudonym.canonicalize(profile, canonical) == canonical
    assert 0 < len(canonical.encode()) <= 256 + 64
    assert unicodedata.normalize("NFKC", canonical) == canonical


@given(st.integers(-(2**53), 2**53))
def test_a_number_and_its_decimal_text_are_one_identifier(number: int) -> None:
    assert pseudonym.canonicalize("integer", number) == str(number)
    assert pseudonym.canonicalize("integer", str(number)) == str(number)


@given(st.text(max_size=12), st.text(max_size=12))
def test_two_texts_are_one_opaque_identifier_only_if_they_are_equal(one: str, two: str) -> None:
    assume(one != two)
    forms = set()
    for value in (one, two):
        try:
            forms.add(pseudonym.canonicalize("opaque", value))
        except IdentifierError:
            return
    assert len(forms) == 2


@given(st.lists(st.binary(max_size=6), max_size=5), st.lists(st.binary(max_size=6), max_size=5))
def test_two_lists_of_parts_never_make_the_same_frame(one: list[bytes], two: list[bytes]) -> None:
    assert (pseudonym.frame(*one) == pseudonym.frame(*two)) is (one == two)


@given(kinds, names, names, st.data())
def test_a_token_checks_and_no_token_with_a_changed_character_is_likely_to(
    kind: str, namespace: str, canonical_id: str, data: st.DataObject
) -> None:
    token = pseudonym.token(
        KEY,
        domain="analytics@heap",
        epoch="rel",
        kind=kind,
        namespace=namespace,
        canonical_id=canonical_id,
        secret=KEY,
        label="heap",
    )
    assert pseudonym.check(token)
    assert len(token) == 39
    at = data.draw(st.integers(37, 38))
    other = data.draw(st.sampled_from([c for c in "0123456789abcdef" if c != token[at]]))
    assert not pseudonym.check(token[:at] + other + token[at + 1 :])


@settings(deadline=None)
@given(people, events)
def test_what_is_sealed_comes_back_for_its_own_event(
    ring: Keyring, people: list[Identifier], event: dict[str, Any]
) -> None:
    key = ring.primary("seal")
    sealed = Sealer(key.public, key.kid).seal(people, **event)
    assert Opener(ring).open(sealed, **event) == tuple(people)
    assert (len(sealed) - 117) % 128 == 0


@settings(deadline=None)
@given(people, events, events)
def test_what_is_sealed_opens_for_no_other_event(
    ring: Keyring, people: list[Identifier], event: dict[str, Any], other: dict[str, Any]
) -> None:
    assume(event != other)
    key = ring.primary("seal")
    sealed = Sealer(key.public, key.kid).seal(people, **event)
    with pytest.raises(CapsuleError) as caught:
        Opener(ring).open(sealed, **other)
    assert caught.value.reason == "capsule_mismatch"


@settings(deadline=None)
@given(people, events, st.data())
def test_a_flipped_bit_is_found(
    ring: Keyring, people: list[Identifier], event: dict[str, Any], data: st.DataObject
) -> None:
    key = ring.primary("seal")
    sealed = bytearray(Sealer(key.public, key.kid).seal(people, **event))
    at = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[at // 8] ^= 1 << at % 8
    with pytest.raises(CapsuleError):
        Opener(ring).open(bytes(sealed), **event)


@settings(deadline=None)
@given(st.binary(max_size=600), events)
def test_arbitrary_bytes_are_no_capsule(ring: Keyring, raw: bytes, event: dict[str, Any]) -> None:
    assume(raw)
    with pytest.raises(CapsuleError):
        Opener(ring).open(raw, **event)


subjects = st.integers(0, 7).map(lambda n: bytes([n]) * 32)
steps = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.one_of(
            st.tuples(st.just("secrets"), st.lists(subjects, max_size=5)),
            st.tuples(st.just("erase"), subjects),
            st.tuples(st.just("reopen"), st.none()),
        ),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=25)
@given(steps)
def test_two_connections_to_a_vault_never_disagree(
    ring: Keyring, steps: list[tuple[int, tuple[str, Any]]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:

        def opened() -> Vault:
            # A clock that runs a minute with each look: nothing is remembered.
            ticks = iter(range(0, 10**9, 60))
            return Vault(
                f"sqlite:///{folder}/vault.sqlite3",
                keyring=ring,
                clock=lambda: float(next(ticks)),
            )

        vaults = [opened(), opened()]
        known: dict[bytes, Secret] = {}
        erased: set[bytes] = set()
        for which, (what, given_) in steps:
            if what == "secrets":
                for locator, got in vaults[which].secrets(given_).items():
                    if locator in erased:
                        assert isinstance(got, Tombstoned)
                    else:
                        assert isinstance(got, Secret)
                        assert known.setdefault(locator, got) == got
            elif what == "erase":
                vaults[which].erase(given_)
                erased.add(given_)
            else:
                vaults[which].close()
                vaults[which] = opened()
        assert len(set(known.values())) == len(known)
        for vault in vaults:
            vault.close()
