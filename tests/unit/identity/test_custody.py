"""The key that all others are wrapped with: from where it comes, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from telemetry.errors import KeyringError
from telemetry.identity import (
    Identity,
    custody,
    initialise,
    initialise_development,
    inspect,
    load_spool_key,
)
from telemetry.identity.custody import Custody
from telemetry.identity.keyring import DEAD_LETTER, KEYSET, Keyring

FILE_KEY = bytes(range(100, 132))
KEK = bytes((number * 37 + 11) % 256 for number in range(32))
TEXT = urlsafe_b64encode(KEK).decode()

PROGRAM = """\
import sys, pathlib
what, text = sys.argv[-1], sys.stdin.buffer.read()
pad = pathlib.Path(sys.argv[1]).read_bytes()
out = bytes(a ^ b for a, b in zip(text, pad))
assert what in ("wrap", "unwrap") and "KEY" not in "".join(sys.argv)
sys.stdout.buffer.write(out)
"""


def held(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.fixture
def command(tmp_path: Path) -> str:
    """A program that wraps with a pad: what it looks like from here is all that matters."""
    (tmp_path / "a pad").write_bytes(secrets.token_bytes(32))
    (tmp_path / "kms.py").write_text(PROGRAM, "utf-8")
    return f"command:{sys.executable} '{tmp_path / 'kms.py'}' '{tmp_path / 'a pad'}'"


@pytest.mark.parametrize(
    "content",
    [KEK, TEXT.encode(), TEXT.rstrip("=").encode(), TEXT.encode() + b"\n"],
    ids=["raw", "text", "without padding", "a line"],
)
def test_a_key_in_a_file_is_raw_or_base64url(tmp_path: Path, content: bytes) -> None:
    one = Custody(f"file:{held(tmp_path / 'kek', content)}", state=tmp_path)
    wrapped = one.wrap(FILE_KEY)
    assert FILE_KEY not in wrapped
    assert one.wrap(FILE_KEY) != wrapped
    other = Custody(f"file:{held(tmp_path / 'again', KEK)}", state=tmp_path)
    assert other.unwrap(wrapped) == FILE_KEY


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\n", KEK[:31], KEK + b"x", TEXT[:-3].encode(), bytes(32), b"a" * 43, b"!" * 43),
        *(TEXT[:32].encode(), TEXT[:31].encode() + b"\n", b"a password of thirty-two letters"),
    ],
    ids=[
        *("empty", "a line", "cut off", "too long", "text cut off", "zeros", "one letter", "none"),
        *("text cut off at 32", "a line of 31", "a password"),
    ],
)
def test_a_key_that_is_empty_cut_off_or_was_never_filled_is_refused(
    tmp_path: Path, content: bytes
) -> None:
    one = Custody(f"file:{held(tmp_path / 'kek', content)}", state=tmp_path)
    with pytest.raises(KeyringError) as caught:
        one.wrap(FILE_KEY)
    assert content.decode("latin-1").strip() == "" or content[:12].hex() not in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    one = Custody(f"file:{held(tmp_path / 'kek', KEK, mode)}", state=tmp_path)
    with pytest.raises(KeyringError, match="chmod 600"):
        one.wrap(FILE_KEY)


def test_a_missing_key_file_a_folder_and_a_pipe_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, said in (("absent", "is missing"), ("folder", "no file"), ("pipe", "no file")):
        with pytest.raises(KeyringError, match=said):
            Custody(f"file:{tmp_path / name}", state=tmp_path).unwrap(b"x" * 60)


def test_the_environment_holds_a_key_as_text(tmp_path: Path) -> None:
    one = Custody("env:THE_KEK", state=tmp_path, environ={"THE_KEK": TEXT})
    assert one.unwrap(one.wrap(FILE_KEY)) == FILE_KEY
    for environ in (
        {},
        {"THE_KEK": ""},
        {"THE_KEK": TEXT[:20]},
        {"THE_KEK": TEXT[:32]},
        {"THE_KEK": "é" * 8 + TEXT[:16]},
    ):
        with pytest.raises(KeyringError, match="missing, empty or cut off"):
            Custody("env:THE_KEK", state=tmp_path, environ=environ).wrap(FILE_KEY)


def test_a_credential_of_systemd_may_show_an_access_list_as_a_groups_permission(
    tmp_path: Path,
) -> None:
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    held(tmp_path / "telemetry-kek", KEK, 0o440)
    one = Custody("credential:telemetry-kek", state=tmp_path, environ=environ)
    assert one.unwrap(one.wrap(FILE_KEY)) == FILE_KEY
    (tmp_path / "telemetry-kek").chmod(0o444)
    with pytest.raises(KeyringError):
        one.wrap(FILE_KEY)
    for kek, given in (("telemetry-kek", {}), ("../telemetry-kek", environ), ("other", environ)):
        with pytest.raises(KeyringError):
            Custody(f"credential:{kek}", state=tmp_path, environ=given).wrap(FILE_KEY)


def test_a_program_gets_the_key_on_its_input_and_what_to_do_as_last_word(
    tmp_path: Path, command: str
) -> None:
    one = Custody(command, state=tmp_path)
    wrapped = one.wrap(FILE_KEY)
    assert wrapped != FILE_KEY
    assert one.unwrap(wrapped) == FILE_KEY


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("command:/nonexistent/kms", "cannot be run"),
        ("command:false", "status 1"),
        ("command:true", "gave no answer"),
        ("command:cat 'x", "quote"),
        ("command:head -c 99999 /dev/zero", "status|64 KiB"),
        ("command:echo", "32 bytes"),
    ],
)
def test_a_program_that_fails_refuses_the_start_and_its_words_are_not_repeated(
    tmp_path: Path, program: str, said: str
) -> None:
    with pytest.raises(KeyringError, match=said) as caught:
        Custody(program, state=tmp_path).wrap(FILE_KEY)
    assert "kms" not in str(caught.value)


def test_a_program_that_does_not_give_back_what_it_wrapped_is_found_before_it_is_needed(
    tmp_path: Path,
) -> None:
    with pytest.raises(KeyringError, match="give back"):
        Custody("command:sh -c 'head -c 32 /dev/urandom'", state=tmp_path).wrap(FILE_KEY)


def test_a_program_without_an_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert custody._LIMIT_S == 10.0
    monkeypatch.setattr(custody, "_LIMIT_S", 0.2)
    began = time.monotonic()
    with pytest.raises(KeyringError, match="did not answer"):
        Custody("command:sh -c 'sleep 30; true'", state=tmp_path).wrap(FILE_KEY)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("kek", ["kek", "file:", "vault:x", "file: ", ":", "FILE:/x"])
def test_a_custody_that_is_none_is_refused(tmp_path: Path, kek: str) -> None:
    with pytest.raises(KeyringError, match=r"custody\.kek"):
        Custody(kek, state=tmp_path)


def test_no_repr_tells_where_a_key_comes_from(tmp_path: Path) -> None:
    assert repr(Custody("command:/opt/kms --pin 1234", state=tmp_path)) == "Custody(command)"


# --- A keyset in custody --------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> Path:
    state = tmp_path / "state"
    assert initialise(state, environment="production", custody=Custody(state=state))
    return state


def every_key(state: Path) -> list[bytes]:
    files = (KEYSET, "spool.json", DEAD_LETTER)
    rings = [Keyring.load(state / "keys" / name, environment="production") for name in files]
    return [k.secret.expose() for ring in rings for k in ring.entries() if k.secret is not None]


def test_a_first_start_makes_everything_and_nobody_else_can_read_it(state: Path) -> None:
    for path in state.rglob("*"):
        public = path.name == "public.json"
        expected = 0o700 if path.is_dir() else 0o644 if public else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path.name
    assert not initialise(state, environment="production", custody=Custody(state=state))
    Identity.open(state, environment="production").close()
    assert len(load_spool_key(state, environment="production").expose()) == 32


def test_no_file_holds_a_key_in_any_form_but_the_one_in_custody(state: Path) -> None:
    Keyring.load(state / "keys" / KEYSET, environment="production").token_key("a@b", "rel")
    keys = every_key(state)
    assert len(keys) == 9
    for path in state.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for raw in keys:
            text = urlsafe_b64encode(raw).rstrip(b"=")
            assert not [f for f in (raw, text, raw.hex().encode()) if f in content], path.name


def test_a_keyset_that_lost_its_custody_starts_nothing_and_a_new_one_is_not_made(
    state: Path,
) -> None:
    kek = state / "custody" / "kek"
    kept = kek.read_bytes()
    kek.unlink()
    with pytest.raises(KeyringError, match="missing"):
        initialise(state, environment="production", custody=Custody(state=state))
    assert not kek.exists()
    held(kek, TEXT.encode())
    with pytest.raises(KeyringError, match="not the one that the keyset was wrapped with"):
        initialise(state, environment="production", custody=Custody(state=state))
    held(kek, kept)
    assert not initialise(state, environment="production", custody=Custody(state=state))


@pytest.mark.parametrize("gone", ["the keyset", "the disk"])
def test_a_start_without_a_keyset_never_replaces_its_last_copy(tmp_path: Path, gone: str) -> None:
    state, backup = tmp_path / "state", tmp_path / "mounted"
    mounted = Custody(state=state, backup=str(backup))
    initialise(state, environment="production", custody=mounted)
    copies = {copy: copy.read_bytes() for copy in backup.iterdir()}
    kek = (state / "custody" / "kek").read_bytes()
    if gone == "the disk":
        shutil.rmtree(state)
    else:
        (state / "keys" / KEYSET).unlink()
    for attempt in (initialise, inspect):
        with pytest.raises(KeyringError, match="its copy is there"):
            attempt(state, environment="production", custody=mounted)
    assert {copy: copy.read_bytes() for copy in backup.iterdir()} == copies
    # As the message says: what is restored starts again.
    for copy in backup.iterdir():
        held(state / "keys" / copy.name, copy.read_bytes())
    (state / "custody").mkdir(exist_ok=True)
    held(state / "custody" / "kek", kek)
    initialise(state, environment="production", custody=mounted)
    assert {copy: copy.read_bytes() for copy in backup.iterdir()} == copies


@pytest.mark.parametrize("name", [KEYSET, "spool.json"])
def test_the_copy_of_another_keyset_is_never_replaced(tmp_path: Path, name: str) -> None:
    backup = tmp_path / "mounted"
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    initialise(ours, environment="production", custody=Custody(state=ours, backup=str(backup)))
    initialise(theirs, environment="production", custody=Custody(state=theirs))
    ring = Keyring.load(
        ours / "keys" / KEYSET,
        environment="production",
        custody=Custody(state=ours, backup=str(backup)),
    )
    foreign = (theirs / "keys" / name).read_bytes()
    held(backup / name, foreign)
    with pytest.raises(KeyringError, match="copy of another keyset"):
        initialise(ours, environment="production", custody=Custody(state=ours, backup=str(backup)))
    with pytest.raises(KeyringError, match="copy of another keyset"):
        ring.token_key("a@b", "rel")
    assert (backup / name).read_bytes() == foreign
    # One that was cut off is no keyset, and is made whole.
    held(backup / name, foreign[:100])
    initialise(ours, environment="production", custody=Custody(state=ours, backup=str(backup)))
    assert (backup / name).read_bytes() == (ours / "keys" / name).read_bytes()


def test_a_keyset_that_cannot_be_seen_is_not_taken_for_absent(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyset, kept = state / "keys" / KEYSET, (state / "keys" / KEYSET).read_bytes()
    real = os.stat

    def failing(path: Any, *more: Any, **named: Any) -> os.stat_result:
        if str(path) == str(keyset):
            raise OSError(errno.EIO, "the disk failed")
        return real(path, *more, **named)

    monkeypatch.setattr(os, "stat", failing)
    with pytest.raises(KeyringError, match="cannot be seen"):
        initialise(state, environment="production", custody=Custody(state=state))
    with pytest.raises(KeyringError, match="cannot be seen"):
        Keyring.ensure(keyset, environment="production", custody=Custody(state=state))
    monkeypatch.undo()
    assert keyset.read_bytes() == kept


def test_a_key_file_that_somebody_named_is_never_made_by_a_start(tmp_path: Path) -> None:
    absent = Custody(f"file:{tmp_path / 'not-mounted'}", state=tmp_path)
    with pytest.raises(KeyringError, match="missing"):
        initialise(tmp_path / "state", environment="production", custody=absent)
    assert not (tmp_path / "not-mounted").exists()
    assert not (tmp_path / "state" / "keys" / KEYSET).exists()


def test_keys_in_the_clear_are_refused_everywhere_but_in_development(tmp_path: Path) -> None:
    initialise_development(tmp_path)
    for environment in ("production", "staging", "test"):
        with pytest.raises(KeyringError, match="development only"):
            initialise(tmp_path, environment=environment, custody=Custody(state=tmp_path))


def test_a_wrapped_keyset_may_also_be_used_in_development(tmp_path: Path) -> None:
    custody = Custody("env:K", state=tmp_path, environ={"K": TEXT})
    initialise(tmp_path, environment="development", custody=custody)
    Identity.open(tmp_path, environment="development", custody=custody).close()


CHANGES: dict[str, Callable[[Any], object]] = {
    "claims to be insecure": lambda d: d.update(insecure=True),
    "no file key": lambda d: d.pop("file_key"),
    "file key cut off": lambda d: d.update(file_key=d["file_key"][:-4]),
    "file key is a number": lambda d: d.update(file_key=7),
    "a key in the clear": lambda d: d["keys"][1].update(k="A" * 43),
    "a wrapped key is cut off": lambda d: d["keys"][1].update(wrapped=d["keys"][1]["wrapped"][:-4]),
    "wrapped keys are exchanged": lambda d: d["keys"][1].update(wrapped=d["keys"][2]["wrapped"]),
    "another kid": lambda d: d["keys"][1].update(kid=d["keys"][1]["kid"][::-1]),
    "another use": lambda d: (
        d["keys"][1].update(use="suppress"),
        d["keys"][2].update(use="locator"),
    ),
    "another version": lambda d: d["keys"][3].update(version=2),
    "the format of development": lambda d: d.update(format="milchglas-keyset/1"),
    "no wrapped key": lambda d: d["keys"][1].pop("wrapped"),
    "a receipt that is none": lambda d: d["keys"][1].update(receipt={"kid": "x"}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_wrapped_keyset_that_was_changed_is_refused(
    state: Path, change: Callable[[Any], object]
) -> None:
    path = state / "keys" / KEYSET
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document), "utf-8")
    with pytest.raises(KeyringError):
        Keyring.load(path, environment="production")


def test_custody_is_asked_once_for_a_keyset_and_not_for_each_change(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real = Custody._run

    def counting(self: Custody, what: str, given: bytes) -> bytes:
        calls.append(what)
        return real(self, what, given)

    monkeypatch.setattr(Custody, "_run", counting)
    one = Custody(command, state=tmp_path)
    initialise(tmp_path, environment="production", custody=one)
    path = tmp_path / "keys" / KEYSET
    first, second = (Keyring.load(path, environment="production", custody=one) for _ in range(2))
    calls.clear()
    first.promote(first.create("wrap").kid)
    assert second.refresh()
    assert second.primary("wrap") == first.primary("wrap")
    assert calls == []


def test_another_custody_wraps_all_files_and_the_copy_anew(state: Path) -> None:
    path = state / "keys" / KEYSET
    before = every_key(state)
    new = Custody("env:K", state=state, environ={"K": TEXT})
    old = Custody(state=state)
    Keyring.change_custody(path, environment="production", old=old, new=new)
    (state / "custody" / "kek").unlink()
    files = (path, path.with_name("spool.json"), path.parent / DEAD_LETTER)
    rings = [Keyring.load(file, environment="production", custody=new) for file in files]
    after = [k.secret.expose() for r in rings for k in r.entries() if k.secret is not None]
    assert after == before
    assert (state / "backup" / KEYSET).read_bytes() == path.read_bytes()


def test_keys_of_development_can_be_wrapped_and_keep_every_token(tmp_path: Path) -> None:
    initialise_development(tmp_path)
    path = tmp_path / "keys" / KEYSET
    key = Keyring.load(path, environment="development").token_key("a@b", "rel")
    new = Custody("env:K", state=tmp_path, environ={"K": TEXT})
    Keyring.change_custody(path, environment="development", old=None, new=new)
    initialise(tmp_path, environment="production", custody=new)
    assert Keyring.load(path, environment="production", custody=new).token_key("a@b", "rel") == key
