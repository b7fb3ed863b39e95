"""A table as large as a large operator's: our detectors, and those of vendors that do not exist.

Each is of a shape that the shipped table has: a token behind its vendor's prefix, one with a part
after a dot, a secret part of a web hook's address, a value behind its key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice, product
from typing import Any

__all__ = ["extended"]

_HEADS = ("za", "qui", "vo", "ky", "nu", "ble", "ru", "wo", "xe", "fi", "ju", "gro")
_TAILS = ("dax", "mot", "rup", "lek", "vin", "zor", "nab", "tiq", "hux", "pev", "gom")
_LETTERS = "A1b2C3d4E5f6G7h8J9k0L1m2N3p4Q5r6S7t8"
_HEX = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"


def extended(table: Mapping[str, Any], total: int) -> dict[str, Any]:
    """Fill a detector table up to `total` rows.

    >>> len(extended({"detector": {"ours": {}}}, 200)["detector"])
    200
    """
    rows = dict(table["detector"])
    rows |= islice(_invented(), total - len(rows))
    return {**table, "detector": rows}


def _invented() -> Iterator[tuple[str, dict[str, Any]]]:
    """Give rows of four shapes in turns, each for a vendor of its own."""
    # Every second syllable changes with each row, as prefixes of real vendors do.
    for number, (tail, head) in enumerate(product(_TAILS, _HEADS)):
        name = head + tail
        shape = (_token, _dotted, _web_hook, _keyed)[number % 4]
        anchor, pattern, example, kept, placeholder = shape(name)
        yield (
            f"invented_{name}",
            {
                "class": "secret",
                "anchor": anchor,
                "pattern": pattern,
                "replacement": f"<{placeholder}>",
                "match": [[f"sent {example} away", f"sent {kept}<{placeholder}> away"]],
                "clean": [f"the {name} service is away"],
                "source": "nobody: this vendor does not exist",
            },
        )


def _token(name: str) -> tuple[str, str, str, str, str]:
    prefix = f"{name[:3]}{name[-1]}_"
    return (
        f"{{{{l}}}}{prefix}[0-9A-Za-z]",
        f"{{{{l}}}}({prefix}[0-9A-Za-z]{{24,64}})",
        prefix + _LETTERS,
        "",
        "token",
    )


def _dotted(name: str) -> tuple[str, str, str, str, str]:
    return (
        rf"{{{{l}}}}{name}-[0-9a-f]{{6}}",
        rf"{{{{l}}}}({name}-[0-9a-f]{{16,32}}\.[0-9A-Za-z_-]{{16,64}})",
        f"{name}-{_HEX}.{_LETTERS}",
        "",
        "token",
    )


def _web_hook(name: str) -> tuple[str, str, str, str, str]:
    return (
        rf"hooks\.{name}\.example/",
        rf"hooks\.{name}\.example/[a-z]{{1,16}}/([0-9A-Za-z_/-]{{16,128}})",
        f"https://hooks.{name}.example/in/{_LETTERS}",
        f"https://hooks.{name}.example/in/",
        "token",
    )


def _keyed(name: str) -> tuple[str, str, str, str, str]:
    return (
        rf"(?i:{name}[_ -]?(?:id|key))",
        rf"(?i:{name}[_ -]?(?:id|key)){{{{sep}}}}([0-9A-Za-z]{{12,64}})",
        f"{name}_id={_LETTERS}",
        f"{name}_id=",
        "account",
    )
