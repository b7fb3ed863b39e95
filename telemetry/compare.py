"""Two policies, one event: which of them lets more out, field by field.

Compares explanations (`telemetry.explain`), so it judges by what would really leave and not by what
two files say. Where neither result can be made from the other, it says so instead of guessing.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Literal, NamedTuple

from telemetry.explain import Explanation, Row

__all__ = ["Change", "Direction", "compare"]

Direction = Literal["NARROWS", "WIDENS", "EQUAL", "UNDECIDED"]


class Change(NamedTuple):
    """One field under two policies.

    Attributes:
        path: As in `Row`; empty for the event as a whole.
        direction: ``NARROWS`` if the second lets less out, ``WIDENS`` if more, ``EQUAL``, or
            ``UNDECIDED`` where neither can be told from the two results.
        before, after: Its row under the first and under the second policy; None if it has none.
    """

    path: str
    direction: Direction
    before: Row | None
    after: Row | None


def compare(first: Explanation, second: Explanation) -> list[Change]:
    """Compare what one recipient gets of one event under two policies, field by field.

    What tells of the policy itself, its digest and the remarks, does not count as a difference.
    """
    left, right = _by_path(first), _by_path(second)
    order = [*left, *(key for key in right if key not in left)]
    return [
        Change(
            key[0],
            _direction(left.get(key), right.get(key), first, second),
            left.get(key),
            right.get(key),
        )
        for key in order
    ]


def _by_path(explanation: Explanation) -> dict[tuple[str, int], Row]:
    seen: Counter[str] = Counter()
    rows = {}
    for row in explanation.rows:
        if row.verdict == "added" and (
            row.rules == ("remarks",) or row.after == explanation.policy
        ):
            continue
        seen[row.path] += 1
        rows[row.path, seen[row.path]] = row
    return rows


def _direction(
    one: Row | None, other: Row | None, first: Explanation, second: Explanation
) -> Direction:
    before = None if one is None or one.verdict == "removed" else one
    after = None if other is None or other.verdict == "removed" else other
    if before is None or after is None:
        return "EQUAL" if before is after else "WIDENS" if before is None else "NARROWS"
    if "pseudonymize" in before.rules and "pseudonymize" in after.rules:
        if first.epoch != second.epoch:
            return "NARROWS" if second.epoch == "quarter" else "WIDENS"
        return "EQUAL" if before.after == after.after else "UNDECIDED"
    if before.after == after.after:
        return "EQUAL"
    narrows = _reveals_no_more(after.after, before.after)
    widens = _reveals_no_more(before.after, after.after)
    if narrows == widens:
        return "UNDECIDED"
    return "NARROWS" if narrows else "WIDENS"


_PLACEHOLDER = re.compile(r"<[a-z_]{1,32}(?::[1-9][0-9]{0,2})?>")
_PREFIX = re.compile(r"([0-9a-fA-F.:]+)/([0-9]{1,3})")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(?:Z|\+00:00)")


def _reveals_no_more(less: Any, more: Any) -> bool:
    """Tell whether one result can be made from the other, so that it tells no more."""
    if isinstance(less, dict) and isinstance(more, dict):
        return all(name in more and _reveals_no_more(less[name], more[name]) for name in less)
    if not isinstance(less, str) or not isinstance(more, str):
        return bool(less == more)
    if less == more:
        return True
    short, long = _PREFIX.fullmatch(less), _PREFIX.fullmatch(more)
    if short and long:
        return int(short[2]) < int(long[2])
    if _DATE.fullmatch(less) and _DATE.fullmatch(more):
        return less < more  # a retention: the shorter promises more
    if _TIME.fullmatch(less) and _TIME.fullmatch(more):
        return less < more and _trailing(less) > _trailing(more)
    return _fills(less, more)


def _trailing(time: str) -> int:
    """Count the places of a time that are rounded away."""
    digits = re.sub(r"\.0+|[^0-9]", "", time.partition("+")[0])
    return len(digits) - len(digits.rstrip("0"))


def _fills(template: str, text: str) -> bool:
    """Tell whether a text becomes the template when parts of it are replaced by placeholders."""
    pieces = _PLACEHOLDER.split(template)
    if len(pieces) == 1 or not text.startswith(pieces[0]) or not text.endswith(pieces[-1]):
        return False
    at, end = len(pieces[0]), len(text) - len(pieces[-1])
    for piece in pieces[1:-1]:
        found = text.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return at <= end
