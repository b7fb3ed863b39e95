"""User agents, cut to browser family, major version, operating system and kind of device.

Owns the families that may leave. What is not among them is ``other``: a rare browser singles out a
person, and a made-up one (``JaneDoe/1.0``) can *be* the person.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any

from scrubbers.model import RuleError

try:
    import re2
except ImportError:  # musl and CPython 3.15 have no wheel: `available` says so
    re2 = None

__all__ = ["available", "reduce_user_agent"]

_CACHE_SIZE = 8_192
_MAX_LENGTH = 1_024

_BROWSERS = frozenset(
    {
        "Chrome", "Chrome Mobile", "Chrome Mobile WebView", "Chrome Mobile iOS", "Chromium",
        "HeadlessChrome", "Firefox", "Firefox Mobile", "Firefox iOS", "Safari", "Mobile Safari",
        "Mobile Safari UI/WKWebView", "Edge", "Edge Mobile", "IE", "IE Mobile", "Opera",
        "Opera Mobile", "Opera Mini", "Opera Touch", "Samsung Internet", "Android", "Brave",
        "Vivaldi", "Yandex Browser", "DuckDuckGo Mobile", "UC Browser", "QQ Browser", "Electron",
        "WebKit", "MIUI Browser", "HuaweiBrowser", "Facebook", "Instagram", "Google", "Slack",
        "Thunderbird", "Outlook", "Apple Mail", "curl", "Wget", "Python Requests", "Python-urllib",
        "aiohttp", "okhttp", "Go-http-client", "Java", "Apache-HttpClient", "node-fetch", "axios",
        "PostmanRuntime", "Googlebot", "bingbot", "Applebot", "DuckDuckBot", "YandexBot",
        "Baiduspider", "facebookexternalhit", "Twitterbot", "LinkedInBot", "Slackbot", "AhrefsBot",
        "SemrushBot", "GPTBot", "ClaudeBot", "UptimeRobot",
    }
)  # fmt: skip
_SYSTEMS = {
    "Windows": "Windows", "Windows Phone": "Windows Phone", "Mac OS X": "macOS", "iOS": "iOS",
    "Android": "Android", "Linux": "Linux", "Ubuntu": "Linux", "Debian": "Linux",
    "Fedora": "Linux", "Chrome OS": "Chrome OS", "FreeBSD": "BSD", "OpenBSD": "BSD",
    "NetBSD": "BSD", "tvOS": "tvOS", "watchOS": "watchOS", "HarmonyOS": "HarmonyOS",
}  # fmt: skip
_DESKTOPS = frozenset({"Windows", "macOS", "Linux", "Chrome OS", "BSD"})
_DEVICES = frozenset({"desktop", "mobile", "tablet", "bot", "other"})
_MAJOR = re.compile(r"[0-9]{1,3}")


@cache
def available() -> bool:
    """Tell whether this installation can reduce user agents.

    The tables of ua-parser come with the extra ``pipeline``. An application that installs only the
    SDK has none, and leaves user agents to its gateway.
    """
    return re2 is not None and find_spec("ua_parser") is not None


def reduce_user_agent(text: str) -> str:
    """Keep of a user agent what an error needs and many people share.

    Args:
        text: A ``User-Agent`` header; or what this function returned earlier, which stays.

    Returns:
        ``"<browser> <major>; <system>; <device>"`` with device one of desktop, mobile, tablet,
        bot, other; or "other" if neither browser nor system is known.

    Raises:
        RuleError: The extra ``pipeline`` is not installed; ask `available` first.

    Source:
        Privacy notice, "browser"; Art. 5(1)(c) GDPR.

    >>> reduce_user_agent("Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0")
    'Firefox 130; Linux; desktop'
    >>> reduce_user_agent("JaneDoe/1.0")
    'other'
    """
    text = str(text)[:_MAX_LENGTH]
    # Lone surrogates, which no encoding can write, are no part of any agent's name.
    return _reduce(text if text.isascii() else text.encode("utf-8", "replace").decode())


@lru_cache(maxsize=_CACHE_SIZE)
def _reduce(text: str) -> str:
    if _is_reduced(text):
        return text
    browsers, systems, devices = _tables()
    data = text.encode()  # RE2's wrapper is slow at counting characters
    browser, major = browsers.read(data)
    if browser not in _BROWSERS:
        browser = "other"
    elif _MAJOR.fullmatch(major):
        browser = f"{browser} {major}"
    system = _SYSTEMS.get(systems.read(data)[0], "other")
    device = "bot" if devices.read(data)[0] == "Spider" else _device(text, system)
    if browser == system == "other":
        return "other; other; bot" if device == "bot" else "other"
    return f"{browser}; {system}; {device}"


def _is_reduced(text: str) -> bool:
    if text == "other":
        return True
    parts = text.split("; ")
    if len(parts) != 3:  # noqa: PLR2004 -- browser, system, device
        return False
    browser, system, device = parts
    family, _, major = browser.rpartition(" ")
    named = browser == "other" or browser in _BROWSERS
    return (
        (named or (family in _BROWSERS and _MAJOR.fullmatch(major) is not None))
        and (system == "other" or system in _SYSTEMS.values())
        and device in _DEVICES
    )


def _device(text: str, system: str) -> str:
    if system in _DESKTOPS:
        # An iPad that asks for desktop pages says it is a Mac; nothing in the text tells.
        return "desktop"
    if "iPad" in text or "Tablet" in text:
        return "tablet"
    if system == "Android":
        # Google's advice to makers: phones say "Mobile", tablets do not.
        return "mobile" if "Mobile" in text else "tablet"
    return "mobile" if system in {"iOS", "Windows Phone", "HarmonyOS"} else "other"


class _Table:
    """Rows of ua-parser, in its order: the first whose expression is found in a text describes it.

    ua-parser brings three engines. Its Rust takes 27 MB, which every gateway would hold, and finds
    robots in texts in which no row sees one; with ``re`` a search lasts as long as the text
    wants. RE2 takes a third of that memory, and twice the Rust's 15 µs for an agent that is new.
    """

    def __init__(self, rows: Iterable[tuple[str, str, str]]) -> None:
        from ua_parser.utils import fa_simplifier  # noqa: PLC0415 - SDK installations lack it

        self._results: list[tuple[str, str]] = []
        self._filter = re2.Filter()
        for expression, family, major in rows:
            self._filter.Add(fa_simplifier(expression))
            self._results.append((family, major))
        self._filter.Compile()

    def read(self, data: bytes) -> tuple[str, str]:
        """Give family and major version; empty where a text says none."""
        place = min(self._filter.Match(data) or (), default=None)
        if place is None:
            return "", ""
        family, major = self._results[place]
        if "$1" not in family and major:
            return family, major
        found = self._filter.re(place).search(data)
        parts = [(part or b"").decode() for part in found.groups()] if found else []
        first, second, *_ = (*parts, "", "")
        return family.replace("$1", first), major or second


@cache
def _tables() -> tuple[_Table, _Table, _Table]:
    """Give the tables of browsers, systems and devices, loaded when somebody asks: in 0.1 s."""
    if not available():
        raise RuleError(
            "user agents need ua-parser. Install milchglas[pipeline], or leave them to the gateway."
        )
    from ua_parser import load_lazy_builtins  # noqa: PLC0415 - SDK installations lack it

    browsers: Any
    systems: Any
    devices: Any
    browsers, systems, devices = load_lazy_builtins()
    return (
        _Table((row.regex, row.family, row.major or "") for row in browsers),
        _Table((row.regex, row.family, "-") for row in systems),
        # Of devices only robots matter; but it is the first row that decides, so all are asked.
        _Table(
            ("(?i)" * bool(row.flags & re.IGNORECASE) + row.regex, row.family, "-")
            for row in devices
        ),
    )
