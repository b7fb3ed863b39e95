"""Every paper says what is so: its snippets run, its links lead somewhere, its commands exist.

What follows the language of a fence says what is done with it (docs are otherwise ordinary
Markdown):

- ``python``: those of a paper run one after the other in a new process in an empty folder;
  ``python shown``: compiled only.
- ``sh`` and ``console``: commands, make targets and options must exist; ``sh run``: also run.
- ``toml``: must be TOML. ``toml telemetry.toml``: loaded as settings. ``toml events.toml add`` (or
  ``replace``): loaded as part of the shipped policy; with ``refused``, the next ``text`` block is
  the error that this must give.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from typer.main import get_command

from scrubbers.detectors import Detectors
from telemetry.config import load_settings
from telemetry.errors import ConfigError
from telemetry.policy import load_policy, schemas_dir
from telemetry.rules import Schemas

ROOT = Path(__file__).parents[2]
PAPERS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "schemas" / "README.md",
        ROOT / "tests" / "bench" / "RESULTS.md",
    ]
)
TIMEOUT_S = 60


class Snippet(NamedTuple):
    paper: Path
    line: int
    language: str
    words: tuple[str, ...]
    text: str
    after: str
    """The next ``text`` block of the paper, if it follows before another snippet."""

    @property
    def id(self) -> str:
        return f"{self.paper.relative_to(ROOT)}:{self.line}"


FENCE = re.compile(r"(?ms)^(?P<fence>`{3,})(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=fence)\s*$")


def snippets() -> Iterator[Snippet]:
    for paper in PAPERS:
        whole = paper.read_text("utf-8")
        found = list(FENCE.finditer(whole))
        for n, match in enumerate(found):
            language, *words = match["info"].split() or [""]
            following = found[n + 1] if n + 1 < len(found) else None
            after = following["text"] if following and following["info"].strip() == "text" else ""
            line = whole.count("\n", 0, match.start()) + 1
            yield Snippet(paper, line, language, tuple(words), match["text"], after)


SNIPPETS = list(snippets())


def _of(*languages: str) -> list[Any]:
    return [pytest.param(s, id=s.id) for s in SNIPPETS if s.language in languages]


def _environment(folder: Path) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {"PATH": path, "HOME": str(folder), "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}


def test_a_fence_says_only_what_this_module_understands() -> None:
    known = {"shown", "run", "add", "replace", "refused", "telemetry.toml"}
    known |= {path.name for path in (schemas_dir() / "policy").glob("*.toml")}
    for snippet in SNIPPETS:
        if snippet.language in {"python", "sh", "console", "toml"}:
            assert set(snippet.words) <= known, snippet.id


RUNNER = """
import json, sys
# `app` stands for the reader's own application.
names = {"__name__": "__main__", "app": lambda *arguments: None}
for where, line, text in json.load(sys.stdin):
    # Under the paper's own name and line, so that a traceback shows where to look.
    exec(compile("\\n" * line + text, where, "exec"), names)
