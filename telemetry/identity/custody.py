"""Custody: who holds the key that the keyset file is wrapped with.

Owns the way to one key-encryption key (KEK) and nothing else: a file, a variable of the
environment, a credential of systemd, or a program (how a KMS, Vault or age is attached). It wraps
the 32 bytes of a keyset's file key, once for each keyset; it never sees the keys in there.

======================  ==========================================================================
``file:PATH``           32 bytes, raw or base64url, which only the owner may read
``env:NAME``            the same as base64url in a variable
``credential:NAME``     ``$CREDENTIALS_DIRECTORY/NAME``, as systemd's LoadCredential= gives it
``command:PROGRAM …``   called with ``wrap`` or ``unwrap`` as last argument; 32 bytes or their
                        wrapped form on standard input, the other on standard output
======================  ==========================================================================

Source:
    NIST SP 800-57 part 1, 6.2.2 (key-wrapping keys); RFC 8452 (AES-GCM-SIV);
    SDM Baustein 60, M60.P09 (rules for keys).
"""

from __future__ import annotations

import binascii
import os
import secrets
import shlex
import signal
import subprocess
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from telemetry.errors import KeyringError
from telemetry.identity import guarded
from telemetry.identity.pseudonym import frame

__all__ = ["DEFAULT_BACKUP", "DEFAULT_KEK", "Custody"]

DEFAULT_KEK: Final = Path("custody", "kek")
DEFAULT_BACKUP: Final = Path("backup")

_KEK_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_ANSWER_BYTES: Final = 64 * 1024
_LIMIT_S: Final = 10.0
_LEAST_DIFFERENT: Final = 8
_TEXT: Final = frozenset(b"\t\n\r" + bytes(range(0x20, 0x7F)))
# systemd grants a service its credentials by an access list, which shows as a group's permission.
_CREDENTIAL_OTHERS: Final = 0o007
_BINDING: Final = frame("tps/v1/kek")


