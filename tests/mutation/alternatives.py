"""Mutants of what stands inside a detector's expressions: each ``a|b|c`` without one of its parts.

What notices them: ``tests/vectors/alternatives.toml`` holds texts of each detector, of which each
alternative is needed by one. ``python -m tests.mutation.alternatives`` adds texts for alternatives
that nothing notices, made from the pattern by chance, and names those for which it found none.
"""

from __future__ import annotations

import json
import random
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from scrubbers.detectors import Detectors, _compile, _read, searchable
from scrubbers.model import RuleError
from tests.checks.promises import shipped_tables
from tests.fuzz.anchors import from_pattern

__all__ = ["Cut", "cuts", "examples", "groups", "is_noticed", "left", "texts"]

TEXTS: Final = Path(__file__).parents[1] / "vectors" / "alternatives.toml"
_SHOWN: Final = 48
_KEYS: Final = ("anchor", "pattern")
_AROUND: Final = ("", " ", "\x1e", '"', "x", "=", "\n")


class Cut(NamedTuple):
    """One alternative of one expression.

    Attributes:
        row: The detector.
        key: ``anchor`` or ``pattern``.
        name: Row, key and the alternative itself; with a number if it is there more than once.
        without: The expression without it.
        only: The expression with nothing but it in its group.
    """

    row: str
    key: str
    name: str
    without: str
    only: str


def groups(expression: str) -> Iterator[list[tuple[int, int]]]:
    """Give where the alternatives of each group stand, if it has several; the outermost last."""
    stack: list[list[int]] = [[0]]
    at = 0
    while at < len(expression):
        sign = expression[at]
        if sign == "\\":
            at += 2
            continue
        if sign == "[":
            at = _behind_class(expression, at)
            continue
        if sign == "(":
            stack.append([_behind_opening(expression, at)])
        elif sign == "|":
            stack[-1].append(at + 1)
        elif sign == ")":
            starts = stack.pop()
            if len(starts) > 1:
                yield list(zip(starts, [*(n - 1 for n in starts[1:]), at], strict=True))
        at += 1
    (starts,) = stack
    if len(starts) > 1:
        yield list(zip(starts, [*(n - 1 for n in starts[1:]), at], strict=True))


def _behind_class(expression: str, at: int) -> int:
    at += 2 if expression[at + 1] == "^" else 1
    first = True
    while expression[at] != "]" or first:
        at += 2 if expression[at] == "\\" else 1
        first = False
    return at + 1


def _behind_opening(expression: str, at: int) -> int:
    return expression.index(":", at) + 1 if expression[at + 1] == "?" else at + 1


@cache
def cuts(row: str) -> Sequence[Cut]:
    """List the alternatives of a detector's expressions as the table has them."""
    found = []
    for key in _KEYS:
        text = shipped_tables()["detectors.toml"]["detector"][row][key]
        seen: Counter[str] = Counter()
        for spans in groups(text):
            for n, (start, end) in enumerate(spans):
                last = n + 1 == len(spans)
                cut = (start - 1, end) if last else (start, end + 1)
                whole = text[: spans[0][0]], text[spans[-1][1] :]
                only = f"{whole[0]}{text[start:end]}{whole[1]}"
                name = f"{row}.{key}: {text[start:end][:_SHOWN]}"
                seen[name] += 1
                name += f" #{seen[name]}" if seen[name] > 1 else ""
                found.append(Cut(row, key, name, text[: cut[0]] + text[cut[1] :], only))
    return found


@cache
def examples(row: str) -> Sequence[str]:
    """Give the texts of a detector: its own examples, and those that are here for alternatives."""
    table = shipped_tables()["detectors.toml"]
    own = _read(row, table["detector"][row], table["let"])
    return (*(text for text, _ in own.match), *own.clean, *texts().get(row, ()))


@cache
def _file() -> Mapping[str, Any]:
    return tomllib.loads(TEXTS.read_text("utf-8").replace("¦", "")) if TEXTS.exists() else {}


