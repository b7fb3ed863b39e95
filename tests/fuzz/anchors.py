"""Texts made from each detector's pattern, by the thousand: where it finds something, a gate hits.

The gate decides whether a text is searched at all, so an anchor that is narrower than its pattern
is a leak that no other test sees. Hypothesis can make such texts too, a few hundred times slower.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple

from scrubbers.detectors import SEPARATOR, Detectors, searchable
from scrubbers.text import shipped_detectors

__all__ = ["Miss", "from_pattern", "search"]

ops: Final = re._constants  # type: ignore[attr-defined] # the names of its parser's nodes
_MOST: Final = 40
_WIDE: Final = "é\u00df\u00d8\u4e2d\u0457\uff11\uff20\uff0e"
_OTHERS: Final = "aZ0 _-.@:/=\"'<\\\n%&;,+#(é\u200b"
_AROUND: Final = (
    "", "", "", " ", "x", "7", ".", "=", ":", '"', "'", "/", "\n", "<", ">", "(", "_", "-", "@",
    "é", "user ", "id=", "<email:1>", "&", "\\", "\\n", '\\"', "%20", "\u200b", "tel: ", ", ",
)  # fmt: skip


class Miss(NamedTuple):
    """A text in which a detector finds something although the gate lets it pass."""

    detector: str
    text: str


def search(
    seconds: float, *, seed: int = 0, detectors: Detectors | None = None, least: int = 300
) -> tuple[list[Miss], int]:
    """Look for misses, every detector in turn.

    Args:
        seconds: Processor time to spend; each detector gets `least` texts even so.
        seed: Equal seeds make equal texts.
        detectors: A table; None takes the shipped one.
        least: Fewest texts of each detector.

    Returns:
        At most one miss for each detector, and how many texts were found to hold something.
    """
    detectors = detectors or shipped_detectors()
    made = {
        row.detector.id: from_pattern(row.detector.pattern, _draw(f"{seed} {row.detector.id}"))
        for row in detectors.rows
    }
    draw = _draw(str(seed))
    misses: dict[str, Miss] = {}
    claimed = rounds = 0
    end = time.process_time() + seconds
    while rounds < least or time.process_time() < end:
        rounds += 1
        for row in detectors.rows:
            if row.detector.id in misses:
                continue
            text = draw.choice(_AROUND) + next(made[row.detector.id]) + draw.choice(_AROUND)
            text = text.replace(SEPARATOR, " ")
            form = searchable(text)
            data = form.encode()
            if not _claims(detectors, row, data):
                continue
            claimed += 1
            fields = ["a", form, "b"]
            joined = SEPARATOR.join(fields).encode()
            ends = list(accumulate(len(field.encode()) + 1 for field in fields))
            if not (
                detectors.gate_bytes(data)
                and 1 in detectors.suspects(joined, ends)
                and any(one is row for one in detectors.candidates(data))
            ):
                misses[row.detector.id] = Miss(row.detector.id, text)
    return list(misses.values()), claimed


def _draw(seed: str) -> random.Random:
    return random.Random(seed)  # noqa: S311 - reproducible, no secret


_VALIDATED: Final = frozenset(("ipv6",))
"""Patterns that match far more than they claim: ``::`` alone."""


def _claims(detectors: Detectors, row: Any, data: bytes) -> bool:
    if row.detector.id in _VALIDATED:
        return next(detectors.find(row, data), None) is not None
    return bool(row.pattern.spans(data, 0)[0][0] >= 0)


def from_pattern(pattern: str, draw: random.Random) -> Iterator[str]:
    """Make texts that an expression matches, without end; the shortest and longest more often.

    Args:
        pattern: RE2's syntax, as far as Python reads it too.
        draw: Where the choices come from.
    """
    tree = re._parser.parse(  # type: ignore[attr-defined] # what reads expressions, nothing else does
        pattern.replace(r"\x{80}-\x{10ffff}", "\u00a1-\u02af").replace(r"\z", r"\Z")
    )
    folds = bool(tree.state.flags & re.IGNORECASE)
    while True:
        yield "".join(_pieces(tree, draw, folds))


def _pieces(tree: Any, draw: random.Random, folds: bool) -> Iterator[str]:
    for op, value in tree:
        if op is ops.LITERAL:
            yield _cased(chr(value), draw, folds)
        elif op is ops.NOT_LITERAL:
            yield draw.choice([one for one in _OTHERS if one != chr(value)])
        elif op is ops.ANY:
            yield draw.choice(_OTHERS.replace("\n", ""))
        elif op is ops.IN:
            yield _cased(_member(value, draw), draw, folds)
        elif op is ops.BRANCH:
            yield from _pieces(draw.choice(value[1]), draw, folds)
        elif op is ops.SUBPATTERN:
            _, added, removed, inner = value
            within = (folds or bool(added & re.IGNORECASE)) and not removed & re.IGNORECASE
            yield from _pieces(inner, draw, within)
        elif op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
            low, high, inner = value
            high = min(high, low + _MOST)
            count = draw.choice((low, low, low + 1, high, draw.randint(low, high)))
            for _ in range(min(count, high)):
                yield from _pieces(inner, draw, folds)
        elif op is not ops.AT:  # what stands around a value is the caller's
            raise NotImplementedError(str(op))


def _cased(text: str, draw: random.Random, folds: bool) -> str:
    return draw.choice((text, text, text.lower(), text.upper())) if folds else text


def _member(items: Sequence[Any], draw: random.Random) -> str:
    if items[0][0] is ops.NEGATE:
        allowed = re.compile(_class(items))
        found = [one for one in _OTHERS + _WIDE if allowed.fullmatch(one)]
        return draw.choice(found) if found else "z"
    op, value = draw.choice(items)
    if op is ops.LITERAL:
        return chr(value)
    if op is ops.RANGE:
        low, high = value
        return chr(draw.choice((low, high, draw.randint(low, high))))
    return draw.choice(_CATEGORIES[value])


_CATEGORIES: Final = {
    ops.CATEGORY_DIGIT: "0123456789",
    ops.CATEGORY_SPACE: " \t\n\r\f",
    ops.CATEGORY_WORD: "azAZ09_",
    ops.CATEGORY_NOT_SPACE: "aZ0._-@",
    ops.CATEGORY_NOT_DIGIT: "aZ ._-@",
    ops.CATEGORY_NOT_WORD: " .-@:/",
}


def _class(items: Sequence[Any]) -> str:
    written = {
        ops.CATEGORY_DIGIT: r"\d",
        ops.CATEGORY_SPACE: r"\s",
        ops.CATEGORY_WORD: r"\w",
    }
    inner = ""
    for op, value in items[1:]:
        if op is ops.LITERAL:
            inner += re.escape(chr(value))
        elif op is ops.RANGE:
            inner += f"{re.escape(chr(value[0]))}-{re.escape(chr(value[1]))}"
        else:
            inner += written[value]
    return f"(?a:[^{inner}])"
