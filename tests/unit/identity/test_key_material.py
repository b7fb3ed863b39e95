"""Who touches key material: named here, so that a new importer is a decision and not a slip."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[3]
SHARP = {
    "telemetry.identity.capsule",
    "telemetry.identity.custody",
    "telemetry.identity.keyring",
    "telemetry.identity.rotation",
    "telemetry.identity.vault",
    "telemetry.identity.ways_back",
}
ALLOWED: dict[str, set[str]] = {
    # It gives tokens and accounts to whom the policy names, and no key to anybody.
    "telemetry/cli/account.py": {"telemetry.identity.ways_back"},
    # The operator's own door: states and names; the next test shows that it takes no bytes out.
    "telemetry/cli/keys.py": {
        "telemetry.identity.custody",
        "telemetry.identity.keyring",
        "telemetry.identity.rotation",
    },
    # The sweeper deletes requests whose time is up; that opens no key.
    "telemetry/run.py": {"telemetry.identity.ways_back"},
}
"""Modules outside telemetry/identity that may import one of `SHARP`, and which."""

EXPOSING = {
    "telemetry/identity/__init__.py",
    "telemetry/identity/capsule.py",
    "telemetry/identity/keyring.py",
    "telemetry/identity/vault/__init__.py",
    "telemetry/identity/ways_back.py",
}
"""Modules that may take the bytes out of a `Secret`. The spool opens its own payload key."""

EXPOSING_OUTSIDE = {"telemetry/brokers/spool.py", "telemetry/run.py"}


def imported(path: Path) -> set[str]:
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def sources() -> list[Path]:
    return [*(ROOT / "telemetry").rglob("*.py"), *(ROOT / "scrubbers").rglob("*.py")]


def test_only_named_modules_import_key_material() -> None:
    found: dict[str, set[str]] = {}
    for path in sources():
        name = path.relative_to(ROOT).as_posix()
        sharp = imported(path) & SHARP
        if sharp and not name.startswith("telemetry/identity/"):
            found[name] = sharp
    assert found == ALLOWED


def test_the_walk_sees_the_imports_it_looks_for() -> None:
    inside = imported(ROOT / "telemetry" / "identity" / "__init__.py")
    assert inside >= SHARP - {"telemetry.identity.ways_back"}
    assert "telemetry.identity.keyring" in imported(
        ROOT / "telemetry" / "identity" / "ways_back.py"
    )


def test_the_audit_log_and_its_tree_touch_no_key() -> None:
    for name in ("audit.py", "merkle.py"):
        assert not imported(ROOT / "telemetry" / "identity" / name) & SHARP


def test_only_named_modules_take_bytes_out_of_a_secret() -> None:
    using = {
        path.relative_to(ROOT).as_posix()
        for path in sources()
        if any(
            isinstance(node, ast.Attribute) and node.attr == "expose"
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
        )
    }
    assert using >= EXPOSING
    assert using <= EXPOSING | EXPOSING_OUTSIDE


def test_pseudonyms_are_pure() -> None:
    names = imported(ROOT / "telemetry" / "identity" / "pseudonym.py")
    refused = {"os", "io", "time", "random", "secrets", "logging", "pathlib", "sqlite3", "socket"}
    assert not names & refused
