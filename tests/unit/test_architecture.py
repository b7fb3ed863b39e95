"""The shape of the code is a promise too: who may import whom, and what may stand in a schema."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import msgspec
import pytest

from scrubbers.detectors import Detectors
from telemetry.policy import load_policy, schemas_dir
from telemetry.rules import Schemas
from telemetry.schema import CLASSES, TREATMENTS

ROOT = Path(__file__).parents[2]
MODULES = sorted([*(ROOT / "telemetry").rglob("*.py"), *(ROOT / "scrubbers").rglob("*.py")])
NAMES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES]

# The layers, from the outside in. A module may import from its own layer and from those below it.
LAYERS = [
    # the edges: what a person or a host application touches
    {
        "telemetry.cli",
        "telemetry.demo",
        "telemetry.run",
        "telemetry.upkeep",
        "telemetry.admin",
        "telemetry.integrations",
        "telemetry",
    },
    # what runs the roles' own functions to tell of them
    {"telemetry.explain", "telemetry.compare", "telemetry.filter"},
    # the roles
    {
        "telemetry.gateway",
        "telemetry.client",
        "telemetry.pipeline",
        "telemetry.forward",
        "telemetry.letters",
        "telemetry.orders",
        "telemetry.redrive",
        "telemetry.status",
    },
    # what the roles are made of
    {
        "telemetry.sinks",
        "telemetry.brokers",
        "telemetry.edge",
        "telemetry.intake",
        "telemetry.dead_letter",
        "telemetry.identity",
        "telemetry.dialects",
        "telemetry.context",
        "telemetry.transport",
        "telemetry.books",
        "telemetry.metrics",
        "telemetry.logs",
        "telemetry.config",
    },
    # the words everything is written in
    {
        "telemetry.policy",
        "telemetry.schema",
        "telemetry.rules",
        "telemetry.codegen",
        "telemetry.tolerant",
        "telemetry.parcel",
        "telemetry.batch",
        "telemetry.retention",
        "telemetry.notice",
        "telemetry.errors",
    },
    {"scrubbers"},
]
# Stand-ins and suites for tests of whoever uses or extends this: they may see everything, and
# nothing but a development run may see them.
TESTING = "telemetry.testing"
SHOWS = ("telemetry.cli", "telemetry.demo")

# A catch-all stands only where an error must end, and each place says why beside it.
CATCH_ALL = {
    "telemetry.client": 1,  # the edge of the SDK: no call of an application raises
    "telemetry.context": 1,  # a framework's own class of headers may raise anything
    "telemetry.integrations.sentry": 2,  # called by sentry-sdk inside the application's own calls
    # the edge of the SDK's thread; whatever could not be scrubbed; and what instrumentation of
    # http.client adds to the errors that it documents
    "telemetry.transport": 3,
    "telemetry.cli.__init__": 1,  # the edge of a command: a traceback ends with a text of anybody's
    "telemetry.admin": 1,  # the edge of an order: whoever gave it is answered, and not with a text
    "telemetry.upkeep": 1,  # whoever asked for the work must be told that it ended
    "telemetry.brokers.buffered": 1,  # the edge of the relay's thread: nobody else would see it end
    "telemetry.run": 2,  # the edge of the loop, and whoever waits for a commit must be told
    "telemetry.demo.app": 2,  # it plays a customer's application, with its last resort
    "telemetry.batch": 1,  # fastavro raises whatever its decoder meets, quoting data
    "telemetry.forward": 1,  # the edge of the loop: a sink must not raise
    # kafka-python raises errors of many trees; a client that raised once is given up, and each of
    # these raises ours instead (reliability.md, K3)
    "telemetry.brokers.kafka.__init__": 9,
    "telemetry.brokers.kafka.board": 2,
    "telemetry.brokers.kafka.shelf": 2,
    "telemetry.brokers.kafka.topics": 3,
}

# What of the `socket` module computes, and connects to nothing.
PURE_SOCKET = {"AF_INET", "AF_INET6", "inet_ntop", "inet_pton"}

# The rest of what scrubs is pure; this one module reads the two tables that come with it.
READS_FILES = {"scrubbers.shipped"}


def _tree(name: str) -> ast.Module:
    path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    return ast.parse(path.read_text("utf-8"))


def _imports(name: str) -> Iterator[str]:
    """Every module that a module names in an import, also inside functions and TYPE_CHECKING."""
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in NAMES else node.module


def _layer(name: str) -> int:
    for depth, members in enumerate(LAYERS):
        for member in members - {"telemetry"}:
            if name == member or name.startswith(member + "."):
                return depth
    assert name in {"telemetry", "telemetry.__init__"}, f"{name} belongs to no layer: add it to one"
    return 0


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith(TESTING)])
def test_arrows_point_one_way(name: str) -> None:
    own = _layer(name.removesuffix(".__init__"))
    for target in _imports(name):
        if target.partition(".")[0] not in {"telemetry", "scrubbers"}:
            continue
        assert not target.startswith(TESTING) or name.startswith(SHOWS), (
            f"{name} imports {target}: what is for tests does not run in production"
        )
        if not target.startswith(TESTING):
            assert _layer(target) >= own, f"{name} imports {target}, which lies above it"


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("scrubbers")])
def test_scrubbers_know_nothing_of_the_pipeline_and_do_no_io(name: str) -> None:
    allowed = {
        "scrubbers",
        "msgspec",
        "re2",
        "stdnum",
        "phonenumbers",
        "ua_parser",
        *sys.stdlib_module_names,
    }
    forbidden = {"os", "io", "logging", "random", "secrets", "time", "subprocess"}
    if name in READS_FILES:
        return
    for target in _imports(name):
        top = target.partition(".")[0]
        assert top in allowed, f"{name} imports {target}"
        assert top not in forbidden, f"{name} imports {target}: scrubbers are pure"
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.ImportFrom) and node.module == "socket":
            assert {alias.name for alias in node.names} <= PURE_SOCKET, name
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"open", "datetime.now", "datetime.utcnow", "Path"}, (
                f"{name}:{node.lineno} calls {called}"
            )


@pytest.mark.parametrize("name", NAMES)
def test_only_one_module_speaks_to_kafka_and_none_unpickles(name: str) -> None:
    for target in _imports(name):
        top = target.partition(".")[0]
        assert top not in {"pickle", "marshal", "shelve"}, f"{name} imports {target}"
        if top == "kafka":
            assert name.startswith("telemetry.brokers.kafka."), f"{name} imports kafka"


@pytest.mark.parametrize("name", NAMES)
def test_key_material_is_handled_inside_identity_only(name: str) -> None:
    # The spool encrypts what lies on disk with a key that identity hands to it, ready for use.
    at_home = name.startswith("telemetry.identity") or name == "telemetry.brokers.spool"
    for target in _imports(name):
        if target.partition(".")[0] == "cryptography":
            assert at_home, f"{name} imports {target}"


@pytest.mark.parametrize("name", NAMES)
def test_every_module_says_what_it_owns(name: str) -> None:
    assert name.rpartition(".")[2] not in {"utils", "helpers", "manager", "base", "common"}
    text = ast.get_docstring(_tree(name))
    assert text
    assert text.split("\n")[0].endswith((".", ":", "?")), f"{name}: first line is no sentence"


# The demo's application is a customer's: it says its address as such applications do.
PRINTS = {"telemetry.demo.app"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PRINTS])
def test_nothing_is_printed_past_the_command_line_and_the_log(name: str) -> None:
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{name}:{node.lineno} prints"


def test_an_error_ends_only_where_the_list_says() -> None:
    found: dict[str, int] = {}
    for name in NAMES:
        for node in ast.walk(_tree(name)):
            if isinstance(node, ast.ExceptHandler) and _catches_all(node):
                found[name] = found.get(name, 0) + 1
    for name, count in sorted(found.items()):
        assert count <= CATCH_ALL.get(name, 0), (
            f"{name} has {count} catch-all handlers, {CATCH_ALL.get(name, 0)} are allowed. "
            "Catch what can happen, or add the place to CATCH_ALL with its reason."
        )


def _catches_all(node: ast.ExceptHandler) -> bool:
    """Whether a handler takes any error and does not just clean up and raise it again."""
    caught = "" if node.type is None else ast.unparse(node.type)
    if caught and not any(word in caught for word in ("BaseException", "Exception")):
        return False
    names = {word.strip(" ()") for word in caught.split(",")}
    if caught and not names & {"Exception", "BaseException"}:
        return False
    last = node.body[-1]
    return not (isinstance(last, ast.Raise) and last.exc is None)


def test_importing_the_sdk_loads_nothing_but_the_standard_library_and_msgspec() -> None:
    code = (
        "import sys; before = set(sys.modules); import telemetry; "
        "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"
    )
    ran = subprocess.run(  # noqa: S603 - our own interpreter, our own words
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
    )
    loaded = set(ran.stdout.split())
    # msgspec itself imports typing_extensions where that is installed.
    foreign = loaded - set(sys.stdlib_module_names) - {"typing_extensions"}
    assert foreign <= {"telemetry", "msgspec"}


SCHEMAS = sorted((ROOT / "schemas").glob("*.avsc"))


def _records(schema: Any) -> Iterator[dict[str, Any]]:
    """Every record in a schema, depth first."""
    pending: deque[Any] = deque([schema])
    while pending:
        node = pending.popleft()
        if isinstance(node, list):
            pending.extend(node)
        elif isinstance(node, dict):
            if node.get("type") == "record":
                yield node
                pending.extend(entry["type"] for entry in node["fields"])
            else:
                pending.extend(node.get(key) for key in ("items", "values", "type"))


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_every_schema_is_valid_avro(path: Path) -> None:
    fastavro.parse_schema(json.loads(path.read_text("utf-8")))


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_every_field_is_annotated(path: Path) -> None:
    count = 0
    for record in _records(json.loads(path.read_text("utf-8"))):
        for entry in record["fields"]:
            note = entry.get("privacy", {})
            assert note.get("class") in CLASSES, f"{record['name']}.{entry['name']}"
            assert note.get("treatment") in TREATMENTS, f"{record['name']}.{entry['name']}"
            count += 1
    assert count


def _size_is_zero(schema: Any, named: dict[str, Any]) -> bool:
    """Whether a value of this schema takes no byte: a list of such can be endless in few bytes."""
    if isinstance(schema, str):
        return schema == "null" or (schema in named and _size_is_zero(named[schema], named))
    if isinstance(schema, list):
        return False  # a union writes which branch it is
    kind = schema["type"]
    if kind == "record":
        return all(_size_is_zero(entry["type"], named) for entry in schema["fields"])
    if kind == "fixed":
        return bool(schema["size"] == 0)
    return kind == "null"


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_no_schema_is_recursive_or_has_items_of_no_size(path: Path) -> None:
    schema = json.loads(path.read_text("utf-8"))
    named: dict[str, Any] = {}

    def visit(node: Any, above: tuple[str, ...]) -> None:
        if isinstance(node, str):
            assert node not in above, f"{node} holds itself"
        elif isinstance(node, list):
            for branch in node:
                visit(branch, above)
        elif node["type"] == "record":
            named[node["name"]] = node
            for entry in node["fields"]:
                visit(entry["type"], (*above, node["name"]))
        elif node["type"] in ("array", "map"):
            inner = node["items"] if node["type"] == "array" else node["values"]
            visit(inner, above)
            assert not _size_is_zero(inner, named), f"{above}: items of no size"
        else:
            visit(node["type"], above)

    visit(schema, ())


def test_the_zero_size_check_knows_a_record_of_nulls() -> None:
    empty = {"type": "record", "name": "E", "fields": [{"name": "n", "type": "null"}]}
    assert _size_is_zero(empty, {})
    assert not _size_is_zero({"type": "array", "items": "string"}, {})


def _all_rules() -> Iterator[Any]:
    policy = load_policy(schemas_dir() / "policy")
    yield from Schemas(policy, Detectors.compile(policy.detector_table)).all_rules


def test_the_contract_holds_no_undecoded_bytes_and_no_field_that_must_not_leave() -> None:
    seen = 0
    for rules in _all_rules():
        for name, type_ in rules.contract_types.items():
            for entry in msgspec.structs.fields(type_):
                assert "Raw" not in str(entry.type), f"{name}.{entry.name}"
                seen += 1
            part = next(p for p in _parts(rules.record) if p.name == name)
            kept = {e.wire for e in part.fields if e.treatment not in ("strip", "pseudonymize")}
            assert {e.encode_name for e in msgspec.structs.fields(type_)} == kept
    assert seen > 100


def _parts(record: Any) -> Iterator[Any]:
    yield record
    for entry in record.fields:
        if entry.record is not None:
            yield from _parts(entry.record)


def test_what_comes_in_is_never_what_goes_out() -> None:
    """`rewrite` gives contract types only, and the only encoder of an event is given its result.

    msgspec would write the undecoded bytes of an input type out again, so no input type may meet
    an encoder: the rules encode in one place, and the slow path encodes only to decode again.
    """
    for rules in _all_rules():
        assert not set(rules.input_types.values()) & set(rules.contract_types.values())
        made = {
            node.func.id
            for node in ast.walk(ast.parse(rules.source))
            if isinstance(node, ast.Return)
            and isinstance(node.value, ast.Call)
            and isinstance(node.value.func, ast.Name)
            for node in [node.value]
        }
        assert made == {f"Out_{name}" for name in rules.contract_types}
    encoders = {
        (name, ast.unparse(node))
        for name in ("scrubbers.engine", "telemetry.rules", "telemetry.tolerant", "telemetry.edge")
        for node in ast.walk(_tree(name))
        if isinstance(node, ast.Call) and _encodes(node)
    }
    assert encoders == {
        ("scrubbers.engine", "rules.encode(contract)"),
        ("telemetry.rules", "msgspec.json.Encoder()"),
        ("telemetry.rules", "msgspec.json.encode(pruned)"),
    }


def _encodes(node: ast.Call) -> bool:
    """Whether a call writes an object. A text's own takes nothing, or names of codecs."""
    called = ast.unparse(node.func).rpartition(".")[2]
    given = [arg for arg in node.args if not isinstance(arg, ast.Constant)]
    return called.endswith("Encoder") or (called == "encode" and bool(given))
