"""What we ship as examples can be used, and the reference leaves no setting out."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from telemetry.config import _ENVIRONMENT as VARIABLES
from telemetry.config import Settings, load_settings
from telemetry.errors import ConfigError

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.mark.parametrize("name", ["config.minimal.toml", "config.reference.toml"])
def test_an_example_loads(name: str) -> None:
    settings = load_settings(DEPLOY / name, environ={})
    assert settings.recipient["sentry"].dsn
    assert settings.project["1"].tenant == "shop"


def test_the_reference_shows_every_default() -> None:
    said = msgspec.to_builtins(load_settings(DEPLOY / "config.reference.toml", environ={}))
    for key, value in msgspec.to_builtins(Settings()).items():
        if key not in {"project", "recipient"}:
            assert said[key] == value, key


def test_the_reference_names_every_setting_and_every_variable() -> None:
    text = (DEPLOY / "config.reference.toml").read_text("utf-8")
    written = tomllib.loads(text)

    def missing(shape: Any, table: dict[str, Any], path: str) -> list[str]:
        found = []
        for entry in msgspec.structs.fields(shape):
            if entry.encode_name not in table:
                found.append(f"{path}{entry.encode_name}")
            elif isinstance(entry.type, type) and issubclass(entry.type, msgspec.Struct):
                found += missing(entry.type, table[entry.encode_name], f"{path}{entry.name}.")
        return found

    assert missing(Settings, written, "") == []
    assert set(re.findall(r"TELEMETRY_[A-Z_]+", text)) == {*VARIABLES, "TELEMETRY_CONFIG"}


def test_a_key_that_is_not_in_the_reference_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.toml"
    path.write_text('log = "auto"\n\n[gateway]\ntrust_proxies = 1\n', "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_settings(path, environ={})
    assert caught.value.line == 4
    assert "trust_proxies" in str(caught.value)


def test_the_image_runs_as_nobody_special_and_names_no_registry() -> None:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    final = text.rpartition("\nFROM ")[2]
    assert "\nUSER telemetry\n" in final
    assert "alpine" not in final
    assert not re.search(r"--(extra-)?index-url|--trusted-host", text)
    for line in text.splitlines():
        if line.startswith("FROM "):
            assert "/" not in line
    assert "--require-hashes" in text


def test_the_unit_starts_commands_that_exist_and_may_gain_no_rights() -> None:
    text = (DEPLOY / "systemd" / "telemetry.service").read_text("utf-8")
    assert "ExecStart=/opt/telemetry/bin/telemetry run\n" in text
    assert "NoNewPrivileges=yes" in text
    assert "LimitCORE=0" in text
