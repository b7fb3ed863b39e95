"""A capsule opens for its event, with its key, unchanged; or not at all."""

from __future__ import annotations

import builtins
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from telemetry.errors import CapsuleError, IdentifierError, KeyringError
from telemetry.identity import capsule as module
from telemetry.identity import (
    initialise_development,
    load_dead_letter_opener,
    load_dead_letter_sealer,
)
from telemetry.identity.capsule import (
    Identifier,
    Opener,
    Sealer,
    open_bytes,
    seal_bytes,
    self_test,
)
from telemetry.identity.keyring import Keyring
from telemetry.identity.pseudonym import frame

VECTORS: Any = json.loads(
    (Path(__file__).parents[2] / "vectors" / "identity.json").read_text("utf-8")
)
BOUND: dict[str, Any] = {
    "event_id": "0192f0c1d2e37a4b8c5d6e7f80910203",
    "schema": "analytics_event",
    "occurred_ms": 1_790_000_000_123,
    "tenant": "web",
}
PEOPLE = [
    Identifier("account", "app:user", "4711"),
    Identifier("organization", "app:org", "17"),
    Identifier("object", "app:project", "9"),
    Identifier("object", "app:project", "10"),
]


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    initialise_development(tmp_path)
    return Keyring.load(tmp_path / "keys" / "keyset.json", environment="development")


@pytest.fixture
def sealer(ring: Keyring) -> Sealer:
    return Sealer(ring.primary("seal").public, ring.primary("seal").kid)


def test_hpke_opens_the_known_answer_and_only_with_its_info() -> None:
    vector = VECTORS["seal"]
    private, sealed = bytes.fromhex(vector["private"]), bytes.fromhex(vector["value"])
    public = X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    assert public.hex() == vector["public"]
    opened = module._hpke_open(private, sealed, frame("tps/v1/seal", "k1"))
    assert opened.hex() == VECTORS["keys"]["S"]
    with pytest.raises(CapsuleError):
        module._hpke_open(private, sealed, frame("tps/v1/seal", "k2"))
    self_test()


def test_the_self_test_fails_where_hpke_gives_other_bytes_or_opens_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_hpke_open", lambda *_: b"\x00" * 32)
    with pytest.raises(KeyringError):
        self_test()
    monkeypatch.setattr(module, "_hpke_open", lambda *_: bytes(range(0xA0, 0xC0)))
    with pytest.raises(KeyringError):
        self_test()


def test_a_library_without_hpke_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "cryptography.hazmat.primitives" and "hpke" in (args[2] or ()):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    module._suite.cache_clear()
    try:
        with pytest.raises(KeyringError, match="Install cryptography"):
            self_test()
    finally:
        module._suite.cache_clear()


def test_identifiers_come_back_in_their_order(ring: Keyring, sealer: Sealer) -> None:
    sealed = sealer.seal(PEOPLE, **BOUND)
    assert Opener(ring).open(sealed, **BOUND) == tuple(PEOPLE)
    assert sealed[1:9].decode() == ring.primary("seal").kid


def test_an_event_that_names_nobody_has_an_empty_capsule(ring: Keyring, sealer: Sealer) -> None:
    assert sealer.seal([], **BOUND) == b""
    assert Opener(ring).open(b"", **BOUND) == ()


def test_length_tells_little_and_content_nothing(sealer: Sealer) -> None:
    short = sealer.seal([Identifier("account", "app:user", "1")], **BOUND)
    longer = sealer.seal([Identifier("account", "app:user", "1" * 80)], **BOUND)
    same = sealer.seal([Identifier("account", "app:user", "1")], **BOUND)
    assert len(short) == len(longer)
    assert short[89:] != same[89:]
    assert b"app:user" not in short


@pytest.mark.parametrize(
    "change",
    [
        {"event_id": "0192f0c1d2e37a4b8c5d6e7f80910204"},
        {"schema": "error_event"},
        {"occurred_ms": 1_790_000_000_124},
        {"tenant": "app"},
    ],
)
def test_a_capsule_of_another_event_does_not_open(
    ring: Keyring, sealer: Sealer, change: dict[str, Any]
) -> None:
    sealed = sealer.seal(PEOPLE, **BOUND)
    with pytest.raises(CapsuleError, match=r"^capsule_mismatch$"):
        Opener(ring).open(sealed, **(BOUND | change))


