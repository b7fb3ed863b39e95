"""The corpus: templates of ``tests/vectors/score`` filled by a seeded generator.

The same seed gives the same corpus, on any machine.
"""

# ruff: noqa: E501 - tables of formats read better unbroken
from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

from tests.score.values import VALUES, some, uuid

__all__ = ["Positive", "log_lines", "lookalikes", "positives", "user_agents"]

FOLDER = Path(__file__).parents[1] / "vectors" / "score"
SEED = 20_261_122
_FILLER = re.compile(r"\{([a-z][a-z0-9]*)\}")
_SERVICES = ("root", "www-data", "postgres", "backup", "test", "git", "mysql", "admin", "nobody")
_HEX = "0123456789abcdef"


@dataclass(frozen=True)
class Positive:
    """A text with one value in it.

    Attributes:
        kind: The type of the value.
        half: ``develop`` or ``check``.
        text: Everything.
        value: What must not stay.
        before: The text before the value.
        after: The text behind it.
    """

    kind: str
    half: str
    text: str
    value: str
    before: str
    after: str


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / name).read_text("utf-8"))


def positives(per_template: int = 12) -> Iterator[Positive]:
    """Yield texts with a value, `per_template` of each template and key."""
    table = _read("positives.toml")
    for kind, row in table["type"].items():
        for half in ("develop", "check"):
            random = Random(f"{SEED} {kind} {half}")  # noqa: S311 - reproducible is the point
            templates = list(row[half])
            templates += [
                syntax.replace("{key}", key)
                for key in row.get("keys", {}).get(half, ())
                for syntax in table["syntax"][half]
            ]
            for template in templates:
                for _ in range(per_template):
                    value = VALUES[kind](random)
                    if " " in value and re.search(r"body=|[?&][a-z_]+=§", template):
                        value = quote(value, safe="/")
                    before, _, after = fill(template, random).partition("§")
                    yield Positive(kind, half, before + value + after, value, before, after)


def log_lines(per_template: int = 60) -> Iterator[str]:
    """Yield log lines that hold nothing personal."""
    random = Random(f"{SEED} log")  # noqa: S311
    for template in _read("negatives.toml")["log_lines"]:
        for _ in range(per_template):
            yield fill(template, random)


def lookalikes(per_template: int = 20) -> Iterator[tuple[str, str]]:
    """Yield a group and a text that only looks like something personal."""
    random = Random(f"{SEED} lookalike")  # noqa: S311
    for group, templates in _read("negatives.toml")["lookalikes"].items():
        for template in templates:
            for _ in range(per_template if "{" in template else 1):
                yield group, fill(template, random)


def user_agents(count: int = 400) -> Iterator[str]:
    """Yield user agents in the forms of browsers, applications, libraries and crawlers."""
    random = Random(f"{SEED} agent")  # noqa: S311
    for _ in range(count):
        yield _user_agent(random)


def fill(template: str, random: Random) -> str:
    """Put values in place of the fillers; what is no filler stays."""
    return _FILLER.sub(lambda found: _fill(found, random), template)


def _fill(found: re.Match[str], r: Random) -> str:
    name = found[1]
    if size := re.fullmatch(r"(hex|num|alnum)([0-9]+)", name):
        length = int(size[2])
        if size[1] == "num":
            return r.choice("123456789") + some(r, "0123456789", length - 1)
        return some(r, _HEX if size[1] == "hex" else "ABCDEFGHJKLMNPRSTUVWXYZ0123456789", length)
    seconds = r.randint(1_700_000_000, 1_800_000_000)
    clock = f"{r.randint(0, 23):02d}:{r.randint(0, 59):02d}:{r.randint(0, 59):02d}"
    day = f"{r.randint(1, 28):02d}"
    month = r.randint(1, 12)
    fillers = {
        "n": lambda: str(r.randint(2, 99_999)),
        "d": lambda: str(r.randint(0, 9)),
        "dd": lambda: f"{r.randint(0, 59):02d}",
        "f": lambda: f"{r.uniform(0, 9999):.3f}",
        "ms": lambda: f"{r.randint(0, 999):03d}",
        "big": lambda: str(r.randint(10**14, 10**19)),
        "epoch": lambda: str(seconds),
        "epochms": lambda: str(seconds * 1000 + r.randint(0, 999)),
        "epochus": lambda: str(seconds * 1_000_000 + r.randint(0, 999_999)),
        "time": lambda: clock,
        "md": lambda: f"{month:02d}-{day}",
        "ts": lambda: f"2026-{month:02d}-{day} {clock}",
        "iso": lambda: f"2026-{month:02d}-{day}T{clock}.{r.randint(0, 999):03d}Z",
        "slash": lambda: f"2026/{month:02d}/{day} {clock}",
        "clf": lambda: f"{day}/Nov/2026:{clock} +0100",
        "syslog": lambda: f"Nov {day} {clock} host{r.randint(1, 9)}",
        "k8s": lambda: f"{month:02d}{day} {clock}.{r.randint(0, 999_999):06d}",
        "uuid": lambda: uuid(r),
        "colonhex": lambda: ":".join(some(r, _HEX, 2) for _ in range(19)),
        "b64": lambda: some(r, _HEX + "ABCDEFGHIJKLMNOPQRSTUVWXYZghijklmnopqrstuvwxyz+/", 43),
        "ver": lambda: f"{r.randint(0, 20)}.{r.randint(0, 40)}.{r.randint(0, 99)}",
        "ver4": lambda: ".".join(str(r.randint(0, 240)) for _ in range(4)),
        "oid": lambda: (
            "1.3.6.1." + ".".join(str(r.randint(1, 9999)) for _ in range(r.randint(3, 7)))
        ),
        "service": lambda: r.choice(_SERVICES),
        "module": lambda: r.choice(
            ["checkout", "app.forms", "ImportJob", "api-gateway", "worker.sync"]
        ),
        "ua": lambda: _user_agent(r),
    }
    return fillers[name]() if name in fillers else found[0]


