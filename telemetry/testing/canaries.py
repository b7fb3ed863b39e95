"""Planted values: personal data of people who do not exist, found again in whatever encoding."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from random import Random
from types import MappingProxyType
from urllib.parse import quote, quote_plus

__all__ = ["Canaries"]


class Canaries:
    """One invented person, the same for the same seed.

    Plant `values` wherever an application might put personal data, then search what arrived:
    ``assert not canaries.found_in(stand_in.received_bytes())``.

    Addresses come from RFC 5737 and 3849, the domain from RFC 2606, the telephone number from the
    range that the German regulator keeps for fiction.

    Args:
        seed: Names the person.

    >>> Canaries(1).found_in(b"nothing") == []
    True
    >>> person = Canaries(1)
    >>> person.found_in(person.values["email"].encode())
    ['email']
    """

    def __init__(self, seed: int = 0) -> None:
        draw = Random(seed)  # noqa: S311 - reproducible, no secret
        mark = "".join(draw.choices("bcdfghjklmnpqrstvwxz", k=8))
        self.values: Mapping[str, str] = MappingProxyType(
            {
                "email": f"{mark}.canary@mail.example.org",
                "name": f"Jördis {mark.capitalize()}",
                "username": f"jo{mark}",
                "account": f"acct-{mark}-{draw.randrange(10**6):06}",
                "organization": f"org-{mark}-{draw.randrange(10**6):06}",
                "session": f"sess{mark}{draw.randrange(16**8):08x}",
                "ipv4": f"203.0.113.{draw.randrange(10, 250)}",
                "ipv6": f"2001:db8:{draw.randrange(4096, 65536):x}:{draw.randrange(4096, 65536):x}"
                f"::{draw.randrange(4096, 65536):x}",
                "phone": f"+49 30 23125 {draw.randrange(100, 1000)}",
                "iban": _iban("DE", f"{draw.randrange(10**8):08}{draw.randrange(10**10):010}"),
                "password": f"hunter2-{mark}",
                "token": f"tok_{mark}{draw.randrange(16**12):012x}",
            }
        )

    def forms(self, name: str) -> Iterator[bytes]:
        """Give the encodings in which a value is looked for."""
        value = self.values[name]
        for text in (value, value.lower(), value.upper(), value.replace(" ", "")):
            yield text.encode()
            yield quote(text, safe="").encode()
            yield quote_plus(text).encode()
            yield json.dumps(text)[1:-1].encode()
            yield text.encode("utf-16-le")
            yield text.encode().hex().encode()
            yield from _base64_cores(text.encode())

    def found_in(self, data: bytes) -> list[str]:
        """Name the planted values that occur in `data`, in any of their forms."""
        return [name for name in self.values if self._occurs(name, data)]

    def _occurs(self, name: str, data: bytes) -> bool:
        if name == "ipv4":
            # 203.0.113.2 must not be found in 203.0.113.20, nor in our own 203.0.113.0/24.
            exact = rb"(?<![0-9.])" + re.escape(self.values[name].encode()) + rb"(?![0-9])"
            return re.search(exact, data) is not None
        return any(form in data for form in self.forms(name))


def _iban(country: str, account: str) -> str:
    """Make an IBAN with valid check digits (ISO 13616)."""
    digits = "".join(str(int(char, 36)) for char in f"{account}{country}00")
    return f"{country}{98 - int(digits) % 97:02}{account}"


def _base64_cores(raw: bytes) -> Iterator[bytes]:
    """Give what base64 makes of `raw` at each alignment, without what its neighbours decide."""
    for lead in range(3):
        coded = b64encode(b"\0" * lead + raw).rstrip(b"=")
        core = coded[-(-lead * 8 // 6) : len(coded) - 1]
        if len(core) >= 8:  # noqa: PLR2004 - shorter pieces occur by chance
            yield core
