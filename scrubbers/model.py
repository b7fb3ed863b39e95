"""What scrubbing takes and gives. Owns the words `Remark` and `Action`; knows no rule.

Everything under ``scrubbers`` is pure: values in, values out. No I/O, no clock, no randomness, no
logging, no state that outlives a call except bounded caches of pure functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NewType

import msgspec

__all__ = ["Action", "AddressError", "Finding", "Remark", "RuleError", "Scrubbed"]

Action = Literal["remove", "replace", "reduce", "invalid"]
"""remove: the value is gone. replace: a placeholder stands there. reduce: only a class or a
prefix is left. invalid: the value did not fit its declared type and is gone."""

Scrubbed = NewType("Scrubbed", bytes)
"""JSON of a closed schema after every treatment. Only `scrubbers.scrub` makes one."""


class Remark(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One change to one value: that a value was there, and why it is not any more.

    Never holds the original value or its length. Its JSON is a list, in this order.

    Attributes:
        path: Declared names and list indexes from the root of the event. A name that is not
            declared (a key of an open map) stands as ``<key>``.
        rule: Id of the detector or treatment, for example ``email`` or ``strip``.
        action: What was done.
        start: First UTF-8 byte of the placeholder in the *new* value; 0 if the whole value went.
        end: Byte after the placeholder's last one; 0 if the whole value went.
    """

    path: tuple[str | int, ...]
    rule: str
    action: Action
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One span of a text that a detector claims, after validation. Offsets in code points."""

    detector: str
    start: int
    end: int


class AddressError(ValueError):
    """Text that is no IP address. The message never repeats it."""


class RuleError(ValueError):
    """A detector that cannot be used: it does not compile, breaks a lint, or fails its examples."""