class Custody:
    """One place of a key-encryption key. Shows neither it nor where it comes from in detail.

    Args:
        kek: ``file:PATH``, ``env:NAME``, ``credential:NAME`` or ``command:PROGRAM ARGUMENT…``;
            empty means ``file:STATE/custody/kek``.
        state: Folder that the default lies under.
        backup: Folder in which a second copy of the keyset is kept; empty means ``STATE/backup``.
        environ: Stands in for the process environment.

    Attributes:
        kind: file, env, credential or command.
        made_here: The default, which is made at the first start.
        backup: Folder of the second copy.

    Raises:
        KeyringError: `kek` is none of these.
    """

    def __init__(
        self,
        kek: str = "",
        *,
        state: Path,
        backup: str = "",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.made_here = not kek
        kind, colon, rest = (kek or f"file:{state / DEFAULT_KEK}").partition(":")
        if not colon or not rest.strip() or kind not in {"file", "env", "credential", "command"}:
            raise KeyringError(
                "custody.kek is none of file:PATH, env:NAME, credential:NAME, command:PROGRAM.",
                remedy="docs/keys.md shows each of them.",
            )
        self.kind, self._rest = kind, rest
        self._environ = os.environ if environ is None else environ
        self.backup = Path(backup) if backup else state / DEFAULT_BACKUP

    def __repr__(self) -> str:
        return f"Custody({self.kind})"

    @property
    def path(self) -> Path | None:
        """The file that has to be backed up apart from the rest; None if it is kept elsewhere."""
        return Path(self._rest) if self.kind == "file" else None

    @property
    def advice(self) -> str:
        """What somebody who runs this has to keep, in plain words."""
        if self.path is None:
            return (
                f"Copy {self.backup} and the vault elsewhere daily, and keep no copy for more than "
                "a week. They are read again only with the key that custody.kek names "
                f"({self.kind}): see that it cannot get lost."
            )
        return (
            f"Back up {self.path} once, apart from everything else (a password manager will do), "
            f"and copy {self.backup} with the vault daily, keeping no copy for more than a week. "
            f"Without {self.path} nothing here can be read again; whoever has both can read it all."
        )

    def make(self) -> bool:
        """Make the file of a new key-encryption key, if custody is a file that is absent.

        Returns:
            Whether it was made.

        Raises:
            KeyringError: It cannot be written.
        """
        path = self.path
        if path is None or path.exists():
            return False
        guarded.sweep(path)
        raw = urlsafe_b64encode(secrets.token_bytes(_KEK_BYTES)).rstrip(b"=") + b"\n"
        guarded.replace(path, raw)
        return True

    def wrap(self, file_key: bytes) -> bytes:
        """Wrap the file key of a keyset, and prove that it comes back.

        Raises:
            KeyringError: The key-encryption key is missing, empty, cut off or open to others; or
                the program failed, took more than 10 s, or does not give back what it took.
        """
        if self.kind == "command":
            wrapped = self._run("wrap", file_key)
            if self.unwrap(wrapped) != file_key:
                raise self._failed("does not give back what it wrapped")
            return wrapped
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + AESGCMSIV(self._kek()).encrypt(nonce, file_key, _BINDING)

    def unwrap(self, wrapped: bytes) -> bytes:
        """Give the file key back: 32 bytes.

        Raises:
            KeyringError: As `wrap`; or the key-encryption key is another than wrapped it.
        """
        if self.kind == "command":
            answer = self._run("unwrap", wrapped)
            if len(answer) != _KEK_BYTES:
                raise self._failed("did not answer with the 32 bytes of a key")
            return answer
        try:
            raw = AESGCMSIV(self._kek()).decrypt(
                wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], _BINDING
            )
        except (InvalidTag, ValueError):
            raw = b""
        if len(raw) != _KEK_BYTES:
            raise KeyringError(
                "The key in custody is not the one that the keyset was wrapped with.",
                path=self.path,
                remedy="Put back the key that was backed up for this keyset.",
            )
        return raw

    def _kek(self) -> bytes:
        if self.kind == "env":
            return self._decoded(self._environ.get(self._rest, "").encode(), None)
        if self.kind == "credential":
            folder = self._environ.get("CREDENTIALS_DIRECTORY", "")
            if not folder or "/" in self._rest:
                raise KeyringError(
                    "custody.kek names a credential, but systemd gives none of that name.",
                    remedy="Set LoadCredential= or LoadCredentialEncrypted= in the unit.",
                )
            path = Path(folder, self._rest)
            return self._decoded(guarded.read(path, others=_CREDENTIAL_OTHERS)[0], path)
        path = Path(self._rest)
        if not path.exists():
            raise KeyringError(
                "holds the key that all others are wrapped with, and is missing.",
                path=path,
                remedy="Put it back from where you backed it up.",
            )
        return self._decoded(guarded.read(path)[0], path)

    def _decoded(self, text: bytes, path: Path | None) -> bytes:
        raw = text
        # A variable holds text; and what is all text is the cut-off text of a key, or a password.
        if path is None or len(raw) != _KEK_BYTES or all(byte in _TEXT for byte in raw):
            try:
                stripped = text.strip()
                raw = urlsafe_b64decode(stripped.rstrip(b"=") + b"=")
                if urlsafe_b64encode(raw).rstrip(b"=") != stripped.rstrip(b"="):
                    raw = b""
            except (ValueError, binascii.Error):
                raw = b""
        # Zeros, or one letter over and over, is a file that was never filled.
        if len(raw) != _KEK_BYTES or len(set(raw)) < _LEAST_DIFFERENT:
            raise KeyringError(
                "The key in custody is missing, empty or cut off: it has 32 random bytes, raw or "
                "as base64url.",
                path=path,
                remedy="Put it back from where you backed it up.",
            )
        return raw

    def _run(self, what: str, given: bytes) -> bytes:
        try:
            words = shlex.split(self._rest)
        except ValueError:
            raise self._failed("has a quote that does not end") from None
        try:
            # No shell: nothing but the words of the configuration is run. What it says on its
            # standard error could hold the key, so nobody sees it.
            process = subprocess.Popen(  # noqa: S603 - the operator names the program
                [*words, what],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except (OSError, ValueError):
            raise self._failed("cannot be run") from None
        with process:
            try:
                answer, _ = process.communicate(given, timeout=_LIMIT_S)
            except subprocess.TimeoutExpired:
                # With all that it started: who still holds its output would keep us waiting.
                os.killpg(process.pid, signal.SIGKILL)
                raise self._failed(f"did not answer within {_LIMIT_S:.0f} s") from None
        if process.returncode != 0:
            raise self._failed(f"ended with status {process.returncode}")
        if not 0 < len(answer) <= _ANSWER_BYTES:
            raise self._failed("gave no answer, or one above 64 KiB")
        return answer

    @staticmethod
    def _failed(how: str) -> KeyringError:
        return KeyringError(
            f"The program of custody.kek {how}.",
            remedy="Run it by hand with wrap, then unwrap: docs/keys.md, custody by a program.",
        )
