"""The ways back: account to tokens, token to token, token to account. Few, limited, audited.

The first way needs none of this: the error reference is the event id. What is here is for whoever
has none, and has the rights of the pseudonymizer: it reads keyset and vault, and changes neither.
A look-up makes no subject, so walking a list of accounts leaves no trace of them in the vault.

`Lookup` computes. `WaysBack` decides whether it may: the policy names ways, reasons, persons and
limits, and every use and every refusal is in the audit log, on disk and under a signed checkpoint,
before anybody sees an answer. There is no table from tokens to accounts, here or anywhere.

Source:
    Art. 4(5), 5(2) and 32(4) GDPR; EDPB Guidelines 01/2025 (consultation version), 107-109: rate
    limits and logging of forward and reverse use; 128: nobody holds both secrets alone.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import re
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Final, Literal, NoReturn, TypeAlias

from telemetry.errors import AuditError, IdentifierError, RefusedError
from telemetry.identity import Domain, Identifier, Identity, guarded
from telemetry.identity import pseudonym as _pseudonym
from telemetry.identity.audit import AuditLog, Body
from telemetry.identity.pseudonym import Profile, Tokenizer, canonicalize, check
from telemetry.identity.vault import Held, Tombstoned, Unreadable
from telemetry.policy import WaysBackRules

__all__ = [
    "LiveToken",
    "Lookup",
    "Request",
    "Source",
    "WaysBack",
    "person_behind",
    "sweep_requests",
]

SubjectState: TypeAlias = Literal["known", "unknown", "erased"]

_STORE: Final = "ways_back.sqlite3"
_LETTERS: Final = {"u": "account", "o": "organization"}
_TOKEN = re.compile(r"ps1_([a-z0-9]{2,12})_([uomsdx])_[0-9a-hjkmnp-tv-z]{28}")
_REQUEST_ID = re.compile(r"[0-9a-f]{8}")
_TICKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/#:-]{0,63}")
_WORD: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_LIVE: Final = frozenset({"PRE_ACTIVE", "PRIMARY", "ENABLED"})
_MOST_KEYS: Final = 8
_CHUNK: Final = 500
_DAY: Final = timedelta(hours=24)
# Events may be a day ahead of the clock, and hosts' clocks apart.
_AHEAD: Final = timedelta(days=2)


# --- Computing ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """Where ids of one kind come from: a table of ``pseudonyms.toml``.

    Attributes:
        kind: ``account`` or ``organization``.
        namespace: Where they are unique.
        profile: What a valid one looks like.
    """

    kind: str
    namespace: str
    profile: Profile


@dataclass(frozen=True, slots=True)
class LiveToken:
    """A token under which a recipient may hold something of a subject now.

    Attributes:
        domain: ``purpose@recipient``.
        epoch: ``rel``, or a quarter whose key is still there.
        token: The pseudonym.
    """

    domain: str
    epoch: str
    token: str


class Lookup:
    """Computes tokens of subjects that are known, and makes none.

    Args:
        identity: Keyset and vault.
        sources: By kind.
        domains: All where tokens are valid.
        now: Aware wall clock.

    Raises:
        KeyringError: The keyset cannot be read.
    """

    def __init__(
        self,
        identity: Identity,
        sources: Mapping[str, Source],
        domains: Sequence[Domain],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        # It is the identity's other half, for the two stores that both read.
        self._identity = identity
        self._keyring = identity._keyring  # noqa: SLF001
        self._vault = identity._vault  # noqa: SLF001
        self._sources, self._domains, self._now = sources, tuple(domains), now
        self._made: dict[tuple[str, str, str], list[tuple[str, Tokenizer]]] = {}
        self._keyring.refresh()

    def tokens(self, kind: str, value: str) -> tuple[SubjectState, tuple[LiveToken, ...]]:
        """Give all tokens under which a subject may stand at the recipients now.

        Args:
            kind: ``account`` or ``organization``.
            value: Its id, as the application writes it.

        Returns:
            Whether there is such a subject, and its tokens for every live key.

        Raises:
            IdentifierError: It does not fit the profile.
            VaultError: The vault cannot be asked.
            KeyringError: A key cannot be read.
        """
        source = self._sources[kind]
        canonical = canonicalize(source.profile, value)
        held = self._held(source, [canonical])[canonical]
        if not isinstance(held, Held):
            return ("erased" if isinstance(held, Tombstoned) else "unknown"), ()
        found = tuple(
            LiveToken(domain.name, epoch, tokenizer(canonical, secret.expose()))
            for domain in self._domains
            for secret in _secrets(held)
            for epoch, tokenizer in self._tokenizers(domain, source, secret)
        )
        return "known", found

    def locator(self, kind: str, value: str) -> str:
        """Name a subject as the vault does, in hex: tells nothing to who has no locator key.

        Raises:
            IdentifierError: It does not fit the profile.
        """
        source = self._sources[kind]
        return _pseudonym.locator(
            self._keyring.secret("locator").expose(),
            kind=kind,
            namespace=source.namespace,
            canonical_id=canonicalize(source.profile, value),
        ).hex()

    def claim(self) -> None:
        """Keep every other process from a SQLite vault, before it is written.

        Raises:
            ConfigError: One serves it already.
        """
        self._vault.claim()

    def erase(self, kind: str, value: str, *, purposes: Iterable[str]) -> None:
        """Destroy a subject's secret and leave a tombstone. Again, it changes nothing.

        Raises:
            IdentifierError: It does not fit the profile.
            VaultError: It cannot be written.
        """
        source = self._sources[kind]
        canonical = canonicalize(source.profile, value)
        subject = Identifier(kind, source.namespace, canonical)
        self._identity.erase(subject, purposes=purposes)

    def domain_of(self, token: str) -> tuple[Domain, Source]:
        """Tell where a token is valid and whose kind it is.

        Raises:
            IdentifierError: It is none, cut off, of no recipient of this policy, or of a kind that
                has no way back (``invalid_token``, ``token_without_way``).
        """
        match = _TOKEN.fullmatch(token)
        if match is None or not check(token):
            raise IdentifierError("invalid_token")
        source = self._sources.get(_LETTERS.get(match[2], ""))
        if source is None:
            # A session's or device's hangs on an account: that token is the one to ask for.
            raise IdentifierError("token_without_way")
        for domain in self._domains:
            if domain.label == match[1]:
                return domain, source
        raise IdentifierError("invalid_token")

    def find(
        self, token: str, candidates: Iterable[str], *, seen: Callable[[int], None] | None = None
    ) -> tuple[str | None, int]:
        """Walk a list of ids until one has this token.

        Args:
            token: Of an account or organization.
            candidates: Ids as the application writes them; those that fit no profile are skipped.
            seen: Called with the number of candidates so far, every few hundred.

        Returns:
            The canonical id or None, and how many candidates were looked at.

        Raises:
            IdentifierError: As `domain_of`.
            VaultError: The vault cannot be asked.
            KeyringError: A key cannot be read.
        """
        domain, source = self.domain_of(token)
        raw, walk, count = token.encode(), iter(candidates), 0
        while chunk := list(islice(walk, _CHUNK)):
            fitting: list[str] = []
            for value in chunk:
                try:
                    fitting.append(canonicalize(source.profile, value))
                except IdentifierError:
                    continue
            count += len(chunk)
            for canonical, held in self._held(source, fitting).items():
                if isinstance(held, Held) and self._has(raw, domain, source, canonical, held):
                    return canonical, count
            if seen is not None:
                seen(count)
        return None, count

    def _has(
        self, token: bytes, domain: Domain, source: Source, canonical: str, held: Held
    ) -> bool:
        return any(
            hmac.compare_digest(tokenizer(canonical, secret.expose()).encode(), token)
            for secret in _secrets(held)
            for _, tokenizer in self._tokenizers(domain, source, secret)
        )

    def _held(
        self, source: Source, ids: Sequence[str]
    ) -> dict[str, Held | Tombstoned | Unreadable | None]:
        """Fetch the secrets of those who have one."""
        key = self._keyring.secret("locator").expose()
        locators = {
            canonical: _pseudonym.locator(
                key, kind=source.kind, namespace=source.namespace, canonical_id=canonical
            )
            for canonical in ids
        }
        found = self._vault.find(list(locators.values())) if locators else {}
        return {canonical: found.get(locator) for canonical, locator in locators.items()}

    def _tokenizers(
        self, domain: Domain, source: Source, held: Held
    ) -> list[tuple[str, Tokenizer]]:
        """Give what may have made tokens of a subject: at most eight keys, newest first."""
        # A subject uses one key for good: its pin. Who has none was here before any other key.
        pinned = held.pins.get(domain.name, "")
        known = self._made.get((domain.name, source.kind, pinned))
        if known is not None:
            return known
        keys = [
            key
            for key in self._keyring.entries()
            if (key.use, key.domain) == ("token", domain.name)
            and key.state in _LIVE
            # One that was announced for the next quarter has made no token yet.
            and (key.not_before is None or key.not_before <= self._now() + _AHEAD)
        ]
        lasting = [key for key in keys if key.epoch == "rel"]
        lasting = [key for key in lasting if key.kid == pinned] if pinned else lasting[:1]
        quarters = sorted((key for key in keys if key.epoch != "rel"), key=lambda key: key.epoch)
        made = [
            (
                key.epoch,
                Tokenizer(
                    key.secret.expose(),
                    domain=domain.name,
                    epoch=key.epoch,
                    kind=source.kind,
                    namespace=source.namespace,
                    label=domain.label,
                ),
            )
            for key in [*lasting, *reversed(quarters)][:_MOST_KEYS]
            if key.secret is not None
        ]
        self._made[domain.name, source.kind, pinned] = made
        return made


def _secrets(held: Held) -> tuple[Held, ...]:
    """Give what a subject's tokens at recipients may have been made with, the present one first."""
    return (held,) if held.former is None else (held, held.former)


