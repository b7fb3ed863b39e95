from __future__ import annotations

import pytest

from scrubbers import RuleError, reduce_user_agent, user_agent

_WEBKIT = "AppleWebKit/537.36 (KHTML, like Gecko)"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {_WEBKIT} Chrome/128.0.0.0 Safari/537.36",
            "Chrome 128; Windows; desktop",
        ),
        (
            f"Mozilla/5.0 (Linux; Android 13; Jane's) {_WEBKIT} Chrome/128.0.0.0 Mobile Safari/537",
            "Chrome Mobile 128; Android; mobile",
        ),
        (
            f"Mozilla/5.0 (iPad; CPU OS 17_0 like Mac OS X) {_WEBKIT} Version/17.0 Mobile Safari/6",
            "Mobile Safari 17; iOS; tablet",
        ),
        ("Mozilla/5.0 (compatible; Googlebot/2.1)", "Googlebot 2; other; bot"),
        ("python-requests/2.31.0", "Python Requests 2; other; other"),
        ("JaneDoe/1.0", "other"),
        ("JaneDoeBot/1.0 spider", "other; other; bot"),
        ("JaneDoe 1; Windows; desktop", "other; Windows; desktop"),
        ("Chrome 99999999; Windows; desktop", "other; Windows; desktop"),
        ("", "other"),
    ],
)
def test_a_user_agent_becomes_family_system_and_device(text: str, wanted: str) -> None:
    assert reduce_user_agent(text) == wanted
    assert reduce_user_agent(wanted) == wanted


def test_an_installation_without_the_tables_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    user_agent._tables.cache_clear()
    monkeypatch.setattr(user_agent, "available", lambda: False)
    with pytest.raises(RuleError, match=r"milchglas\[pipeline\]"):
        reduce_user_agent("Mozilla/5.0 never seen before")
