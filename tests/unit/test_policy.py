from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scrubbers.detectors import Detectors
from scrubbers.engine import scrub
from telemetry.errors import ConfigError, PolicyError, SchemaError
from telemetry.policy import Policy, PolicyRegister, load_policy, schemas_dir
from telemetry.retention import Period
from telemetry.rules import Schemas
from telemetry.schema import load_records

NOW = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[str, str, str], Path]:
    def edit(file: str, old: str, new: str) -> Path:
        folder = tmp_path / "schemas"
        shutil.copytree(schemas_dir(), folder, dirs_exist_ok=True)
        path = folder / file
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), "utf-8")
        return folder

    return edit


# What is changed, and the remedy an operator must read beside file and line.
REFUSED = [
    ("recipients.toml", 'retention = "P90D"', 'retention = "P13M"', "P12M or less"),
    ("recipients.toml", 'span = "P13M"', 'spans = "P13M"', "Use one of: analytics_event"),
    ("recipients.toml", 'log = "P30D"', 'log = "30 days"', "Write for example P12M"),
    ("recipients.toml", 'check_in = "P30D"', 'check_in = "P13M"', "Take 'check_in' out"),
    ("recipients.toml", 'epoch = "quarter"', 'epoch = "weekly"', "Correct it"),
    ("recipients.toml", '["error-logging"]', '["errors"]', "Use one of"),
    ("recipients.toml", 'compensation = "', 'comment = "', "Correct it"),
    ("retention.toml", 'ceiling = "P12M"', 'ceiling = "P24M"', "P12M or less"),
    ("retention.toml", 'period = "P12M"', 'period = "P13M"', "P12M or less"),
    ("retention.toml", 'held = "P12M"', 'held = "P2Y"', "P12M or less"),
    ("purposes.toml", 'retention = "12m"', 'retention = "13m"', "Use one of: 12m"),
    ("purposes.toml", '"error_event", ', '"analytics_event", ', "remove one"),
    ("events.toml", '{ type = "boolean" }', '{ typ = "boolean" }', "Correct it"),
    ("events.toml", 'type = "text", reason', 'type = "text", values', "Correct it"),
    ("treatments.toml", '"default"', '"nearly"', "Use one of: default, drop"),
    ("treatments.toml", "[truncate_ip]", "[truncate_ip", "Correct the syntax"),
    ("pseudonyms.toml", '"integer"', '"number"', "Correct it"),
    ("ways_back.toml", "keep_years = 3", "keep_years = 0", "Correct it"),
    ("ways_back.toml", "valid_hours = 24", "valid_hours = 169", "Correct it"),
    ("ways_back.toml", "enabled = false", "enabled = true", "[reason.NAME]"),
    ("pseudonyms.toml", 'mode = "keep"', 'mode = "hash"', "Correct it"),
]


@pytest.mark.parametrize(("file", "old", "new", "remedy"), REFUSED)
def test_a_policy_that_cannot_be_enforced_stops_the_start_with_its_line(
    edited: Callable[[str, str, str], Path], file: str, old: str, new: str, remedy: str
) -> None:
    shipped = (schemas_dir() / "policy" / file).read_text("utf-8")
    line = shipped.count("\n", 0, shipped.index(old)) + 1
    folder = edited(f"policy/{file}", old, new) / "policy"
    with pytest.raises(PolicyError) as caught:
        load_policy(folder)
    assert caught.value.path == folder / file
    assert caught.value.line == line
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("transaction", "is P13M, longer than 'error-logging' promises"),
        ("span", "is P13M, longer than 'error-logging' promises"),
        ("trace_metric", "is unknown, so nothing can be promised"),
        ("feedback", "is unknown, so nothing can be promised"),
        ("user_report", "is unknown, so nothing can be promised"),
    ],
)
def test_a_kind_that_its_recipient_keeps_too_long_cannot_be_switched_on(
    edited: Callable[[str, str, str], Path], kind: str, says: str
) -> None:
    folder = edited("policy/purposes.toml", '"check_in"', f'"check_in", "{kind}"') / "policy"
    with pytest.raises(PolicyError) as caught:
        load_policy(folder)
    assert f"sentry.kept.{kind} {says}" in str(caught.value)
    assert caught.value.path == folder / "recipients.toml"
    lines = (folder / "recipients.toml").read_text("utf-8").split("\n")
    assert lines[(caught.value.line or 0) - 1].startswith(f"{kind} = ")