def test_a_changed_byte_anywhere_is_found_with_a_warm_and_a_cold_cache(
    ring: Keyring, sealer: Sealer
) -> None:
    sealed = sealer.seal(PEOPLE, **BOUND)
    warm = Opener(ring)
    warm.open(sealed, **BOUND)
    reasons = set()
    for at in range(len(sealed)):
        broken = bytearray(sealed)
        broken[at] ^= 0x01
        for opener in (warm, Opener(ring)):
            with pytest.raises(CapsuleError) as caught:
                opener.open(bytes(broken), **BOUND)
            reasons.add(caught.value.reason)
    assert reasons == {"capsule_corrupt", "capsule_unknown_key", "capsule_mismatch"}


def test_a_capsule_cut_off_anywhere_is_refused(ring: Keyring, sealer: Sealer) -> None:
    sealed = sealer.seal(PEOPLE, **BOUND)
    opener = Opener(ring)
    for length in range(1, len(sealed)):
        with pytest.raises(CapsuleError):
            opener.open(sealed[:length], **BOUND)
    with pytest.raises(CapsuleError):
        opener.open(sealed + b"\x00", **BOUND)


def test_a_capsule_for_a_key_that_is_gone_says_so(tmp_path: Path, sealer: Sealer) -> None:
    initialise_development(tmp_path / "other")
    other = Keyring.load(tmp_path / "other" / "keys" / "keyset.json", environment="development")
    with pytest.raises(CapsuleError, match=r"^capsule_unknown_key$"):
        Opener(other).open(sealer.seal(PEOPLE, **BOUND), **BOUND)


def test_an_opener_learns_of_a_key_that_was_added_while_it_runs(
    ring: Keyring, tmp_path: Path
) -> None:
    opener = Opener(ring)
    initialise_development(tmp_path / "other")
    added = json.loads((tmp_path / "other" / "keys" / "keyset.json").read_bytes())["keys"][0]
    path = tmp_path / "keys" / "keyset.json"
    document = json.loads(path.read_bytes())
    document["keys"].append(added | {"state": "PRE_ACTIVE"})
    path.write_text(json.dumps(document), "utf-8")
    other = Keyring.load(tmp_path / "other" / "keys" / "keyset.json", environment="development")
    key = other.primary("seal")
    sealed = Sealer(key.public, key.kid).seal(PEOPLE, **BOUND)
    assert opener.open(sealed, **BOUND) == tuple(PEOPLE)


