"""Whole events: every leaf that a record declares, filled twice, and what leaves of it.

``tests/vectors/whole/KIND.json`` holds events of each kind and their outcomes:

- ``planted``: at each place what must not leave as it is. ``§word7§`` and the like stand for values
  of a person; two people must give the same outcome, and nothing of either may be in it;
- ``plain``: at each place what may stay, written as the loosest client writes it;
- ``loose``: lists of pairs in place of objects, and a release that looks like an address.

The events are written by hand and do not follow the records: weaken a treatment and a person comes
through, or the outcome differs. ``python -m tests.checks.whole`` writes the outcomes anew after a
change that is meant; look at what changed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from scrubbers.engine import Outcome, Rules, rescrub, scrub

__all__ = ["check_kept", "check_people", "check_settled", "events", "places", "rendered"]

FOLDER: Final = Path(__file__).parents[1] / "vectors" / "whole"
_SLOT = re.compile(r"§([a-z]+)([0-9]+)§")
_LETTERS: Final = "bdfghklmnp"
_MARKS: Final = (b"zqx", b"vrk", b"canary", b"2077")


@cache
def _filled(kind: str, which: str, person: int, only: str = "") -> bytes:
    event = _vector(kind)[which]
    return rendered({only: event[only]} if only else event, person)


@cache
def _vector(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{kind}.json").read_text("utf-8"))
    return found


def events(kind: str) -> Mapping[str, Any]:
    """Give the events of a kind by name, with slots."""
    return {which: event for which, event in _vector(kind).items() if which != "outcome"}


def rendered(event: Any, person: int) -> bytes:
    """Fill the slots of an event with the values of an invented person; give its JSON.

    Args:
        event: With slots.
        person: 0 to 4.
    """
    text = json.dumps(event, ensure_ascii=False)
    return _SLOT.sub(lambda slot: _value(slot[1], int(slot[2]), person), text).encode()


def _value(what: str, number: int, person: int) -> str:
    mark = "".join(_LETTERS[int(digit)] for digit in f"{person}{number:04}")
    return {
        # Two words that no detector knows: a name.
        "word": f"Zqx{mark} Vrk{mark[::-1]}",
        "code": f"zqx{mark}{number}vrk",
        "mail": f"zqx{mark}.canary@mail.example.org",
        "number": f"2077{person}{number:04}",
        "octet": str(10 + person * 40 + number % 40),
        # What is cut off of a time or a version: any digit.
        "digit": str(person + 1),
        "second": f"{person + 10}",
    }[what]


def places(event: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Give the way to every value of an event; ``[]`` stands for the items of a list."""
    if isinstance(event, dict):
        for name, value in event.items():
            yield from places(value, (*path, name))
    elif isinstance(event, list):
        for value in event:
            yield from places(value, (*path, "[]"))
    else:
        yield path


def check_people(rules: Rules, kind: str, *, only: str = "") -> None:
    """Require that it makes no difference whom an event is about, and that it shows nothing.

    Args:
        rules: What scrubs it.
        kind: Name of the record.
        only: The one key of the event to look at, which is faster; empty for all of it.
    """
    one, other = (scrub(_filled(kind, "planted", person, only), rules) for person in (1, 4))
    shown = one.event.lower() + repr(one.remarks).encode().lower()
    for mark in _MARKS:
        at = shown.find(mark)
        assert at < 0, f"{kind}: a planted value came through: …{shown[max(0, at - 60) : at]!r}"
    assert one.event == other.event, f"{kind}: two people give two outcomes"
    assert one.remarks == other.remarks, f"{kind}: two people leave other remarks"
    assert (one.event_id, one.event_time) == (other.event_id, other.event_time)


def check_kept(rules: Rules, kind: str) -> None:
    """Require that of all events stays what the vector says: no more and no less."""
    for which in events(kind):
        told = outcome_of(rules, _filled(kind, which, 1))
        wanted = _vector(kind)["outcome"][which]
        for part, value in told.items():
            assert value == wanted[part], f"{kind}, {which}: {part} is not what it was"


def check_settled(rules: Rules, kind: str) -> None:
    """Require that a second scrub changes nothing."""
    for which in events(kind):
        first = scrub(_filled(kind, which, 1), rules)
        again = rescrub(first.event, rules)
        assert (again.event, again.remarks, again.identifiers) == (first.event, [], [])


def outcome_of(rules: Rules, raw: bytes) -> dict[str, Any]:
    """Say what becomes of an event: what leaves, who is named, what was changed by which rule."""
    outcome: Outcome = scrub(raw, rules)
    return {
        "event": json.loads(outcome.event),
        "identifiers": [sort for sort, _ in outcome.identifiers],
        "event_id": outcome.event_id,
        "event_time": outcome.event_time.isoformat() if outcome.event_time else None,
        "remarks": [
            f"{'.'.join(map(str, remark.path))}: {remark.rule}, {remark.action}"
            for remark in outcome.remarks
        ],
    }


def main() -> int:
    """Write the outcomes of all kinds anew."""
    from tests.checks.shipped import rules_of

    for path in sorted(FOLDER.glob("*.json")):
        _vector.cache_clear()
        vector = _vector(path.stem)
        rules = rules_of(path.stem)
        check_people(rules, path.stem)
        vector["outcome"] = {
            which: outcome_of(rules, rendered(event, 1))
            for which, event in events(path.stem).items()
        }
        path.write_text(json.dumps(vector, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
