"""The tables that come with the package. The one module under ``scrubbers`` that reads files.

In a wheel the tables lie beside this file, in a checkout under ``schemas/policy``. Each is read
once; nothing is written, and nothing but these two files is looked at.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from scrubbers.model import RuleError

__all__ = ["address_table", "detector_table", "extended"]


@cache
def detector_table() -> Mapping[str, Any]:
    """Return ``detectors.toml`` as it stands.

    Raises:
        RuleError: The file is missing or no TOML.
    """
    return _read("detectors")


def extended(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a policy's table of detectors, with the shipped rows before its own if it says so.

    Args:
        table: A ``detectors.toml``. With ``extends = "shipped"``, its rows, parts and allow-lists
            are added to the shipped ones; a row of the same name takes the shipped one's place.

    Raises:
        RuleError: ``extends`` names something else, or the shipped table cannot be read.
    """
    if "extends" not in table:
        return table
    if table["extends"] != "shipped":
        raise RuleError("detectors.toml: `extends` names no table. Write 'shipped' or remove it.")
    base = detector_table()
    parts = {part: {**base.get(part, {}), **table.get(part, {})} for part in (*base, *table)
             if part != "extends"}  # fmt: skip
    return {part: rows for part, rows in parts.items() if rows}


@cache
def address_table() -> Mapping[str, Any]:
    """Return ``addresses.toml`` as it stands.

    Raises:
        RuleError: The file is missing or no TOML.
    """
    return _read("addresses")


def _read(name: str) -> Mapping[str, Any]:
    here = Path(__file__).resolve().parent
    for path in (here / f"_{name}.toml", here.parent / "schemas" / "policy" / f"{name}.toml"):
        if path.is_file():
            try:
                return tomllib.loads(path.read_text(encoding="utf-8"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise RuleError(f"{name}.toml is not valid TOML: {error}. Correct it.") from None
    raise RuleError(f"{name}.toml is not part of this installation. Install the package again.")
