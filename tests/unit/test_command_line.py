"""The command line as a stranger meets it: what it asks, what can be copied, what it says."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner, Result

from telemetry import cli
from telemetry.cli import (
    account,
    app,
    audit,
    demo,
    explain,
    keys,
    letters,
    main,
    operate,
    policies,
    print_table,
    roles,
    scrub,
    vault,
)

Run = Callable[..., Result]

EVENT = "0190a6e0c0de7000800000000000c0de"
TOKEN = "ps1_sentry_u_2mm7vdrbqaxh5px9664g3mj7279d"
assert all((account, audit, demo, explain, keys, letters, operate, policies, roles, scrub, vault))


def commands() -> Iterator[tuple[str, Any]]:
    """Every command there is, with its words."""

    def below(words: str, one: Any) -> Iterator[tuple[str, Any]]:
        if inside := getattr(one, "commands", None):
            for name, inner in inside.items():
                yield from below(f"{words} {name}".strip(), inner)
        else:
            yield words, one

    yield from below("", typer.main.get_command(app))


COMMANDS = dict(commands())
# What they print is a file, a page or the log of a process; `scrub` is a filter.
NO_JSON = {
    "run",
    "gateway",
    "pseudonymize",
    "forward",
    "scrub",
    "audit prove",
    "keys export-public",
    "topics print",
    "topics apply",
}
FOR_GOOD = {
    "dead purge",
    "audit erase",
    "keys destroy",
    "vault restore",
    "vault rewrap",
    "policy revoke",
    "account erase",
}


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_has_help_with_examples_and_json_where_it_tells_something(
    words: str,
) -> None:
    command = COMMANDS[words]
    text = command.help or ""
    assert text.split("\n")[0].endswith((".", "?")), "the first line is a sentence"
    assert "Examples:" in text
    assert f"telemetry {words}" in text
    options = {option for parameter in command.params for option in parameter.opts}
    assert ("--json" in options) is (words not in NO_JSON)
    assert words not in FOR_GOOD or "--yes" in options


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def run(*words: str, text: str = "") -> Result:
        return CliRunner().invoke(app, words, input=text, env={"TELEMETRY_CONFIG": ""})

    return run


def test_the_version_is_that_of_the_package(run: Run) -> None:
    told = run("--version")
    assert (told.exit_code, told.stdout) == (0, f"milchglas {version('milchglas')}\n")


# --- What is gone for good ---------------------------------------------------------------------


@pytest.fixture
def wrap(run: Run) -> str:
    """A key that may be destroyed."""
    assert run("keys", "init").exit_code == 0
    kid: str = json.loads(run("keys", "create", "wrap", "--json").stdout)["kid"]
    return kid


@pytest.mark.parametrize(
    "words",
    [
        ("keys", "destroy", "KID"),
        ("keys", "rotate", "token", "--domain", "analytics@heap", "--epoch", "rel"),
        ("audit", "erase", "0", "--reason", "a name"),
        ("policy", "revoke", "c0c0c0c0"),
        ("vault", "rewrap", "--destroy"),
        ("vault", "restore", "copy"),
        ("vault", "restore", "--new-journal"),
        ("vault", "restore", "--new-vault"),
    ],
    ids=" ".join,
)
def test_nothing_is_gone_for_good_before_somebody_said_so(
    run: Run, wrap: str, words: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [wrap if word == "KID" else word for word in words]
    (tmp_path / "copy").write_bytes(b"")
    keyset = tmp_path / ".telemetry" / "keys" / "keyset.json"
    before, files = keyset.read_bytes(), sorted(tmp_path.rglob("*"))
    alone = run(*words)
    assert alone.exit_code == 2
    assert "Nobody can be asked here" in " ".join(alone.stderr.replace("│", "").split())
    monkeypatch.setattr(cli, "_on_terminal", lambda: True)
    for text in ("n\n", "\n"):
        asked = run(*words, text=text)
        assert asked.exit_code == 1
        assert "[y/N]" in asked.stderr
        assert "Nothing was done." in asked.stderr
    assert keyset.read_bytes() == before
    assert sorted(tmp_path.rglob("*")) == files


def test_the_question_says_what_a_new_token_key_does(
    run: Run, wrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is known under `rel` is pinned to their key; a quarter's key is everybody's."""
    assert wrap
    monkeypatch.setattr(cli, "_on_terminal", lambda: True)
    rel = run("keys", "rotate", "token", "--domain", "analytics@heap", "--epoch", "rel", text="n\n")
    assert "Whoever is known there keeps their token" in rel.stderr
    assert "everybody" not in rel.stderr
    quarter = ("keys", "rotate", "token", "--domain", "errors@sentry", "--epoch", "2026q4")
    assert "Give everybody another token at errors@sentry for the rest of 2026q4?" in (
        run(*quarter, text="n\n").stderr
    )