@pytest.mark.parametrize("kind", ["log", "security_report"])
def test_one_line_switches_a_kind_on(edited: Callable[[str, str, str], Path], kind: str) -> None:
    folder = edited("policy/purposes.toml", '"check_in"', f'"check_in", "{kind}"') / "policy"
    policy = load_policy(folder)
    assert policy.purpose_of_kind[kind] == "error-logging"
    assert policy.recipients_of("error-logging") == ["sentry"]


def test_a_missing_file_stops_the_start(edited: Callable[[str, str, str], Path]) -> None:
    folder = edited("policy/retention.toml", "ceiling", "ceiling") / "policy"
    (folder / "retention.toml").unlink()
    with pytest.raises(PolicyError, match="missing"):
        load_policy(folder)


_TEXT = '"type": ["null", "string"]'
ANNOTATIONS = [
    ('"treatment": "keep", "format": "hex", "role"', '"format": "hex", "role"', "no privacy"),
    (', "privacy": {"class": "free_text", "treatment": "redact_text"}', "", "no privacy"),
    ('"class": "technical"', '"class": "harmless"', "unknown class 'harmless'"),
    ('"treatment": "redact_text"', '"treatment": "mask"', "unknown treatment 'mask'"),
    (
        f'"logger", {_TEXT}, "privacy": {{"class": "free_text", "treatment": "redact_text"',
        f'"logger", {_TEXT}, "privacy": {{"class": "free_text", "treatment": "keep"',
        "kept as it is",
    ),
    ('"treatment": "strip"', '"treatment": "keep"', "has treatment 'keep' and type 'null'"),
    ('"format": "level"', '"format": "loud"', "unknown format 'loud'"),
    ('"kind": "account"', '"kinds": "account"', "unknown annotation 'kinds'"),
    ('"accept": ["text"]', '"accept": ["any"]', "unknown accept 'any'"),
]


@pytest.mark.parametrize(("old", "new", "says"), ANNOTATIONS)
def test_a_field_that_is_not_annotated_soundly_stops_the_start_with_its_line(
    edited: Callable[[str, str, str], Path], old: str, new: str, says: str
) -> None:
    folder = edited("error_event.avsc", old, new)
    before = (schemas_dir() / "error_event.avsc").read_text("utf-8")
    line = before.count("\n", 0, before.index(old)) + 1
    with pytest.raises(SchemaError) as caught:
        load_records(folder)
    assert says in str(caught.value)
    assert caught.value.path == folder / "error_event.avsc"
    assert caught.value.line == line


def test_every_single_annotation_is_needed(edited: Callable[[str, str, str], Path]) -> None:
    folder = edited("session.avsc", '"name"', '"name"')
    for path in sorted(folder.glob("*.avsc")):
        text = path.read_text("utf-8")
        for number in range(text.count('"privacy"')):
            parts = text.split('"privacy"')
            broken = (
                '"privacy"'.join(parts[: number + 1])
                + '"privaci"'
                + '"privacy"'.join(parts[number + 1 :])
            )
            path.write_text(broken, "utf-8")
            with pytest.raises(SchemaError, match="no privacy annotation"):
                load_records(folder)
        path.write_text(text, "utf-8")


def test_the_digest_changes_with_every_file_and_not_with_its_layout(
    edited: Callable[[str, str, str], Path],
) -> None:
    shipped = load_policy().digest
    same = edited("policy/addresses.toml", "[profile.default]", "# remark\n\n[profile.default]")
    assert load_policy(same / "policy").digest == shipped
    other = edited("policy/treatments.toml", "default = 1", "default = 2")
    assert load_policy(other / "policy").digest != shipped