def texts() -> Mapping[str, Sequence[str]]:
    """Read the texts by detector. ``¦`` is taken out: no file shall hold what looks like a key."""
    return _file().get("texts", {})


def left() -> frozenset[str]:
    """Name the alternatives that no text is known to need."""
    return frozenset(_file().get("left", ()))


@cache
def _engine(row: str, key: str, expression: str) -> Detectors:
    """Compile one row with one of its expressions changed, without its examples."""
    table = shipped_tables()["detectors.toml"]
    changed = dict(table["detector"][row])
    if key:
        changed[key] = expression
    return Detectors([_compile(_read(row, changed, table["let"]))])


def _finds(detectors: Detectors, text: str) -> list[tuple[int, int]]:
    """Give what the only row finds in a text, if its anchor lets it look."""
    data = searchable(text).encode()
    (row,) = detectors.rows
    return list(detectors.find(row, data)) if row.anchor.hits(data) else []


def is_noticed(cut: Cut, among: Sequence[str]) -> bool:
    """Tell whether one of some texts shows that an alternative is gone."""
    whole = _engine(cut.row, "", "")
    try:
        less = _engine(cut.row, cut.key, cut.without)
    except RuleError:
        return True
    return any(_finds(whole, text) != _finds(less, text) for text in among)


def _made(cut: Cut, draw: random.Random) -> Iterator[str]:
    """Make texts that may need an alternative: of the pattern with no other in its group."""
    (row,) = _engine(cut.row, "", "").rows
    table = shipped_tables()["detectors.toml"]
    pattern = row.detector.pattern
    if cut.key == "pattern":
        changed = {**table["detector"][cut.row], "pattern": cut.only}
        pattern = _read(cut.row, changed, table["let"]).pattern
    made = from_pattern(pattern, draw)
    for _ in range(_TRIES):
        text = next(made)
        if len(text) <= _LONGEST:
            yield text
            yield draw.choice(_AROUND) + text + draw.choice(_AROUND)


_TRIES: Final = 1_000
_LONGEST: Final = 120


def main() -> int:
    """Add texts for what nothing notices; name what is left."""
    found = {row: list(given) for row, given in texts().items()}
    open_ones: list[str] = []
    for row in shipped_tables()["detectors.toml"]["detector"]:
        known = [*examples(row)]
        unnoticed: list[Cut] = []
        for cut in cuts(row):
            if is_noticed(cut, known):
                continue
            draw = random.Random(cut.name)  # noqa: S311 - reproducible
            for text in _made(cut, draw):
                if is_noticed(cut, [text]):
                    known.append(text)
                    found.setdefault(row, []).append(text)
                    break
            else:
                unnoticed.append(cut)
        # A text for a later alternative may need an earlier one as well.
        open_ones += [cut.name for cut in unnoticed if not is_noticed(cut, known)]
    lines = [
        _HEAD,
        "left = [",
        *(f"  {json.dumps(name)}," for name in open_ones),
        "]",
        "",
        "[texts]",
    ]
    for row in sorted(found):
        lines += [f"{row} = [", *(f"  {_quoted(text)}," for text in found[row]), "]"]
    TEXTS.write_text("\n".join(lines) + "\n", "utf-8")
    sys.stdout.write(f"{sum(map(len, found.values()))} texts, {len(open_ones)} without one\n")
    return 0


_HEAD: Final = """\
# Texts of which each needs one alternative of its detector's pattern or anchor: without that
# alternative, the detector finds something else or nothing in it. Made by chance from the patterns
# of the day they were added (`python -m tests.mutation.alternatives`); they stay as they are when
# a pattern changes. Nothing in them is anybody's; ¦ is taken out when the file is read.
#
# `left`: alternatives for which chance made no such text. Some are covered by another (`sid=` hits
# in `phpsessid=`), some need a value that a validator takes. None is proved to be needed or not.
"""


def _quoted(text: str) -> str:
    parts = [text[at : at + 3] for at in range(0, len(text), 3)]
    return json.dumps("¦".join(parts), ensure_ascii=True).replace("\\u00a6", "¦")


if __name__ == "__main__":
    sys.exit(main())
