"""A log line names a trace or an account, never both."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

import telemetry
from telemetry.integrations.structlog import AccountsApart

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def line(processor: AccountsApart | None = None, **fields: Any) -> dict[str, Any]:
    out = io.StringIO()
    logger: Any = structlog.wrap_logger(
        structlog.PrintLogger(out),
        processors=[
            structlog.processors.format_exc_info,
            processor or AccountsApart(),
            structlog.processors.JSONRenderer(default=repr),
        ],
    )
    logger.info(fields.pop("event", "saved"), **fields)
    shown: dict[str, Any] = json.loads(out.getvalue())
    return shown


@pytest.mark.parametrize(
    "carrier",
    [
        {"trace_id": TRACE},
        {"traceId": TRACE},
        {"trace": {"id": TRACE}},
        {"otelTraceID": TRACE},
        {"dd.trace_id": "1234567890"},
        {"sentry-trace": f"{TRACE}-00f067aa0ba902b7-1"},
        {"context": {"span": {"trace_id": TRACE}}},
        {"headers": [{"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}]},
    ],
    ids=lambda carrier: next(iter(carrier)),
)
def test_a_line_with_a_trace_loses_the_account(carrier: dict[str, Any]) -> None:
    shown = line(
        event="user 4711234 saved board 9",
        user_id=4711234,
        request={"account": {"id": "4711234", "mail": "jane@example.com"}, "path": "/u/4711234"},
        board=9,
        **carrier,
    )
    text = json.dumps(shown)
    assert "4711234" not in text
    assert "jane@example.com" not in text
    assert shown["event"] == "user <account> saved board 9"
    assert shown["board"] == 9
    assert all(part in text for part in _texts(carrier))


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return [str(value)]


def test_a_line_without_a_trace_is_left_alone() -> None:
    fields = {"event": "user 4711234 saved", "user_id": 4711234, "trace_id": None, "n": [1, "x"]}
    assert line(**fields) == fields


def test_the_account_of_the_current_request_is_known_without_being_named() -> None:
    with telemetry.request(account=4711234):
        shown = line(event="GET /accounts/4711234", trace_id=TRACE, actor_ref="a-4711234")
    assert "4711234" not in json.dumps(shown)


def test_an_exception_is_looked_through_once_it_is_text() -> None:
    try:
        int("a board of 4711234")
    except ValueError as error:
        shown = line(trace_id=TRACE, user=4711234, exc_info=error)
    assert "a board of <account>" in shown["exception"]
    assert "4711234" not in json.dumps(shown)


def test_own_names_of_accounts_and_traces_may_be_added() -> None:
    apart = AccountsApart(accounts=["Mandant-Nr"], traces=["vorgang"])
    shown = line(apart, mandant_nr="K-4711234", Vorgang="v1", note="K-4711234 asked")
    assert shown == {"event": "saved", "mandant_nr": "<account>", "Vorgang": "v1",
                     "note": "<account> asked"}  # fmt: skip


def test_what_is_too_deep_or_too_long_to_look_through_does_not_stay() -> None:
    deep: Any = "4711234"
    for _ in range(20):
        deep = {"x": deep}
    shown = line(trace_id=TRACE, user_id=4711234, deep=deep, long="4711234 " * 10_000)
    assert "4711234" not in json.dumps(shown)
    assert shown["long"] == "<account>"


class Board:
    def __repr__(self) -> str:
        return "Board(owner=4711234)"


def test_an_object_is_looked_through_as_it_would_be_shown() -> None:
    shown = line(trace_id=TRACE, user_id=4711234, board=Board())
    assert shown["board"] == "Board(owner=<account>)"


ids = st.integers(10_000, 10**12).map(str) | st.uuids().map(str)


@settings(max_examples=100)
@given(
    ids,
    st.recursive(
        st.sampled_from(["here {}", "id={}", "/users/{}/x", "{}"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["a", "note", "user", "detail"]), inner, max_size=3)
        ),
        max_leaves=8,
    ),
)
def test_wherever_the_account_stands_it_goes(account: str, shape: Any) -> None:
    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: filled(value) for key, value in node.items()}
        if isinstance(node, list):
            return [filled(value) for value in node]
        return node.format(account)

    assert account not in json.dumps(line(trace_id=TRACE, account_id=account, more=filled(shape)))
