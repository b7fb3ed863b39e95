"""What the code can count is in the tables, and the tables are in the papers, word for word."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from telemetry.books import REASONS, Books
from telemetry.brokers import SEALED, Entry
from telemetry.metrics import GAUGES, METRICS, exposition

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "docs" / "reliability.md"

OUTCOMES = {"Drop": "dropped", "Park": "dead", "Hold": "held", "Refused": "dead"}
ERRORS = {"EventError", "DecodeError", "ScrubError", "CapsuleError", "IdentifierError"}
# Raised where a caller of our own is wrong, or read by the log itself: no event dies of them.
NO_REASONS = {
    "batch",  # an `unreadable_record`
    "event",  # the base class, never raised itself
    "event_id",
    "invalid_token",
    "time_without_zone",
    "token_without_way",  # an answer to a person
    "unknown_schema",  # an `unreadable_record`
    "unknown_state",
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / "telemetry").rglob("*.py")):
        place = path.relative_to(ROOT / "telemetry")
        if place.parts[0] not in {
            "testing",
            "demo",
            "cli",
            "integrations",
            "books.py",
            "explain.py",
        }:
            yield str(place), ast.parse(path.read_text("utf-8"))


def said(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Give (outcome, reason) of what a node counts; an empty outcome where it may be any."""
    match node:
        case ast.Call(func=ast.Name(id=name), args=[ast.Constant(value=str(word)), *_]):
            if name in OUTCOMES:
                yield OUTCOMES[name], word
            elif name in ERRORS:
                yield "", word
        case ast.Tuple(
            elts=[ast.Constant(value="dropped" | "dead" as what), ast.Constant(value=str(word))]
        ):
            yield what, word
        case ast.ClassDef(name=name) if name in ERRORS:
            for inner in node.body:
                match inner:
                    case ast.Assign(value=ast.Constant(value=str(word))):
                        yield "", word
    match node:
        case ast.Call(
            func=ast.Name(id="Entry"),
            args=[_, ast.Constant(value=str(what)), ast.Constant(value=str(word))],
        ):
            yield what, word
        case ast.Call(func=ast.Name(id="Item" | "Refused" as name), keywords=keywords):
            for keyword in keywords:
                match keyword:
                    case ast.keyword(arg="refused" | "reason", value=ast.Constant(value=str(word))):
                        yield "dropped" if name == "Item" else "dead", word


def test_every_reason_that_the_code_counts_is_explained() -> None:
    found: set[tuple[str, str]] = set()
    for place, tree in modules():
        for node in ast.walk(tree):
            for outcome, word in said(node):
                found.add((outcome, word))
                if word in NO_REASONS:
                    continue
                tables = [REASONS[outcome]] if outcome else list(REASONS.values())
                known = {"kind_", word} if word.startswith("kind_") else {word}
                assert any(known & table.keys() for table in tables), f"{place}: {outcome} {word}"
    assert len(found) > 50
    assert {word for _, word in found} >= NO_REASONS


def test_every_reason_that_is_explained_can_be_counted() -> None:
    constants = {
        node.value
        for _, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    for table in REASONS.values():
        for word in table:
            assert word in constants, f"{word} is explained and nobody says it"


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def test_the_paper_lists_every_reason() -> None:
    text = PAPER.read_text("utf-8")
    for outcome, reasons in REASONS.items():
        rows = ((f"`{word}`", means) for word, means in reasons.items())
        expected = table((outcome, "means"), rows)
        assert expected in text, f"docs/reliability.md must hold:\n{expected}"


def test_the_paper_lists_every_metric() -> None:
    rows = (
        (f"`telemetry_{name}`", ", ".join(f"`{label}`" for label in labels), text)
        for name, (text, labels) in METRICS.items()
    )
    expected = table(("metric", "labels", "says"), rows)
    assert expected in PAPER.read_text("utf-8"), f"docs/reliability.md must hold:\n{expected}"


def test_what_is_listed_is_what_is_shown() -> None:
    books = Books({Entry("edge", "items_in"): 1}, {SEALED: 1}, ())
    text = exposition(books, {name: {"x": 1.0} for name in GAUGES}, {}).decode()
    shown = {family.name: family.documentation for family in text_string_to_metric_families(text)}
    assert shown == {f"telemetry_{name}": says for name, (says, _) in METRICS.items()}
