"""The demo: nothing leaks, the books are exact, and the search would notice were it otherwise."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from scrubbers import engine
from telemetry.cli import app, demo
from telemetry.config import Settings
from telemetry.demo import stage
from telemetry.demo.clients import Driven, drive
from telemetry.demo.people import World
from telemetry.demo.recorder import Recorder
from telemetry.demo.stage import Evidence, heap_count, judge, perform, sentry_count
from telemetry.run import Runner
from telemetry.testing.leaks import Leaks, files_under, received_by

# One run serves several tests, so one worker has them all.
pytestmark = pytest.mark.xdist_group("demo")

PEOPLE = 14
COMMAND = [sys.executable, "-c", "from telemetry.cli import main; main()", "demo"]
PROMISED = {
    "events_in",
    "routed",
    "delivered",
    "dropped",
    "dead",
    "held",
    "pending",
    "planted",
    "leaks",
    "events_per_second",
}


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """One run over the embedded spool."""
    folder = tmp_path_factory.mktemp("demo")
    return perform(folder / "state", folder, Settings(), people=PEOPLE, progress=lambda *_: None)


def kinds_of(names: set[str]) -> set[str]:
    return {name.partition(": ")[2] for name in names}


def test_nothing_that_was_planted_is_found_anywhere(evidence: Evidence) -> None:
    verdict = judge(evidence)
    assert verdict.leaks == ()
    assert verdict.complaints == ()
    assert len(evidence.world.planted) >= 200
    assert verdict.searched_bytes > 1_000_000


def test_everything_that_was_planted_was_really_sent(evidence: Evidence) -> None:
    found = Leaks(evidence.world.planted).search(evidence.sent)
    assert {finding.name for finding in found} == set(evidence.world.planted)


def test_the_books_are_exact_and_say_what_the_recipients_count(evidence: Evidence) -> None:
    books = evidence.books
    assert books["exact"]
    assert books["routed"] == books["delivered"]
    assert books["delivered"] == {
        "heap": heap_count(evidence.heap),
        "sentry": sentry_count(evidence.sentry),
    }
    gone = sum(books["dropped"].values()) + sum(books["dead"].values())
    assert books["events_in"] == sum(books["delivered"].values()) + gone
    assert books["dropped"] == {"undeclared_event": PEOPLE // 5}
    assert books["dead"] == {"undecodable": 3}


def test_each_error_is_found_at_sentry_under_the_reference_that_its_page_showed(
    evidence: Evidence,
) -> None:
    shown = [reference for some in evidence.driven.references.values() for reference in some]
    there = {event["event_id"] for event in evidence.sentry.events}
    assert len(shown) == len(set(shown)) >= 100
    assert set(shown) <= there


def test_an_account_has_one_token_at_each_recipient_and_they_differ(evidence: Evidence) -> None:
    from telemetry.demo.sides import Sides

    tokens = Sides(evidence).tokens()
    assert tokens.heap.startswith("ps1_heap_u_")
    assert tokens.sentry.startswith("ps1_sentry_u_")
    assert " " not in tokens.sentry, "two applications, one account, one token"
    # All requests of the first person that went wrong, and all its events of the job.
    assert tokens.sentry_records >= sum(
        len(some) for (_, number), some in evidence.driven.references.items() if number == 1
    )
    assert tokens.heap_records >= 100


def test_the_pictures_fit_a_hundred_columns_without_colour(evidence: Evidence) -> None:
    text = io.StringIO()
    demo._print_all(Console(file=text, width=100, highlight=False), evidence, judge(evidence))
    lines = text.getvalue().splitlines()
    assert "\x1b" not in text.getvalue()
    assert max(map(len, lines)) <= 100
    shown = text.getvalue()
    first = evidence.world.people[0]
    for word in (str(first.account), "ps1_heap_u_", "ps1_sentry_u_", "password=<secret>"):
        assert word in shown, word
    assert "The sums agree." in shown
    assert "none of them." in shown


def test_a_leak_a_missing_value_and_a_wrong_count_are_each_noticed(
    evidence: Evidence, tmp_path: Path
) -> None:
    person = evidence.world.people[3]
    (tmp_path / "forgotten").write_bytes(f"for {person.email}".encode().hex().encode())
    leaking = judge(replace(evidence, state=tmp_path))
    assert [(one.name, one.form) for one in leaking.leaks] == [("person 4: email", "hex")]
    assert not leaking.good

    silent = replace(evidence, recorder=Recorder("http://127.0.0.1:9"))
    assert len(judge(silent).unsent) == len(evidence.world.planted)
    assert not judge(silent).good

    wrong: dict[str, Any] = {**evidence.books, "delivered": {"heap": 1, "sentry": 1}}
    complaints = judge(replace(evidence, books=wrong)).complaints
    assert sum("The books say" in one for one in complaints) == 2


def test_a_leak_makes_the_command_fail_and_say_so_even_if_nothing_can_be_explained(
    evidence: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = evidence.world.people[3]
    (tmp_path / "forgotten").write_text(person.iban)
    nobody = replace(evidence, state=tmp_path, driven=Driven())
    monkeypatch.setattr(stage, "perform", lambda *_, **__: nobody)
    answered = CliRunner().invoke(app, ["demo"])
    assert answered.exit_code == 1
    assert "person 4: iban, plain, in file forgotten" in answered.output
    assert "did not arrive" in answered.output
    assert person.iban not in answered.output

    answered = CliRunner().invoke(app, ["demo", "--json"])
    assert answered.exit_code == 1
    leaks = json.loads(answered.output.splitlines()[-1])["leaks"]
    assert leaks == [{"name": "person 4: iban", "form": "plain", "place": "file forgotten"}]


def command(*more: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TELEMETRY_")}
    return subprocess.run(  # noqa: S603 - our own command
        [*COMMAND, "--json", "--people", str(PEOPLE), *more],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        env=clean | environ,
    )


def test_the_command_ends_within_a_minute_and_its_last_line_is_what_was_promised(
    tmp_path: Path,
) -> None:
    begun_at = time.monotonic()
    done = command("--keep", str(tmp_path / "kept"))
    assert time.monotonic() - begun_at < 60
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert set(figures) == PROMISED
    assert figures["leaks"] == []
    assert figures["planted"] >= 200
    assert figures["routed"] == figures["delivered"]
    assert not any(figures["pending"].values())
    assert (tmp_path / "kept" / "spool.sqlite3").stat().st_size > 0
    planted = World(people=PEOPLE).planted
    assert Leaks(planted).search(files_under(tmp_path / "kept")) == []


def test_kafka_without_a_broker_is_a_mistake_of_configuration() -> None:
    done = command("--broker", "kafka")
    assert done.returncode == 2
    assert "TELEMETRY_KAFKA_BOOTSTRAP" in done.stderr


async def found_at_recipients(state: Path) -> dict[str, set[str]]:
    """Run the pipeline in this process; give what kinds of values its recipients received."""
    world = World(people=PEOPLE)
    runner = Runner(
        Settings(state=str(state), bind="127.0.0.1:0", admin_bind="127.0.0.1:0"), lambda _: None
    )
    stop = asyncio.Event()
    try:
        await runner.open()
        running = asyncio.create_task(runner.run(stop))
        host, port = runner.address
        driven: Driven = await asyncio.to_thread(
            drive, f"http://{host}:{port}", world, lambda *_: None
        )
        assert driven.failures == []
        async with asyncio.timeout(60):
            while not (await runner.books()).idle:  # noqa: ASYNC110 - books are asked, not told
                await asyncio.sleep(0.1)
        stop.set()
        await running
    finally:
        await runner.close()
    leaks = Leaks(world.planted)
    return {
        name: kinds_of({one.name for one in leaks.search(received_by({name: stand_in}))})
        for name, stand_in in runner.stand_ins.items()
    }


async def test_with_treatments_on_the_search_finds_nothing_at_the_recipients(
    tmp_path: Path,
) -> None:
    assert await found_at_recipients(tmp_path) == {"heap": set(), "sentry": set()}


async def test_with_treatments_off_the_same_search_finds_values_at_both_recipients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No policy can switch a treatment off, so the code is changed under the pipeline's feet.
    monkeypatch.setattr(engine, "_redact", lambda *_: None)
    monkeypatch.setattr(engine.Ledger, "address", lambda _self, value, *_: value)
    monkeypatch.setattr(engine.Ledger, "url", lambda _self, value, *_, **_kw: value)
    monkeypatch.setattr(
        engine.Ledger,
        "shape",
        lambda _self, value, *_: {key: str(item) for key, item in value.items()},
    )
    found = await found_at_recipients(tmp_path)
    assert found["heap"] >= {"email", "phone"}
    assert found["sentry"] >= {
        "name",
        "email",
        "username",
        "account",
        "ipv4",
        "ipv6",
        "phone",
        "iban",
        "card",
        "street",
        "birth date",
        "password",
        "api_token",
    }