def test_an_opener_forgets_session_keys_when_their_key_is_disabled(
    ring: Keyring, sealer: Sealer, tmp_path: Path
) -> None:
    sealed = sealer.seal(PEOPLE, **BOUND)
    opener = Opener(ring)
    opener.open(sealed, **BOUND)
    path = tmp_path / "keys" / "keyset.json"
    document = json.loads(path.read_bytes())
    document["keys"][0]["state"] = "DISABLED"
    path.write_text(json.dumps(document), "utf-8")
    ring.refresh()
    with pytest.raises(CapsuleError, match=r"^capsule_retired_key$"):
        opener.open(sealed, **BOUND)


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        frame("u", "app:user"),
        frame("z", "app:user", "1"),
        frame("u", "app:user", b"\xff"),
        frame("u", "app:user", "1")[:-1],
        frame("u", "app:user", "1", "u", "app:user", "2"),
        frame("u", "app:user", "1") + b"\xff\xff",
    ],
)
def test_a_gateway_that_seals_nonsense_is_not_believed(
    ring: Keyring, sealer: Sealer, packed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_pack", lambda _: packed)
    sealed = sealer.seal(PEOPLE, **BOUND)
    with pytest.raises(CapsuleError, match=r"^capsule_corrupt$"):
        Opener(ring).open(sealed, **BOUND)


@pytest.mark.parametrize(
    "wrong",
    [
        [Identifier("person", "app:user", "4711")],
        [Identifier("account", "app:user", "4711"), Identifier("account", "app:user", "4712")],
        [Identifier("object", "app:project", "4711")] * 65,
        [Identifier("account", "app:user", "4711\ud800")],
        [Identifier("account", "app:user", "4711" * 20_000)],
    ],
)
def test_what_cannot_be_sealed_is_refused_without_its_value(
    sealer: Sealer, wrong: list[Identifier]
) -> None:
    with pytest.raises(IdentifierError) as caught:
        sealer.seal(wrong, **BOUND)
    assert "4711" not in f"{caught.value!s}{caught.value!r}"
    assert "4711" not in f"{wrong!r}{wrong[0]!s}"


def header(sealed: bytes) -> bytes:
    return sealed[:89]


def test_a_session_key_lasts_an_hour(ring: Keyring) -> None:
    now = [100.0]
    key = ring.primary("seal")
    sealer = Sealer(key.public, key.kid, clock=lambda: now[0])
    first = sealer.seal(PEOPLE, **BOUND)
    now[0] += 3599
    assert header(sealer.seal(PEOPLE, **BOUND)) == header(first)
    now[0] += 1
    second = sealer.seal(PEOPLE, **BOUND)
    assert header(second) != header(first)
    opener = Opener(ring)
    assert opener.open(first, **BOUND) == opener.open(second, **BOUND) == tuple(PEOPLE)


def test_a_session_key_seals_a_bounded_number_of_events(
    sealer: Sealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module._SESSION_EVENTS == 2**20
    monkeypatch.setattr(module, "_SESSION_EVENTS", 3)
    headers = [header(sealer.seal(PEOPLE, **BOUND)) for _ in range(7)]
    assert [headers.count(one) for one in dict.fromkeys(headers)] == [3, 3, 1]


def test_a_forked_child_seals_with_a_key_of_its_own_even_if_the_lock_was_held(
    ring: Keyring, sealer: Sealer
) -> None:
    parent = sealer.seal(PEOPLE, **BOUND)
    reader, writer = os.pipe()
    sealer._lock.acquire()  # as a thread would that does not exist in the child
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        try:
            os.write(writer, sealer.seal(PEOPLE, **BOUND))
        finally:
            os._exit(0)
    sealer._lock.release()
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        sealed = pipe.read()
    os.waitpid(child, 0)
    assert header(sealed) != header(parent)
    assert header(sealer.seal(PEOPLE, **BOUND)) == header(parent)
    assert Opener(ring).open(sealed, **BOUND) == tuple(PEOPLE)


def test_threads_share_a_sealer_and_an_opener(ring: Keyring, sealer: Sealer) -> None:
    opener = Opener(ring)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                assert opener.open(sealer.seal(PEOPLE, **BOUND), **BOUND) == tuple(PEOPLE)
        except BaseException as error:  # noqa: BLE001 - told to the main thread
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failed


def test_an_opener_remembers_a_bounded_number_of_session_keys(
    ring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SESSIONS_KEPT", 2)
    monkeypatch.setattr(module, "_SESSION_EVENTS", 1)
    key = ring.primary("seal")
    sealer, opener = Sealer(key.public, key.kid), Opener(ring)
    for _ in range(5):
        opener.open(sealer.seal(PEOPLE, **BOUND), **BOUND)
    assert len(opener._ciphers) == 2


def test_bytes_open_only_with_their_key_and_their_info() -> None:
    private = X25519PrivateKey.generate()
    sealed = seal_bytes(private.public_key().public_bytes_raw(), b"original", info=b"a")
    raw = private.private_bytes_raw()
    assert open_bytes(raw, sealed, info=b"a") == b"original"
    other = X25519PrivateKey.generate().private_bytes_raw()
    for key, data, info in (
        (raw, sealed, b"b"),
        (other, sealed, b"a"),
        (raw, sealed[:-1], b"a"),
        (raw, bytes(32) + sealed[32:], b"a"),
        (raw, b"", b"a"),
    ):
        with pytest.raises(CapsuleError):
            open_bytes(key, data, info=info)
    with pytest.raises(KeyringError):
        seal_bytes(b"short", b"original", info=b"a")


def test_a_dead_letter_opens_only_where_its_private_half_is(ring: Keyring, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    sealed = load_dead_letter_sealer(keys / "public.json").seal(b"raw bytes", event_id="e1")
    opener = load_dead_letter_opener(
        keys / "dead-letter" / "keyset.json", environment="development"
    )
    assert b"raw" not in sealed
    assert opener.open(sealed, event_id="e1") == b"raw bytes"
    with pytest.raises(CapsuleError):
        opener.open(sealed, event_id="e2")
    with pytest.raises(CapsuleError):
        opener.open(sealed[:50], event_id="e1")
    with pytest.raises(CapsuleError, match=r"^capsule_unknown_key$"):
        module.DeadLetterOpener(ring).open(sealed, event_id="e1")