# --- What is copied ------------------------------------------------------------------------------


def table() -> Table:
    made = Table(show_edge=False)
    for column in ("reason", "stage", "path", "kind", "age", "place", "event", "goes again"):
        made.add_column(column, overflow="fold")
    where = "request.headers.a-name-that-is-rather-long"
    made.add_row("undecodable", "edge", where, "error_event", "12 d", "dead/17", EVENT, TOKEN)
    made.add_row("expired", "", "", "", "", "dead/18", EVENT, "[red]no[/]")
    return made


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [40, 80, 300])
def test_no_id_is_cut_or_broken(terminal: bool, width: int) -> None:
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=terminal, width=width, no_color=True, color_system=None
    )
    print_table(table(), console)
    lines = out.getvalue().splitlines()
    assert sum(EVENT in line for line in lines) == 2
    assert sum(TOKEN in line for line in lines) == 1
    assert "…" not in out.getvalue()
    if not terminal or width == 300:
        assert len(lines) == 4, "head, rule and two rows: nothing is wrapped"
    else:
        assert f"event       {EVENT}" in lines
        assert "" in lines


@pytest.mark.parametrize("width", [60, 80])
def test_words_go_to_the_next_line_before_a_table_becomes_a_list(width: int) -> None:
    out = io.StringIO()
    made = Table(show_edge=False)
    for column in ("event", "for", "what is left"):
        made.add_column(column)
    made.add_row(EVENT, "analytics@heap rel", "[red]nobody knows it any more and[/] so it waits")
    print_table(made, Console(file=out, force_terminal=True, width=width, color_system=None))
    lines = out.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    assert sum(EVENT in line for line in lines) == 1
    assert "│" in out.getvalue()
    for word in ("analytics@heap", "nobody", "waits"):
        assert word in out.getvalue()


def test_what_is_written_to_a_pipe_is_not_wrapped(run: Run, wrap: str) -> None:
    told = run("keys", "list")
    assert wrap in told.stdout
    rows = told.stdout.splitlines()
    assert len(rows) == 2 + len(json.loads(run("keys", "list", "--json").stdout))
    log = run("audit", "log").stdout.splitlines()
    assert len(log) == 2 + len(run("audit", "log", "--json").stdout.splitlines())


# --- What is said --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "begins"),
    [
        (("keys", "list"), "Error: "),
        (("audit", "log"), "Error: "),
        (("dead", "list", "--config", "absent.toml"), "Error: "),
        (("policy", "list", "--config", "absent.toml"), "Error: "),
        (("run", "--config", "absent.toml"), "Cannot start: "),
        (("forward", "sentry"), "Cannot start: "),
        (("check", "--config", "absent.toml"), "Cannot start: "),
    ],
    ids=str,
)
def test_only_what_starts_something_says_that_it_cannot_start(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    begins: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["telemetry", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capfd.readouterr().err.startswith(begins)


def test_an_order_is_answered_with_a_sentence_and_with_json_if_asked(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_state: Path, _method: str, target: str) -> dict[str, Any]:
        return {"paused" if "pause" in target else "resumed": ["heap", "sentry"]}

    monkeypatch.setattr(operate, "ask", answer)
    assert run("pause", "all").stdout == (
        "heap, sentry: paused. Events wait; to go on: telemetry resume all\n"
    )
    assert run("resume", "all").stdout == "heap, sentry: going on.\n"
    assert json.loads(run("pause", "all", "--json").stdout) == {"paused": ["heap", "sentry"]}
