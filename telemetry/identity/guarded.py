"""Files that hold keys: read only if nobody else can, replaced whole, changed by one at a time.

Owns permissions, atomicity and locks of such files, and how a database is looked into untouched.
Knows nothing of what stands in them.

Source:
    POSIX rename(2), fsync(2): a name shows the old content or the new, after a crash too, if the
    file is durable before it gets the name and the folder after.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

from telemetry.errors import KeyringError

__all__ = [
    "absent",
    "check_writable",
    "create",
    "locked",
    "looking",
    "mark",
    "marked",
    "read",
    "replace",
    "sweep",
]

_FILE_BYTES: Final = 4 * 1024 * 1024


def read(path: Path, *, private: bool = True, others: int = 0o077) -> tuple[bytes, object]:
    """Read a file as a whole.

    Args:
        path: The file.
        private: Refuse it if others can read or change it, or if it belongs to another user.
        others: Which permission bits are too many.

    Returns:
        Its bytes, never none; and its mark, as `mark` gives it.

    Raises:
        KeyringError: It is missing, empty, no file, above 4 MiB, or open to others.
    """
    try:
        # Not blocking: a pipe in its place must not stop the start for ever.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise KeyringError("is no file.", path=path)
            if private and status.st_mode & others:
                raise KeyringError(
                    "is open to group or others.", path=path, remedy="Run: chmod 600 on it."
                )
            if private and status.st_uid not in {os.geteuid(), 0}:
                raise KeyringError(
                    "belongs to another user.", path=path, remedy="Run: chown on it."
                )
            with open(handle, "rb", closefd=False) as file:
                raw = file.read(_FILE_BYTES + 1)
        finally:
            os.close(handle)
    except OSError:
        raise KeyringError(
            "cannot be read.", path=path, remedy="Check that it exists and who owns it."
        ) from None
    if not raw:
        raise KeyringError("is empty.", path=path, remedy="Restore it from its copy.")
    if len(raw) > _FILE_BYTES:
        raise KeyringError("is too large.", path=path, remedy="Restore it from its copy.")
    return raw, mark(status)


def mark(status: os.stat_result) -> object:
    """Tell one content of a file from the next."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def marked(path: Path) -> object:
    """Give the mark of a file as it is now.

    Raises:
        KeyringError: It cannot be seen.
    """
    try:
        return mark(os.stat(path))  # noqa: PTH116 - beside os.fstat of the reader
    except OSError:
        raise KeyringError(
            "cannot be read.", path=path, remedy="Check that it exists and who owns it."
        ) from None


def replace(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Put a file in place whole and durable; its folder is made (0700) if it is absent.

    Raises:
        KeyringError: It cannot be written; what was there is there still.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(handle, "wb") as file:
                os.fchmod(handle, mode)  # whatever the umask: public keys are read by others
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)  # noqa: PTH105 - os throughout, where order matters
        except BaseException:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError:
        raise _unwritable(path) from None


def absent(path: Path) -> bool:
    """Tell whether there is nothing of that name. What cannot be seen is not absent.

    Raises:
        KeyringError: It cannot be told: a folder is closed, or its disk failed.
    """
    try:
        os.stat(path)  # noqa: PTH116 - Path.exists takes some errors for absence
    except FileNotFoundError:
        return True
    except OSError:
        raise KeyringError(
            "cannot be seen.", path=path, remedy="Check its folder, its disk and who owns them."
        ) from None
    return False


def check_writable(path: Path) -> None:
    """Refuse a place at which a file could be neither replaced nor made; make nothing.

    Raises:
        KeyringError: Its folder cannot be written, or cannot be made.
    """
    folder = path.parent
    while absent(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise _unwritable(path)


def create(path: Path) -> None:
    """Make an empty file that nobody else can read, for a database to grow in; leave one alone.

    A file that is there is never opened: to close any descriptor of it would drop the POSIX locks
    that a connection of this process holds on it, and another process could then take away its
    write-ahead log (SQLite, "How To Corrupt An SQLite Database File", 2.2).

    Raises:
        OSError: It cannot be made.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def looking(path: Path) -> sqlite3.Connection | None:
    """Open a SQLite database that nobody uses, to read it and to leave no trace.

    Returns:
        A connection that can only read; None if it is absent, or if a process that was killed left
        work in it that only its owner may finish.

    Raises:
        KeyringError: It cannot be seen, or is there and may not be read and written.
    """
    if absent(path):
        return None
    if not path.is_file() or not os.access(path, os.R_OK | os.W_OK):
        raise KeyringError(
            "cannot be read and written.", path=path, remedy="Check what it is and who owns it."
        )
    for rest in ("-wal", "-journal"):
        with contextlib.suppress(OSError):
            if path.with_name(path.name + rest).stat().st_size:
                return None
    # Without locks and without the files beside it that a reader would make too.
    return sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )


def sweep(path: Path) -> None:
    """Remove what writers of a file left behind when they were killed. Only under its lock.

    Raises:
        KeyringError: It cannot be removed.
    """
    try:
        for left in path.parent.glob(f".{path.name}.*.*"):
            left.unlink(missing_ok=True)
    except OSError:
        raise _unwritable(path) from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes and threads from changing the files beside `path`.

    Raises:
        KeyringError: There is no folder to put the lock in.
    """
    try:
        handle = os.open(path.with_name(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        raise _unwritable(path) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _unwritable(path: Path) -> KeyringError:
    return KeyringError(
        "cannot be written.", path=path, remedy="Check its folder and the space left."
    )
