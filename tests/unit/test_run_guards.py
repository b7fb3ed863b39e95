"""What is fine on somebody's own machine is refused everywhere else, with a word on what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from telemetry.config import Project, RecipientSettings, Settings
from telemetry.errors import ConfigError
from telemetry.run import Runner

KEY = "5e17" * 8
DSN = f"https://{KEY}@o1.ingest.de.sentry.io/1"
SOUND: dict[str, Any] = {
    "bind": "127.0.0.1:0",
    "admin_bind": "127.0.0.1:0",
    "project": {"1": Project(key=KEY, tenant="web")},
    "recipient": {
        "heap": RecipientSettings(url="https://heapanalytics.com", app_id="11"),
        "sentry": RecipientSettings(dsn=DSN),
    },
}


def settings(tmp_path: Path, environment: str, **more: Any) -> Settings:
    return Settings(environment=environment, state=str(tmp_path / "state"), **(SOUND | more))


async def opened(given: Settings) -> list[str]:
    """Open a pipeline and close it; give what it said."""
    said: list[str] = []
    runner = Runner(given, said.append)
    try:
        await runner.open()
    finally:
        await runner.close()
    return said


ELSEWHERE = ["staging", "dev"]


@pytest.mark.parametrize("environment", [*ELSEWHERE, "development"])
async def test_a_sound_installation_starts_in_every_environment(
    tmp_path: Path, environment: str
) -> None:
    said = await opened(settings(tmp_path, environment))
    assert not [line for line in said if "NOT the real one" in line or "any key" in line]


@pytest.mark.parametrize("environment", ELSEWHERE)
@pytest.mark.parametrize(
    ("more", "told"),
    [
        pytest.param(
            {"project": {}},
            r"no client may send.*Give each application a \[project",
            id="open keys",
        ),
        pytest.param(
            {"recipient": {}},
            r"recipient\.heap lacks 'url'.*Set it in telemetry\.toml under \[recipient\.heap\]",
            id="stand-ins",
        ),
        pytest.param(
            {"bind": "0.0.0.0:0"},
            r"in clear over the network.*Bind to loopback and put a TLS proxy",
            id="plain HTTP from outside",
        ),
        pytest.param(
            {
                "recipient": SOUND["recipient"]
                | {"sentry": RecipientSettings(dsn=f"https://{KEY}@sentry.example/1")}
            },
            r"recipient\.sentry has a dsn at a host.*Use one of: .*add the host to the policy",
            id="undeclared host",
        ),
        pytest.param(
            {
                "recipient": SOUND["recipient"]
                | {"heap": RecipientSettings(url="http://127.0.0.1:9", app_id="11")}
            },
            r"recipient\.heap has a url at a host.*Use one of: .*add the host to the policy",
            id="undeclared host of the other recipient",
        ),
    ],
)
async def test_outside_development_a_guard_refuses_the_start_and_says_what_to_do(
    tmp_path: Path, environment: str, more: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        await opened(settings(tmp_path, environment, **more))
    assert KEY not in str(caught.value)


async def test_development_has_open_keys_stand_ins_and_any_host_and_says_so(tmp_path: Path) -> None:
    elsewhere = {"sentry": RecipientSettings(dsn=f"http://{KEY}@127.0.0.1:9/1")}
    said = await opened(
        settings(tmp_path, "development", project={}, bind="0.0.0.0:0", recipient=elsewhere)
    )
    assert [line for line in said if line.startswith("heap: NOT the real one")]
    assert [line for line in said if "any key is accepted" in line]


@pytest.mark.parametrize("environment", ["staging", "production"])
async def test_keys_of_development_open_nothing_elsewhere(tmp_path: Path, environment: str) -> None:
    await opened(settings(tmp_path, "development"))
    with pytest.raises(ConfigError, match="for development only"):
        await opened(settings(tmp_path, environment))
