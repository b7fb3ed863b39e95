"""User agents, cut to browser family, major version, operating system and kind of device.

Owns the families that may leave. What is not among them is ``other``: a rare browser singles out a
person, and a made-up one (``JaneDoe/1.0``) can *be* the person.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from scrubbers.model import RuleError

if TYPE_CHECKING:
    from ua_parser import Parser

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
    return find_spec("ua_parser") is not None and find_spec("ua_parser_rs") is not None


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
    parsed = _parser().parse(text)
    browser = parsed.user_agent.family if parsed.user_agent else ""
    if browser not in _BROWSERS:
        browser = "other"
    elif parsed.user_agent and _MAJOR.fullmatch(parsed.user_agent.major or ""):
        browser = f"{browser} {parsed.user_agent.major}"
    system = _SYSTEMS.get(parsed.os.family if parsed.os else "", "other")
    is_bot = parsed.device is not None and parsed.device.family == "Spider"
    device = "bot" if is_bot else _device(text, system)
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


@cache
def _parser() -> Parser:
    if not available():
        raise RuleError(
            "user agents need ua-parser. Install milchglas[pipeline], or leave them to the gateway."
        )
    # Loaded on first use: the tables take 0.3 s and 29 MB, and SDK installations lack them.
    from ua_parser import Parser, load_lazy_builtins  # noqa: PLC0415
    from ua_parser.regex import Resolver  # noqa: PLC0415

    return Parser(Resolver(load_lazy_builtins()))
