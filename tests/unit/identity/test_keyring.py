"""A keyset is whole, private and meant for here, or nothing starts."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from telemetry.errors import CapsuleError, KeyringError
from telemetry.identity import initialise_development, load_spool_key
from telemetry.identity.keyring import DEAD_LETTER, Keyring, PublicKeys, Secret

DOMAIN = "analytics@heap"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    initialise_development(tmp_path)
    return tmp_path / "keys" / "keyset.json"


def document(path: Path) -> Any:
    return json.loads(path.read_bytes())


def rewrite(path: Path, change: Callable[[Any], object]) -> None:
    content = document(path)
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def every_secret(folder: Path) -> set[str]:
    return {
        entry[name]
        for file in folder.rglob("*.json")
        for entry in document(file)["keys"]
        for name in ("k", "d")
        if name in entry
    }


def test_a_new_keyset_has_each_key_once_and_nobody_else_can_read_it(path: Path) -> None:
    ring = Keyring.load(path, environment="development")
    assert [(key.use, key.state) for key in ring.entries()] == [
        (use, "PRIMARY") for use in ("seal", "locator", "suppress", "wrap", "hold", "audit", "dead")
    ]
    assert document(path)["insecure"] is True
    for private in (path, path.with_name("spool.json"), path.parent / DEAD_LETTER):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    for folder in (path.parent, path.parent / "dead-letter"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(every_secret(path.parent)) == 8
    assert not [
        name for name in (file.name for file in path.parent.iterdir()) if name.startswith(".keyset")
    ]


def test_public_json_holds_no_secret_of_any_file(path: Path) -> None:
    text = path.with_name("public.json").read_text("utf-8")
    assert not [secret for secret in every_secret(path.parent) if secret in text]
    public = PublicKeys.load(path.with_name("public.json"))
    ring = Keyring.load(path, environment="development")
    assert public.seal.raw == ring.primary("seal").public
    assert public.dead.kid == ring.primary("dead").kid


def test_the_keyset_cannot_open_dead_letters_and_the_spool_file_holds_the_spool_key_only(
    path: Path,
) -> None:
    ring = Keyring.load(path, environment="development")
    with pytest.raises(KeyringError):
        ring.secret("dead")
    assert ring.opening("dead", ring.primary("dead").kid) is None
    letters = Keyring.load(path.parent / DEAD_LETTER, environment="development")
    assert [key.use for key in letters.entries()] == ["dead"]
    assert letters.primary("dead").public == ring.primary("dead").public
    assert len(load_spool_key(path.parent.parent, environment="development").expose()) == 32
    with pytest.raises(KeyringError):
        ring.secret("spool")


def test_making_it_again_changes_no_byte(path: Path) -> None:
    before = {file: file.read_bytes() for file in path.parent.rglob("*.json")}
    initialise_development(path.parent.parent)
    assert {file: file.read_bytes() for file in path.parent.rglob("*.json")} == before


def test_a_start_cut_short_is_completed_with_the_keys_that_are_there(path: Path) -> None:
    dead = (path.parent / DEAD_LETTER).read_bytes()
    path.unlink()
    path.with_name("public.json").unlink()
    initialise_development(path.parent.parent)
    assert (path.parent / DEAD_LETTER).read_bytes() == dead
    PublicKeys.load(path.with_name("public.json"))


def test_a_lost_keyset_is_not_replaced_while_its_vault_is_there(path: Path) -> None:
    (path.parent.parent / "vault.sqlite3").touch()
    path.unlink()
    with pytest.raises(KeyringError, match="Restore"):
        initialise_development(path.parent.parent)
    assert not path.exists()


@pytest.mark.parametrize("environment", ["production", "Production ", "prod", "live"])
def test_keys_in_the_clear_are_refused_in_production(path: Path, environment: str) -> None:
    with pytest.raises(KeyringError, match="development only"):
        Keyring.load(path, environment=environment)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o601])
def test_a_keyset_that_others_can_touch_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)
    with pytest.raises(KeyringError, match="chmod 600"):
        Keyring.load(path, environment="development")


def test_a_missing_empty_or_foreign_file_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyringError, match="cannot be read"):
        Keyring.load(tmp_path / "absent.json", environment="development")
    with pytest.raises(KeyringError):
        Keyring.load(tmp_path, environment="development")
    for content in (b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":1,"a":2}'):
        path.write_bytes(content)
        with pytest.raises(KeyringError):
            Keyring.load(path, environment="development")


def test_a_keyset_cut_off_anywhere_is_refused(path: Path) -> None:
    whole = path.read_bytes().rstrip()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(KeyringError):
            Keyring.load(path, environment="development")


CHANGES: dict[str, Callable[[Any], object]] = {
    "another format": lambda d: d.update(format="milchglas-keyset/2"),
    "claims to be secure": lambda d: d.update(insecure=False),
    "unknown member of the file": lambda d: d.update(kek="x"),
    "no keys": lambda d: d.update(keys=[]),
    "keys are no list": lambda d: d.update(keys={"a": 1}),
    "an entry is no object": lambda d: d["keys"].append("x"),
    "unknown member of an entry": lambda d: d["keys"][1].update(wrapped="x"),
    "unknown use": lambda d: d["keys"][1].update(use="sign"),
    "use is a list": lambda d: d["keys"][1].update(use=["seal"]),
    "unknown state": lambda d: d["keys"][1].update(state="ACTIVE"),
    "kid of another key": lambda d: d["keys"][1].update(kid=d["keys"][2]["kid"]),
    "kid is a number": lambda d: d["keys"][1].update(kid=7),
    "key too short": lambda d: d["keys"][1].update(k=d["keys"][1]["k"][:-4]),
    "key with padding": lambda d: d["keys"][1].update(k=d["keys"][1]["k"] + "="),
    "key is no base64url": lambda d: d["keys"][1].update(k="!" * 43),
    "key is a number": lambda d: d["keys"][1].update(k=5),
    "key is gone": lambda d: d["keys"][1].pop("k"),
    "bits of keys swapped": lambda d: d["keys"][1].update(k=d["keys"][2]["k"]),
    "public half of another pair": lambda d: d["keys"][0].update(x=d["keys"][4]["x"]),
    "private half is gone": lambda d: d["keys"][0].pop("d"),
    "two primaries": lambda d: d["keys"].append(dict(d["keys"][1])),
    "destroyed but there": lambda d: d["keys"][1].update(state="DESTROYED"),
    "wrap key without version": lambda d: d["keys"][3].update(version=0),
    "version is true": lambda d: d["keys"][3].update(version=True),
    "token key without domain": lambda d: d["keys"][1].update(use="token"),
    "domain where none belongs": lambda d: d["keys"][1].update(domain=DOMAIN),
    "time without zone": lambda d: d["keys"][1].update(created="2026-01-01T00:00:00"),
    "no time": lambda d: d["keys"][1].update(created=None),
    "copies are no list": lambda d: d["keys"][1].update(copies="a"),
    "symmetric key with a curve": lambda d: d["keys"][1].update(crv="X25519"),
    "pair with another curve": lambda d: d["keys"][0].update(crv="P-256"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_keyset_is_refused_without_quoting_it(
    path: Path, change: Callable[[Any], object]
) -> None:
    known = every_secret(path.parent)
    rewrite(path, change)
    with pytest.raises(KeyringError) as caught:
        Keyring.load(path, environment="development")
    shown = f"{caught.value!s}{caught.value!r}"
    assert not [secret for secret in known if secret[:12] in shown]
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_changed_public_file_is_refused(path: Path) -> None:
    public = path.with_name("public.json")
    whole = public.read_text("utf-8")
    for change in (
        lambda d: d["keys"].pop(),
        lambda d: d["keys"][0].update(d="x"),
        lambda d: d["keys"][0].update(use=["seal"]),
        lambda d: d["keys"][0].update(x="short"),
        lambda d: d["keys"][0].update(kid="has a space"),
        lambda d: d.update(format="milchglas-keyset/1"),
    ):
        public.write_text(whole, "utf-8")
        rewrite(public, change)
        with pytest.raises(KeyringError):
            PublicKeys.load(public)
    with pytest.raises(KeyringError):
        PublicKeys.load(path)


def test_each_domain_and_epoch_gets_its_own_random_key_that_survives_a_restart(path: Path) -> None:
    ring = Keyring.load(path, environment="development")
    made = {
        (domain, epoch): ring.token_key(domain, epoch)
        for domain in (DOMAIN, "errors@sentry")
        for epoch in ("rel", "2026q4", "2027q1")
    }
    assert len(set(made.values())) == 6
    again = Keyring.load(path, environment="development")
    assert {slot: again.token_key(*slot) for slot in made} == made
    assert again.delivery_key(DOMAIN) == ring.delivery_key(DOMAIN)
    assert ring.delivery_key(DOMAIN) not in made.values()


def test_a_key_is_on_disk_before_it_is_handed_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = Keyring.load(path, environment="development")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyringError, match="cannot be written"):
        ring.token_key(DOMAIN, "rel")
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == sorted(
        [".lock", "dead-letter", "keyset.json", "public.json", "spool.json"]
    )
    key = ring.token_key(DOMAIN, "rel")
    assert Keyring.load(path, environment="development").token_key(DOMAIN, "rel") == key


def _ask(path: Path, start: Any, answers: Any) -> None:
    ring = Keyring.load(path, environment="development")
    start.wait(20)
    answers.put(ring.token_key(DOMAIN, "2026q4").expose())


def test_processes_that_need_a_new_key_at_once_get_the_same(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(3), context.Queue()
    children = [context.Process(target=_ask, args=(path, start, answers)) for _ in range(3)]
    for child in children:
        child.start()
    keys = {answers.get(timeout=60) for _ in children}
    for child in children:
        child.join(20)
    assert len(keys) == 1
    slots = [key.slot for key in Keyring.load(path, environment="development").entries()]
    assert slots.count(("token", DOMAIN, "2026q4")) == 1


def test_a_running_process_sees_keys_that_another_one_made(path: Path) -> None:
    one = Keyring.load(path, environment="development")
    two = Keyring.load(path, environment="development")
    key = one.token_key(DOMAIN, "rel")
    assert two.token_key(DOMAIN, "rel") == key
    assert two.refresh() is False


def test_a_keyset_that_vanishes_stops_a_running_process_at_its_next_look(path: Path) -> None:
    ring = Keyring.load(path, environment="development")
    path.unlink()
    with pytest.raises(KeyringError):
        ring.refresh()
    with pytest.raises(KeyringError):
        ring.token_key(DOMAIN, "rel")
    assert not path.exists()


def test_a_destroyed_epoch_gets_no_second_key_and_a_disabled_one_is_not_used(path: Path) -> None:
    ring = Keyring.load(path, environment="development")
    key = ring.token_key(DOMAIN, "2026q4")

    def in_state(state: str) -> Callable[[Any], object]:
        return lambda d: d["keys"][-1].update(state=state)

    rewrite(path, in_state("ENABLED"))
    assert Keyring.load(path, environment="development").token_key(DOMAIN, "2026q4") == key
    rewrite(path, in_state("DISABLED"))
    with pytest.raises(KeyringError):
        Keyring.load(path, environment="development").token_key(DOMAIN, "2026q4")
    rewrite(path, lambda d: (in_state("DESTROYED")(d), d["keys"][-1].pop("k")))
    with pytest.raises(CapsuleError, match="key_destroyed"):
        Keyring.load(path, environment="development").token_key(DOMAIN, "2026q4")


@pytest.mark.parametrize(
    ("domain", "epoch"), [("heap", "rel"), (DOMAIN, "2026q5"), (DOMAIN, ""), ("A@b", "rel")]
)
def test_no_key_is_made_for_a_name_that_is_none(path: Path, domain: str, epoch: str) -> None:
    before = path.read_bytes()
    with pytest.raises(KeyringError):
        Keyring.load(path, environment="development").token_key(domain, epoch)
    assert path.read_bytes() == before


def test_no_repr_shows_key_bytes_and_a_secret_is_not_serialized(path: Path) -> None:
    ring = Keyring.load(path, environment="development")
    ring.token_key(DOMAIN, "rel")
    shown = f"{ring!r}{ring.entries()!r}{ring.entries()[0]}{vars(ring)!r}{ring.secret('locator')!r}"
    for key in ring.entries():
        if key.secret is not None:
            raw = key.secret.expose()
            assert raw.hex() not in shown
            assert repr(raw) not in shown
    assert not [secret for secret in every_secret(path.parent) if secret in shown]
    with pytest.raises(TypeError):
        copy.copy(Secret(b"x" * 32))
