"""Whoever has all tokens, the whole vault and one key: can they count through the ids?

The attacker knows all of our code, that ids are small whole numbers, and tries every key he holds
in every role. Where a test says "cannot", another runs the same attacker with what he lacked, and
he can: so the attack works, and the construction is what stops it.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from telemetry.errors import CapsuleError
from telemetry.identity import (
    Domain,
    Identifier,
    Identity,
    Resolved,
    Sealed,
    epoch_ms,
    initialise_development,
    pseudonym,
)
from telemetry.identity.vault import unwrap

NOW = datetime.now(UTC)
HEAP = Domain(name="analytics@heap", label="heap", epoch="rel")
SENTRY = Domain(name="errors@sentry", label="sentry", epoch="quarter")
IDS = range(4700, 4740)


class Row(NamedTuple):
    locator: bytes
    wrapped: bytes | None
    version: int


class Loot(NamedTuple):
    """Everything that lies about: what recipients hold, the vault, and the keys by their use."""

    tokens: dict[str, int]
    rows: list[Row]
    keys: dict[str, bytes]


@pytest.fixture(scope="module")
def loot(tmp_path_factory: pytest.TempPathFactory) -> Loot:
    return plunder(tmp_path_factory.mktemp("state"))


def plunder(state: Path, *, erase: int | None = None) -> Loot:
    """Let an event of every account pass, perhaps erase one, and take everything there is."""
    initialise_development(state)
    identity = Identity.open(state, environment="development")
    sealer, tokens = Identity.sealer(state), {}
    for number in IDS:
        account = Identifier("account", "app:user", str(number))
        bound = {"event_id": f"{number:032x}", "schema": "event", "tenant": "web"}
        capsule = sealer.seal((account,), occurred_ms=epoch_ms(NOW), **bound)
        (met,) = identity.resolve([Sealed(capsule=capsule, occurred_at=NOW, **bound)])
        assert isinstance(met, Resolved)
        for domain in (HEAP, SENTRY):
            tokens[met.tokens(domain, NOW)["account"]] = number
        met.delivery_id(HEAP)
        if number == erase:
            identity.erase(account, purposes=("product-analytics", "error-logging"))
    keys = {
        f"{key.use} {key.domain}".strip(): key.secret.expose()
        for key in identity._keyring.entries()
        if key.secret is not None
    }
    identity.close()
    return Loot(tokens, dump(state), keys)


def dump(state: Path) -> list[Row]:
    connection = sqlite3.connect(state / "vault.sqlite3")
    rows = connection.execute("SELECT locator, wrapped, wrap_version FROM subjects").fetchall()
    connection.close()
    return [Row(*row) for row in rows]


def recovered(loot: Loot, keys: Sequence[bytes]) -> set[int]:
    """Try every key in every role: to unwrap, to make tokens; and none at all."""
    secrets = {b""}
    for row in loot.rows:
        if row.wrapped is None:
            continue  # a tombstone
        # What lies there may be taken for a secret as it is.
        secrets |= {row.wrapped[12:44], row.wrapped[:32], row.locator}
        for key in keys:
            with suppress(CapsuleError):
                secrets.add(unwrap(key, row.wrapped, locator=row.locator, version=row.version))
    epochs = ((HEAP, "rel"), (SENTRY, pseudonym.epoch_label("quarter", NOW)))
    makers = {*keys, bytes(32)}
    found = set()
    for number, key, (domain, epoch), secret in itertools.product(IDS, makers, epochs, secrets):
        made = pseudonym.token(
            key,
            domain=domain.name,
            epoch=epoch,
            kind="account",
            namespace="app:user",
            canonical_id=str(number),
            secret=secret,
            label=domain.label,
        )
        if loot.tokens.get(made) == number:
            found.add(number)
    return found | hashed(loot.tokens, IDS)


def hashed(tokens: Iterable[str], ids: Iterable[int]) -> set[int]:
    """Look for ids that were hashed without a secret, as is usual elsewhere."""
    held = {token.lower() for token in tokens}
    found = set()
    for number in ids:
        raw = str(number).encode()
        guesses = {
            hashlib.new(name, raw).hexdigest() for name in ("md5", "sha1", "sha256", "sha512")
        }
        guesses |= {hmac.new(b"", raw, name).hexdigest() for name in ("md5", "sha1", "sha256")}
        if held & guesses:
            found.add(number)
    return found


EVERY_KEY = (
    "seal", "locator", "suppress", "wrap", "token analytics@heap", "token errors@sentry",
    "delivery analytics@heap",
)  # fmt: skip


@pytest.mark.parametrize("use", EVERY_KEY)
def test_all_tokens_the_vault_and_one_key_give_no_sequential_id(loot: Loot, use: str) -> None:
    assert recovered(loot, [loot.keys[use]]) == set()


def test_tokens_and_vault_without_a_key_give_no_id(loot: Loot) -> None:
    assert recovered(loot, []) == set()


@pytest.mark.parametrize("other", ["seal", "locator", "suppress", "token errors@sentry"])
def test_a_token_key_and_any_key_but_the_wrap_key_give_no_id_of_its_domain(
    loot: Loot, other: str
) -> None:
    assert recovered(loot, [loot.keys["token analytics@heap"], loot.keys[other]]) == set()


def test_all_token_keys_without_the_vault_give_no_id(loot: Loot) -> None:
    keys = [key for use, key in loot.keys.items() if use != "wrap"]
    assert recovered(loot._replace(rows=[]), keys) == set()


def test_wrap_key_token_key_and_vault_together_give_every_id(loot: Loot) -> None:
    """The limit that the threat model names, and the proof that the attack above is one."""
    keys = [loot.keys["wrap"], loot.keys["token analytics@heap"]]
    assert recovered(loot, keys) == set(IDS)


def test_with_everything_that_is_left_an_erased_account_is_not_recovered(tmp_path: Path) -> None:
    with_erased = plunder(tmp_path, erase=4705)
    assert recovered(with_erased, list(with_erased.keys.values())) == {*IDS} - {4705}


def test_with_every_key_that_is_left_a_destroyed_epoch_is_not_recovered(loot: Loot) -> None:
    left = [key for use, key in loot.keys.items() if use != "token errors@sentry"]
    of_sentry = {t: n for t, n in loot.tokens.items() if "_sentry_" in t}
    assert recovered(loot._replace(tokens=of_sentry), left) == set()
    assert recovered(loot._replace(tokens=of_sentry), list(loot.keys.values())) == set(IDS)


def test_what_the_locator_key_tells_is_who_has_a_row_and_not_their_token(loot: Loot) -> None:
    key = loot.keys["locator"]
    present = {
        number
        for number in range(4000, 5000)
        if any(
            row.locator
            == pseudonym.locator(
                key, kind="account", namespace="app:user", canonical_id=str(number)
            )
            for row in loot.rows
        )
    }
    assert present == set(IDS)
    assert recovered(loot, [key]) == set()


def test_an_unkeyed_hash_as_relay_makes_it_gives_every_sequential_id_within_seconds() -> None:
    """HMAC-SHA1 with an empty key (relay-pii/src/utils.rs): the contrast in the threat model."""
    sent = {
        hmac.new(b"", str(number).encode(), "sha1").hexdigest().upper(): number for number in IDS
    }
    began = time.perf_counter()
    found = {
        number: digest
        for number in range(20_000)
        if (digest := hmac.new(b"", str(number).encode(), "sha1").hexdigest().upper()) in sent
    }
    assert set(found) == set(IDS)
    assert time.perf_counter() - began < 30
    assert hashed(sent, IDS) == set(IDS)


def test_two_recipients_hold_no_common_part_of_eight_characters(loot: Loot) -> None:
    parts: dict[str, set[str]] = {"heap": set(), "sentry": set()}
    for token in loot.tokens:
        label, body = token.split("_")[1], token.split("_")[3]
        parts[label] |= {body[i : i + 8] for i in range(len(body) - 7)}
    assert len(parts["heap"]) > 20 * len(IDS)
    assert not parts["heap"] & parts["sentry"]
