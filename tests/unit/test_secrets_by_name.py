"""A tag whose name says that it is a secret goes, also if its value has no shape of its own."""

from __future__ import annotations

import json

import pytest
from making import shipped

from scrubbers.engine import scrub

LETTERS = "kqvnzrwbtxhjdlmfgpsyckqz"


def tag(name: str, value: str) -> str | None:
    raw = json.dumps({"tags": {name: value}}).encode()
    outcome = scrub(raw, shipped()[1].rules_for("error_event", raw))
    found: dict[str, str] = json.loads(outcome.event)["tags"]
    return found.get(name)


@pytest.mark.parametrize(
    "name",
    [
        *("session", "Session", "session_id", "sid", "user_session", "user-session", "sess"),
        *("auth", "token", "access_token", "authToken", "bearer", "cookie", "cookies", "csrf"),
        *("secret", "api_key", "credentials", "authorization", "otp", "sessionKey"),
    ],
)
def test_a_secret_without_a_shape_is_told_by_its_name(name: str) -> None:
    shown = tag(name, LETTERS)
    assert shown in ("<secret>", "<session>"), shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("session_count", "12"),
        ("session", "12"),
        ("session", "active"),
        ("session", "anonymous-browsing-mode"),
        ("session", "not_yet_authenticated"),
        ("session.type", LETTERS),
        ("token_type", "bearer"),
        ("token", "valid"),
        ("token", "expired"),
        ("token", "disabled"),
        ("csrf", "disabled"),
        ("auth", "oauth2"),
        ("auth", "saml2"),
        ("auth", "basic"),
        ("max_tokens", "1024"),
        ("cookie", "accepted"),
        ("obsession", LETTERS),
    ],
)
def test_what_only_sounds_like_a_secret_stays(name: str, value: str) -> None:
    assert tag(name, value) == value
