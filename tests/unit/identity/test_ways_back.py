"""The ways back: they find who is known, make nobody, and let nobody through whom no rule names."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from telemetry.errors import AuditError, IdentifierError, RefusedError, VaultError
from telemetry.identity import (
    Domain,
    Identifier,
    Identity,
    Resolved,
    Sealed,
    Sealer,
    epoch_ms,
    initialise_development,
)
from telemetry.identity.audit import AuditLog, VerifierKey, verify
from telemetry.identity.ways_back import Lookup, Source, WaysBack, person_behind, sweep_requests
from telemetry.policy import WaysBackRules

HEAP = Domain(name="analytics@heap", label="heap", epoch="rel")
SENTRY = Domain(name="errors@sentry", label="sentry", epoch="quarter")
SOURCES = {
    "account": Source("account", "app:user", "integer"),
    "organization": Source("organization", "app:org", "integer"),
}
NOW = datetime.now(UTC)
RULES = {
    "audit": {"keep_years": 3, "source": "s"},
    "token": {"per_person_and_day": 5},
    "join": {"enabled": True, "per_person_and_day": 3},
    "reidentify": {"enabled": True, "per_person_and_day": 3, "valid_hours": 24},
    "reason": {
        "abuse": {"text": {"en": "abuse"}, "ways": ["join", "reidentify"], "source": "rule 7"},
        "joining": {"text": {"en": "joining"}, "ways": ["join"], "source": "rule 8"},
    },
    "person": {
        "erika": {"user": "erika", "may": ["join", "request", "approve"]},
        "max": {"user": "max", "may": ["approve"]},
        "ida": {"user": "ida", "may": ["request"]},
    },
}
OFF = {"join": {"enabled": False, "per_person_and_day": 3}}
NONE = {"join": {"enabled": True, "per_person_and_day": 0}}
WHY: dict[str, str] = {"reason": "abuse", "ticket": "SEC-7"}


def rules(**changed: Any) -> WaysBackRules:
    return msgspec.convert(RULES | changed, WaysBackRules)


class World:
    """One state folder with accounts that were met, and the ways back of several persons."""

    def __init__(self, state: Path) -> None:
        initialise_development(state)
        self.state = state
        self.at = NOW
        self.identity = Identity.open(state, environment="development")
        self.sealer: Sealer = Identity.sealer(state)
        self.audit = AuditLog(
            state / "audit.sqlite3", signer=self.identity.signer, now=lambda: self.at
        )
        self.opened: list[WaysBack] = []

    def meet(self, *people: Identifier) -> Resolved:
        bound: dict[str, Any] = {"event_id": f"{1:032x}", "schema": "event", "tenant": "web"}
        capsule = self.sealer.seal(people, occurred_ms=epoch_ms(NOW), **bound)
        (result,) = self.identity.resolve([Sealed(capsule=capsule, occurred_at=NOW, **bound)])
        assert isinstance(result, Resolved)
        return result

    def account(self, number: int) -> dict[str, str]:
        """Let an event of an account pass; give the tokens that the recipients got."""
        met = self.meet(Identifier("account", "app:user", str(number)))
        return {domain.label: met.tokens(domain, NOW)["account"] for domain in (HEAP, SENTRY)}

    def lookup(self) -> Lookup:
        return Lookup(self.identity, SOURCES, [HEAP, SENTRY])

    def person(self, name: str, allowed: WaysBackRules | None = None) -> WaysBack:
        chosen = allowed or rules()
        made = WaysBack(
            self.lookup(),
            self.audit,
            state=self.state,
            rules=chosen,
            policy_digest="ab" * 32,
            person=person_behind(f"user:{name}", chosen),
            now=lambda: self.at,
        )
        self.opened.append(made)
        return made

    def witnessed(self) -> list[tuple[str, str, str]]:
        return [(e.actor, e.action, e.result) for e in self.audit.entries()]

    def subjects(self) -> int:
        connection = sqlite3.connect(self.state / "vault.sqlite3")
        (count,) = connection.execute("SELECT count(*) FROM subjects").fetchone()
        connection.close()
        return int(count)

    def close(self) -> None:
        for made in self.opened:
            made.close()
        self.audit.close()
        self.identity.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


# --- Computing ------------------------------------------------------------------------------------


def test_an_account_is_found_under_the_tokens_that_the_recipients_hold(world: World) -> None:
    sent = world.account(471100471100)
    state, live = world.lookup().tokens("account", "471100471100")
    assert state == "known"
    assert {token.domain: token.token for token in live} == {
        "analytics@heap": sent["heap"],
        "errors@sentry": sent["sentry"],
    }


def test_every_live_epoch_has_its_token_and_a_dead_one_none(world: World) -> None:
    world.account(471100471100)
    keyring = world.identity._keyring
    for epoch in ("2025q1", "2025q2"):
        keyring.token_key(SENTRY.name, epoch)
    epochs = {t.epoch for t in world.lookup().tokens("account", "471100471100")[1]}
    assert {"rel", "2025q1", "2025q2"} < epochs
    assert len(epochs) == 4


def test_a_look_up_makes_neither_subjects_nor_keys(world: World) -> None:
    world.account(471100471100)
    before = world.subjects(), (world.state / "keys" / "keyset.json").read_bytes()
    lookup = world.lookup()
    assert lookup.tokens("account", "471200471200") == ("unknown", ())
    assert lookup.find(world.account(471100471100)["heap"], map(str, range(2000)))[0] is None
    assert (world.subjects(), (world.state / "keys" / "keyset.json").read_bytes()) == before


def test_an_erased_account_has_no_way_back(world: World) -> None:
    sent = world.account(471100471100)
    account = Identifier("account", "app:user", "471100471100")
    world.identity.erase(account, purposes=("product-analytics", "error-logging"))
    lookup = world.lookup()
    assert lookup.tokens("account", "471100471100") == ("erased", ())
    for token in sent.values():
        assert lookup.find(token, ["471100471100"])[0] is None


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(numbers=st.sets(st.integers(1, 10**9), min_size=1, max_size=12), data=st.data())
def test_a_token_leads_to_its_account_and_to_no_other(
    world: World, numbers: set[int], data: st.DataObject
) -> None:
    chosen = data.draw(st.sampled_from(sorted(numbers)))
    sent = {number: world.account(number) for number in numbers}
    candidates = [*map(str, sorted(numbers)), "not a number", "", "042"]
    lookup = world.lookup()
    for label in ("heap", "sentry"):
        assert lookup.find(sent[chosen][label], candidates)[0] == str(chosen)
        without = [value for value in candidates if value != str(chosen)]
        assert lookup.find(sent[chosen][label], without)[0] is None


def test_an_organization_is_found_as_well(world: World) -> None:
    met = world.meet(Identifier("organization", "app:org", "17"))
    token = met.tokens(HEAP, NOW)["organization"]
    assert world.lookup().find(token, ["16", "17"]) == ("17", 2)
    assert world.lookup().tokens("organization", "17")[1][0].token == token


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda t: t[:-1], "invalid_token"),
        (lambda t: t[:-1] + ("0" if t[-1] != "0" else "1"), "invalid_token"),
        (lambda t: t.upper(), "invalid_token"),
        (lambda _: "", "invalid_token"),
        (lambda _: "ps1_ga_u_sxf883p2g7hdwj0neg6s6ahqppjm", "invalid_token"),
    ],
)
def test_what_is_no_token_of_this_policy_is_refused(
    world: World, spoil: Callable[[str], str], reason: str
) -> None:
    token = world.account(471100471100)["heap"]
    with pytest.raises(IdentifierError) as caught:
        world.lookup().find(spoil(token), ["471100471100"])
    assert caught.value.reason == reason


def test_a_session_has_no_way_back_of_its_own(world: World) -> None:
    met = world.meet(Identifier("session", "app:session", "abc"))
    with pytest.raises(IdentifierError) as caught:
        world.lookup().find(met.tokens(HEAP, NOW)["session"], ["abc"])
    assert caught.value.reason == "token_without_way"


def test_at_most_eight_keys_are_tried_for_a_candidate(world: World) -> None:
    world.account(471100471100)
    keyring = world.identity._keyring
    for year in range(2020, 2025):
        for quarter in range(1, 5):
            keyring.token_key(SENTRY.name, f"{year}q{quarter}")
    live = world.lookup().tokens("account", "471100471100")[1]
    assert len([token for token in live if token.domain == SENTRY.name]) == 8


# --- Account to tokens ----------------------------------------------------------------------------


def test_tokens_are_witnessed_without_an_id_before_they_are_given(world: World) -> None:
    sent = world.account(471100471100)
    (state, live), unknown, unfit = world.person("support").tokens(
        "account", ["471100471100", "471200471200", "erika@example.com"], ticket="SUP-1"
    )
    assert state == "known"
    assert {token.token for token in live} == set(sent.values())
    assert (unknown, unfit) == (("unknown", ()), ("unfit", ()))
    (entry,) = world.audit.entries()
    assert (entry.actor, entry.action, entry.result) == ("user:support", "account.token", "done:3")
    assert entry.body == {
        "kind": "account", "count": 3, "ticket": "SUP-1",
        "domains": "analytics@heap errors@sentry",
    }  # fmt: skip
    told = "".join(world.audit.export())
    for planted in ("471100471100", "471200471200", "erika@example.com", *sent.values()):
        assert planted not in told
    assert verify(told.splitlines(), [VerifierKey.of(world.identity.signer())]).covered == 1


def test_nobody_gets_more_tokens_a_day_than_the_policy_says(world: World) -> None:
    world.account(471100471100)
    world.person("support").tokens("account", ["471100471100"] * 3)
    with pytest.raises(RefusedError, match="5 times"):
        world.person("support").tokens("account", ["471100471100"] * 3)
    world.person("support").tokens("account", ["471100471100"] * 2)
    world.person("another").tokens("account", ["471100471100"])
    world.audit.erase(0, actor="user:support")
    with pytest.raises(RefusedError, match="5 were used"):
        world.person("support").tokens("account", ["471100471100"])
    world.at = NOW + timedelta(hours=25)
    world.person("support").tokens("account", ["471100471100"] * 5)
    assert world.witnessed()[1] == ("user:support", "account.token", "refused:limit")


def test_without_a_witness_nothing_is_given(world: World) -> None:
    world.account(471100471100)
    back = world.person("support")
    world.audit.close()
    with pytest.raises(AuditError):
        back.tokens("account", ["471100471100"])


def test_without_a_signed_checkpoint_nothing_is_given(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.account(471100471100)

    def fails() -> str:
        raise AuditError("The folder for checkpoints cannot be used.")

    monkeypatch.setattr(world.audit, "checkpoint", fails)
    with pytest.raises(AuditError):
        world.person("support").tokens("account", ["471100471100"])


@pytest.mark.parametrize("ticket", ["a\nb", "x" * 65, "erika@example.com"])
def test_a_ticket_that_is_none_is_refused_and_not_repeated(world: World, ticket: str) -> None:
    with pytest.raises(RefusedError):
        world.person("support").tokens("account", ["471100471100"], ticket=ticket)
    assert ticket not in "".join(world.audit.export())
    assert world.witnessed() == [("user:support", "account.token", "refused:ticket")]


# --- Token to token -------------------------------------------------------------------------------


def test_tokens_of_one_account_join_and_others_do_not(world: World) -> None:
    one, other = world.account(471100471100), world.account(471200471200)
    erika = world.person("erika")
    assert erika.join([one["heap"], one["sentry"]], "471100471100", **WHY)
    assert not erika.join([one["heap"], other["sentry"]], "471100471100", **WHY)
    assert not erika.join([one["heap"], one["sentry"]], "471200471200", **WHY)
    assert [result for _, _, result in world.witnessed()] == [
        "done:same", "done:different", "done:different",
    ]  # fmt: skip
    told = "".join(world.audit.export())
    for planted in ("471100471100", "471200471200", *one.values(), *other.values()):
        assert planted not in told


@pytest.mark.parametrize(
    ("who", "given", "changed", "why", "reason"),
    [
        ("erika", ("heap", "sentry"), OFF, {}, "off"),
        ("max", ("heap", "sentry"), {}, {}, "person"),
        ("stranger", ("heap", "sentry"), {}, {}, "person"),
        ("erika", ("heap", "sentry"), {}, {"reason": "curiosity"}, "reason"),
        ("erika", ("heap", "sentry"), {}, {"ticket": ""}, "ticket"),
        ("erika", ("heap", "heap"), {}, {}, "tokens"),
        ("erika", ("heap",), {}, {}, "tokens"),
        ("erika", ("heap", "none"), {}, {}, "invalid"),
        ("erika", ("heap", "sentry"), NONE, {}, "limit"),
    ],
)  # fmt: skip
def test_a_join_is_refused_where_a_rule_lacks(
    world: World,
    who: str,
    given: Sequence[str],
    changed: dict[str, Any],
    why: dict[str, str],
    reason: str,
) -> None:
    sent = world.account(471100471100) | {"none": "ps1_heap_u_none"}
    with pytest.raises(RefusedError):
        world.person(who, rules(**changed)).join(
            [sent[g] for g in given], "471100471100", **(WHY | why)
        )
    assert world.witnessed()[-1][1:] == ("account.join", f"refused:{reason}")


# --- Token to account -----------------------------------------------------------------------------


def asked(world: World, label: str = "sentry", number: int = 471100471100) -> str:
    return world.person("erika").request(world.account(number)[label], **WHY).id


def test_two_persons_find_the_account_once(world: World) -> None:
    request = asked(world)
    world.person("max").approve(request)
    assert world.person("erika").run(request, ["1", "x", "471100471100"]) == "471100471100"
    with pytest.raises(RefusedError):
        world.person("erika").run(request, ["471100471100"])
    assert world.witnessed() == [
        ("person:erika", "reidentify.request", "done"),
        ("person:max", "reidentify.approve", "done"),
        ("person:erika", "reidentify.run", "started"),
        ("person:erika", "reidentify.result", "found"),
        ("person:erika", "reidentify.run", "refused:no_request"),
    ]


def test_after_the_answer_token_and_id_are_in_no_file(world: World) -> None:
    sent = world.account(471100471100)
    request = world.person("erika").request(sent["sentry"], **WHY).id
    assert sent["sentry"].encode() in (world.state / "ways_back.sqlite3").read_bytes()
    world.person("max").approve(request)
    world.person("erika").run(request, ["471100471100"])
    for path in world.state.rglob("*"):
        if path.is_file():
            assert sent["sentry"].encode() not in path.read_bytes(), path.name


def test_a_void_request_is_cleared_away(world: World) -> None:
    request = asked(world)
    world.person("max").approve(request)
    token = world.account(471100471100)["sentry"].encode()
    world.at = NOW + timedelta(hours=24)
    with pytest.raises(RefusedError):
        world.person("erika").run(request, ["471100471100"])
    assert world.person("erika").requests() == []
    assert token not in (world.state / "ways_back.sqlite3").read_bytes()


def test_requests_whose_time_is_up_are_deleted_though_nobody_comes_back(world: World) -> None:
    assert sweep_requests(world.state / "elsewhere", NOW) == 0
    token = world.account(471100471100)["sentry"].encode()
    answered = asked(world)
    world.person("max").approve(answered)
    world.person("erika").run(answered, ["471100471100"])
    asked(world)  # and nobody ever looks at it again
    assert sweep_requests(world.state, NOW + timedelta(hours=23)) == 0
    assert len(world.person("erika").requests()) == 1
    assert sweep_requests(world.state, NOW + timedelta(hours=24)) == 2
    left = (world.state / "ways_back.sqlite3").read_bytes()
    for word in (token, b"erika", b"max", WHY["ticket"].encode()):
        assert word not in left
    assert sweep_requests(world.state, NOW + timedelta(hours=24)) == 0


def test_who_is_not_among_the_candidates_may_be_looked_for_again(world: World) -> None:
    request = asked(world)
    world.person("max").approve(request)
    erika = world.person("erika")
    assert erika.run(request, ["1", "2"]) is None
    assert erika.run(request, ["471100471100"]) == "471100471100"


def test_one_person_alone_finds_nothing(world: World) -> None:
    request = asked(world)
    erika = world.person("erika")
    with pytest.raises(RefusedError, match="Nobody approves a request of their own"):
        erika.approve(request)
    with pytest.raises(RefusedError, match="second person"):
        erika.run(request, ["471100471100"])
    assert [result for _, _, result in world.witnessed()[-2:]] == [
        "refused:same_person", "refused:not_approved",
    ]  # fmt: skip


def test_only_who_asked_sees_the_answer(world: World) -> None:
    request = asked(world)
    world.person("max").approve(request)
    for other, reason in (("ida", "not_requester"), ("max", "person"), ("stranger", "person")):
        with pytest.raises(RefusedError):
            world.person(other).run(request, ["471100471100"])
        assert world.witnessed()[-1][2] == f"refused:{reason}"


@pytest.mark.parametrize(
    ("who", "token", "changed", "why", "reason"),
    [
        ("erika", "sentry", {"reidentify": RULES["reidentify"] | {"enabled": False}}, {}, "off"),  # type: ignore[operator]
        ("max", "sentry", {}, {}, "person"),
        ("stranger", "sentry", {}, {}, "person"),
        ("erika", "sentry", {}, {"reason": "joining"}, "reason"),
        ("erika", "sentry", {}, {"ticket": ""}, "ticket"),
        ("erika", "none", {}, {}, "token"),
    ],
)
def test_a_request_is_refused_where_a_rule_lacks(
    world: World, who: str, token: str, changed: dict[str, Any], why: dict[str, str], reason: str
) -> None:
    sent = world.account(471100471100) | {"none": "471100471100"}
    with pytest.raises(RefusedError):
        world.person(who, rules(**changed)).request(sent[token], **(WHY | why))
    assert world.witnessed() == [
        (
            f"{'user' if who == 'stranger' else 'person'}:{who}",
            "reidentify.request",
            f"refused:{reason}",
        )
    ]
    assert "471100471100" not in "".join(world.audit.export())


def test_a_way_that_is_switched_off_stops_requests_that_are_under_way(world: World) -> None:
    request = asked(world)
    world.person("max").approve(request)
    off = rules(reidentify={"enabled": False, "per_person_and_day": 3, "valid_hours": 24})
    with pytest.raises(RefusedError):
        world.person("erika", off).run(request, ["471100471100"])


def test_nobody_asks_or_runs_more_often_than_the_policy_says(world: World) -> None:
    requests = [asked(world, number=number) for number in (1, 2, 3)]
    with pytest.raises(RefusedError, match="3 times"):
        asked(world, number=4)
    world.person("max").approve(requests[0])
    erika = world.person("erika")
    for _ in range(3):
        assert erika.run(requests[0], ["9"]) is None
    with pytest.raises(RefusedError, match="3 times"):
        erika.run(requests[0], ["1"])


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE requests SET state = 'approved', approver = 'person:max'",
        "UPDATE requests SET state = 'approved', approver = 'person:erika'",
    ],
)
def test_an_approval_that_the_log_does_not_hold_counts_for_nothing(
    world: World, statement: str
) -> None:
    request = asked(world)
    forge(world, statement)
    with pytest.raises(RefusedError, match="does not hold"):
        world.person("erika").run(request, ["471100471100"])
    assert world.witnessed()[-1][2] == "refused:contradiction"


def test_an_approved_request_cannot_be_turned_to_another_token(world: World) -> None:
    request = asked(world)
    world.person("max").approve(request)
    other = world.account(471200471200)["sentry"]
    forge(world, "UPDATE requests SET token = ?", other)
    with pytest.raises(RefusedError, match="does not hold"):
        world.person("erika").run(request, ["471200471200"])


def test_an_approval_of_another_request_does_not_count(world: World) -> None:
    first, second = asked(world, number=1), asked(world, number=2)
    world.person("max").approve(first)
    approve = "UPDATE requests SET state = 'approved', approver = 'person:max' WHERE id = ?"
    forge(world, approve, second)
    with pytest.raises(RefusedError, match="does not hold"):
        world.person("erika").run(second, ["2"])


def forge(world: World, statement: str, *values: str) -> None:
    connection = sqlite3.connect(world.state / "ways_back.sqlite3")
    connection.execute(statement, values)
    connection.commit()
    connection.close()


def test_a_run_that_fails_is_witnessed_and_shows_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked(world)
    world.person("max").approve(request)

    def fails(_: Any) -> Any:
        raise VaultError("The vault cannot be asked.")

    monkeypatch.setattr(world.identity._vault, "find", fails)
    with pytest.raises(VaultError):
        world.person("erika").run(request, ["471100471100"])
    assert [r for _, _, r in world.witnessed()[-2:]] == ["started", "failed"]


def test_an_answer_that_cannot_be_witnessed_is_not_shown(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked(world)
    world.person("max").approve(request)
    erika = world.person("erika")
    record = world.audit.record

    def fails(actor: str, action: str, *rest: Any) -> int:
        if action == "reidentify.result":
            raise AuditError("The audit log cannot be written.")
        return record(actor, action, *rest)

    monkeypatch.setattr(world.audit, "record", fails)
    with pytest.raises(AuditError):
        erika.run(request, ["471100471100"])


def test_a_request_shows_no_token(world: World) -> None:
    token = world.account(471100471100)["sentry"]
    made = world.person("erika").request(token, **WHY)
    assert token not in repr(made)
    assert token not in json.dumps([repr(one) for one in world.person("max").requests()])


def test_a_user_of_the_policy_is_a_person_and_any_other_is_a_user() -> None:
    assert person_behind("user:erika", rules()) == "person:erika"
    assert person_behind("user:root", rules()) == "user:root"


def test_nobody_becomes_a_person_by_a_user_name_that_looks_like_one(world: World) -> None:
    back = world.person("erika")
    back._person = "user:erika"
    with pytest.raises(RefusedError):
        back.request(world.account(471100471100)["sentry"], **WHY)
