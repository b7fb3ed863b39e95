"""The slow path: JSON that real clients send although no type fits it.

Takes what the fast path refuses (lone surrogates, broken UTF-8, one leaf of a wrong type, pairs
instead of a map) and prunes it by the same record, so that one bad leaf costs that leaf and never
the event. What the fast path accepts comes out of here the same (a property test).
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

from scrubbers.engine import Ledger, Path
from telemetry.errors import DecodeError
from telemetry.schema import Field, Record

__all__ = ["prune", "strict_json", "unknown_paths"]

_LIST_ITEMS: Final = 10_000
"""Most items of one list, and entries of one map, that are looked at."""
_PATH_SEGMENT: Final = 64
_LARGEST: Final = sys.float_info.max
_WRONG_ITEMS: Final = 16


def strict_json(raw: bytes) -> Any:
    """Read JSON that real clients send although it is none: broken UTF-8, surrogates, NaN.

    Raises:
        DecodeError: Even so it is no JSON, is nested too deeply, or holds an endless number.
    """
    try:
        return _cleaned(
            json.loads(raw.decode("utf-8", "replace"), parse_constant=lambda _: None), 0
        )
    except (ValueError, RecursionError):
        raise DecodeError("undecodable") from None


_DEPTH: Final = 32
_STRING: Final = 65536
_LONE = re.compile("[\ud800-\udfff\x00]")


def _cleaned(data: Any, depth: int) -> Any:
    if type(data) is str:
        return _LONE.sub("\ufffd", data[:_STRING])
    if depth == _DEPTH:
        return None
    if type(data) is dict:
        return {
            _LONE.sub("\ufffd", key): _cleaned(item, depth + 1)
            for key, item in islice(data.items(), _LIST_ITEMS)
        }
    if type(data) is list:
        return [_cleaned(item, depth + 1) for item in data[:_LIST_ITEMS]]
    # 1e999 reads as infinity, which is no more a number than NaN is.
    return None if type(data) is float and not math.isfinite(data) else data


def prune(record: Record, data: Mapping[str, Any], path: Path, ledger: Ledger) -> dict[str, Any]:
    """Keep of `data` what `record` declares and what fits; note each leaf that does not."""
    result: dict[str, Any] = {}
    for entry in record.fields:
        value = data.get(entry.wire)
        if value is None:
            continue
        fitting = _fit(entry, value, path, ledger)
        if fitting is None:
            ledger.invalid(path, entry.wire)
            if word := entry.known or (entry.treatment == "pseudonymize" and entry.kind):
                # It cannot be sealed, but whom it names must not stand in a message either.
                ledger.known += [(word.partition(":")[0], text) for text in _scalars(value)]
        else:
            result[entry.wire] = fitting
    return result


def _scalars(value: Any) -> list[str]:
    """Give what stands in a value of the wrong type, as it would be written."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value[:_WRONG_ITEMS] for text in _scalars(item)][:_WRONG_ITEMS]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return [] if value is None or isinstance(value, bool) else [str(value)]


def _fit(entry: Field, value: Any, path: Path, ledger: Ledger) -> Any:  # noqa: C901, PLR0911, PLR0912 - one case a shape
    """Give `value` in the form the input type takes, or None."""
    scalar = isinstance(value, (str, int, float))
    number = scalar and not isinstance(value, (str, bool))
    loose = bool(entry.accept & {"text", "scalar"})
    if entry.treatment == "strip" and not entry.known:
        return value
    if entry.treatment == "strip":
        return value if scalar else None
    if entry.treatment == "pseudonymize":
        fits = isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))
        return value if fits else None
    if entry.treatment == "coarsen_time":
        return value if isinstance(value, str) or number else None
    if entry.shape in ("map", "record") and isinstance(value, list) and "pairs" in entry.accept:
        value = {
            pair[0]: pair[1]
            for pair in value
            if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)  # noqa: PLR2004 - a pair
        }
    if entry.treatment == "shape" and entry.values:
        return value
    if entry.treatment == "shape":
        return value if isinstance(value, dict) else None
    if entry.shape == "map":
        if not isinstance(value, dict):
            return None
        return {k: v for k, v in value.items() if isinstance(v, (str, int, float))}
    if entry.shape == "list":
        return [v for v in value if isinstance(v, str)] if isinstance(value, list) else None
    if entry.record is not None:
        below = (*path, entry.wire)
        if isinstance(value, list) and "list" in entry.accept:
            value = {entry.record.fields[0].wire: value}
        if entry.shape == "record":
            return prune(entry.record, value, below, ledger) if isinstance(value, dict) else None
        if not isinstance(value, list):
            return None
        return [
            prune(entry.record, item if isinstance(item, dict) else {}, (*below, n), ledger)
            for n, item in enumerate(value)
        ]
    if entry.shape == "string":
        return value if isinstance(value, str) or (scalar and loose) else None
    if loose and scalar:
        return value
    if entry.shape == "boolean":
        return value if isinstance(value, bool) else None
    if entry.shape == "double":
        return value if number and abs(value) <= _LARGEST else None
    if number and value == int(value) and entry.minimum <= value <= entry.maximum:
        return int(value)
    return None


def unknown_paths(
    record: Record,
    data: Mapping[str, Any],
    prefix: str,
    found: set[str],
    suspicious: Callable[[str], bool],
) -> None:
    """Collect the paths of what `record` does not declare.

    Args:
        record: What is declared.
        data: What came.
        prefix: Path so far, with a dot at its end.
        found: Where the paths go. A name longer than 64 characters, unprintable or suspicious
            stands as ``<key>``.
        suspicious: Tells whether a text may hold something personal.
    """
    declared = {entry.wire: entry for entry in record.fields}
    for key, value in data.items():
        entry = declared.get(key)
        if entry is None:
            shown = (
                key
                if len(key) <= _PATH_SEGMENT and key.isprintable() and not suspicious(key)
                else "<key>"
            )
            found.add(prefix + shown)
        elif entry.record is not None:
            items = value if isinstance(value, list) else [value]
            inner, below = entry.record, f"{prefix}{key}."
            if (
                "list" in entry.accept
                and isinstance(value, list)
                and inner.fields[0].record is not None
            ):
                inner = inner.fields[0].record
            for item in items:
                if isinstance(item, dict):
                    unknown_paths(inner, item, below, found, suspicious)
