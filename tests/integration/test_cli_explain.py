"""The commands as people run them: output, exit codes, and what never shows."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EVENT = {
    "platform": "python",
    "message": "login of jane@example.com failed <script>alert(1)</script>",
    "user": {"id": 4711, "email": "jane@example.com", "ip_address": "203.0.113.77"},
    "extra": {"note": "Jane Doe"},
}
PLANTED = ("jane", "Jane", "4711", "203.0.113.77")


def telemetry(
    *words: str, given: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(  # noqa: S603 - our own interpreter, our own words
        [sys.executable, "-c", "from telemetry.cli import main; main()", *words],
        input=given,
        capture_output=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.fixture
def saved(tmp_path: Path) -> str:
    path = tmp_path / "event.json"
    path.write_text(json.dumps(EVENT), "utf-8")
    return str(path)


def test_an_explanation_fits_a_hundred_columns_with_and_without_colour(saved: str) -> None:
    plain = telemetry("explain", saved)
    assert plain.returncode == 0, plain.stderr
    text = plain.stdout.decode()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 100
    for word in ("error_event", "ps1_sentry_u_…", "203.0.113.0/24", "removed", "kept", "changed"):
        assert word in text
    assert not [value for value in PLANTED if value in text]
    coloured = telemetry("explain", saved, FORCE_COLOR="1", COLUMNS="100").stdout.decode()
    assert "\x1b[3" in coloured
    bare = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert max(map(len, bare.splitlines())) <= 100


def test_json_has_the_documented_keys_and_no_original(saved: str) -> None:
    ran = telemetry("explain", "-", "--json", given=Path(saved).read_bytes())
    told = json.loads(ran.stdout)
    assert set(told) == {"version", "reveals", "events"}
    (event,) = told["events"]
    documented = (ROOT / "docs" / "explain.md").read_text("utf-8")
    for key in (*told, *event, *event["rows"][0]):
        assert f"`{key}`" in documented, key
    assert not [value for value in PLANTED if value in ran.stdout.decode()]
    assert "before" not in event["rows"][0]
    shown = telemetry("explain", saved, "--json", "--show-original").stdout.decode()
    assert all(value in shown for value in PLANTED)
    assert json.loads(shown)["reveals"]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


@pytest.mark.parametrize("more", [(), ("--show-original",)])
def test_the_page_loads_nothing_and_runs_nothing_of_the_event(
    saved: str, more: tuple[str, ...]
) -> None:
    page = telemetry("explain", saved, "--html", *more).stdout.decode()
    tags = Tags()
    tags.feed(page)
    names = [tag for tag, _ in tags.seen]
    assert names.count("script") == 1
    assert names.count("style") == 1
    assert not set(names) & {"link", "img", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in tags.seen:
        assert not set(attributes) & {"src", "href", "style", "onclick", "onerror"}, tag
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in page
    assert ("holds personal data" in page) is bool(more)
    assert bool([value for value in PLANTED if value in page]) is bool(more)


def test_what_is_no_event_and_what_is_not_there_exits_2_without_repeating_it(
    tmp_path: Path,
) -> None:
    for words, given in (
        (("explain", "-"), b"jane@example.com"),
        (("explain", str(tmp_path / "none")), b""),
        (("explain", "-", "--recipient", "nobody"), json.dumps(EVENT).encode()),
        (("explain", "-", "--kind", "nothing"), json.dumps(EVENT).encode()),
        (("policy", "try", "-", "--policy", str(tmp_path / "none")), json.dumps(EVENT).encode()),
    ):
        ran = telemetry(*words, given=given)
        assert ran.returncode == 2, words
        assert ran.stderr
        assert b"jane" not in ran.stdout + ran.stderr
        assert b"Traceback" not in ran.stderr


def test_a_policy_is_tried_before_it_is_live(saved: str, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(ROOT / "schemas" / "policy", folder)
    shipped = str(ROOT / "schemas" / "policy")
    same = telemetry("policy", "try", saved, "--policy", str(folder), "--against", shipped)
    assert same.returncode == 0
    assert b"Nothing would leave otherwise" in same.stdout

    treatments = folder / "treatments.toml"
    treatments.write_text(treatments.read_text("utf-8").replace('"default"', '"strict"'), "utf-8")
    narrower = telemetry("policy", "try", saved, "--policy", str(folder), "--against", shipped)
    assert narrower.returncode == 1
    assert "NARROWS" in narrower.stdout.decode()
    assert max(map(len, narrower.stdout.decode().splitlines())) <= 100
    wider = telemetry(
        "policy", "try", saved, "--policy", shipped, "--against", str(folder), "--json"
    )
    told = json.loads(wider.stdout)
    assert (wider.returncode, told["widens"], told["narrows"]) == (1, 1, 0)
    assert told["changes"][0]["path"] == "user.ip_address"
    everything = telemetry(
        "policy", "try", saved, "--policy", str(folder), "--against", shipped, "--all", "--json"
    )
    assert len(json.loads(everything.stdout)["changes"]) > 5

    treatments.write_text('[truncate_ip]\nprofile = "none"\n[coarsen_time]\ndefault = 1\n', "utf-8")
    refused = telemetry("policy", "try", saved, "--policy", str(folder))
    assert refused.returncode == 2
    assert b"treatments.toml:2:" in refused.stderr


def test_scrub_says_by_its_exit_code_whether_it_removed_something() -> None:
    ran = telemetry("scrub", given=b"mail jane@example.com\nfine\n")
    assert (ran.returncode, ran.stdout) == (3, b"mail <email:1>\nfine\n")
    assert b"1 removed (email 1)" in ran.stderr
    clean = telemetry("scrub", given=b"fine\n")
    assert (clean.returncode, clean.stdout) == (0, b"fine\n")
    assert telemetry("scrub", "--as", "xml").returncode == 2
    broken = telemetry("scrub", "--as", "envelope", given=b"no envelope jane")
    assert (broken.returncode, broken.stdout) == (1, b"")
    assert b"jane" not in broken.stderr


def test_scrub_gives_a_line_as_soon_as_it_has_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "from telemetry.cli import main; main()", "scrub", "--as", "text"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as running:
        assert running.stdin
        assert running.stdout
        running.stdin.write(b"mail jane@example.com\n")
        running.stdin.flush()
        assert running.stdout.readline() == b"mail <email:1>\n"
        running.stdin.close()
        assert running.wait(30) == 3
