"""A PostgreSQL server for a test: on a Unix socket in a temporary folder, ended by its pid."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

__all__ = ["postgres"]


def programs() -> Path | None:
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((one for one in folders if (one / "postgres").exists()), None)


def owner() -> str | None:
    """PostgreSQL refuses to run as root; None if we are root and have nobody else."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return None


@contextmanager
def postgres() -> Iterator[str]:
    """Start a server; give the SQLAlchemy URL of its database, or skip, aloud."""
    pytest.importorskip("psycopg")
    folder, user = programs(), owner()
    if folder is None or user is None:
        pytest.skip("no PostgreSQL server programs, or nobody to run them as")
    home = Path(tempfile.mkdtemp(prefix="vault-"))
    as_user: dict[str, Any] = {"user": user} if os.geteuid() == 0 else {}
    if as_user:
        os.chown(home, pwd.getpwnam(user).pw_uid, -1)
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(  # noqa: S603 - programs of the distribution
        [folder / "initdb", "-D", home / "data", "-U", "vault", "-A", "trust", "--no-sync"],
        check=True,
        cwd=home,
        timeout=60,
        **as_user,
        **quiet,
    )
    process = subprocess.Popen(  # noqa: S603
        [folder / "postgres", "-D", home / "data", "-k", home, "-c", "listen_addresses="],
        cwd=home,
        **as_user,
        **quiet,
    )
    try:
        until = time.monotonic() + 30
        while not (home / ".s.PGSQL.5432").exists() and time.monotonic() < until:
            time.sleep(0.05)
        yield f"postgresql+psycopg://vault@/postgres?host={home}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        shutil.rmtree(home, ignore_errors=True)