def _user_agent(r: Random) -> str:
    chrome = f"{r.randint(80, 140)}.0.{r.choice([0, r.randint(1000, 7000)])}.{r.randint(0, 220)}"
    small = f"{r.randint(1, 30)}.{r.randint(0, 20)}.{r.randint(0, 200)}.{r.randint(0, 250)}"
    mac = f"10_{r.randint(11, 15)}_{r.randint(0, 7)}"
    ios = f"{r.randint(13, 19)}_{r.randint(0, 7)}"
    kit = "AppleWebKit/537.36 (KHTML, like Gecko)"
    return r.choice([
        f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {kit} Chrome/{chrome} Safari/537.36",
        f"Mozilla/5.0 (X11; Linux x86_64) {kit} HeadlessChrome/{chrome} Safari/537.36",
        f"Mozilla/5.0 (Macintosh; Intel Mac OS X {mac}) {kit} Chrome/{chrome} Safari/537.36 Edg/{small}",
        f"Mozilla/5.0 (Macintosh; Intel Mac OS X {mac}) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.{r.randint(0, 6)} Safari/605.1.15",
        f"Mozilla/5.0 (iPhone; CPU iPhone OS {ios} like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/{chrome} Mobile/15E148 Safari/604.1",
        f"Mozilla/5.0 (Linux; Android {r.randint(9, 16)}; SM-G{r.randint(900, 999)}B) {kit} SamsungBrowser/{r.randint(10, 27)}.0 Chrome/{chrome} Mobile Safari/537.36",
        f"Mozilla/5.0 (Linux; Android 13; Pixel {r.randint(4, 9)} Build/TQ3A.{r.randint(230101, 231231)}.001; wv) {kit} Version/4.0 Chrome/{chrome} Mobile Safari/537.36 [FB_IAB/FB4A;FBAV/{small};]",
        f"Mozilla/5.0 (Windows NT 6.1; rv:{r.randint(50, 130)}.0) Gecko/20100101 Firefox/{r.randint(50, 130)}.0",
        f"Mozilla/5.0 (Windows NT 10.0) {kit} Chrome/{chrome} Safari/537.36 OPR/{small}",
        f"Mozilla/5.0 (Windows NT 10.0) {kit} Chrome/{chrome} YaBrowser/{small} Safari/537.36",
        f"Mozilla/4.0 (compatible; MSIE 8.0; Windows NT 6.1; Trident/4.0; .NET CLR 2.0.{r.randint(10000, 59999)}; .NET4.0C)",
        f"ExampleApp/{small} (iPhone; iOS 17.{r.randint(0, 6)}; Scale/3.00)",
        f"Dalvik/2.1.0 (Linux; U; Android 12; M2101K6G Build/SKQ1.{r.randint(210000, 219999)}.001)",
        f"okhttp/{r.randint(3, 5)}.{r.randint(0, 12)}.{r.randint(0, 9)}",
        f"python-requests/2.{r.randint(20, 32)}.{r.randint(0, 5)}",
        f"curl/8.{r.randint(0, 11)}.{r.randint(0, 1)}",
        f"Java/{r.choice(['1.8.0_', '11.0.', '17.0.'])}{r.randint(1, 350)}",
        f"Go-http-client/{r.choice(['1.1', '2.0'])}",
        f"examplebot/{small} (+https://bot.example.com/info)",
        f"kube-probe/1.{r.randint(20, 32)}",
        f"WhatsApp/2.{r.randint(20, 25)}.{r.randint(1, 250)}.{r.randint(1, 99)} A",
        f"Slack/{small} Chrome/{chrome} Electron/{r.randint(20, 33)}.1.{r.randint(0, 9)}",
        f"Microsoft Office/16.0 (Windows NT 10.0; Microsoft Outlook 16.0.{r.randint(10000, 19999)}; Pro)",
        f"Roku/DVP-{r.randint(9, 13)}.{r.randint(0, 5)} (519.10E04111A)",
        f"VLC/3.0.{r.randint(1, 20)} LibVLC/3.0.{r.randint(1, 20)}",
    ])  # fmt: skip
