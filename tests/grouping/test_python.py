"""Python errors are grouped after scrubbing as they were before, whoever they happened to."""

from __future__ import annotations

import copy
import json
import logging
import random
import sysconfig
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import sentry_sdk
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubbers.engine import rescrub, scrub
from scrubbers.text import redact_text
from scrubbers.url import reduce_url
from telemetry.sinks import Shaping, Tags
from telemetry.sinks.sentry import SentrySink
from telemetry.testing import Canaries
from tests.grouping.grouping import grouping_hash, grouping_inputs
from tests.grouping.raised import KINDS, WAYS, capture, capturing, person
from tests.unit.making import shipped

Event = dict[str, Any]
PEOPLE = 12
SHAPES = {"null", "bool", "number", "text", "list", "map", "object", "empty"}

_SINK = SentrySink(dsn="http://" + "ab" * 16 + "@127.0.0.1:1/1")
_TAGS = Tags(retain_until=date(2027, 11, 22), retention_class="12m", policy="c0ffee", notice="1")


def delivered(raw: bytes) -> Event:
    """Scrub at the edge, again in the pseudonymizer, and shape: what Sentry gets."""
    rules = shipped()[1].rules_for("error_event", raw)
    outcome = scrub(raw, rules)
    again = rescrub(outcome.event, rules)
    body = _SINK.shape(
        again.event,
        Shaping(
            kind="error_event",
            delivery_id="0" * 32,
            occurred_at=datetime(2026, 11, 22, tzinfo=UTC),
            tokens={"account": "ps1_own_u_0"},
            remarks=[*outcome.remarks, *again.remarks],
            tags=_TAGS,
        ),
    )
    return dict(json.loads(body))


def all_frames(event: Event) -> list[Event]:
    return [
        frame
        for one in event["exception"]["values"]
        for frame in (one.get("stacktrace") or {}).get("frames") or []
    ]


def without_stack(raw: bytes) -> bytes:
    """Take the stack traces out, as clients leave them out: what is left is type and message."""
    event = json.loads(raw)
    for one in event["exception"]["values"]:
        one.pop("stacktrace", None)
    return json.dumps(event).encode()


@pytest.mark.parametrize("kind", KINDS)
def test_a_raised_exception_is_grouped_by_the_same_before_and_after(kind: str) -> None:
    for number, way in enumerate(WAYS):
        raw = capture(kind, way, person(number))
        before, after = json.loads(raw), delivered(raw)
        assert grouping_inputs(after) == grouping_inputs(before)
        assert grouping_hash(after) == grouping_hash(before)


def test_the_300_errors_stay_300() -> None:
    hashes = {
        grouping_hash(delivered(capture(kind, way, person(7)))) for kind in KINDS for way in WAYS
    }
    assert len(hashes) == len(KINDS) * len(WAYS) == 300