"""


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_runs_as_it_stands(paper: Path, tmp_path: Path) -> None:
    found = [s for s in SNIPPETS if s.paper == paper and s.language == "python"]
    for snippet in found:
        ast.parse(snippet.text)
    run = [(paper.name, s.line, s.text) for s in found if "shown" not in s.words]
    if not run:
        return
    # A paper is read from its top, so a snippet may use what the ones before it made.
    ran = subprocess.run(  # noqa: S603 - our own papers
        [sys.executable, "-W", "error::SyntaxWarning", "-c", RUNNER],
        input=json.dumps(run),
        cwd=tmp_path,
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("snippet", _of("toml"))
def test_toml_is_what_the_program_reads(snippet: Snippet, tmp_path: Path) -> None:
    tomllib.loads(snippet.text)
    words = set(snippet.words)
    if not words:
        return
    (file,) = words - {"add", "replace", "refused"}
    if file == "telemetry.toml":
        path = tmp_path / file
        path.write_text(snippet.text, "utf-8")
        _expect(snippet, lambda: load_settings(path, environ={}), tmp_path)
        return
    folder = tmp_path / "policy"
    shutil.copytree(schemas_dir() / "policy", folder)
    shipped = (folder / file).read_text("utf-8")
    if "add" in words:
        (folder / file).write_text(f"{shipped}\n{snippet.text}", "utf-8")
    else:
        assert "replace" in words, f"{snippet.id}: say add or replace"
        (folder / file).write_text(snippet.text, "utf-8")

    def load() -> None:
        policy = load_policy(folder)
        Schemas(policy, Detectors.compile(policy.detector_table))
        assert policy.digest != load_policy(schemas_dir() / "policy").digest

    _expect(snippet, load, tmp_path)


def _expect(snippet: Snippet, load: Any, folder: Path) -> None:
    if "refused" not in snippet.words:
        load()
        return
    assert snippet.after, f"{snippet.id}: show the error in a text block below"
    with pytest.raises(ConfigError) as caught:
        load()
    said = re.sub(rf"{re.escape(str(folder))}/(policy/)?", "", str(caught.value))
    # Line numbers count in the whole file, of which a paper shows a part.
    said, shown = (re.sub(r"\.toml:\d+:", ".toml:…:", text) for text in (said, snippet.after))
    assert " ".join(said.split()) == " ".join(shown.split())


@cache
def _commands() -> dict[str, set[str]]:
    """Every command of ``telemetry`` with its options."""
    from telemetry.cli import (  # noqa: F401 - they register
        account,
        app,
        audit,
        demo,
        explain,
        keys,
        letters,
        operate,
        policies,
        roles,
        scrub,
        vault,
    )

    return dict(_walk(get_command(app), ""))


def _walk(command: Any, prefix: str) -> Iterator[tuple[str, set[str]]]:
    if isinstance(command, typer.core.TyperGroup):
        for name, inner in command.commands.items():
            yield from _walk(inner, f"{prefix} {name}".strip())
    else:
        options = {option for parameter in command.params for option in parameter.opts}
        yield prefix, options | {"--help", "-h"}


def _check_command(words: list[str], where: str) -> None:
    commands = _commands()
    names = [w for w in words[1:4] if re.fullmatch(r"[a-z][a-z-]*", w)]
    name = next((n for k in (3, 2, 1) if (n := " ".join(names[:k])) in commands), None)
    if not names and {"--help", "-h", "--install-completion"} & set(words):
        return
    assert name is not None, f"{where}: there is no command {' '.join(words)!r}"
    for word in words[1:]:
        if word.startswith("-") and word != "-":
            option = word.partition("=")[0]
            assert option in commands[name], f"{where}: telemetry {name} has no {option}"


def _invocations(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        bare = line.removeprefix("$ ").partition(" #")[0]
        for part in re.split(r"[|;&]+", bare):
            words = part.split()
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words.pop(0)
            if words:
                yield words


@pytest.mark.parametrize("snippet", _of("sh", "console"))
def test_commands_that_are_shown_exist(snippet: Snippet, tmp_path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for words in _invocations(snippet.text):
        if words[0] == "telemetry":
            _check_command(words, snippet.id)
        elif words[0] == "make":
            asked = {word for word in words[1:] if "=" not in word}
            assert asked <= targets, f"{snippet.id}: make has no {asked - targets}"
    if "run" in snippet.words:
        ran = subprocess.run(  # noqa: S603 - our own papers
            ["/bin/bash", "-euo", "pipefail", "-c", snippet.text.replace("\n$ ", "\n")],
            cwd=tmp_path,
            env=_environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_named_in_prose_exist(paper: Path) -> None:
    prose = FENCE.sub("", paper.read_text("utf-8"))
    for command in re.findall(r"`(telemetry [a-z][^`]*)`", prose):
        _check_command(command.split(), paper.name)


LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")


def _anchors(paper: Path) -> set[str]:
    found = set()
    for title in re.findall(r"^#+ (.+)$", FENCE.sub("", paper.read_text("utf-8")), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        found.add(slug)
    return found


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_papers_resolve(paper: Path) -> None:
    for match in LINK.finditer(FENCE.sub("", paper.read_text("utf-8"))):
        target, _, anchor = match["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (paper.parent / target).resolve() if target else paper
        assert path.exists(), f"{paper.name}: {match['target']}"
        assert path.is_relative_to(ROOT)
        if anchor and path.suffix == ".md":
            assert anchor in _anchors(path), f"{paper.name}: {match['target']}"


def test_papers_that_the_code_names_exist() -> None:
    folders = ("telemetry", "scrubbers", "schemas", "deploy", "tests")
    for folder in folders:
        for path in (ROOT / folder).rglob("*"):
            foreign = "node_modules" in path.parts
            if foreign or path.suffix not in {".py", ".toml", ".avsc", ".md", ".service"}:
                continue
            if "node_modules" in path.parts:
                continue
            for name in re.findall(r"docs/[A-Za-z0-9/_-]+\.md", path.read_text("utf-8")):
                assert (ROOT / name).is_file(), f"{path.relative_to(ROOT)} names {name}"


def test_no_paper_names_a_registry_or_a_place_on_this_machine() -> None:
    for paper in PAPERS:
        text = paper.read_text("utf-8")
        assert not re.search(r"index-url|pypi\.org/simple|registry\.npmjs", text), paper.name
        assert not re.search(r"/(?:root|work)/", text), paper.name


def test_contributing_is_short_enough_to_be_read() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text("utf-8").splitlines()) < 250


def test_the_changelog_begins_with_privacy() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    version = text.split("\n## ", 1)[1]
    assert re.search(r"^### (.+)$", version, re.MULTILINE)[1] == "Privacy"  # type: ignore[index]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert version.startswith(f"[{project['version']}]")


def _tests() -> set[str]:
    """Names of all test functions of this repository."""
    return {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_test_that_the_threat_model_names_exists() -> None:
    text = (ROOT / "docs" / "security" / "threat-model.md").read_text("utf-8")
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 30
    assert named <= _tests()


def test_every_row_of_the_threat_model_is_backed_or_says_that_it_is_not() -> None:
    text = (ROOT / "docs" / "security" / "threat-model.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| **")]
    assert len(rows) > 20
    for row in rows:
        assert "`test_" in row or "No test" in row or "Not measured" in row, row[:60]


def test_json_in_papers_is_json() -> None:
    for snippet in SNIPPETS:
        if snippet.language == "json":
            json.loads(snippet.text)


def test_the_readme_leads_to_every_paper() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for paper in sorted((ROOT / "docs").glob("*.md")):
        assert f"(docs/{paper.name}" in readme, paper.name


def test_no_heading_of_the_changelog_stands_twice_in_a_version() -> None:
    versions = (ROOT / "CHANGELOG.md").read_text("utf-8").split("\n## ")[1:]
    for version in versions:
        headings = re.findall(r"^### (.+)$", version, flags=re.MULTILINE)
        assert len(headings) == len(set(headings)), version.partition("\n")[0]
        assert "Privacy" not in headings[1:], "Privacy comes first"
