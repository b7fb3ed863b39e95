"""Types carry the promise: right use passes the strict checker, and wrong use does not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def complaints() -> list[tuple[str, int, str]]:
    """File, line and code of everything the checker says about both files."""
    ran = subprocess.run(  # noqa: S603 - our own interpreter and files
        [
            *(sys.executable, "-m", "mypy", "--strict", "--no-error-summary"),
            *("--no-incremental", "--follow-imports=silent", "--show-error-codes"),
            *("--config-file", str(ROOT / "pyproject.toml")),
            *("tests/typing/public_api.py", "tests/typing/misuse.py"),
        ],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=ROOT,
    )
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    found = re.findall(r"^(\S+?):(\d+): error: .*\[([a-z-]+)\]$", ran.stdout, re.MULTILINE)
    return [(Path(file).name, int(line), code) for file, line, code in found]


def test_what_the_papers_show_type_checks(complaints: list[tuple[str, int, str]]) -> None:
    assert [one for one in complaints if one[0] == "public_api.py"] == []


def test_forgetting_to_scrub_to_tag_or_to_erase_does_not(
    complaints: list[tuple[str, int, str]],
) -> None:
    lines = (HERE / "misuse.py").read_text("utf-8").splitlines()
    expected = {
        ("misuse.py", number, code)
        for number, line in enumerate(lines, 1)
        for code in re.findall(r"# expect: ([a-z-]+)$", line)
    }
    assert expected
    assert {one for one in complaints if one[0] == "misuse.py"} == expected
