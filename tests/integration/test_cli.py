"""The command ``telemetry`` as an operator meets it: help, answers, exit codes, errors."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from running import Running, command, until

from telemetry.policy import schemas_dir
from telemetry.testing import HeapStandIn, SentryStandIn


@pytest.mark.parametrize(
    "name",
    [
        "",
        "run",
        "check",
        "books",
        "status",
        "pause",
        "resume",
        "dead list",
        "dead show",
        "dead replay",
        "dead purge",
        "policy list",
        "policy revoke",
    ],
)
def test_help_shows_what_a_command_does_and_an_example(tmp_path: Path, name: str) -> None:
    shown = command(*name.split(), "--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert shown.stderr == ""
    if name:
        assert "Example" in shown.stdout
        assert f"telemetry {name}" in shown.stdout
    else:
        for other in ("run", "check", "books", "pause", "resume"):
            assert other in shown.stdout


def test_check_says_which_purpose_goes_where(tmp_path: Path) -> None:
    shown = command("check", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "sound" in shown.stdout
    assert "error-logging: error_event, session, sessions, check_in → sentry" in shown.stdout
    assert "marketing: nothing → nobody" in shown.stdout
    told = json.loads(command("check", "--json", cwd=tmp_path).stdout)
    assert len(told["policy"]) == 64
    assert told["purposes"]["product-analytics"] == ["analytics_event", "user_properties"]
    assert "No sink for Google" in told["recipients"]["google"]
    assert not (tmp_path / ".telemetry").exists()


def policy(tmp_path: Path, file: str, old: str, new: str) -> Path:
    folder = tmp_path / "policy"
    shutil.copytree(schemas_dir() / "policy", folder)
    text = (folder / file).read_text("utf-8")
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1), "utf-8")
    return folder


@pytest.mark.parametrize("name", ["check", "run"])
def test_a_policy_that_promises_too_much_stops_the_start_with_file_line_and_remedy(
    tmp_path: Path, name: str
) -> None:
    folder = policy(tmp_path, "retention.toml", 'period = "P12M"', 'period = "P13M"')
    refused = command(name, cwd=tmp_path, TELEMETRY_POLICY=str(folder))
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr.startswith("Cannot start: ")
    assert f"{folder / 'retention.toml'}:7: " in refused.stderr
    assert "P12M or less" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_new_line_of_policy_changes_the_digest(tmp_path: Path) -> None:
    folder = policy(tmp_path, "treatments.toml", '"default"', '"strict"')
    shipped = json.loads(command("check", "--json", cwd=tmp_path).stdout)
    changed = json.loads(
        command("check", "--json", cwd=tmp_path, TELEMETRY_POLICY=str(folder)).stdout
    )
    assert shipped["policy"] != changed["policy"]


def test_an_annotation_that_is_gone_stops_the_start(tmp_path: Path) -> None:
    """A copy of the packages beside a schemas folder that lacks one: as a checkout has it."""
    for name in ("telemetry", "scrubbers", "schemas"):
        shutil.copytree(
            schemas_dir().parent / name,
            tmp_path / name,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    path = tmp_path / "schemas" / "session.avsc"
    note = ', "privacy": {"class": "technical", "treatment": "keep", "format": "hex"}'
    text = path.read_text("utf-8")
    assert note in text
    path.write_text(text.replace(note, "", 1), "utf-8")
    line = text.count("\n", 0, text.index(note)) + 1
    for name in ("check", "run"):
        refused = command(name, cwd=tmp_path, PYTHONPATH=str(tmp_path))
        assert refused.returncode == 2
        assert f"{path}:{line}: field 'sid' has no privacy annotation." in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "environ", "says"),
    [
        (["run", "--config", "absent.toml"], {}, "absent.toml: is missing or unreadable."),
        (["books"], {"TELEMETRY_BIND": "q7wz"}, "TELEMETRY_BIND has a value that cannot be used."),
        (["check"], {"TELEMETRY_BROKER": "q7wz"}, "TELEMETRY_BROKER has a value"),
        (["run"], {"TELEMETRY_BROKER": "kafka"}, "Set broker.bootstrap"),
        (["run"], {"TELEMETRY_ENVIRONMENT": "production"}, "Cannot start: "),
        (["run"], {"TELEMETRY_HEAP_URL": "http://heap.example"}, "recipient"),
        (["run", "--bind", "nowhere"], {}, "--bind has a value that cannot be used."),
    ],
)
def test_a_wrong_configuration_is_explained_on_stderr_with_exit_code_2(
    tmp_path: Path, arguments: list[str], environ: dict[str, str], says: str
) -> None:
    refused = command(*arguments, cwd=tmp_path, **environ)
    assert refused.returncode == 2, refused.stderr
    assert says in refused.stderr
    assert "q7wz" not in refused.stderr
    assert "Traceback" not in refused.stderr
    assert refused.stdout == ""


@pytest.mark.parametrize("arguments", [["nonsense"], ["books", "--nonsense"], ["pause"]])
def test_wrong_usage_is_exit_code_2(tmp_path: Path, arguments: list[str]) -> None:
    refused = command(*arguments, cwd=tmp_path)
    assert refused.returncode == 2
    assert "Usage" in refused.stderr


@pytest.mark.parametrize("arguments", [["books"], ["pause", "heap"], ["resume", "all"]])
def test_nothing_running_is_exit_code_4_and_says_how_to_start_it(
    tmp_path: Path, arguments: list[str]
) -> None:
    refused = command(*arguments, cwd=tmp_path)
    assert refused.returncode == 4
    assert "Nothing is running on .telemetry. Start it: telemetry run" in refused.stderr
    assert not (tmp_path / ".telemetry").exists()


def test_an_operator_pauses_looks_and_resumes(tmp_path: Path) -> None:
    with HeapStandIn() as heap, SentryStandIn() as sentry:
        pipeline = Running(tmp_path, heap, sentry)
        state = {"TELEMETRY_STATE": str(pipeline.state)}
        with pipeline:
            said = command("pause", "heap", "--json", cwd=tmp_path, **state)
            assert json.loads(said.stdout) == {"paused": ["heap"]}
            assert b'telemetry_paused{of="heap"} 1.0' in pipeline.get("/metrics")[1]
            assert pipeline.events(
                [{"event": "page viewed", "account": 7}, {"kind": "error_event", "message": "x"}]
            )
            until(lambda: len(sentry.events) == 1, 5.0, "Sentry's event")
            until(lambda: pipeline.books()["pending"]["heap"] == 1, 5.0, "Heap's parcel")
            until(lambda: pipeline.books()["delivered"]["sentry"] == 1, 5.0, "entered")
            assert heap.requests == []
            shown = command("books", cwd=tmp_path, **state)
            assert shown.returncode == 0
            assert "The sums agree." in shown.stdout
            figures = json.loads(command("books", "--json", cwd=tmp_path, **state).stdout)
            assert figures["pending"] == {"pseudonymizer": 0, "heap": 1, "sentry": 0}
            assert figures["delivered"] == {"heap": 0, "sentry": 1}
            said = command("resume", "all", "--json", cwd=tmp_path, **state)
            assert json.loads(said.stdout) == {"resumed": ["heap", "sentry"]}
            until(lambda: len(heap.events) == 1, 6.0, "Heap's event")
            unknown = command("pause", "jane", cwd=tmp_path, **state)
            assert (unknown.returncode, unknown.stdout) == (2, "")
            assert "No such recipient" in unknown.stderr
            assert pipeline.drain()["exact"]
            assert pipeline.stop() == 0
        # Without a process the command reads the log itself, and says the same.
        after = json.loads(command("books", "--json", cwd=tmp_path, **state).stdout)
        assert after["delivered"] == {"heap": 1, "sentry": 1}


@pytest.mark.timeout(90)
def test_a_pause_of_all_stops_every_recipient_within_five_seconds_even_a_slow_one(
    tmp_path: Path,
) -> None:
    with HeapStandIn() as heap, SentryStandIn() as sentry:
        heap.slow(1.5)
        sentry.slow(1.5)  # fifty envelopes, eight at a time: ten seconds for one batch
        with Running(tmp_path, heap, sentry) as pipeline:
            state = {"TELEMETRY_STATE": str(pipeline.state)}
            for n in range(8):
                views = [{"event": "page viewed", "account": n} for _ in range(60)]
                errors = [{"kind": "error_event", "message": f"x {n}"} for _ in range(12)]
                assert pipeline.events(views + errors)
            until(lambda: bool(heap.requests and sentry.requests), 10.0, "something under way")
            ordered = time.monotonic()
            assert command("pause", "all", cwd=tmp_path, **state).returncode == 0
            time.sleep(max(0.0, ordered + 5 - time.monotonic()))
            held = (len(heap.requests), len(sentry.requests))
            assert len(sentry.events) < 96
            time.sleep(2.0)
            assert (len(heap.requests), len(sentry.requests)) == held
            heap.heal()
            sentry.heal()
            assert command("resume", "all", cwd=tmp_path, **state).returncode == 0
            figures = pipeline.drain()
            assert figures["exact"]
            assert (len(heap.events), len(sentry.events)) == (480, 96)
            assert figures["delivered"] == {"heap": 480, "sentry": 96}


def test_without_any_configuration_it_runs_on_stand_ins_and_says_so(tmp_path: Path) -> None:
    with HeapStandIn() as heap, SentryStandIn() as sentry:
        pipeline = Running(tmp_path, heap, sentry)
        pipeline.more = {
            name: value
            for name, value in pipeline.more.items()
            if name in ("TELEMETRY_BIND", "TELEMETRY_ADMIN_BIND", "TELEMETRY_STATE")
        }
        with pipeline:
            assert pipeline.events([{"event": "page viewed", "account": 7}])
            until(lambda: pipeline.books()["delivered"]["heap"] == 1, 6.0, "delivered")
            assert pipeline.stop() == 0
        said = pipeline.stderr.read_text("utf-8")
        assert "heap: NOT the real one." in said
        assert "sentry: NOT the real one." in said
        assert "marked insecure; production refuses them" in said
        assert heap.requests == sentry.requests == []