def test_nobody_receives_what_needs_a_sink_that_does_not_exist() -> None:
    policy = load_policy()
    assert policy.recipients_of("marketing") == []
    assert policy.recipients_of("error-logging") == ["sentry"]
    assert policy.recipients_of("product-analytics") == ["heap"]


def test_a_register_accepts_live_and_superseded_policies_and_never_a_revoked_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "policies.ndjson"
    register = PolicyRegister(path)
    register.enter("a", "live", NOW)
    register.enter("b", "live", NOW)
    assert register.accepts("a")
    register.enter("a", "revoked", NOW)
    again = PolicyRegister(path)
    assert (again.accepts("a"), again.accepts("b"), again.accepts("c")) == (False, True, False)
    with pytest.raises(ConfigError, match="revoked"):
        again.enter("a", "live", NOW)


def test_a_policy_says_nothing_when_it_is_shown() -> None:
    assert "Düsseldorf" not in repr(Policy(schemas_dir() / "policy"))


REASON = """
[reason.abuse]
text = { de = "Missbrauch", en = "abuse" }
ways = ["join", "reidentify"]
source = "rule 7"
"""


def person(name: str, *may: str, user: str = "") -> str:
    listed = ", ".join(f'"{part}"' for part in may)
    return f'[person.{name}]\nuser = "{user or name}"\nmay = [{listed}]\n'


@pytest.mark.parametrize(
    ("way", "written", "remedy"),
    [
        ("join", person("erika", "join"), "[reason.NAME]"),
        ("join", REASON + person("erika", "request"), "[person.NAME]"),
        ("reidentify", REASON + person("erika", "request"), "[person.NAME]"),
        ("reidentify", REASON + person("erika", "request", "approve"), "[person.NAME]"),
        (
            "reidentify",
            REASON + person("erika", "request") + person("max", "approve", user="erika"),
            "a user of their own",
        ),
        ("join", REASON.replace('"join", ', "") + person("erika", "join"), "[reason.NAME]"),
    ],
)
def test_a_way_back_that_one_person_alone_could_take_stops_the_start(
    tmp_path: Path, way: str, written: str, remedy: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        load_policy(with_ways_back(tmp_path, way, written))
    assert caught.value.path is not None
    assert caught.value.path.name == "ways_back.toml"
    assert remedy in str(caught.value)


def test_a_way_back_with_reason_and_two_persons_is_accepted(tmp_path: Path) -> None:
    written = REASON + person("erika", "request", "approve") + person("max", "approve")
    rules = load_policy(with_ways_back(tmp_path, "reidentify", written)).ways_back
    assert rules.reidentify.enabled
    assert not rules.join.enabled


def test_as_shipped_no_way_leads_back_to_an_account() -> None:
    rules = load_policy(schemas_dir() / "policy").ways_back
    assert not rules.join.enabled
    assert not rules.reidentify.enabled
    assert not rules.person


def with_ways_back(tmp_path: Path, way: str, written: str) -> Path:
    folder = tmp_path / "policy"
    shutil.copytree(schemas_dir() / "policy", folder)
    path = folder / "ways_back.toml"
    text = path.read_text("utf-8")
    head, mark, rest = text.partition(f"[{way}]")
    path.write_text(head + mark + rest.replace("false", "true", 1) + written, "utf-8")
    return folder


DIGESTS = {name: (name * 64)[:64] for name in ("a", "b", "c")}


def test_a_running_process_obeys_what_another_one_revokes(tmp_path: Path) -> None:
    now = 0.0
    path = tmp_path / "policies.ndjson"
    running = PolicyRegister(path, monotonic=lambda: now)
    running.enter(DIGESTS["a"], "live", NOW)
    assert running.accepts(DIGESTS["a"])
    PolicyRegister(path).revoke("a" * 8, NOW, by="uid 7")
    now += PolicyRegister.LOOK_S
    assert not running.accepts(DIGESTS["a"])
    assert json.loads(path.read_text("utf-8").splitlines()[-1]) == {
        "digest": DIGESTS["a"],
        "state": "revoked",
        "at": NOW.isoformat(),
        "by": "uid 7",
    }
    assert running.states() == [(DIGESTS["a"], "revoked", NOW.isoformat())]


@pytest.mark.parametrize("given", ["", "aaaa", "d" * 64, "b" * 65])
def test_what_names_no_policy_revokes_none(tmp_path: Path, given: str) -> None:
    register = PolicyRegister(tmp_path / "policies.ndjson")
    for digest in DIGESTS.values():
        register.enter(digest, "live", NOW)
    with pytest.raises(PolicyError, match="telemetry policy list"):
        register.revoke(given, NOW)
    assert [state for _, state, _ in register.states()] == ["superseded", "superseded", "live"]


def test_digits_that_two_policies_share_revoke_neither(tmp_path: Path) -> None:
    register = PolicyRegister(tmp_path / "policies.ndjson")
    for end in "01":
        register.enter("a" * 63 + end, "live", NOW)
    with pytest.raises(PolicyError, match="or several"):
        register.revoke("a" * 63, NOW)


def test_half_a_line_of_a_killed_process_is_no_entry_and_harms_no_later_one(tmp_path: Path) -> None:
    path = tmp_path / "policies.ndjson"
    PolicyRegister(path).enter(DIGESTS["a"], "live", NOW)
    with path.open("ab") as file:
        file.write(b'{"digest": "bbb')
    register = PolicyRegister(path)
    assert register.accepts(DIGESTS["a"])
    register.revoke(DIGESTS["a"], NOW)
    assert PolicyRegister(path).states() == [(DIGESTS["a"], "revoked", NOW.isoformat())]


def test_a_line_that_somebody_writes_by_hand_is_obeyed_with_or_without_its_end(
    tmp_path: Path,
) -> None:
    path = tmp_path / "policies.ndjson"
    PolicyRegister(path).enter(DIGESTS["a"], "live", NOW)
    line = {"digest": DIGESTS["a"], "state": "revoked", "at": NOW.isoformat()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line))
    register = PolicyRegister(path)
    assert not register.accepts(DIGESTS["a"])
    register.enter(DIGESTS["b"], "live", NOW)
    assert [state for _, state, _ in PolicyRegister(path).states()] == ["revoked", "live"]


