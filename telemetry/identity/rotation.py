"""When keys come and go. Asked every few seconds, decided under the lock of the keyset.

Owns the calendar of keys and nothing else; a step that was done is not done again, so two
processes, a restart or a year of standstill make no difference.

==========  ======================================================================================
seal        a new pair each 30 days, announced to gateways 30 days before; the former opens what
            is late for 72 h and a day, then it is destroyed
token       of a quarter: announced 30 days before it begins; destroyed 7 days after the last event
            of the quarter may be kept at its recipient. Of a relationship: stays, until somebody
            orders another
wrap        by the vault, which has to wrap its rows anew first
others      by order only
==========  ======================================================================================

Source:
    SDM Baustein 60, M60.P09 (rules for keys of data to be erased); EDPB Guidelines 01/2025
    (consultation version), 115-121 (sets as small as possible).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from telemetry.identity.keyring import Key, Keyring
from telemetry.identity.pseudonym import epoch_label
from telemetry.retention import Period, retain_until

__all__ = ["ANNOUNCED", "SEAL_LAG", "Turn", "overdue", "tend"]

ANNOUNCED: Final = timedelta(days=30)
"""How long before its use a gateway learns a public key."""
SEAL_LAG: Final = timedelta(hours=72 + 24)
"""A sealed event waits for 72 h (DESIGN 5); a day more for clocks and whoever was away."""
_LATE: Final = timedelta(days=7)
_LONGEST: Final = Period(months=12)
_MONTHS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What was done to one key."""

    what: Literal["created", "promoted", "scheduled", "destroyed"]
    key: Key


def tend(
    keyring: Keyring,
    *,
    now: datetime,
    keeps: Mapping[str, Period] | None = None,
    holding: bool = False,
) -> list[Turn]:
    """Do what is due.

    Args:
        keyring: Of ``keyset.json``.
        now: Aware time.
        keeps: How long the recipient of a domain keeps events; 12 months where nothing is said.
        holding: Sealed events wait for the pseudonymizer, so that no key that opens them may go.

    Returns:
        What was done, in order.

    Raises:
        KeyringError: The keyset cannot be read or written; what was done until then is done.
    """
    with keyring.alone():
        keyring.settle()
        return [
            *_seal(keyring, now),
            *_quarters(keyring, now, keeps or {}),
            *_destroy(keyring, now, holding=holding),
        ]


def overdue(keys: Iterable[Key], now: datetime) -> list[Key]:
    """Give the keys that should be destroyed by now."""
    return [
        key
        for key in keys
        if key.state != "DESTROYED" and key.destroy_after is not None and key.destroy_after <= now
    ]


def _seal(keyring: Keyring, now: datetime) -> Iterable[Turn]:
    coming = sorted(
        (key for key in keyring.entries() if (key.use, key.state) == ("seal", "PRE_ACTIVE")),
        key=lambda key: key.not_before or now,
    )
    for key in coming:
        if key.not_before is not None and key.not_before <= now and not keyring.lacking(key.kid):
            promoted = keyring.promote(key.kid, destroy_former_after=now + SEAL_LAG)
            yield Turn(what="promoted", key=promoted)
    if not any((key.use, key.state) == ("seal", "PRE_ACTIVE") for key in keyring.entries()):
        created = keyring.create("seal", not_before=now + ANNOUNCED)
        yield Turn(what="created", key=created)


def _quarters(keyring: Keyring, now: datetime, keeps: Mapping[str, Period]) -> Iterable[Turn]:
    keys = [key for key in keyring.entries() if key.use == "token" and key.epoch != "rel"]
    this = epoch_label("quarter", now)
    following = epoch_label("quarter", _ends(this))
    soon = _ends(this) - ANNOUNCED <= now
    for domain in sorted({key.domain for key in keys if key.epoch == this}):
        if soon and not any((key.domain, key.epoch) == (domain, following) for key in keys):
            created = keyring.create(
                "token", domain=domain, epoch=following, not_before=_ends(this)
            )
            yield Turn(what="created", key=created)
    slots = {key.slot for key in keys if key.state in {"PRIMARY", "ENABLED"}}
    for key in keys:
        if (
            key.state == "PRE_ACTIVE"
            and key.not_before is not None
            and key.not_before <= now
            and key.slot not in slots
            and not keyring.lacking(key.kid)
        ):
            yield Turn(what="promoted", key=keyring.promote(key.kid))
    for key in keyring.entries():
        if key.use != "token" or key.epoch == "rel" or key.state == "DESTROYED":
            continue
        # The last event of the quarter, kept as long as may be, may still have to be erased at
        # its recipient, and for that its token has to be computed.
        due = retain_until(_ends(key.epoch), keeps.get(key.domain, _LONGEST)) + _LATE
        if key.destroy_after != due:
            yield Turn(what="scheduled", key=keyring.schedule(key.kid, due))


def _destroy(keyring: Keyring, now: datetime, *, holding: bool) -> Iterable[Turn]:
    for key in overdue(keyring.entries(), now):
        if key.use == "wrap" or (key.use == "seal" and holding):
            continue
        if key.state == "PRIMARY":
            if key.use != "token":
                continue
            keyring.disable(key.kid)
        keyring.destroy(key.kid)
        gone = next(one for one in keyring.entries() if one.kid == key.kid)
        yield Turn(what="destroyed", key=gone)


def _ends(epoch: str) -> datetime:
    """First moment after a quarter, in UTC.

    >>> _ends("2026q4").isoformat()
    '2027-01-01T00:00:00+00:00'
    """
    year, quarter = int(epoch[:4]), int(epoch[5:])
    return datetime(year + quarter // 4, quarter % 4 * _MONTHS + 1, 1, tzinfo=UTC)
