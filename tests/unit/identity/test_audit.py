"""The audit log: what it takes, what it proves, and that no way of changing it goes unseen."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.errors import AuditError
from telemetry.identity.audit import (
    ACTIONS,
    AuditLog,
    Checkpoint,
    Entry,
    Report,
    VerifierKey,
    actor_of,
    canonical_json,
    signers_of,
    verify,
    verify_proof,
)
from telemetry.identity.merkle import leaf_hash, root_of

ROOT = Path(__file__).parents[3]
VECTORS = json.loads((ROOT / "tests" / "vectors" / "audit.json").read_text("utf-8"))
START = datetime(2026, 11, 22, 14, 0, tzinfo=UTC)
TOKEN = "ps1_sentry_u_9qcvbqj0xdeep1jy3xqfy2e1pyh9"


class DevelopmentSigner:
    """A key that lives as long as a test."""

    def __init__(self, name: str = "milchglas.example/audit") -> None:
        self._key = Ed25519PrivateKey.generate()
        self.name = name
        self.public = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


SIGNER = DevelopmentSigner()
KEYS = [VerifierKey.of(SIGNER)]


class Clock:
    def __init__(self) -> None:
        self.at = START

    def __call__(self) -> datetime:
        self.at += timedelta(seconds=1)
        return self.at


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    made = AuditLog(tmp_path / "audit.sqlite3", signer=lambda: SIGNER, now=Clock())
    yield made
    made.close()


def fill(log: AuditLog, count: int) -> None:
    for number in range(count):
        log.record("user:erika", "recipient.pause", {"recipient": f"r{number}"}, "done")


def report(log: AuditLog, *witnessed: str) -> Report:
    return verify(log.export(), KEYS, witnessed=witnessed)


# --- Forms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", VECTORS["canonical_json"], ids=lambda case: case["origin"])
def test_the_canonical_form_is_that_of_rfc_8785(case: dict[str, Any]) -> None:
    assert canonical_json(case["object"]).hex() == case["hex"]


@pytest.mark.parametrize(
    "value", [1.5, True, None, [], {}, 2**53, -(2**53), "\ud800"], ids=lambda v: type(v).__name__
)
def test_values_whose_canonical_form_is_not_plain_are_refused(value: Any) -> None:
    with pytest.raises(AuditError):
        canonical_json({"x": value})


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(max_codepoint=126, min_codepoint=1), max_size=5),
        st.one_of(st.text(max_size=20), st.integers(-(2**53) + 1, 2**53 - 1)),
    )
)
def test_the_canonical_form_reads_back_and_does_not_depend_on_order(body: dict[str, Any]) -> None:
    written = canonical_json(body)
    assert json.loads(written) == body
    assert canonical_json(dict(reversed(list(body.items())))) == written


@pytest.mark.parametrize("case", VECTORS["notes"], ids=lambda case: case["name"])
def test_notes_that_others_signed_are_verified(case: dict[str, str]) -> None:
    key = VerifierKey.parse(case["key"])
    assert str(key) == case["key"]
    assert signers_of(case["note"], [key]) == [key]
    assert signers_of(case["note"].replace("e", "a", 1), [key]) == []


def test_a_checkpoint_reads_as_the_specification_shows() -> None:
    head = Checkpoint("milchglas.example/audit", 7, bytes(range(32)))
    note = head.sign(SIGNER)
    text, signature = note.split("\n\n")
    assert text == ("milchglas.example/audit\n7\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
    assert signature.startswith("— milchglas.example/audit ")
    assert Checkpoint.open(note, KEYS) == head


def test_a_witness_may_add_its_signature_and_the_log_stays_verifiable() -> None:
    note = Checkpoint(SIGNER.name, 1, bytes(32)).sign(SIGNER)
    both = note + "— witness.example AAAAAAAA\n"
    assert Checkpoint.open(both, KEYS).size == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda note: note.replace("\n7\n", "\n8\n"),
        lambda note: note.replace("\n7\n", "\n07\n"),
        lambda note: note.replace("milchglas", "milchglass"),
        lambda note: note.rpartition("\n\n")[0] + "\n\n",
        lambda note: note.replace("—", "-"),
        lambda _note: "",
    ],
)
def test_a_changed_checkpoint_is_refused(spoil: Callable[[str], str]) -> None:
    note = Checkpoint(SIGNER.name, 7, bytes(32)).sign(SIGNER)
    with pytest.raises(AuditError):
        Checkpoint.open(spoil(note), KEYS)


def test_a_checkpoint_of_another_log_or_key_is_refused() -> None:
    other = DevelopmentSigner()
    with pytest.raises(AuditError):
        Checkpoint.open(Checkpoint(SIGNER.name, 7, bytes(32)).sign(other), KEYS)
    with pytest.raises(AuditError):
        Checkpoint.open(Checkpoint("elsewhere.example", 7, bytes(32)).sign(SIGNER), KEYS)


def test_a_key_that_does_not_sign_for_its_public_half_signs_nothing() -> None:
    broken = DevelopmentSigner()
    broken.public = SIGNER.public
    with pytest.raises(AuditError):
        Checkpoint(broken.name, 1, bytes(32)).sign(broken)


@pytest.mark.parametrize(
    "text",
    ["", "a", "a+b+c", str(KEYS[0])[:-4], f"x{KEYS[0]}"],
    ids=["nothing", "word", "three words", "cut off", "other name"],
)
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(AuditError):
        VerifierKey.parse(text)


# --- Recording ------------------------------------------------------------------------------------


def test_an_entry_says_who_what_when_and_with_which_result(log: AuditLog) -> None:
    digest = "ab" * 32
    seq = log.record("person:erika", "recipient.pause", {"recipient": "heap"}, "done", digest)
    (entry,) = log.entries()
    assert (seq, entry.seq, entry.time) == (0, 0, "2026-11-22T14:00:01.000Z")
    assert (entry.actor, entry.action, entry.result) == ("person:erika", "recipient.pause", "done")
    assert (entry.policy_digest, entry.body) == (digest, {"recipient": "heap"})
    assert json.loads(entry.leaf()).keys() == {
        "seq", "time", "actor", "action", "object_commit", "policy_digest", "result",
    }  # fmt: skip
    assert b"heap" not in entry.leaf()


def test_the_same_object_twice_gives_commitments_that_nobody_can_compare(log: AuditLog) -> None:
    fill(log, 1)
    log.record("user:erika", "recipient.pause", {"recipient": "r0"}, "done")
    first, second = log.entries()
    assert first.object_commit != second.object_commit


@pytest.mark.parametrize(
    ("actor", "action", "what", "result", "digest"),
    [
        ("user:erika", "account.look", {}, "done", ""),
        ("user:erika", "recipient.pause", {"account": "4711"}, "done", ""),
        ("user:erika", "recipient.pause", {"recipient": TOKEN}, "done", ""),
        ("user:erika", "recipient.pause", {"recipient": "heap\n"}, "done", ""),
        ("user:erika", "recipient.pause", {"recipient": "h" * 401}, "done", ""),
        ("user:erika", "recipient.pause", {"recipient": 1.5}, "done", ""),
        ("erika@example.com", "recipient.pause", {"recipient": "heap"}, "done", ""),
        ("user:erika", "recipient.pause", {"recipient": "heap"}, "Done: 203.0.113.7", ""),
        ("user:erika", "recipient.pause", {"recipient": "heap"}, "done", "not a digest"),
    ],
)
def test_an_entry_cannot_say_what_is_not_declared(
    log: AuditLog, actor: str, action: str, what: Any, result: str, digest: str
) -> None:
    with pytest.raises(AuditError) as caught:
        log.record(actor, action, what, result, digest)
    for value in ("4711", TOKEN, "erika", "203.0.113.7"):
        assert value not in str(caught.value)
    assert log.size == 0


def test_no_action_can_name_a_person_an_address_or_a_payload() -> None:
    named = {member for members in ACTIONS.values() for member in members}
    assert not named & {"account", "id", "user", "email", "ip", "address", "payload", "message"}


def test_a_token_is_committed_to_and_kept_nowhere(log: AuditLog, tmp_path: Path) -> None:
    what = {"request": "7", "reason": "abuse", "ticket": "T-1", "until": "", "token": TOKEN}
    seq = log.record("person:erika", "reidentify.request", what, "done")
    (entry,) = log.entries()
    assert set(entry.sealed) == {"token"}
    assert TOKEN not in entry.sealed["token"]
    assert "token" not in (entry.body or {})
    assert log.covers(seq, what)
    assert not log.covers(seq, what | {"token": TOKEN.replace("9q", "8q")})
    assert TOKEN.encode() not in (tmp_path / "audit.sqlite3").read_bytes()
    assert TOKEN not in "".join(log.export())
    log.checkpoint()
    assert report(log).sound


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        AuditLog(tmp_path / "audit.sqlite3").close()
    finally:
        os.umask(former)
    assert stat.S_IMODE((tmp_path / "audit.sqlite3").stat().st_mode) == 0o600


def test_the_stored_tree_is_the_tree_of_the_entries(log: AuditLog) -> None:
    for _ in range(9):
        fill(log, 1)
        head = Checkpoint.open(log.checkpoint(), KEYS)
        assert head.size == log.size
        assert head.root == root_of(leaf_hash(entry.leaf()) for entry in log.entries())


def test_a_checkpoint_of_a_tree_that_has_not_grown_is_not_made_again(log: AuditLog) -> None:
    fill(log, 2)
    assert log.checkpoint() == log.checkpoint()
    assert len(log.checkpoints()) == 1


def test_a_key_that_is_rotated_signs_what_follows_and_both_verify(tmp_path: Path) -> None:
    keys = [SIGNER, DevelopmentSigner("milchglas.example/audit-2")]
    log = AuditLog(tmp_path / "audit.sqlite3", signer=lambda: keys[0])
    fill(log, 2)
    log.checkpoint()
    del keys[0]
    fill(log, 2)
    log.checkpoint()
    both = [*KEYS, VerifierKey.of(keys[0])]
    assert verify(log.export(), both).sound
    assert verify(log.export(), both).covered == 4
    log.close()


def test_an_actor_is_who_logged_in_and_not_what_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("USER", "erika")
    monkeypatch.setenv("LOGNAME", "erika")
    monkeypatch.setenv("SUDO_USER", "erika")
    monkeypatch.setattr(Path, "read_text", lambda *_: "4294967295")
    assert actor_of(0) == "user:root"
    assert actor_of(3_999_999_999) == "user:uid-3999999999"
    monkeypatch.setattr(Path, "read_text", lambda *_: "0")
    assert actor_of(3_999_999_999) == "user:root"


def test_a_process_without_the_key_records_and_signs_nothing(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.sqlite3")
    fill(log, 1)
    with pytest.raises(AuditError):
        log.checkpoint()
    log.close()


def test_threads_get_numbers_of_their_own(log: AuditLog) -> None:
    threads = [threading.Thread(target=fill, args=(log, 10)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.checkpoint()
    assert [entry.seq for entry in log.entries()] == list(range(40))
    assert report(log).sound


def _fill_elsewhere(path: Path) -> None:
    log = AuditLog(path)
    fill(log, 15)
    log.close()


def test_processes_get_numbers_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "audit.sqlite3"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill_elsewhere, args=(path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    log = AuditLog(path, signer=lambda: SIGNER)
    log.checkpoint()
    assert [entry.seq for entry in log.entries()] == list(range(30))
    assert report(log).sound
    log.close()


KILLED = """
import sys
from pathlib import Path
from telemetry.identity.audit import AuditLog
log = AuditLog(Path(sys.argv[1]))
for number in range(10_000):
    seq = log.record("role:test", "recipient.pause", {"recipient": "r"}, "done")
    sys.stdout.write(f"{seq}\\n")
    sys.stdout.flush()
