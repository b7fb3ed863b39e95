"""The audit log: who did what, when, to which object, with which result. Append only, provable.

A Merkle tree (`telemetry.identity.merkle`) over entries that hold no identifier: what an entry is
about stands in it as a commitment only, under a random value kept beside it. Destroying that value
and the body erases the content; every proof still verifies. Checkpoints, signed tree heads, go to a
second principal, who can then tell an edited, shortened, reordered or forked log from the true one.

Owns the form of entries, checkpoints and exports, the SQLite file that keeps them, and what may
be said in an entry: actions and their members are a closed list, so that no identifier, address or
payload can slip in. Knows no key: it is given something that signs. Several processes may append to
one file; SQLite lets one write at a time, and an entry is on disk when `AuditLog.record` returns.

Source:
    Art. 5(2), 24(1) and 32(1)(d) GDPR; SDM Baustein 43 (time, instance, activity, recording
    instance); RFC 6962; RFC 8785; C2SP signed-note and tlog-checkpoint.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import pwd
import re
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from telemetry.errors import AuditError
from telemetry.identity import guarded
from telemetry.identity.merkle import (
    HASH_BYTES,
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)

__all__ = [
    "ACTIONS",
    "AUDIT_FILE",
    "KEY_ACTIONS",
    "AuditLog",
    "Body",
    "Checkpoint",
    "Entry",
    "Finding",
    "Report",
    "Signer",
    "VerifierKey",
    "about_key",
    "actor_of",
    "canonical_json",
    "signers_of",
    "verify",
    "verify_proof",
]

Value: TypeAlias = str | int
Body: TypeAlias = Mapping[str, Value]

AUDIT_FILE: Final = "audit.sqlite3"
_FORMAT: Final = "milchglas-audit/1"
_PROOF: Final = "milchglas-audit-proof/1"

_KEY: Final = ("kid", "use", "domain", "epoch", "version", "copies", "reason", "ticket")
_COUNTED: Final = ("count", "oldest", "latest", "reason", "ticket")
_REQUEST: Final = ("request", "reason", "ticket", "until")

ACTIONS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        action: frozenset(members)
        for action, members in {
            "run.start": ("version", "environment", "role"),
            "run.stop": ("role",),
            "config.drift": ("what", "where"),
            "policy.load": ("digest", "notice"),
            "policy.revoke": ("digest",),
            "recipient.pause": ("recipient",),
            "recipient.resume": ("recipient",),
            "recipient.refuse": ("recipient", "reason"),
            "stage.resume": ("stage",),
            "egress.total": ("recipient", "delivered", "dropped", "dead", "since"),
            "key.create": _KEY,
            "key.load": _KEY,
            "key.promote": _KEY,
            "key.schedule": _KEY,
            "key.enable": _KEY,
            "key.disable": _KEY,
            "key.destroy": _KEY,
            "key.rotate": _KEY,
            "key.export": _KEY,
            "key.custody": (),
            "vault.backup": ("rows", "file"),
            "vault.begin": ("rows", "tombstones"),
            "vault.restore": ("rows", "tombstones", "file"),
            "vault.rewrap": ("rows", "from_version", "version"),
            "rights.request": ("request", "right", "state", "recipient"),
            "rights.step": ("request", "right", "state", "recipient"),
            "erasure": (
                *("request", "state", "recipient", "kind", "count", "reason", "ticket", "subject"),
            ),
            "retention.sweep": ("store", *_COUNTED),
            "dead.open": _COUNTED,
            "dead.purge": _COUNTED,
            "dead.replay": _COUNTED,
            "held.release": _COUNTED,
            "account.token": ("kind", "count", "domains", "ticket"),
            "account.join": ("kind", "count", "domains", "reason", "ticket", "tokens"),
            "reidentify.request": (*_REQUEST, "domain", "token"),
            "reidentify.approve": _REQUEST,
            "reidentify.run": (*_REQUEST, "candidates"),
            "reidentify.result": (*_REQUEST, "candidates"),
            "audit.erase": ("seq", "reason", "ticket"),
            "audit.prune": ("until", "count", "kept_from"),
        }.items()
    }
)
"""Everything that can be logged, and what may be said about it. No member is an identifier."""

_SEALED: Final = frozenset({"token", "tokens", "subject"})
"""Members that an entry commits to and nobody can read in it, the log's owner included."""

_VALUE = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{0,400}")
_ACTOR = re.compile(r"(role|person|user):[A-Za-z0-9_.-]{1,64}")
_RESULT = re.compile(r"[a-z][a-z_]{0,31}(:[a-z0-9][a-z0-9_-]{0,63})?")
_DIGEST = re.compile(r"([0-9a-f]{64})?")
_NAME = re.compile(r"[^\s+\x00-\x20\x7f]{1,255}")
_EXACT: Final = 2**53 - 1
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_RANDOM_BYTES: Final = 32
_ED25519: Final = b"\x01"
_CHECKPOINT_NAME = re.compile(r"checkpoint-([0-9]{12})\.txt")


