"""The books: three equations, and what is said of them."""

from __future__ import annotations

import json
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.books import Books
from telemetry.brokers import SEALED, Entry, clean

RECIPIENTS = ("heap", "sentry")
_REASONS = st.sampled_from(["expired", "undecodable", "erased"])


@st.composite
def accounts(draw: st.DrawFn) -> tuple[Counter[Entry], Counter[str], int]:
    """Walk items through the stages as the pipeline does; stop each anywhere."""
    entries, pending = Counter[Entry](), Counter[str]()
    count = draw(st.integers(0, 30))
    for _ in range(count):
        entries[Entry("edge", "items_in")] += 1
        outcome = draw(st.sampled_from(["dropped", "dead", "sealed", "sealed"]))
        reason = "" if outcome == "sealed" else draw(_REASONS)
        entries[Entry("edge", outcome, reason)] += 1
        if outcome != "sealed":
            continue
        outcome = draw(st.sampled_from(["pending", "scrubbed", "dropped", "dead", "held"]))
        if outcome == "pending":
            pending[SEALED] += 1
            continue
        reason = "" if outcome == "scrubbed" else draw(_REASONS)
        entries[Entry("pseudonymizer", outcome, reason)] += 1
        for name in RECIPIENTS if outcome == "scrubbed" else ():
            entries[Entry(name, "routed")] += 1
            outcome = draw(st.sampled_from(["pending", "delivered", "dropped", "dead"]))
            if outcome == "pending":
                pending[clean(name)] += 1
            else:
                entries[Entry(name, outcome, "" if outcome == "delivered" else "expired")] += 1
            entries[Entry(name, "resent")] += draw(st.integers(0, 3))
    return entries, pending, count


@settings(max_examples=100, deadline=None, derandomize=True)
@given(found=accounts())
def test_the_sums_agree_wherever_items_stand(
    found: tuple[Counter[Entry], Counter[str], int],
) -> None:
    entries, pending, count = found
    books = Books(entries, pending, RECIPIENTS)
    assert books.exact
    assert [balance.difference for balance in books.balances] == [0, 0, 0, 0]
    assert books.idle == (sum(pending.values()) == 0)
    said = books.as_json()
    assert said["events_in"] == count
    assert said["exact"] is True
    assert json.loads(json.dumps(said)) == said


@settings(max_examples=100, deadline=None, derandomize=True)
@given(found=accounts(), data=st.data())
def test_one_item_that_is_lost_or_made_up_is_noticed(
    found: tuple[Counter[Entry], Counter[str], int], data: st.DataObject
) -> None:
    entries, pending, _ = found
    inside = [entry for entry in entries if entry.outcome != "resent"]
    if not inside:
        return
    entry = data.draw(st.sampled_from(sorted(inside)))
    entries[entry] += data.draw(st.sampled_from([-1, 1, 1000]))
    assert not Books(entries, pending, RECIPIENTS).exact


def test_what_a_forgotten_recipient_was_sent_is_not_hidden() -> None:
    entries = {Entry("heap", "routed"): 2, Entry("heap", "delivered"): 1}
    books = Books(entries, {}, ("heap",))
    (unbalanced,) = [balance for balance in books.balances if balance.difference]
    assert (unbalanced.name, unbalanced.difference) == ("routed to heap", 1)


def test_reasons_are_summed_over_the_stages() -> None:
    entries = {
        Entry("edge", "dropped", "expired"): 1,
        Entry("heap", "dropped", "expired"): 2,
        Entry("heap", "dropped", "no_identity"): 3,
        Entry("pseudonymizer", "held", "restricted"): 4,
    }
    said = Books(entries, {clean("heap"): 5}, ("heap",)).as_json()
    assert said["dropped"] == {"expired": 3, "no_identity": 3}
    assert said["held"] == 4
    assert said["pending"] == {"pseudonymizer": 0, "heap": 5}
    assert said["exact"] is False
