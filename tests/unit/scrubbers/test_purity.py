from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import pytest

_PACKAGE = Path(__file__).parents[3] / "scrubbers"
_MODULES = sorted(path for path in _PACKAGE.glob("*.py") if path.stem != "shipped")
_IMPURE = {
    "os", "pathlib", "io", "time", "random", "secrets", "logging", "subprocess", "threading",
    "asyncio", "tempfile", "shutil", "sys", "uuid", "telemetry", "http", "sqlite3",
}  # fmt: skip
# `inet_pton` and `inet_ntop` are functions of their arguments; nothing else of `socket` is.
_PURE_OF_SOCKET = {"AF_INET", "AF_INET6", "inet_pton", "inet_ntop"}
_IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "now", "utcnow", "today"}


@pytest.mark.parametrize("path", _MODULES, ids=lambda path: path.stem)
def test_a_scrubber_reads_no_file_clock_chance_or_network(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            roots = {alias.name.partition(".")[0] for alias in node.names}
            assert not roots & (_IMPURE | {"socket"})
        if isinstance(node, ast.ImportFrom):
            root = (node.module or "").partition(".")[0]
            assert root not in _IMPURE
            if root == "socket":
                assert {alias.name for alias in node.names} <= _PURE_OF_SOCKET
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            assert name not in _IMPURE_CALLS


@pytest.mark.parametrize("path", sorted(_PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_the_examples_in_the_docstrings_hold(path: Path) -> None:
    name = "scrubbers" if path.stem == "__init__" else f"scrubbers.{path.stem}"
    assert doctest.testmod(importlib.import_module(name)).failed == 0
