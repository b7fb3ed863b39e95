"""Dead letters: parcels that went no further. Owns the rule that none of them is readable here.

The original is sealed to a public key whose private half does not belong on these hosts; in the
clear stand only what every parcel shows and a reason from a closed set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from telemetry.identity import DeadLetterSealer
from telemetry.parcel import Parcel

__all__ = ["Bury", "burying", "forgetting"]

Bury = Callable[[Parcel, str], Parcel]
"""Parcel and reason → dead letter."""


def burying(sealer: DeadLetterSealer) -> Bury:
    """Make dead letters whose originals open only where the private half of the key is."""

    def bury(parcel: Parcel, reason: str) -> Parcel:
        body = sealer.seal(parcel.body, event_id=parcel.event_id)
        return replace(parcel, reason=reason, body=body, remarks=b"")

    return bury


def forgetting(parcel: Parcel, reason: str) -> Parcel:
    """Make a dead letter without its original: where there is no key to seal it to."""
    return replace(parcel, reason=reason, body=b"", remarks=b"")
