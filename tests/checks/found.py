"""What the detectors find and let stay, by texts that are not their own examples."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from scrubbers.detectors import Detectors
from scrubbers.model import RuleError
from scrubbers.text import redact_text

__all__ = ["check_classes", "check_found", "check_stays", "texts_of"]

_FILE: Final = Path(__file__).parents[1] / "vectors" / "detectors.toml"
_MACRO = re.compile(r"\{\{([a-zA-Z]+)\}\}")
# Placeholders behind which a value stood that opens something.
_SECRETS: Final = frozenset(
    ("key", "token", "credentials", "secret", "cookies", "session", "hash")
)  # fmt: skip


@cache
def _vectors() -> Mapping[str, Any]:
    return tomllib.loads(_FILE.read_text("utf-8"))


def _expanded(text: str) -> str:
    return _MACRO.sub(lambda match: str(_vectors()["let"][match[1]]), text)


def texts_of(detector: str) -> Sequence[tuple[str, str]]:
    """Give the texts of a detector with what becomes of them."""
    return [(_expanded(text), wanted) for text, wanted in _vectors()["found"].get(detector, ())]


def check_found(detectors: Detectors, ids: Iterable[str]) -> None:
    """Require of detectors that each of their texts becomes what the vectors say."""
    for name in ids:
        texts = texts_of(name)
        assert texts, f"no text is there for {name}"
        for number, (text, wanted) in enumerate(texts, 1):
            redacted, remarks = redact_text(text, detectors)
            assert redacted == wanted, f"{name}: text {number} becomes something else"
            rules = {remark.rule for remark in remarks}
            assert name in rules, f"{name}: text {number} is found by {sorted(rules)}"


def check_stays(detectors: Detectors, ids: Iterable[str]) -> None:
    """Require of detectors that their look-alikes stay."""
    for name in ids:
        for number, text in enumerate(_vectors()["stays"].get(name, ()), 1):
            assert not redact_text(_expanded(text), detectors)[1], f"{name}: look-alike {number}"


def check_classes(table: Mapping[str, Any], ids: Iterable[str]) -> None:
    """Require that no policy can hold secrets to let stay, and any can name what is none."""
    for name in ids:
        kind = table["detector"][name]["replacement"].strip("<>").removesuffix(":#")
        one = {
            **table,
            "detector": {name: table["detector"][name]},
            "allow": {"ours": {"detectors": [name], "values": ["none of ours"], "reason": "x"}},
        }
        refused = ""
        try:
            Detectors.compile(one)
        except RuleError as error:
            refused = str(error)
        assert ("secret in the policy" in refused) is (kind in _SECRETS), f"{name}: {refused}"
