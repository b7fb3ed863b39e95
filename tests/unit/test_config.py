"""Settings: file, environment, command line; a wrong one is named and never shown."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest

from telemetry.config import (
    Bind,
    BrokerSection,
    Settings,
    VaultSection,
    check_vault,
    load_settings,
)
from telemetry.errors import ConfigError
from telemetry.policy import load_policy
from telemetry.run import check_host

NOTHING: Mapping[str, str] = {}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text, "utf-8")
    return path


def test_without_anything_it_is_a_development_form_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings(environ=NOTHING)
    assert not settings.production
    assert settings.broker.kind == "spool"
    assert Bind.parse(settings.bind).loopback
    assert Bind.parse(settings.admin_bind).loopback


def test_the_environment_stands_above_the_file_and_the_command_line_above_both(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, 'state = "/file"\nbind = "127.0.0.1:1"\nlog = "json"\n')
    environ = {"TELEMETRY_STATE": "/environment", "TELEMETRY_BIND": "127.0.0.1:2"}
    settings = load_settings(path, environ=environ, overrides={"bind": "[::1]:3", "log": None})
    assert (settings.state, settings.bind, settings.log) == ("/environment", "[::1]:3", "json")


def test_the_environment_reaches_into_sections_without_losing_their_rest(tmp_path: Path) -> None:
    path = written(tmp_path, '[recipient.heap]\napi_key_file = "/key"\n[broker]\nquota_mib = 32\n')
    environ = {
        "TELEMETRY_CONFIG": str(path),
        "TELEMETRY_HEAP_URL": "https://heap.example",
        "TELEMETRY_HEAP_APP_ID": "11",
        "TELEMETRY_KAFKA_BOOTSTRAP": "kafka.example:9092",
        "TELEMETRY_POLICY": "/policy",
        "TELEMETRY_BROKER": "kafka",
    }
    settings = load_settings(environ=environ)
    heap = settings.recipient["heap"]
    assert (heap.url, heap.app_id, heap.api_key_file) == ("https://heap.example", "11", "/key")
    assert (settings.broker.kind, settings.broker.bootstrap) == ("kafka", "kafka.example:9092")
    assert settings.broker.quota_mib == 32
    assert settings.policy.path == "/policy"


def test_a_file_in_the_current_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "telemetry.toml").write_text('environment = "staging"\n', "utf-8")
    assert load_settings(environ=NOTHING).environment == "staging"


SECRET = "hunter2-" + "q7wz"
REFUSED = [
    ('state = "/x"\nstat = "q7wz"\n', 2, "stat"),
    ("[gateway]\ntrusted_proxis = 1\n", 2, "trusted_proxis"),
    ('bind = "127.0.0.1"\n', 1, "bind"),
    ('log = "q7wz"\n', 1, "log"),
    ("\n[broker]\nquota_mib = 1\n", 3, "quota_mib"),
    ('\n\n[gateway]\nevents_per_minute = "q7wz"\n', 4, "events_per_minute"),
    (f'[project.web]\nkey = "{SECRET}"\ntenants = "x"\n', 3, "tenants"),
    (f'[recipient.sentry]\ndsn = "{SECRET}"\ndns = "{SECRET}"\n', 3, "dns"),
    ('state = "q7wz\n', 1, ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "key"), REFUSED)
def test_what_is_not_a_setting_is_refused_with_its_line_and_without_its_value(
    tmp_path: Path, text: str, line: int, key: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path, environ=NOTHING)
    assert caught.value.path == path
    assert caught.value.line == line
    assert key in str(caught.value)
    assert caught.value.remedy
    assert "q7wz" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TELEMETRY_BIND", "q7wz"),
        ("TELEMETRY_ENVIRONMENT", "Q7WZ"),
        ("TELEMETRY_BROKER", "q7wz"),
        ("TELEMETRY_LOG", "q7wz"),
        ("TELEMETRY_ADMIN_BIND", "host:port"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_settings(environ={variable: value})
    assert variable in str(caught.value)
    assert value not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_file_that_is_missing_or_unreadable_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing or unreadable"):
        load_settings(tmp_path / "absent.toml", environ=NOTHING)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="missing or unreadable"):
        load_settings(tmp_path / "binary.toml", environ=NOTHING)


def test_no_secret_is_in_any_representation(tmp_path: Path) -> None:
    text = f'[project.web]\nkey = "{SECRET}"\ntenant = "x"\n[recipient.sentry]\ndsn = "{SECRET}"\n'
    settings = load_settings(written(tmp_path, text), environ=NOTHING)
    assert settings.recipient["sentry"].dsn == SECRET
    assert SECRET not in repr(settings.recipient)
    assert "dsn" not in repr(settings.recipient["sentry"])


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("127.0.0.1:4180", "127.0.0.1", 4180, True),
        ("127.8.8.8:1", "127.8.8.8", 1, True),
        ("localhost:1", "localhost", 1, True),
        ("[::1]:2", "::1", 2, True),
        ("[::]:2", "::", 2, False),
        ("0.0.0.0:3", "0.0.0.0", 3, False),  # noqa: S104 - said to be open
        ("203.0.113.7:4", "203.0.113.7", 4, False),
    ],
)
def test_an_address_says_whether_others_can_reach_it(
    text: str, host: str, port: int, loopback: bool
) -> None:
    bind = Bind.parse(text)
    assert (bind.host, bind.port, bind.loopback) == (host, port, loopback)


def test_the_process_environment_is_read_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("TELEMETRY_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TELEMETRY_STATE", "/elsewhere")
    assert str(load_settings().state_dir) == "/elsewhere"


@pytest.mark.parametrize(
    ("given", "fits"),
    [
        ({"dsn": "https://k@o1.ingest.de.sentry.io/1"}, True),
        ({"dsn": "https://k@sentry.io/1"}, True),
        ({"dsn": "https://k@evil-sentry.io/1"}, False),
        ({"dsn": "https://k@sentry.io.evil.example/1"}, False),
        ({"url": "https://169.254.169.254/"}, False),
        ({"dsn": "https://sentry.io@evil.example/1"}, False),
    ],
)
def test_nothing_goes_to_a_host_that_the_policy_does_not_name(
    given: dict[str, str], fits: bool
) -> None:
    hosts = load_policy().recipients["sentry"].hosts
    if fits:
        check_host("sentry", hosts, given)
        return
    with pytest.raises(ConfigError, match="does not name") as caught:
        check_host("sentry", hosts, given)
    assert "evil" not in str(caught.value)
    assert "169" not in str(caught.value)


def test_a_search_must_be_an_address_with_a_place_for_the_token(tmp_path: Path) -> None:
    good = written(tmp_path, '[recipient.sentry]\nsearch = "https://s.example/?q={token}"\n')
    assert load_settings(good, environ=NOTHING).recipient["sentry"].search.endswith("{token}")
    for wrong in (
        "https://s.example/",
        "{token}",
        "javascript:{token}",
        "https://s.example/ {token}",
    ):
        bad = written(tmp_path, f'[recipient.sentry]\nsearch = "{wrong}"\n')
        with pytest.raises(ConfigError):
            load_settings(bad, environ=NOTHING)


def test_a_password_of_the_vault_has_no_place_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.toml"
    secret = "hunter" + "2"
    for name in ("url", "journal"):
        path.write_text(f'[vault]\n{name} = "postgresql+psycopg://v:{secret}@db.example/v"\n')
        with pytest.raises(ConfigError, match=f"vault.{name} holds a password") as caught:
            load_settings(path, environ={})
        assert secret not in str(caught.value)
    path.write_text("")
    given = {"TELEMETRY_VAULT_URL": f"postgresql+psycopg://v:{secret}@db.example/v"}
    settings = load_settings(path, environ=given)
    assert settings.vault.shared
    assert secret not in repr(settings)


@pytest.mark.parametrize(
    ("environment", "broker", "url", "fits"),
    [
        ("production", "spool", "", True),
        ("production", "kafka", "", False),
        ("staging", "kafka", "sqlite:////var/lib/telemetry/v", False),
        ("staging", "kafka", "postgresql+psycopg://v@db.example/v", True),
        ("development", "kafka", "", True),
    ],
)
def test_a_sqlite_vault_is_for_one_pseudonymizer(
    environment: str, broker: Literal["spool", "kafka"], url: str, fits: bool
) -> None:
    settings = Settings(
        environment=environment, broker=BrokerSection(kind=broker), vault=VaultSection(url=url)
    )
    if fits:
        check_vault(settings)
    else:
        with pytest.raises(ConfigError, match="one pseudonymizer"):
            check_vault(settings)


def test_a_vault_is_not_its_own_journal() -> None:
    url = "postgresql+psycopg://v@db.example/v"
    with pytest.raises(ConfigError, match="bring both back"):
        check_vault(Settings(vault=VaultSection(url=url, journal=url)))
