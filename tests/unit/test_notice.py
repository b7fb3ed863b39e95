"""The data dictionary says what runs: no field, event, recipient or detector is missing from it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from scrubbers.detectors import Detectors
from telemetry import notice
from telemetry.policy import load_policy, schemas_dir
from telemetry.rules import Schemas
from telemetry.schema import Record, load_records


def _dictionary() -> str:
    batch = json.loads((schemas_dir() / "batch.avsc").read_text("utf-8"))
    return notice.data_dictionary(load_policy(schemas_dir() / "policy"), load_records(), batch)


def _wire_names(record: Record) -> set[str]:
    names = {entry.wire for entry in record.fields}
    for entry in record.fields:
        if entry.record is not None:
            names |= _wire_names(entry.record)
    return names


def test_every_field_that_is_compiled_is_in_the_dictionary() -> None:
    text = _dictionary()
    policy = load_policy(schemas_dir() / "policy")
    schemas = Schemas(policy, Detectors.compile(policy.detector_table))
    sections = [part.split("`")[0] for part in text.split("\n## Kind `")[1:]]
    for kind, record in schemas.records.items():
        section = text.split(f"\n## Kind `{kind}`\n", 1)[1].split("\n## ", 1)[0]
        said = {
            segment.strip('"')
            for line in section.splitlines()
            if line.startswith("| `")
            for segment in re.findall(r'"[^"]+"|[^.\[\]]+', line.split("`")[1])
        }
        assert said == _wire_names(record), kind
    assert sorted(sections) == sorted(schemas.records)


def test_every_event_property_recipient_and_detector_is_in_the_dictionary() -> None:
    text, policy = _dictionary(), load_policy(schemas_dir() / "policy")
    for event, properties in policy.events.items():
        for name in properties:
            assert f"| `{event}` | `{name}` |" in text
        assert f"| `{event}` |" in text
    for name, recipient in policy.recipients.items():
        assert f"| `{name}` | {recipient.entity}" in text
        assert f"`{recipient.retention}`" in text
    for name in policy.detector_table["detector"]:
        assert f"| `{name}` |" in text


def test_the_same_policy_gives_the_same_bytes() -> None:
    assert _dictionary() == _dictionary()


def test_every_row_of_a_table_has_as_many_cells_as_its_header() -> None:
    width = 0
    for line in _dictionary().splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        cells = line.replace(r"\|", "").count("|")
        width = width or cells
        assert cells == width, line


def test_the_check_fails_and_says_what_to_do_when_the_dictionary_is_out_of_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "README.md"
    assert notice.main(["--check", "--output", str(out)]) == 1
    assert notice.main(["--output", str(out)]) == 0
    assert notice.main(["--check", "--output", str(out)]) == 0
    out.write_text(out.read_text("utf-8").replace("rounded down to 60 s", "kept"), "utf-8")
    capsys.readouterr()
    assert notice.main(["--check", "--output", str(out)]) == 1
    assert "python -m telemetry.notice" in capsys.readouterr().err


def test_a_changed_policy_makes_the_dictionary_out_of_date(tmp_path: Path) -> None:
    out, folder = tmp_path / "README.md", tmp_path / "policy"
    shutil.copytree(schemas_dir() / "policy", folder)
    where = ["--policy", str(folder), "--output", str(out)]
    assert notice.main(where) == 0
    treatments = folder / "treatments.toml"
    changed = treatments.read_text("utf-8").replace('profile = "default"', 'profile = "strict"')
    assert changed != treatments.read_text("utf-8")
    treatments.write_text(changed, "utf-8")
    assert notice.main(["--check", *where]) == 1
    assert notice.main(where) == 0
    assert "cut to /16 (IPv4) or /32 (IPv6)" in out.read_text("utf-8")


def test_an_unsound_policy_is_refused_with_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert notice.main(["--policy", str(tmp_path), "--output", str(tmp_path / "x")]) == 2
    assert "controller.toml" in capsys.readouterr().err
