"""Values of texts that were written without a look at the patterns go, and look-alikes stay."""

from __future__ import annotations

import tomllib
from functools import cache
from typing import Any

import pytest

from scrubbers.text import redact_text
from tests.score.__main__ import survives
from tests.score.corpus import FOLDER
from tests.score.values import VALUES


@cache
def texts() -> dict[str, Any]:
    return tomllib.loads((FOLDER / "fresh.toml").read_text("utf-8").replace("¦", ""))


@pytest.mark.parametrize("number", range(len(texts()["positive"])))
def test_a_value_goes(number: int) -> None:
    kind, text = texts()["positive"][number]
    assert kind in VALUES
    before, value, after = text.split("§")
    redacted, remarks = redact_text(before + value + after)
    assert not survives(value, redacted), kind
    assert remarks


@pytest.mark.parametrize("number", range(len(texts()["negative"])))
def test_a_look_alike_stays(number: int) -> None:
    text = texts()["negative"][number]
    assert redact_text(text) == (text, ())


def test_the_corpus_covers_every_type_of_the_targets() -> None:
    assert {kind for kind, _ in texts()["positive"]} == set(VALUES)