# --- Forms ----------------------------------------------------------------------------------------


def canonical_json(members: Body) -> bytes:
    r"""Write one flat object of texts and whole numbers in the one form of RFC 8785.

    For these the canonical form is what `json` writes without white space: names sorted (ours are
    ASCII, so by any order of code units), numbers as they are, and only ``"``, ``\\`` and control
    characters escaped.

    Raises:
        AuditError: A name or value of another sort.

    >>> canonical_json({"seq": 1, "actor": "role:pipeline"})
    b'{"actor":"role:pipeline","seq":1}'
    """
    for name, value in members.items():
        whole = type(value) is int and -_EXACT <= value <= _EXACT
        if not name.isascii() or not (whole or isinstance(value, str)):
            raise AuditError("An entry holds texts and whole numbers up to 2**53 only.")
    try:
        text = json.dumps(members, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return text.encode()
    except UnicodeEncodeError:
        raise AuditError("An entry holds Unicode texts only.") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry. What is proved is `leaf`; `r` and `body` lie beside it and can be destroyed.

    Attributes:
        seq: Its number, counted from 0: its place in the tree.
        time: UTC, RFC 3339 with milliseconds.
        actor: ``person:NAME`` of the policy, ``user:NAME`` of the operating system, ``role:NAME``.
        action: One of `ACTIONS`.
        object_commit: HMAC-SHA-256 of the canonical object under `r`, in hex; in the object a
            sealed member stands by its own commitment.
        policy_digest: Policy in force, or empty.
        result: A word, or a word, a colon and a reason: ``done``, ``refused:limit``.
        r: 32 random bytes; empty once erased.
        body: The object, without its sealed members; None once erased.
        sealed: Members that nobody can read, each by its commitment under `r`, in hex.
    """

    seq: int
    time: str
    actor: str
    action: str
    object_commit: str
    policy_digest: str
    result: str
    r: bytes = b""
    body: Body | None = None
    sealed: Mapping[str, str] = field(default_factory=dict)

    def leaf(self) -> bytes:
        """Give the bytes that the tree holds."""
        return canonical_json(
            {
                "seq": self.seq,
                "time": self.time,
                "actor": self.actor,
                "action": self.action,
                "object_commit": self.object_commit,
                "policy_digest": self.policy_digest,
                "result": self.result,
            }
        )

    def as_json(self) -> dict[str, Any]:
        """Give it as an export shows it."""
        members: dict[str, Any] = json.loads(self.leaf())
        if self.r:
            members |= {"r": self.r.hex(), "body": dict(self.body or {})}
            members |= {"sealed": dict(self.sealed)} if self.sealed else {}
        return members

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> Entry:
        """Read what `as_json` gave.

        Raises:
            AuditError: It is no entry.
        """
        try:
            entry = cls(
                **{name: members[name] for name in _LEAF_MEMBERS},
                r=bytes.fromhex(members.get("r", "")),
                body=members.get("body"),
                sealed=dict(members.get("sealed", {})),
            )
            entry.leaf()
        except (KeyError, TypeError, ValueError, AttributeError):
            raise AuditError("A line is no entry of an audit log.") from None
        if not set(members) <= {*_LEAF_MEMBERS, "r", "body", "sealed"}:
            raise AuditError("A line is no entry of an audit log.")
        return entry

    def content_fits(self) -> bool:
        """Tell whether the body is the one that was committed to; True if it was erased.

        What is sealed has its own commitment, so that all the rest stays checkable. Only a member
        that the action may seal counts as such: the line that says so is vouched for by nobody.
        """
        if not self.r:
            return True
        body = self.body or {}
        if not set(self.sealed) <= _SEALED & ACTIONS.get(self.action, frozenset()) - set(body):
            return False
        committed = _commit(self.r, {**body, **self.sealed})
        return hmac.compare_digest(committed, self.object_commit)


_LEAF_MEMBERS: Final = (
    "seq",
    "time",
    "actor",
    "action",
    "object_commit",
    "policy_digest",
    "result",
)


def _commit(r: bytes, members: Body) -> str:
    return hmac.digest(r, canonical_json(members), "sha256").hex()


def _seal(r: bytes, members: Body) -> dict[str, str]:
    """Commit to each member that is not to be read, by itself."""
    return {name: _commit(r, {name: value}) for name, value in members.items() if name in _SEALED}


class Signer(Protocol):
    """What signs checkpoints: a key of the keyring, or of a test."""

    @property
    def name(self) -> str:
        """Name of log and key, such as ``milchglas.example/audit``: no white space, no plus."""

    @property
    def public(self) -> bytes:
        """Ed25519 public key, 32 bytes."""

    def sign(self, message: bytes, /) -> bytes:
        """Give the 64 bytes of an Ed25519 signature (RFC 8032)."""


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with its name: all that `verify` needs.

    Attributes:
        name: Of log and key.
        public: 32 bytes.
    """

    name: str
    public: bytes

    @property
    def key_id(self) -> bytes:
        """The 4 bytes that name the key in a signature line (C2SP signed-note, "Signatures")."""
        named = self.name.encode() + b"\n" + _ED25519 + self.public
        return hashlib.sha256(named).digest()[:4]

    def __str__(self) -> str:
        encoded = base64.b64encode(_ED25519 + self.public).decode()
        return f"{self.name}+{self.key_id.hex()}+{encoded}"

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Read the form that `str` gives: name, key id in hex, base64, joined by plus signs.

        Raises:
            AuditError: It is no such key, or its id is not its own.
        """
        name, _, rest = text.strip().partition("+")
        key_id, _, encoded = rest.partition("+")
        raw = _base64(encoded)
        key = cls(name, raw[1:])
        sound = len(raw) == 1 + HASH_BYTES and raw[:1] == _ED25519 and _NAME.fullmatch(name)
        if not sound or key.key_id.hex() != key_id:
            raise AuditError("This is no public key of an audit log.")
        return key

    @classmethod
    def of(cls, signer: Signer) -> VerifierKey:
        """Give the public half of what signs."""
        return cls(signer.name, signer.public)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head: the log `origin` had `size` entries and this root.

    Attributes:
        origin: Name of the log.
        size: Number of entries.
        root: 32 bytes.
    """

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """Give what is signed (C2SP tlog-checkpoint)."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    def sign(self, signer: Signer) -> str:
        """Give the signed note. It is verified before anybody sees it.

        Raises:
            AuditError: What signs does not sign for its own public key.
        """
        key = VerifierKey.of(signer)
        signature = signer.sign(self.text().encode())
        encoded = base64.b64encode(key.key_id + signature).decode()
        note = f"{self.text()}\n— {signer.name} {encoded}\n"
        if not _NAME.fullmatch(signer.name) or Checkpoint.open(note, [key]) != self:
            raise AuditError("The signing key of the audit log does not fit its public half.")
        return note

    @classmethod
    def parse(cls, note: str) -> Checkpoint:
        """Read a note without looking at its signatures.

        Raises:
            AuditError: It is no checkpoint.
        """
        text, mark, _ = note.rpartition("\n\n")
        lines = text.split("\n")
        if not mark or len(lines) < 3 or not all(lines):  # noqa: PLR2004 - origin, size, root
            raise AuditError("This is no checkpoint of an audit log.")
        root = _base64(lines[2])
        if not _SIZE.fullmatch(lines[1]) or len(root) != HASH_BYTES:
            raise AuditError("This is no checkpoint of an audit log.")
        return cls(lines[0], int(lines[1]), root)

    @classmethod
    def open(cls, note: str, keys: Sequence[VerifierKey]) -> Checkpoint:
        """Read a note that one of `keys` signed. Signatures of others are passed over.

        Raises:
            AuditError: It is no checkpoint, of another log, or none of them signed it.
        """
        checkpoint = cls.parse(note)
        if all(key.name != checkpoint.origin for key in signers_of(note, keys)):
            raise AuditError("A checkpoint is not signed with a key of this log.")
        return checkpoint


def signers_of(note: str, keys: Sequence[VerifierKey]) -> list[VerifierKey]:
    """Tell which of `keys` signed a note (C2SP signed-note). Others' lines are passed over."""
    text, _, signatures = note.rpartition("\n\n")
    found = []
    for line in signatures.splitlines():
        dash, _, rest = line.partition(" ")
        name, _, encoded = rest.partition(" ")
        raw = _base64(encoded)
        for key in keys:
            if dash != "—" or (name, raw[:4]) != (key.name, key.key_id):
                continue
            with suppress(InvalidSignature, ValueError):
                public = Ed25519PublicKey.from_public_bytes(key.public)
                public.verify(raw[4:], f"{text}\n".encode())
                found.append(key)
    return found


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


# --- The log --------------------------------------------------------------------------------------

_TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS entries (
        seq INTEGER PRIMARY KEY, hash BLOB NOT NULL, time TEXT, actor TEXT, action TEXT,
        object_commit TEXT, policy_digest TEXT, result TEXT, r BLOB, body TEXT, sealed TEXT
    ) STRICT""",
    "CREATE INDEX IF NOT EXISTS entries_by_action ON entries (action, time)",
    """CREATE TABLE IF NOT EXISTS tree (
        one INTEGER PRIMARY KEY CHECK (one = 1), size INTEGER NOT NULL, nodes BLOB NOT NULL
    ) STRICT""",
    """CREATE TABLE IF NOT EXISTS checkpoints (
        size INTEGER NOT NULL, note TEXT NOT NULL, at TEXT NOT NULL, PRIMARY KEY (size, note)
    ) STRICT""",
    "INSERT OR IGNORE INTO tree VALUES (1, 0, x'')",
)
_COLUMNS: Final = "seq, time, actor, action, object_commit, policy_digest, result, r, body, sealed"
_BUSY_S: Final = 10.0
_DAMAGED: Final = "The audit log is damaged or was changed. Keep it, and restore its copy."


class AuditLog:
    """An audit log in one SQLite file. Safe to share between threads, and between processes.

    Args:
        path: The file; made if it is absent, for its owner only.
        signer: Gives what signs checkpoints, asked for each anew because keys rotate; None for a
            process that only records.
        export: A folder that belongs to a second principal: every checkpoint goes there.
        now: Aware wall clock.

    Raises:
        AuditError: It cannot be opened, or what it holds does not fit its own last checkpoint.
    """

    def __init__(
        self,
        path: Path,
        *,
        signer: Callable[[], Signer] | None = None,
        export: Path | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._path, self._signer, self._export, self._now = path, signer, export, now
        self._lock = threading.Lock()
        try:
            guarded.create(path)
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error):
            raise AuditError("The audit log cannot be opened.") from None
        try:
            for pragma in (
                # A rollback journal: rare small writes, several processes, and nothing of an
                # erased body stays in a write-ahead log.
                "journal_mode = DELETE",
                "synchronous = EXTRA",  # the folder too: the journal's end is the commit
                "secure_delete = ON",
                "trusted_schema = OFF",
            ):
                self._connection.execute(f"PRAGMA {pragma}")
            with self._writing() as connection:
                for statement in _TABLES:
                    connection.execute(statement)
            self._fits_its_checkpoint()
        except AuditError:
            self._connection.close()
            raise
        except sqlite3.Error:
            self._connection.close()
            raise AuditError(_DAMAGED) from None

    def __repr__(self) -> str:
        return "AuditLog()"

    def record(
        self, actor: str, action: str, what: Body, result: str, policy_digest: str = ""
    ) -> int:
        """Append an entry; it is on disk on return.

        Args:
            actor: ``role:NAME``, ``person:NAME`` or ``user:NAME``.
            action: One of `ACTIONS`.
            what: Members that `ACTIONS` allows there. Never an identifier, address or payload;
                a token only as ``token``, which is committed to and not kept.
            result: ``done``, ``refused:reason`` or another word.
            policy_digest: Policy in force.

        Returns:
            Its number.

        Raises:
            AuditError: It cannot be written, or says what no entry may say. What it was to
                witness must not happen.
        """
        _check(actor, action, what, result, policy_digest)
        r = secrets.token_bytes(_RANDOM_BYTES)
        sealed = _seal(r, what)
        commit = _commit(r, {**what, **sealed})
        body = canonical_json({k: v for k, v in what.items() if k not in _SEALED}).decode()
        with self._lock, self._writing() as connection:
            frontier = self._frontier(connection)
            entry = Entry(
                seq=frontier.size,
                time=_stamp(self._now()),
                actor=actor,
                action=action,
                object_commit=commit,
                policy_digest=policy_digest,
                result=result,
            )
            hashed = leaf_hash(entry.leaf())
            connection.execute(
                "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    entry.seq,
                    hashed,
                    *(entry.time, actor, action, commit, policy_digest, result),
                    *(r, body, canonical_json(sealed).decode()),
                ),
            )
            frontier.push(hashed)
            connection.execute(
                "UPDATE tree SET size = ?, nodes = ?", (frontier.size, b"".join(frontier.nodes))
            )
        return entry.seq

    def checkpoint(self) -> str:
        """Sign the tree as it stands, keep the note, and give it to the second principal.

        A tree that has not grown keeps its note.

        Raises:
            AuditError: There is nothing that signs; or the second principal has a checkpoint that
                this log does not continue: it was edited, or set back to an old copy.
        """
        if self._signer is None:
            raise AuditError("This process has no key that signs checkpoints.")
        signer = self._signer()
        key = VerifierKey.of(signer)
        with self._lock, self._writing() as connection:
            frontier = self._frontier(connection)
            head = Checkpoint(signer.name, frontier.size, frontier.root())
            note = next(
                (n for n in _notes(connection, frontier.size) if _signed(n, key) == head), None
            )
            if note is None:
                note = head.sign(signer)
                connection.execute(
                    "INSERT INTO checkpoints VALUES (?, ?, ?)",
                    (head.size, note, _stamp(self._now())),
                )
        if self._export is not None:
            self._publish(head, note, key)
        return note

    def _publish(self, head: Checkpoint, note: str, key: VerifierKey) -> None:
        folder = self._export
        if folder is None:
            return
        try:
            sizes = [
                int(m[1]) for p in folder.iterdir() if (m := _CHECKPOINT_NAME.fullmatch(p.name))
            ]
            if sizes:
                newest = folder / f"checkpoint-{max(sizes):012d}.txt"
                self._continues(Checkpoint.parse(newest.read_text("utf-8")))
            target = folder / f"checkpoint-{head.size:012d}.txt"
            if not target.exists():
                _place(target, note)
            public = folder / f"{key.name.replace('/', '_')}.pub"
            if not public.exists():
                _place(public, f"{key}\n")
        except (OSError, UnicodeDecodeError):
            raise AuditError("The folder for checkpoints cannot be used.") from None

    def _continues(self, former: Checkpoint) -> None:
        leaves = self.leaves(former.size)
        if len(leaves) < former.size or root_of(leaves) != former.root:
            raise AuditError(
                "The second principal holds a checkpoint that this audit log does not continue."
            )

    def erase(self, seq: int, *, actor: str, reason: str = "", ticket: str = "") -> None:
        """Destroy the content of an entry. All proofs still verify; that it was done is logged.

        Raises:
            AuditError: There is no such entry, or it cannot be written.
        """
        if not 0 <= seq < self.size:
            raise AuditError("The audit log has no entry of that number.")
        self.record(actor, "audit.erase", {"seq": seq, "reason": reason, "ticket": ticket}, "done")
        with self._lock, self._writing() as connection:
            connection.execute(
                "UPDATE entries SET r = NULL, body = NULL, sealed = NULL WHERE seq = ?", (seq,)
            )

    def prune(self, *, keep_years: int, actor: str = "role:audit") -> int:
        """Remove entries past their period, down to the hash that keeps the tree provable.

        Always from the beginning on and without a gap; its own entry says up to which number, so
        that whoever verifies an export sees if more is gone.

        Args:
            keep_years: Whole calendar years that an entry stays after its own.
            actor: Who does it.

        Returns:
            How many.

        Raises:
            AuditError: It cannot be written.
        """
        limit = f"{self._now().astimezone(UTC).year - keep_years:04d}"
        with self._reading() as connection:
            # A clock that was set back must not leave a gap, nor take what is younger.
            query = (
                "SELECT coalesce((SELECT min(seq) FROM entries WHERE time >= ?),"
                " (SELECT max(seq) + 1 FROM entries), 0)"
            )
            (kept_from,) = connection.execute(query, (limit,)).fetchone()
            query = "SELECT count(*) FROM entries WHERE time IS NOT NULL AND seq < ?"
            (count,) = connection.execute(query, (kept_from,)).fetchone()
        if not count:
            return 0
        what = {"until": limit, "count": count, "kept_from": kept_from}
        self.record(actor, "audit.prune", what, "done")
        with self._lock, self._writing() as connection:
            connection.execute(
                "UPDATE entries SET time = NULL, actor = NULL, action = NULL, object_commit = NULL,"
                " policy_digest = NULL, result = NULL, r = NULL, body = NULL, sealed = NULL"
                " WHERE time IS NOT NULL AND seq < ?",
                (kept_from,),
            )
        return int(count)

    # --- Asking -------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Number of entries."""
        with self._reading() as connection:
            return self._frontier(connection).size

    @property
    def key(self) -> VerifierKey | None:
        """The public key that verifies what this process signs."""
        return None if self._signer is None else VerifierKey.of(self._signer())

    def entries(
        self,
        *,
        action: str = "",
        actor: str = "",
        since: datetime | None = None,
        first: int = 0,
        last: int | None = None,
    ) -> list[Entry]:
        """Give entries in order, those that are left of them.

        Args:
            action: Only this one, or all that begin with it if it ends with a dot.
            actor: Only of this one.
            since: Only from this aware time on.
            first: Lowest number.
            last: Highest number; None for no bound.
        """
        query = (
            f"SELECT {_COLUMNS} FROM entries WHERE time IS NOT NULL AND seq BETWEEN ? AND ?"  # noqa: S608
            " AND (? = '' OR action = ? OR (? LIKE '%.' AND substr(action, 1, length(?)) = ?))"
            " AND (? = '' OR actor = ?) AND time >= ? ORDER BY seq"
        )
        from_time = "" if since is None else _stamp(since)
        bounds = (first, _EXACT if last is None else last)
        with self._reading() as connection:
            rows = connection.execute(query, (*bounds, *([action] * 5), actor, actor, from_time))
            return [_entry(row) for row in rows]

    def covers(self, seq: int, what: Body) -> bool:
        """Tell whether an entry was about exactly this, sealed members included.

        False also if it was erased: then nobody can tell.
        """
        found = self.entries(first=seq, last=seq)
        return bool(found and found[0].r) and hmac.compare_digest(
            _commit(found[0].r, {**what, **_seal(found[0].r, what)}), found[0].object_commit
        )

    def leaves(self, size: int | None = None) -> list[bytes]:
        """Give the hashes of the first `size` entries, or of all, as they are stored."""
        with self._reading() as connection:
            query = "SELECT hash FROM entries WHERE seq < ? ORDER BY seq"
            return [
                row[0] for row in connection.execute(query, (_EXACT if size is None else size,))
            ]

    def checkpoints(self) -> list[tuple[str, str]]:
        """Give all notes with the time they were signed at, oldest first."""
        with self._reading() as connection:
            query = "SELECT note, at FROM checkpoints ORDER BY size, at"
            return [(note, at) for note, at in connection.execute(query)]

    def export(self) -> Iterator[str]:
        """Write the whole log as lines of JSON: a head, all checkpoints, all entries.

        This is what `verify` reads. It holds the contents that were not erased.

        Raises:
            AuditError: It cannot be read.
        """
        yield json.dumps({"format": _FORMAT}) + "\n"
        for note, _ in self.checkpoints():
            yield json.dumps({"checkpoint": note}, ensure_ascii=False) + "\n"
        step, first = 1000, 0
        while True:
            with self._reading() as connection:
                rows = connection.execute(
                    f"SELECT {_COLUMNS}, hash FROM entries WHERE seq BETWEEN ? AND ? ORDER BY seq",  # noqa: S608
                    (first, first + step - 1),
                ).fetchall()
            for row in rows:
                if row[1] is None:
                    yield json.dumps({"seq": row[0], "hash": row[-1].hex()}) + "\n"
                else:
                    yield json.dumps(_entry(row[:-1]).as_json(), ensure_ascii=False) + "\n"
            if not rows:
                return
            first += step

    def prove(self, seq: int) -> dict[str, Any]:
        """Prove that an entry is in the tree of the newest checkpoint, which is made if needed.

        Returns:
            What `verify_proof` reads: entry, index, size, hashes in hex, and the signed note.

        Raises:
            AuditError: There is no such entry, it is past its period, or nothing signs.
        """
        note = self.checkpoint()
        size = Checkpoint.parse(note).size
        found = self.entries(first=seq, last=seq)
        if not found or seq >= size:
            raise AuditError("The audit log has no entry of that number, or it is past its period.")
        proof = inclusion_proof(self.leaves(size), seq)
        return {
            "format": _PROOF,
            "entry": found[0].as_json(),
            "size": size,
            "proof": [node.hex() for node in proof],
            "checkpoint": note,
        }

    def prove_growth(self, former: str) -> dict[str, Any]:
        """Prove that this log continues the one of an earlier checkpoint.

        Args:
            former: A signed note of this log.

        Raises:
            AuditError: It does not, or nothing signs.
        """
        earlier = Checkpoint.parse(former)
        self._continues(earlier)
        note = self.checkpoint()
        size = Checkpoint.parse(note).size
        proof = consistency_proof(self.leaves(size), earlier.size)
        return {
            "format": _PROOF,
            "former": former,
            "proof": [node.hex() for node in proof],
            "checkpoint": note,
        }

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    # --- The file -----------------------------------------------------------------------------

    def _frontier(self, connection: sqlite3.Connection) -> Frontier:
        try:
            size, nodes = connection.execute("SELECT size, nodes FROM tree").fetchone()
            return Frontier(
                size, [nodes[i : i + HASH_BYTES] for i in range(0, len(nodes), HASH_BYTES)]
            )
        except (ValueError, TypeError):
            raise AuditError(_DAMAGED) from None

    def _fits_its_checkpoint(self) -> None:
        """Refuse a file whose newest tree, entries and checkpoint contradict each other."""
        with self._reading() as connection:
            frontier = self._frontier(connection)
            query = "SELECT count(*), coalesce(max(seq) + 1, 0) FROM entries"
            if connection.execute(query).fetchone() != (frontier.size, frontier.size):
                raise AuditError(_DAMAGED)
            query = "SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1"
            row = connection.execute(query).fetchone()
            if row is not None:
                newest = Checkpoint.parse(row[0])
                same = newest.size != frontier.size or newest.root == frontier.root()
                if newest.size > frontier.size or not same:
                    raise AuditError(_DAMAGED)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, durable when it ends."""
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error:
            raise AuditError("The audit log cannot be written.") from None

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error:
                raise AuditError("The audit log cannot be read.") from None


def _place(target: Path, text: str) -> None:
    """Put a file in place whole and durable, for the second principal to read."""
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    with fresh.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fchmod(file.fileno(), 0o644)  # whatever the umask: its reader is another user
        os.fsync(file.fileno())
    fresh.replace(target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _check(actor: str, action: str, what: Body, result: str, policy_digest: str) -> None:
    """Refuse what no entry may say. The message names no value: it could be the leak."""
    allowed = ACTIONS.get(action)
    if allowed is None or not set(what) <= allowed:
        raise AuditError("An audit entry has an action or a member that is not declared.")
    for name, value in what.items():
        if isinstance(value, str):
            hidden = name in _SEALED
            if not _VALUE.fullmatch(value) or ("ps1_" in value and not hidden):
                raise AuditError("An audit entry holds a value that it must not hold.")
    shapes = ((_ACTOR, actor), (_RESULT, result), (_DIGEST, policy_digest))
    if not all(shape.fullmatch(text) for shape, text in shapes):
        raise AuditError("An audit entry has an actor, a result or a policy of the wrong form.")


def _entry(row: Sequence[Any]) -> Entry:
    *leaf, r, body, sealed = row
    return Entry(
        **dict(zip(_LEAF_MEMBERS, leaf, strict=True)),
        r=r or b"",
        body=None if body is None else json.loads(body),
        # Earlier builds kept the names alone.
        sealed=json.loads(sealed) if sealed and sealed[0] == "{" else {},
    )


def _notes(connection: sqlite3.Connection, size: int) -> list[str]:
    query = "SELECT note FROM checkpoints WHERE size = ?"
    return [row[0] for row in connection.execute(query, (size,))]


def _signed(note: str, key: VerifierKey) -> Checkpoint | None:
    try:
        return Checkpoint.open(note, [key])
    except AuditError:
        return None


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- Who ------------------------------------------------------------------------------------------

_UNSET: Final = 2**32 - 1


def actor_of(uid: int | None = None, pid: int | None = None) -> str:
    """Name who is behind a process, as an entry says it: ``user:NAME``.

    The login uid, where the kernel has one: it is set once when a person logs in and stays through
    sudo and su. Else the real user id. What the environment says does not count.

    Args:
        uid: Real user id of the process; by default this one's.
        pid: The process; by default this one.

    Source:
        Linux, proc_pid_loginuid(5), pam_loginuid(8).
    """
    real = os.getuid() if uid is None else uid
    with suppress(OSError, ValueError):
        login = int(Path(f"/proc/{'self' if pid is None else pid}/loginuid").read_text("ascii"))
        real = real if login == _UNSET else login
    try:
        name = pwd.getpwuid(real).pw_name
    except KeyError:
        name = ""
    actor = f"user:{name}"
    return actor if _ACTOR.fullmatch(actor) else f"user:uid-{real}"


class _Key(Protocol):
    """What has a name and a place in a keyset."""

    @property
    def kid(self) -> str: ...
    @property
    def use(self) -> str: ...
    @property
    def domain(self) -> str: ...
    @property
    def epoch(self) -> str: ...
    @property
    def version(self) -> int: ...


KEY_ACTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "created": "key.create",
        "promoted": "key.promote",
        "scheduled": "key.schedule",
        "destroyed": "key.destroy",
    }
)
"""The action by what was done to a key."""


def about_key(key: _Key) -> Body:
    """Say which key an entry is about: its name and place, nothing of itself."""
    return {
        "kid": key.kid,
        "use": key.use,
        "domain": key.domain,
        "epoch": key.epoch,
        "version": key.version,
    }


# --- Verifying, with public keys alone ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a log.

    Attributes:
        kind: What was done to it, as far as that can be told.
        at: Number of the entry, or size of the tree, where it shows.
        text: For a person to read. Holds nothing of an entry.
    """

    kind: Literal["edit", "drop", "reorder", "fork", "signature", "form"]
    at: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a verification found.

    Attributes:
        size: Entries in the file.
        covered: Entries that a valid checkpoint vouches for. Those after it are vouched for by
            nothing yet.
        erased: Entries whose content was destroyed by rule.
        findings: Empty if the log is what was signed.
    """

    size: int = 0
    covered: int = 0
    erased: int = 0
    findings: tuple[Finding, ...] = field(default=())

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


def verify(
    lines: Iterable[str], keys: Sequence[VerifierKey], *, witnessed: Iterable[str] = ()
) -> Report:
    """Verify an exported log, offline.

    Args:
        lines: What `AuditLog.export` wrote.
        keys: Public keys of the log, obtained from somewhere else than the file.
        witnessed: Checkpoints that a second principal kept. Without any, whoever holds the
            signing key can show a rewritten log; with one, he cannot before its size.

    Returns:
        A report. It never raises for what the file holds.
    """
    findings: list[Finding] = []
    numbers: list[int] = []
    hashes: list[bytes] = []
    own: list[str] = []
    gone: list[int] = []
    accounted: dict[int, int] = {}
    pruned: list[int] = []
    prunings: list[tuple[int, int]] = []
    for number, line in enumerate(lines):
        try:
            members = json.loads(line)
            if number == 0:
                if members != {"format": _FORMAT}:
                    findings.append(Finding("form", 0, "This is no export of an audit log."))
            elif set(members) == {"checkpoint"}:
                own.append(str(members["checkpoint"]))
            elif set(members) == {"seq", "hash"}:
                numbers.append(int(members["seq"]))
                hashes.append(bytes.fromhex(members["hash"]))
                pruned.append(numbers[-1])
            else:
                entry = Entry.from_json(members)
                if not entry.r:
                    gone.append(entry.seq)
                elif entry.action == "audit.erase":
                    accounted.setdefault(int((entry.body or {}).get("seq", -1)), entry.seq)
                elif entry.action == "audit.prune":
                    said = entry.body or {}
                    kept_from = int(said.get("kept_from", said.get("count", 0)))
                    prunings.append((entry.seq, kept_from))
                if not entry.content_fits():
                    text = "The content is not what was committed to."
                    findings.append(Finding("edit", entry.seq, text))
                numbers.append(entry.seq)
                hashes.append(leaf_hash(entry.leaf()))
        except (AuditError, ValueError, TypeError, AttributeError, RecursionError):
            findings.append(Finding("form", number, f"Line {number + 1} cannot be read."))
    covered, wrong = _against_checkpoints(hashes, keys, own, list(witnessed))
    # Anybody can take a content away; the log itself says which were destroyed by rule.
    # Anybody can add an entry after the last checkpoint, too: those account for nothing here.
    missing = [(seq, accounted.get(seq, covered) < covered) for seq in gone]
    kept = max((kept for seq, kept in prunings if seq < covered), default=0)
    missing += [(seq, seq == place < kept) for place, seq in enumerate(pruned)]
    findings += [
        Finding("edit", seq, "A content is gone, and no entry says that it was erased.")
        for seq, known in missing
        if not known
    ]
    findings += _order(numbers)
    return Report(
        size=len(hashes),
        covered=covered,
        erased=len(gone) + len(pruned),
        findings=(*findings, *wrong),
    )


def _order(numbers: Sequence[int]) -> Iterator[Finding]:
    if list(numbers) == list(range(len(numbers))):
        return
    first = next(place for place, number in enumerate(numbers) if place != number)
    if sorted(numbers) == list(range(len(numbers))):
        yield Finding("reorder", first, "Entries do not stand in the order of their numbers.")
    elif len(set(numbers)) < len(numbers):
        yield Finding("edit", first, "Two entries have one number.")
    else:
        yield Finding("drop", first, "An entry is missing here.")


def _against_checkpoints(
    hashes: Sequence[bytes], keys: Sequence[VerifierKey], own: list[str], witnessed: list[str]
) -> tuple[int, list[Finding]]:
    """Compare the tree with every checkpoint: what is vouched for, and what is wrong."""
    findings: list[Finding] = []
    heads: list[tuple[Checkpoint, bool]] = []
    for note, foreign in [*((n, False) for n in own), *((n, True) for n in witnessed)]:
        try:
            heads.append((Checkpoint.open(note, keys), foreign))
        except AuditError as error:
            findings.append(Finding("signature", 0, str(error)))
    if not heads:
        findings.append(Finding("signature", 0, "No valid checkpoint vouches for this log."))
    heads.sort(key=lambda head: (head[0].size, head[1]))
    roots: dict[int, set[bytes]] = {}
    for head, _ in heads:
        roots.setdefault(head.size, set()).add(head.root)
    forks = {size for size, found in roots.items() if len(found) > 1}
    findings += [
        Finding("fork", size, f"Two signed checkpoints at {size} entries contradict each other.")
        for size in sorted(forks)
    ]
    frontier, good, broken = Frontier(), 0, False
    for head, foreign in heads:
        if head.size > len(hashes):
            text = f"A checkpoint vouches for {head.size} entries; the log ends at {len(hashes)}."
            findings.append(Finding("drop", len(hashes), text))
            continue
        while frontier.size < head.size:
            frontier.push(hashes[frontier.size])
        if frontier.root() == head.root:
            # Once broken, only a rewritten tree can fit a later checkpoint.
            good = good if broken else head.size
        elif head.size in forks:
            broken = True
        elif foreign and not broken:
            text = f"This log does not continue a checkpoint of {head.size} entries kept elsewhere."
            findings.append(Finding("fork", head.size, text))
            broken = True
        elif not broken:
            text = f"Entries from {good} on were changed before checkpoint {head.size}."
            findings.append(Finding("edit", good, text))
            broken = True
    return good, findings


def verify_proof(document: Mapping[str, Any], keys: Sequence[VerifierKey]) -> bool:
    """Tell whether a proof of `AuditLog.prove` or `prove_growth` holds.

    Args:
        document: The proof.
        keys: Public keys of the log.
    """
    try:
        head = Checkpoint.open(document["checkpoint"], keys)
        proof = [bytes.fromhex(node) for node in document["proof"]]
        if document["format"] != _PROOF:
            return False
        if "former" in document:
            former = Checkpoint.open(document["former"], keys)
            return verify_consistency(
                earlier=former.size,
                earlier_root=former.root,
                later=head.size,
                later_root=head.root,
                proof=proof,
            )
        entry = Entry.from_json(document["entry"])
        fits = entry.content_fits()
    except (AuditError, KeyError, ValueError, TypeError, AttributeError):
        return False
    return fits and verify_inclusion(
        leaf_hash(entry.leaf()), index=entry.seq, size=head.size, proof=proof, root=head.root
    )