"""


def test_what_was_recorded_outlives_a_kill_and_the_tree_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "audit.sqlite3"
    for _ in range(3):
        worker = subprocess.Popen(  # noqa: S603 - our own interpreter, our own words
            [sys.executable, "-c", KILLED, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(ROOT)},
        )
        assert worker.stdout is not None
        acknowledged = [int(worker.stdout.readline()) for _ in range(12)][-1]
        worker.send_signal(signal.SIGKILL)
        worker.wait(30)
        worker.stdout.close()
        log = AuditLog(path, signer=lambda: SIGNER)
        assert log.size > acknowledged
        log.checkpoint()
        assert report(log).sound
        log.close()


# --- Erasing --------------------------------------------------------------------------------------


def test_erasing_destroys_the_content_and_every_proof_still_verifies(
    log: AuditLog, tmp_path: Path
) -> None:
    log.record("user:erika", "recipient.pause", {"recipient": "planted-canary"}, "done")
    fill(log, 4)
    before = log.prove(0)
    note = log.checkpoint()
    assert b"planted-canary" in (tmp_path / "audit.sqlite3").read_bytes()
    log.erase(0, actor="person:erika", reason="mistake")
    log.checkpoint()
    assert b"planted-canary" not in (tmp_path / "audit.sqlite3").read_bytes()
    assert "planted-canary" not in "".join(log.export())
    assert (log.entries()[0].r, log.entries()[0].body) == (b"", None)
    assert log.entries(action="audit.erase")[0].body == {
        "seq": 0,
        "reason": "mistake",
        "ticket": "",
    }
    found = report(log, note)
    assert (found.sound, found.size, found.covered, found.erased) == (True, 6, 6, 1)
    assert verify_proof(before, KEYS)
    assert verify_proof(log.prove(0), KEYS)
    assert not log.covers(0, {"recipient": "planted-canary"})


def test_an_entry_past_its_period_leaves_a_hash_and_proofs_that_hold(tmp_path: Path) -> None:
    at = [datetime(2026, 12, 31, 23, 59, tzinfo=UTC)]
    log = AuditLog(tmp_path / "audit.sqlite3", signer=lambda: SIGNER, now=lambda: at[0])
    fill(log, 2)
    at[0] = datetime(2027, 1, 1, tzinfo=UTC)
    fill(log, 1)
    note = log.checkpoint()
    at[0] = datetime(2029, 12, 31, 23, 59, tzinfo=UTC)
    assert log.prune(keep_years=3) == 0
    at[0] = datetime(2030, 1, 1, tzinfo=UTC)
    assert log.prune(keep_years=3) == 2
    assert log.prune(keep_years=3) == 0
    assert [entry.seq for entry in log.entries()] == [2, 3]
    log.checkpoint()
    found = report(log, note)
    assert (found.sound, found.size, found.erased) == (True, 4, 2)
    with pytest.raises(AuditError):
        log.prove(0)
    assert b"erika" in (tmp_path / "audit.sqlite3").read_bytes()  # the entry of 2027
    log.close()


@pytest.fixture
def pruned(tmp_path: Path) -> Iterator[list[str]]:
    """An export of which entries 0 and 1 were reduced by rule, twice: the head, notes, entries."""
    at = [datetime(2020, 6, 1, tzinfo=UTC)]
    log = AuditLog(tmp_path / "pruned.sqlite3", signer=lambda: SIGNER, now=lambda: at[0])
    for year in (2020, 2021, 2026):
        at[0] = datetime(year, 6, 1, tzinfo=UTC)
        fill(log, 1)
        log.prune(keep_years=3)
    at[0] = datetime(2019, 6, 1, tzinfo=UTC)  # a clock that was set back
    fill(log, 1)
    at[0] = datetime(2030, 1, 1, tzinfo=UTC)
    fill(log, 1)
    log.prune(keep_years=4)
    log.checkpoint()
    yield list(log.export())
    log.close()


def test_entries_are_pruned_from_the_beginning_on_and_the_first_that_stays_is_young_enough(
    pruned: list[str],
) -> None:
    assert verify(pruned, KEYS).sound
    entries = [json.loads(line) for line in pruned if "seq" in line]
    assert [set(entry) == {"seq", "hash"} for entry in entries] == [True] * 2 + [False] * 4
    assert entries[2]["time"] >= entries[3]["body"].get("until", "2026")


@pytest.mark.parametrize("seq", [2, 3, 4, 5])
def test_after_a_pruning_no_other_entry_can_be_reduced_unseen(pruned: list[str], seq: int) -> None:
    lines = []
    for line in pruned:
        entry = json.loads(line)
        if entry.get("seq") == seq:
            line = json.dumps(  # noqa: PLW2901 - the forged line
                {"seq": seq, "hash": leaf_hash(Entry.from_json(entry).leaf()).hex()}
            )
        lines.append(line)
    assert "edit" in kinds(lines)


def test_a_pruning_that_no_checkpoint_vouches_for_accounts_for_nothing(log: AuditLog) -> None:
    fill(log, 3)
    log.checkpoint()
    log.record("role:audit", "audit.prune", {"until": "2026", "count": 9, "kept_from": 3}, "done")
    lines = list(log.export())
    entry = json.loads(lines[2])
    bare = {"seq": entry["seq"], "hash": leaf_hash(Entry.from_json(entry).leaf()).hex()}
    assert kinds([*lines[:2], json.dumps(bare), *lines[3:]]) == {"edit"}


def test_an_erasure_that_no_checkpoint_vouches_for_accounts_for_nothing(log: AuditLog) -> None:
    fill(log, 3)
    log.checkpoint()
    log.erase(1, actor="user:erika")
    assert {finding.kind for finding in report(log).findings} == {"edit"}
    log.checkpoint()
    assert report(log).sound


def test_a_log_may_prune_the_entry_of_an_earlier_pruning(tmp_path: Path) -> None:
    at = [datetime(2020, 6, 1, tzinfo=UTC)]
    log = AuditLog(tmp_path / "audit.sqlite3", signer=lambda: SIGNER, now=lambda: at[0])
    for year in range(2020, 2035):
        at[0] = datetime(year, 6, 1, tzinfo=UTC)
        fill(log, 2)
        log.prune(keep_years=3)
        log.checkpoint()
        assert report(log).sound
    assert report(log).erased > 20
    log.close()


# --- Tampering ------------------------------------------------------------------------------------


@pytest.fixture
def told(log: AuditLog) -> list[str]:
    """An export of nine entries under two checkpoints: head, two notes, entries from line 3."""
    fill(log, 5)
    log.checkpoint()
    fill(log, 4)
    log.checkpoint()
    lines = list(log.export())
    assert verify(lines, KEYS).sound
    return lines


def kinds(lines: list[str], *witnessed: str) -> set[str]:
    return {finding.kind for finding in verify(lines, KEYS, witnessed=witnessed).findings}


@pytest.mark.parametrize("member", ["time", "actor", "action", "object_commit", "result"])
def test_an_edit_is_detected(told: list[str], member: str) -> None:
    entry = json.loads(told[5])
    entry[member] = ("0" * 64) if member == "object_commit" else "role:nobody"
    told[5] = json.dumps(entry)
    assert "edit" in kinds(told)


def test_an_edit_of_the_content_is_detected(told: list[str]) -> None:
    entry = json.loads(told[5])
    entry["body"] = {"recipient": "another"}
    told[5] = json.dumps(entry)
    assert kinds(told) == {"edit"}


@pytest.mark.parametrize("sealed", [["token"], {"token": "0" * 64}, {"x": ""}, {"file": "0" * 64}])
def test_a_forged_content_is_detected_whatever_its_line_says_is_sealed(
    log: AuditLog, sealed: Any
) -> None:
    log.record("user:erika", "vault.backup", {"rows": 9, "file": "/home/erika/copy"}, "done")
    log.checkpoint()
    lines, proof = list(log.export()), log.prove(0)
    for entry in (forged := json.loads(lines[-1]), proof["entry"]):
        entry |= {"body": {"rows": 9, "file": "/backup/regular"}, "sealed": sealed}
    assert not verify([*lines[:-1], json.dumps(forged)], KEYS).sound
    assert not verify_proof(proof, KEYS)


@pytest.mark.parametrize("member", ["request", "reason", "ticket", "sealed", "token"])
def test_beside_a_sealed_token_every_member_stays_checkable(log: AuditLog, member: str) -> None:
    what = {"request": "7", "reason": "abuse", "ticket": "T-1", "until": "", "token": TOKEN}
    log.record("person:erika", "reidentify.request", what, "done")
    log.checkpoint()
    lines = list(log.export())
    assert verify(lines, KEYS).sound
    entry = json.loads(lines[-1])
    if member == "sealed":
        entry["sealed"] = {"token": "0" * 64}
    else:
        entry["body"][member] = "T-2"
    assert kinds([*lines[:-1], json.dumps(entry)]) == {"edit"}


def test_a_content_that_is_taken_away_without_an_entry_is_detected(told: list[str]) -> None:
    entry = json.loads(told[5])
    del entry["r"], entry["body"]
    told[5] = json.dumps(entry)
    assert kinds(told) == {"edit"}
    bare = {"seq": entry["seq"], "hash": leaf_hash(Entry.from_json(entry).leaf()).hex()}
    told[5] = json.dumps(bare)
    assert kinds(told) == {"edit"}


def test_a_drop_is_detected_wherever_it_is(told: list[str]) -> None:
    for line in range(3, 12):
        assert "drop" in kinds(told[:line] + told[line + 1 :])
    assert "drop" in kinds(told[:10])


def test_a_drop_that_renumbers_what_follows_is_detected(told: list[str]) -> None:
    kept = told[:5] + told[6:]
    for line in range(5, len(kept)):
        entry = json.loads(kept[line])
        entry["seq"] -= 1
        kept[line] = json.dumps(entry)
    assert kinds(kept) == {"edit", "drop"}


def test_a_reordering_is_detected(told: list[str]) -> None:
    told[5], told[6] = told[6], told[5]
    assert "reorder" in kinds(told)


def test_a_reordering_that_renumbers_is_detected(told: list[str]) -> None:
    first, second = json.loads(told[5]), json.loads(told[6])
    first["seq"], second["seq"] = second["seq"], first["seq"]
    told[5], told[6] = json.dumps(second), json.dumps(first)
    assert kinds(told) == {"edit"}


def forged(lines: list[str], keep: int) -> list[str]:
    """Rewrite history from entry `keep` on, as one who holds the signing key can."""
    entries = [Entry.from_json(json.loads(line)) for line in lines[3 : 3 + keep]]
    for number in range(keep, 9):
        other = json.loads(lines[3])
        entries.append(Entry.from_json(other | {"seq": number, "actor": "user:max"}))
    notes = [
        Checkpoint(SIGNER.name, size, root_of(leaf_hash(e.leaf()) for e in entries[:size])).sign(
            SIGNER
        )
        for size in (5, 9)
    ]
    return [
        lines[0],
        *(json.dumps({"checkpoint": note}) for note in notes),
        *(json.dumps(entry.as_json()) for entry in entries),
    ]


def test_a_fork_is_detected_by_two_checkpoints_that_contradict_each_other(told: list[str]) -> None:
    rewritten = forged(told, 2)
    assert verify(rewritten, KEYS).sound, "alone, who holds the key can show another log"
    for line in (1, 2):
        kept_elsewhere = json.loads(told[line])["checkpoint"]
        assert kinds(rewritten, kept_elsewhere) == {"fork"}


def test_a_fork_is_detected_by_a_checkpoint_of_another_size(told: list[str]) -> None:
    rewritten = forged(told, 2)
    true = [leaf_hash(Entry.from_json(json.loads(line)).leaf()) for line in told[3:]]
    witnessed = Checkpoint(SIGNER.name, 7, root_of(true[:7])).sign(SIGNER)
    assert kinds(rewritten, witnessed) == {"fork"}
    assert kinds(told, witnessed) == set()


def test_a_fork_is_detected_without_any_entry(log: AuditLog, told: list[str]) -> None:
    head = json.loads(told[2])["checkpoint"]
    other = json.loads(forged(told, 2)[1])["checkpoint"]
    assert verify_proof(log.prove_growth(json.loads(told[1])["checkpoint"]), KEYS)
    with pytest.raises(AuditError):
        log.prove_growth(other)
    proof = {"format": "milchglas-audit-proof/1", "former": other, "checkpoint": head, "proof": []}
    assert not verify_proof(proof, KEYS)


def test_a_tail_cut_off_together_with_its_checkpoint_needs_the_second_principal(
    told: list[str],
) -> None:
    cut = [told[0], told[1], *told[3:8]]
    assert verify(cut, KEYS).sound
    assert kinds(cut, json.loads(told[2])["checkpoint"]) == {"drop"}


def test_a_log_without_a_valid_checkpoint_is_not_sound(told: list[str]) -> None:
    assert kinds([told[0], *told[3:]]) == {"signature"}
    stranger = [VerifierKey.of(DevelopmentSigner())]
    assert not verify(told, stranger).sound


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_change_of_any_line_goes_unseen(data: st.DataObject) -> None:
    lines = SAMPLE()
    at = data.draw(st.integers(1, len(lines) - 1))
    place = data.draw(st.integers(0, len(lines[at]) - 2))
    other = data.draw(st.sampled_from("0a9fZ "))
    changed = lines[at][:place] + other + lines[at][place + 1 :]
    try:
        same = json.loads(changed) == json.loads(lines[at])
    except ValueError:
        same = False
    lines[at] = changed
    if not same:
        assert not verify(lines, KEYS).sound


def _sample() -> Callable[[], list[str]]:
    made: list[str] = []

    def give() -> list[str]:
        if not made:
            import tempfile

            with tempfile.TemporaryDirectory() as folder:
                log = AuditLog(Path(folder) / "audit.sqlite3", signer=lambda: SIGNER, now=Clock())
                fill(log, 3)
                log.checkpoint()
                fill(log, 2)
                log.checkpoint()
                made.extend(log.export())
                log.close()
        return list(made)

    return give


SAMPLE = _sample()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entries WHERE seq = 4",
        "UPDATE tree SET size = 3",
        "UPDATE tree SET nodes = x'00'",
        "DELETE FROM tree",
    ],
)
def test_a_file_that_contradicts_itself_is_not_opened(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "audit.sqlite3"
    log = AuditLog(path, signer=lambda: SIGNER)
    fill(log, 5)
    log.checkpoint()
    log.close()
    changed = sqlite3.connect(path)
    changed.execute(statement)
    changed.commit()
    changed.close()
    with pytest.raises(AuditError):
        AuditLog(path, signer=lambda: SIGNER)


def test_a_file_that_was_edited_in_place_does_not_verify(log: AuditLog, tmp_path: Path) -> None:
    fill(log, 5)
    log.checkpoint()
    changed = sqlite3.connect(tmp_path / "audit.sqlite3")
    changed.execute("UPDATE entries SET actor = 'user:max' WHERE seq = 2")
    changed.commit()
    changed.close()
    assert {finding.kind for finding in report(log).findings} == {"edit"}


# --- The second principal -------------------------------------------------------------------------


def test_every_checkpoint_goes_to_the_second_principal(tmp_path: Path) -> None:
    folder = tmp_path / "officer"
    folder.mkdir()
    log = AuditLog(tmp_path / "audit.sqlite3", signer=lambda: SIGNER, export=folder)
    for _ in range(3):
        fill(log, 2)
        log.checkpoint()
    notes = [path.read_text("utf-8") for path in sorted(folder.glob("checkpoint-*.txt"))]
    (public,) = folder.glob("*.pub")
    assert VerifierKey.parse(public.read_text("utf-8")) == KEYS[0]
    assert [Checkpoint.open(note, KEYS).size for note in notes] == [2, 4, 6]
    assert report(log, *notes).sound
    log.close()


def test_the_second_principal_can_read_his_files_whatever_the_umask_and_keep_others_there(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "officer"
    folder.mkdir()
    log = AuditLog(tmp_path / "audit.sqlite3", signer=lambda: SIGNER, export=folder)
    former = os.umask(0o077)
    try:
        fill(log, 1)
        log.checkpoint()
    finally:
        os.umask(former)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}
    (folder / "checkpoint-000000000099.txt.bak").write_text("x", "utf-8")
    fill(log, 1)
    log.checkpoint()
    assert (folder / "checkpoint-000000000002.txt").exists()
    log.close()


def test_a_log_that_was_set_back_to_an_old_copy_is_refused_by_the_second_principals_checkpoint(
    tmp_path: Path,
) -> None:
    folder, path = tmp_path / "officer", tmp_path / "audit.sqlite3"
    folder.mkdir()
    log = AuditLog(path, signer=lambda: SIGNER, export=folder)
    fill(log, 2)
    log.checkpoint()
    old = path.read_bytes()
    fill(log, 2)
    log.checkpoint()
    log.close()
    path.write_bytes(old)
    log = AuditLog(path, signer=lambda: SIGNER, export=folder)
    for _ in range(2):
        with pytest.raises(AuditError):
            log.checkpoint()
        fill(log, 3)
    log.close()


def test_a_folder_that_cannot_be_written_is_an_error_and_not_a_silence(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.sqlite3", signer=lambda: SIGNER, export=tmp_path / "absent")
    fill(log, 1)
    with pytest.raises(AuditError):
        log.checkpoint()
    log.close()


# --- Proofs and errors ----------------------------------------------------------------------------


def test_a_proof_holds_for_its_entry_only(log: AuditLog) -> None:
    fill(log, 7)
    for seq in range(7):
        proof = json.loads(json.dumps(log.prove(seq)))
        assert verify_proof(proof, KEYS)
        for member, value in (("actor", "user:max"), ("seq", (seq + 1) % 7)):
            changed = proof | {"entry": proof["entry"] | {member: value}}
            assert not verify_proof(changed, KEYS)
        assert not verify_proof(proof | {"proof": proof["proof"][1:]}, KEYS)
        assert not verify_proof(proof, [VerifierKey.of(DevelopmentSigner())])


@pytest.mark.parametrize("broken", [{}, {"checkpoint": 1}, {"proof": "xx", "checkpoint": ""}, []])
def test_what_is_no_proof_does_not_verify(broken: Any) -> None:
    assert not verify_proof(broken, KEYS)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"format": "other"}', "1\n2\n"])
def test_what_is_no_export_does_not_verify(text: str) -> None:
    assert not verify(text.splitlines() or [""], KEYS).sound


def test_entries_are_found_by_action_actor_and_time(log: AuditLog) -> None:
    log.record("role:pipeline", "run.start", {"role": "run"}, "done")
    fill(log, 2)
    log.record("user:max", "recipient.resume", {"recipient": "heap"}, "refused:unknown")
    assert [e.seq for e in log.entries(action="recipient.pause")] == [1, 2]
    assert [e.seq for e in log.entries(action="recipient.")] == [1, 2, 3]
    assert [e.seq for e in log.entries(actor="user:max")] == [3]
    assert [e.seq for e in log.entries(since=START + timedelta(seconds=3))] == [2, 3]
    assert [e.seq for e in log.entries(first=1, last=2)] == [1, 2]


def test_a_log_that_cannot_be_reached_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(AuditError):
        AuditLog(tmp_path / "absent" / "audit.sqlite3")
    (tmp_path / "noise").write_bytes(b"noise" * 1000)
    with pytest.raises(AuditError):
        AuditLog(tmp_path / "noise")


def test_a_signature_has_one_spelling_only(told: list[str]) -> None:
    """The last letter of a base64 text may have bits that nobody reads; a form feed ends a line."""
    note = json.loads(told[1])["checkpoint"]
    assert Checkpoint.open(note, KEYS)
    whole = note.rstrip("\n")
    signed = whole.rstrip("=")
    assert signed != whole, "68 bytes are no multiple of 3, so some bits are not read"
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = letters[letters.index(signed[-1]) ^ 1]
    for respelt in (f"{signed[:-1]}{other}{whole[len(signed) :]}\n", f"{whole}\f", whole):
        with pytest.raises(AuditError):
            Checkpoint.open(respelt, KEYS)