@pytest.mark.parametrize("kind", KINDS)
def test_one_error_of_many_people_is_one_issue_even_without_a_stack(kind: str) -> None:
    hashes, bare = set(), set()
    for number in range(PEOPLE):
        raw = capture(kind, "directly", person(number))
        hashes.add(grouping_hash(delivered(raw)))
        bare.add(grouping_hash(delivered(without_stack(raw))))
    assert (len(hashes), len(bare)) == (1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_can_be_found_in_what_arrives(kind: str) -> None:
    raw = capture(kind, "directly", person(3))
    assert Canaries(3).found_in(raw) != []
    assert Canaries(3).found_in(json.dumps(delivered(raw)).encode()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_keeps_what_an_engineer_needs(kind: str) -> None:
    raw = capture(kind, "by_coroutine", person(5))
    kept = ("function", "module", "lineno", "in_app", "context_line", "pre_context", "post_context")
    before, after = all_frames(json.loads(raw)), all_frames(delivered(raw))
    assert len(after) == len(before) > 3
    for old, new in zip(before, after, strict=True):
        assert {name: new.get(name) for name in kept} == {name: old.get(name) for name in kept}
        # Only the name of whoever's home the checkout lies in goes, by one rule for all paths.
        for path in ("filename", "abs_path"):
            assert new[path] == reduce_url(old[path], keep_path=True)
        assert (new.get("vars") or {}).keys() == (old.get("vars") or {}).keys()
        assert set((new.get("vars") or {}).values()) <= SHAPES


# What the application wrote, with holes for personal data: each a message of its own.
_MESSAGES = (
    "no mail to {email}",
    "{email} has sent to {other}, from {ipv4}",
    "{email}: cannot pay {iban} after call of {phone}",
    "user {email} at {ipv6} is locked",
    "login failed: email={email}&password={password}",
    "GET https://app.example.com/orders?email={email} answered 500",
    "duplicate key (email)=({email}) already exists",
    'unexpected {{"email": "{email}", "phone": "{phone}"}}',
    "<a href='mailto:{email}'>{email}</a>",
    "von {email}, Tel. {phone}, IBAN {iban}: abgelehnt",
)


@settings(max_examples=150)
@given(
    message=st.sampled_from(_MESSAGES),
    whose=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    mine=st.booleans(),
    crumbs=st.integers(0, 3),
    spelled=st.sampled_from([str, str.upper, str.title]),
)
def test_a_message_reads_the_same_of_whomever_it_speaks(
    message: str,
    whose: tuple[int, int],
    mine: bool,
    crumbs: int,
    spelled: Callable[[str], str],
) -> None:
    def event(subject: int, other: int, *, mine: bool, crumbs: int, spelled: Any) -> Event:
        values = dict(Canaries(subject).values)
        values["email"] = spelled(values["email"])
        user = Canaries(subject if mine else other).values
        said = message.format(**values, other=Canaries(other).values["email"])
        raw = {
            "exception": {"values": [{"type": "Error", "value": said}]},
            "logentry": {"message": said},
            "fingerprint": ["{{ default }}", said],
            "breadcrumbs": [
                {"message": f"for {Canaries(n).values['email']}"} for n in range(crumbs)
            ],
            "user": {"id": user["email"], "email": user["email"], "username": user["email"]},
        }
        return delivered(json.dumps(raw).encode())

    subject, other = whose[0], whose[1] + (whose[0] == whose[1])
    one = event(subject, other, mine=mine, crumbs=crumbs, spelled=spelled)
    wanted = event(1, 2, mine=False, crumbs=0, spelled=str)
    assert one["exception"] == wanted["exception"]
    assert one["fingerprint"] == wanted["fingerprint"]
    assert grouping_hash(one) == grouping_hash(wanted)
    del one["exception"], one["fingerprint"], wanted["exception"], wanted["fingerprint"]
    assert grouping_hash(one) == grouping_hash(wanted)


def test_a_source_line_does_not_depend_on_what_the_message_says() -> None:
    def lines(message: str) -> list[str]:
        frame = {
            "function": "f",
            "in_app": True,
            "context_line": 'mail("ops@example.org", cc="desk@example.org")',
        }
        raw = {
            "exception": [{"type": "E", "value": message, "stacktrace": {"frames": [frame, frame]}}]
        }
        event = delivered(json.dumps(raw).encode())
        (one,) = event["exception"]["values"]
        return [frame["context_line"] for frame in one["stacktrace"]["frames"]]

    assert lines("none") == lines("to a@example.com") == lines("to desk@example.org")


def logged(who: Canaries, say: Callable[[logging.Logger, str], None], **options: Any) -> bytes:
    with capturing(who.values, **options) as events:
        say(logging.getLogger("tests.grouping"), who.values["email"])
    (event,) = events
    return event


def test_a_logged_template_groups_as_before_and_an_interpolated_one_groups_at_all() -> None:
    def template(log: logging.Logger, email: str) -> None:
        log.error("no mail to %s", email)

    def interpolated(log: logging.Logger, email: str) -> None:
        log.error(f"no mail to {email}")  # noqa: G004 - applications do

    def plain(_: logging.Logger, email: str) -> None:
        sentry_sdk.capture_message(f"no mail to {email}")

    people = [Canaries(n) for n in range(PEOPLE)]
    for who in people:
        raw = logged(who, template)
        assert grouping_hash(delivered(raw)) == grouping_hash(json.loads(raw))
    for say in (interpolated, plain):
        raws = [logged(who, say) for who in people]
        assert len({grouping_hash(json.loads(raw)) for raw in raws}) == PEOPLE
        assert len({grouping_hash(delivered(raw)) for raw in raws}) == 1
    raw = logged(people[0], plain, attach_stacktrace=True)
    assert grouping_inputs(json.loads(raw))[0] in {"thread", "stacktrace"}
    assert grouping_hash(delivered(raw)) == grouping_hash(json.loads(raw))


# What the hash is made of, and a change to it; and what it is not made of.
_COUNTS: Sequence[tuple[str, Callable[[Event, Event], object]]] = (
    ("type", lambda one, _: one.update(type="Other")),
    ("module", lambda _, frame: frame.update(module="other")),
    ("function", lambda _, frame: frame.update(function="other")),
    ("source line", lambda _, frame: frame.update(context_line="other()")),
    ("in_app", lambda _, frame: frame.update(in_app=False)),
    ("synthetic", lambda one, _: one.update(mechanism={"synthetic": True})),
    ("stack", lambda one, _: one.pop("stacktrace")),
)
_DOES_NOT: Sequence[tuple[str, Callable[[Event, Event], object]]] = (
    ("message", lambda one, _: one.update(value="other")),
    ("line number", lambda _, frame: frame.update(lineno=1)),
    ("absolute path", lambda _, frame: frame.update(abs_path="/elsewhere/raised.py")),
    ("variables", lambda _, frame: frame.pop("vars")),
    ("space", lambda _, frame: frame.update(context_line=f"  {frame['context_line']}  ")),
)


@pytest.mark.parametrize(
    ("counts", "change"),
    [(True, row[1]) for row in _COUNTS] + [(False, row[1]) for row in _DOES_NOT],
    ids=[row[0] for row in (*_COUNTS, *_DOES_NOT)],
)
def test_the_hash_knows_what_counts(counts: bool, change: Callable[[Event, Event], object]) -> None:
    event = json.loads(capture("chained", "by_method", person(1)))
    changed = copy.deepcopy(event)
    one = changed["exception"]["values"][-1]
    change(one, one["stacktrace"]["frames"][-1])
    assert (grouping_hash(changed) != grouping_hash(event)) is counts


def test_source_lines_of_the_standard_library_stay_as_they_are() -> None:
    root = Path(sysconfig.get_paths()["stdlib"])
    lines = [
        line
        for path in sorted(root.glob("[a-z]*.py")) + sorted(root.glob("[a-z]*/[a-z]*.py"))
        if path.parent.name not in {"test", "idlelib", "site-packages", "encodings"}
        for line in path.read_text("utf-8", "replace").splitlines()
        if line.strip()
    ]
    chosen = random.Random(1).sample(lines, 20_000)  # noqa: S311 - reproducible, no secret
    changed = [line for line in chosen if redact_text(line)[1]]
    assert len(changed) < len(chosen) * 0.003
