"""What tokens and capsules cost, as multiples of one hash or one encryption of the library.

Absolute figures stand in docs/keys.md; a busy machine changes those, and these hardly. All are
taken in turns, and of each the fastest turn counts.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from telemetry.identity import (
    Domain,
    Identifier,
    Identity,
    Sealed,
    epoch_ms,
    initialise_development,
)
from telemetry.identity.pseudonym import Tokenizer

AT = datetime(2026, 11, 22, tzinfo=UTC)
IDS = [f"01890a5d-ac96-774b-bcce-{number:012d}" for number in range(100)]


def cheapest(works: dict[str, Callable[[], object]], *, turns: int = 400) -> dict[str, float]:
    """Seconds of the fastest turn of each, for a hundred of what it does: too short to be cut."""
    best = dict.fromkeys(works, float("inf"))
    for _ in range(turns):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    initialise_development(tmp_path)
    return Identity.open(tmp_path, environment="development")


def test_a_token_costs_a_few_hashes_and_a_known_one_a_look(
    identity: Identity, tmp_path: Path
) -> None:
    text, key, secret = b"x" * 100, bytes(range(32)), bytes(range(32, 64))
    tokenizer = Tokenizer(
        key, domain="a@heap", epoch="rel", kind="account", namespace="app:user", label="heap"
    )
    sealer = Identity.sealer(tmp_path)
    sealed = [
        Sealed(
            capsule=sealer.seal(
                [Identifier("account", "app:user", one)],
                event_id=one,
                schema="error_event",
                occurred_ms=epoch_ms(AT),
                tenant="shop",
            ),
            event_id=one,
            schema="error_event",
            occurred_at=AT,
            tenant="shop",
        )
        for one in IDS
    ]
    heap = Domain(name="analytics@heap", label="heap", epoch="rel")
    for one in identity.resolve(sealed):
        assert not isinstance(one, Exception)
        one.token_list(heap, AT)
    (desk,) = (
        one
        for place, one in identity._desks.items()
        if place[:3] == ("analytics@heap", "heap", "rel")
    )
    known = [(who, given[0]) for who, given in desk._given.items()]
    assert len(known) == len(IDS)
    cost = cheapest(
        {
            "hash": lambda: [hashlib.sha256(text).digest() for _ in IDS],
            "cold": lambda: [tokenizer(one, secret) for one in IDS],
            "known": lambda: desk.tokens(known),
        }
    )
    assert cost["cold"] < 20 * cost["hash"]
    assert cost["known"] < cost["hash"]


def test_sealing_costs_little_more_than_its_encryption(tmp_path: Path) -> None:
    initialise_development(tmp_path)
    sealer = Identity.sealer(tmp_path)
    cipher, nonce, plain, beside = AESGCMSIV(bytes(32)), bytes(12), bytes(128), bytes(90)
    who = [
        Identifier("account", "app:user", "4711"),
        Identifier("organization", "app:org", "12"),
        Identifier("session", "app:session", "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"),
    ]

    def seal() -> None:
        for one in IDS:
            sealer.seal(
                who,
                event_id=one,
                schema="error_event",
                occurred_ms=1_790_000_000_000,
                tenant="shop",
            )

    cost = cheapest(
        {"encryption": lambda: [cipher.encrypt(nonce, plain, beside) for _ in IDS], "seal": seal}
    )
    assert cost["seal"] < 8 * cost["encryption"]