def test_a_register_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policies.ndjson"
    path.write_text("no json\n", "utf-8")
    with pytest.raises(PolicyError, match="nobody knows what was revoked"):
        PolicyRegister(path)


@pytest.mark.parametrize("text", ["P13M", "P1Y", "P14M1D", "P400D"])
def test_a_secret_lives_for_whole_months_and_long_enough_to_be_erased_everywhere(
    edited: Callable[[str, str, str], Path], text: str
) -> None:
    assert load_policy().max_age == Period(months=36)
    folder = edited("policy/pseudonyms.toml", '"P36M"', f'"{text}"') / "policy"
    with pytest.raises(PolicyError, match="whole months, or below 14") as caught:
        load_policy(folder)
    assert "pseudonyms.toml" in str(caught.value)


def test_a_policy_may_drop_trace_ids_but_not_of_what_is_nothing_without(
    edited: Callable[[str, str, str], Path],
) -> None:
    folder = edited("policy/pseudonyms.toml", 'mode = "keep"', 'mode = "drop"') / "policy"
    policy = load_policy(folder)
    for mode, kept in ((load_policy(), True), (policy, False)):
        schemas = Schemas(mode, Detectors.compile(mode.detector_table))
        event = b'{"contexts": {"trace": {"trace_id": "%s"}}}' % (b"ab" * 16)
        outcome = scrub(event, schemas.rules_for("error_event", event))
        assert (b"ab" * 16 in outcome.event) is kept
        gone = ("contexts", "trace", "trace_id")
        assert (gone in {r.path for r in outcome.remarks}) is not kept
    kinds = (folder / "purposes.toml").read_text("utf-8").replace('"check_in"', '"log"')
    (folder / "purposes.toml").write_text(kinds, "utf-8")
    with pytest.raises(PolicyError, match="without which 'log' is nothing") as caught:
        load_policy(folder)
    assert caught.value.path == folder / "pseudonyms.toml"