# --- Deciding -------------------------------------------------------------------------------------


def person_behind(actor: str, rules: WaysBackRules) -> str:
    """Name somebody as the audit log does: a person of the policy, else the user as they are.

    Args:
        actor: ``user:NAME`` from `telemetry.identity.audit.actor_of`.
        rules: Of the live policy.
    """
    user = actor.removeprefix("user:")
    named = next((name for name, person in rules.person.items() if person.user == user), None)
    return actor if named is None else f"person:{named}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request to re-identify a token. Shows the token to nobody.

    Attributes:
        id: Eight characters.
        domain: Where the token is from.
        reason: A reason of the policy.
        ticket: Where it is explained.
        requester: Who asked.
        until: When it is void.
        approver: Who agreed; empty so far.
        state: ``requested``, ``approved``, ``answered`` or ``void``.
    """

    id: str
    domain: str
    reason: str
    ticket: str
    requester: str
    until: datetime
    approver: str = ""
    state: str = "requested"

    def entry(self) -> dict[str, str | int]:
        """Give what every audit entry of this request says."""
        return {
            "request": self.id,
            "reason": self.reason,
            "ticket": self.ticket,
            "until": self.until.isoformat(timespec="seconds"),
        }


class WaysBack:
    """The ways back of one person. One at a time: the others wait.

    Args:
        lookup: What computes.
        audit: The log that witnesses; it signs.
        state: The state folder; requests wait in it until they are answered or void.
        rules: Of the live policy.
        policy_digest: Of the live policy.
        person: Who is asking, from `person_behind`.
        now: Aware wall clock.
    """

    def __init__(
        self,
        lookup: Lookup,
        audit: AuditLog,
        *,
        state: Path,
        rules: WaysBackRules,
        policy_digest: str,
        person: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._lookup, self._audit, self._rules = lookup, audit, rules
        self._digest, self._person, self._now = policy_digest, person, now
        self._requests = _Requests(state / _STORE)

    # --- Account to tokens --------------------------------------------------------------------

    def tokens(
        self, kind: str, ids: Sequence[str], *, ticket: str = ""
    ) -> list[tuple[SubjectState | Literal["unfit"], tuple[LiveToken, ...]]]:
        """Give the live tokens of subjects, in the order of `ids`.

        Raises:
            RefusedError: The person has asked for too many within 24 hours.
            AuditError: It cannot be witnessed; nothing is given.
            VaultError: The vault cannot be asked.
        """
        what: dict[str, str | int] = {"kind": kind, "count": len(ids)}
        with self._requests.alone():
            if ticket:
                self._check_ticket("account.token", what, ticket)
                what["ticket"] = ticket
            self._check_limit("account.token", what, self._rules.token.per_person_and_day, len(ids))
            told: list[tuple[SubjectState | Literal["unfit"], tuple[LiveToken, ...]]] = []
            for value in ids:
                try:
                    told.append(self._lookup.tokens(kind, value))
                except IdentifierError:
                    told.append(("unfit", ()))
            domains = sorted({token.domain for _, found in told for token in found})
            # In the result, which no erasure of the content takes away: the limit rests on it.
            result = f"done:{len(ids)}"
            self._witness("account.token", what | {"domains": " ".join(domains)}, result)
            return told

    # --- Erasure ------------------------------------------------------------------------------

    def order_erasure(
        self, kind: str, ids: Sequence[str], *, reason: str, ticket: str
    ) -> tuple[str, list[tuple[SubjectState, tuple[LiveToken, ...]]]]:
        """Witness that subjects are going to be erased, and give what recipients hold of them.

        Nobody can compute these tokens once the secrets are gone. Each entry commits to its subject
        by the locator, which nobody reads in it, and nobody finds without the locator key.

        Args:
            kind: ``account`` or ``organization``.
            ids: As the application writes them; each fits the profile.
            reason: A word: why.
            ticket: Where it is explained.

        Returns:
            The number of the request, and the live tokens of each, in the order of `ids`.

        Raises:
            RefusedError: There is no such ticket or reason.
            IdentifierError: An id does not fit; nothing is witnessed.
            AuditError: It cannot be witnessed; nothing may be erased.
            VaultError: The vault cannot be asked.
        """
        request = secrets.token_hex(4)
        what: dict[str, str | int] = {"request": request, "kind": kind}
        with self._requests.alone():
            self._check_ticket("erasure", what, ticket)
            if not _WORD.fullmatch(reason):
                self._refuse("erasure", what, "reason", "A reason is a word of a-z, 0-9, - and _.")
            what |= {"reason": reason, "ticket": ticket}
            subjects = [self._lookup.locator(kind, value) for value in ids]
            told = [self._lookup.tokens(kind, value) for value in ids]
            for subject in subjects:
                body = what | {"state": "ordered", "subject": subject}
                self._audit.record(self._person, "erasure", body, "begun", self._digest)
            self._audit.checkpoint()
        return request, told

    def erase(self, kind: str, ids: Sequence[str], *, purposes: Sequence[str]) -> None:
        """Destroy the secrets of subjects whose erasure was ordered. Errors as `Lookup.erase`."""
        for value in ids:
            self._lookup.erase(kind, value, purposes=purposes)

    def erased(self, request: str, kind: str, count: int) -> None:
        """Witness that the subjects of a request are erased.

        Raises:
            AuditError: It cannot be witnessed; they are erased all the same.
        """
        what: dict[str, str | int] = {"request": request, "kind": kind, "count": count}
        self._witness("erasure", what | {"state": "erased"}, "done")

    def claim(self) -> None:
        """Keep others from the vault. Errors as `Lookup.claim`."""
        self._lookup.claim()

    def fits(self, kind: str, value: str) -> bool:
        """Tell whether an id is one at all."""
        try:
            self._lookup.locator(kind, value)
        except IdentifierError:
            return False
        return True

    # --- Token to token -----------------------------------------------------------------------

    def join(self, tokens: Sequence[str], value: str, *, reason: str, ticket: str) -> bool:
        """Tell whether tokens of different recipients are all of one subject, who is named.

        Args:
            tokens: Of accounts or organizations, at least two.
            value: The id of the candidate.
            reason: A reason of the policy.
            ticket: Where it is explained.

        Raises:
            RefusedError: The policy does not allow it, or not to this person, or not so often.
            AuditError: It cannot be witnessed; nothing is told.
            VaultError: The vault cannot be asked.
        """
        action, rules = "account.join", self._rules.join
        what: dict[str, str | int] = {"count": 1}
        with self._requests.alone():
            if not rules.enabled:
                self._refuse(action, what, "off", "The policy has no join between recipients.")
            self._check_part(action, what, "join")
            self._check_why(action, what, reason, ticket, "join")
            what |= {"reason": reason, "ticket": ticket}
            self._check_limit(action, what, rules.per_person_and_day)
            try:
                places = [self._lookup.domain_of(token) for token in tokens]
                kinds = {source.kind for _, source in places}
                domains = {domain.name for domain, _ in places}
                if len(kinds) != 1 or len(domains) < 2:  # noqa: PLR2004 - one is no join
                    text = "Name tokens of one kind from different recipients."
                    self._refuse(action, what, "tokens", text)
                (kind,) = kinds
                _, live = self._lookup.tokens(kind, value)
            except IdentifierError:
                self._refuse(action, what, "invalid", "A token or the id is none of this policy.")
            what |= {"kind": kind, "domains": " ".join(sorted(domains)), "tokens": " ".join(tokens)}
            same = {token.token for token in live} >= set(tokens)
            self._witness(action, what, "done:same" if same else "done:different")
            return same

    # --- Token to account ---------------------------------------------------------------------

    def request(self, token: str, *, reason: str, ticket: str) -> Request:
        """Ask that a token be re-identified. Somebody else has to agree.

        Raises:
            RefusedError: The policy does not allow it, or not to this person, or not so often.
            AuditError: It cannot be witnessed; nothing was asked.
        """
        action, rules = "reidentify.request", self._rules.reidentify
        what: dict[str, str | int] = {}
        with self._requests.alone():
            self._check_on(action, what)
            self._check_part(action, what, "request")
            self._check_why(action, what, reason, ticket, "reidentify")
            what |= {"reason": reason, "ticket": ticket}
            self._check_limit(action, what, rules.per_person_and_day)
            try:
                domain, _ = self._lookup.domain_of(token)
            except IdentifierError:
                text = "This is no whole token of an account or organization of this policy."
                self._refuse(action, what, "token", text)
            made = Request(
                id=secrets.token_hex(4),
                domain=domain.name,
                reason=reason,
                ticket=ticket,
                requester=self._person,
                until=self._now().replace(microsecond=0) + timedelta(hours=rules.valid_hours),
            )
            seq = self._witness(action, self._asked(made, token), "done")
            self._requests.add(made, token, seq)
            return made

    @staticmethod
    def _asked(request: Request, token: str) -> dict[str, str | int]:
        return request.entry() | {"domain": request.domain, "token": token}

    def approve(self, request_id: str) -> Request:
        """Agree to another person's request.

        Raises:
            RefusedError: There is no such open request, it is the person's own, or they may not.
            AuditError: It cannot be witnessed; it is not approved.
        """
        action = "reidentify.approve"
        with self._requests.alone():
            found = self._open_request(action, request_id)
            what = found.entry()
            self._check_on(action, what)
            self._check_part(action, what, "approve")
            if found.state != "requested":
                self._refuse(action, what, "state", "This request was approved already.")
            if self._person == found.requester:
                self._refuse(action, what, "same_person", "Nobody approves a request of their own.")
            self._witness(action, what, "done")
            return self._requests.approve(found, self._person)

    def run(
        self,
        request_id: str,
        candidates: Iterable[str],
        *,
        seen: Callable[[int], None] | None = None,
    ) -> str | None:
        """Look for the account of an approved request. The answer is given once.

        Args:
            request_id: The person's own request.
            candidates: Ids as the application writes them.
            seen: As for `Lookup.find`.

        Returns:
            The canonical id, after which token and request are gone; or None, after which it may
            be run with other candidates until it is void.

        Raises:
            RefusedError: It is not approved, not this person's, void, or not so often; or store
                and audit log contradict each other.
            AuditError: It cannot be witnessed; nothing is shown.
            VaultError: The vault cannot be asked.
        """
        action = "reidentify.run"
        with self._requests.alone():
            found = self._open_request(action, request_id)
            what = found.entry()
            self._check_on(action, what)
            self._check_part(action, what, "request")
            self._check_why(action, what, found.reason, found.ticket, "reidentify")
            if self._person != found.requester:
                self._refuse(action, what, "not_requester", "Only who asked sees the answer.")
            if found.state != "approved":
                self._refuse(action, what, "not_approved", "A second person has not approved it.")
            token, seq = self._requests.token(found)
            if not self._witnessed(found, token, seq):
                text = "The audit log does not hold this request with its approval."
                self._refuse(action, what, "contradiction", text)
            self._check_limit(action, what, self._rules.reidentify.per_person_and_day)
            self._witness(action, what, "started")
            try:
                answer, count = self._lookup.find(token, candidates, seen=seen)
            except BaseException:
                self._witness("reidentify.result", what, "failed")
                raise
            result = "not_found" if answer is None else "found"
            self._witness("reidentify.result", what | {"candidates": count}, result)
            if answer is not None:
                self._requests.end(found, "answered")
            return answer

    def _witnessed(self, request: Request, token: str, seq: int) -> bool:
        """Tell whether the log holds this request, with this token, and another's approval.

        The store could be edited by whoever may write it; the log cannot, unseen.
        """
        asked = self._audit.entries(first=seq, last=seq)
        agreed = [
            entry.actor
            for entry in self._audit.entries(action="reidentify.approve", first=seq)
            if entry.result == "done" and (entry.body or {}).get("request") == request.id
        ]
        return (
            [(e.action, e.actor, e.result) for e in asked]
            == [("reidentify.request", request.requester, "done")]
            and self._audit.covers(seq, self._asked(request, token))
            and request.approver in agreed
            and request.approver != request.requester
        )

    def requests(self) -> list[Request]:
        """Give the requests that are open, oldest first. Void ones are cleared away."""
        with self._requests.alone():
            return [one for one in self._requests.all(self._now()) if one.state != "answered"]

    def refuse_arguments(self, action: str) -> NoReturn:
        """Refuse ids that stand on the command line, where other users and the history see them.

        Raises:
            RefusedError: Always.
            AuditError: It cannot be witnessed.
        """
        text = (
            "Ids on the command line are seen by other users and kept in the history of the shell."
            " Give them by prompt, standard input or --ids, and remove them there."
        )
        self._refuse(action, {}, "argv", text)

    # --- Checks -------------------------------------------------------------------------------

    def _check_on(self, action: str, what: Body) -> None:
        if not self._rules.reidentify.enabled:
            text = "The policy has no way from a token to an account (ways_back.toml)."
            self._refuse(action, what, "off", text)

    def _check_part(
        self, action: str, what: Body, part: Literal["join", "request", "approve"]
    ) -> None:
        person = self._rules.person.get(self._person.removeprefix("person:"))
        if not self._person.startswith("person:") or person is None or part not in person.may:
            self._refuse(action, what, "person", "The policy does not name you for this.")

    def _check_why(
        self, action: str, what: Body, reason: str, ticket: str, way: Literal["join", "reidentify"]
    ) -> None:
        named = self._rules.reason.get(reason)
        if named is None or way not in named.ways:
            allowed = [name for name, one in self._rules.reason.items() if way in one.ways]
            text = f"The policy has no such reason for it. It has: {', '.join(allowed) or 'none'}."
            self._refuse(action, what, "reason", text)
        self._check_ticket(action, what, ticket)

    def _check_ticket(self, action: str, what: Body, ticket: str) -> None:
        if not _TICKET.fullmatch(ticket):
            text = "A ticket has up to 64 letters, digits and marks (-._/#:), and is needed."
            self._refuse(action, what, "ticket", text)

    def _check_limit(self, action: str, what: Body, limit: int, count: int = 1) -> None:
        used = 0
        since = self._now() - _DAY
        for entry in self._audit.entries(action=action, actor=self._person, since=since):
            if not entry.result.startswith("refused"):
                number = entry.result.rpartition(":")[2]
                used += int(number) if number.isdecimal() else 1
        if used + count > limit:
            text = f"You may do this {limit} times within 24 hours; {used} were used."
            self._refuse(action, what, "limit", text)

    def _open_request(self, action: str, request_id: str) -> Request:
        fits = _REQUEST_ID.fullmatch(request_id)
        every = self._requests.all(self._now()) if fits else []
        found = next((one for one in every if one.id == request_id), None)
        if found is None or found.state in {"answered", "void"}:
            named = {"request": request_id} if fits else {}
            self._refuse(action, named, "no_request", "There is no such open request.")
        return found

    def _refuse(self, action: str, what: Body, reason: str, text: str) -> NoReturn:
        """Witness a refusal, then refuse. What was asked for has no values a person could type."""
        self._witness(action, what, f"refused:{reason}")
        raise RefusedError(text)

    def _witness(self, action: str, what: Body, result: str) -> int:
        seq = self._audit.record(self._person, action, what, result, self._digest)
        self._audit.checkpoint()
        return seq

    def close(self) -> None:
        """Let go of the store of requests."""
        self._requests.close()


def sweep_requests(state: Path, now: datetime) -> int:
    """Delete the requests whose time is up, answered or not; the audit log keeps what it was told.

    Without it, a token would stay of a request that nobody ever came back to, and the names of who
    asked and approved for ever.

    Args:
        state: The state folder.
        now: Aware wall clock.

    Returns:
        How many were deleted.

    Raises:
        AuditError: The store cannot be used.
    """
    if not (state / _STORE).exists():
        return 0
    requests = _Requests(state / _STORE)
    try:
        with requests.alone():
            return requests.sweep(now)
    finally:
        requests.close()


class _Requests:
    """Requests until they are answered or void. A token is removed with its request."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            guarded.create(path)
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=10.0)
            for statement in (
                "PRAGMA journal_mode = DELETE",
                "PRAGMA synchronous = EXTRA",
                "PRAGMA secure_delete = ON",
                """CREATE TABLE IF NOT EXISTS requests (
                    id TEXT PRIMARY KEY, token TEXT, domain TEXT NOT NULL, reason TEXT NOT NULL,
                    ticket TEXT NOT NULL, requester TEXT NOT NULL, until TEXT NOT NULL,
                    approver TEXT NOT NULL, state TEXT NOT NULL, seq INTEGER NOT NULL
                ) STRICT""",
            ):
                self._connection.execute(statement)
        except (OSError, sqlite3.Error):
            raise AuditError("The store of requests cannot be opened.") from None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every other person waiting: limits and states are read and written as one."""
        try:
            handle = os.open(
                self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError:
            raise AuditError("The store of requests cannot be locked.") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        except sqlite3.Error:
            raise AuditError("The store of requests cannot be used.") from None
        finally:
            os.close(handle)

    def add(self, request: Request, token: str, seq: int) -> None:
        self._connection.execute(
            "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(request.id, token, request.domain, request.reason, request.ticket),
                *(request.requester, request.until.isoformat(), request.approver, request.state),
                seq,
            ),
        )

    def all(self, now: datetime) -> list[Request]:
        """Give what is there, and clear away what is void."""
        rows = self._connection.execute(
            "SELECT id, domain, reason, ticket, requester, until, approver, state FROM requests"
            " ORDER BY seq"
        ).fetchall()
        found = []
        for row_id, domain, reason, ticket, requester, until, approver, state in rows:
            one = Request(
                id=row_id,
                domain=domain,
                reason=reason,
                ticket=ticket,
                requester=requester,
                until=datetime.fromisoformat(until),
                approver=approver,
                state=state,
            )
            if state in {"requested", "approved"} and now >= one.until:
                self.end(one, "void")
                one = replace(one, state="void")
            found.append(one)
        return [one for one in found if one.state != "void"]

    def sweep(self, now: datetime) -> int:
        """Delete those whose time is up."""
        rows = self._connection.execute("SELECT id, until FROM requests").fetchall()
        gone = [(one,) for one, until in rows if now >= datetime.fromisoformat(until)]
        self._connection.executemany("DELETE FROM requests WHERE id = ?", gone)
        return len(gone)

    def approve(self, request: Request, approver: str) -> Request:
        self._connection.execute(
            "UPDATE requests SET state = 'approved', approver = ? WHERE id = ?",
            (approver, request.id),
        )
        return replace(request, state="approved", approver=approver)

    def token(self, request: Request) -> tuple[str, int]:
        """Give the token and the number of the audit entry that it was asked for with."""
        query = "SELECT token, seq FROM requests WHERE id = ?"
        token, seq = self._connection.execute(query, (request.id,)).fetchone()
        return token or "", seq

    def end(self, request: Request, state: str) -> None:
        self._connection.execute(
            "UPDATE requests SET state = ?, token = NULL WHERE id = ?", (state, request.id)
        )

    def close(self) -> None:
        self._connection.close()
