"""One bounded HTTP call to a recipient, and what its answer means. Knows no recipient's format.

Everything that a server can do to a client is bounded here, once for all sinks: a deadline for the
whole call, no redirects (they would carry events to a host that no policy names), no cookies, no
proxy from the environment, no decompression of answers, and at most 64 KiB of an answer are read.

So is where it goes: a name may lead to this machine or into our own network, by mistake or because
somebody changes it between two look-ups (DNS rebinding). Each socket is therefore checked against
the very address it is about to connect to; TLS is still bound to the name.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from scrubbers.address import embedded_v4
from telemetry.errors import ConfigError
from telemetry.sinks import Delivered, Outcome, Refused, Retry

__all__ = [
    "ANSWER_BYTES",
    "USER_AGENT",
    "Answer",
    "Wire",
    "base_url",
    "may_reach",
    "outcome_of",
    "retry_after_s",
]

ANSWER_BYTES: Final = 64 * 1024
"""Most bytes of an answer that are read."""

_SHORTEST_S, _LONGEST_S = 1.0, 3600.0


def _version() -> str:
    try:
        return version("milchglas")
    except PackageNotFoundError:  # run from a checkout that nobody installed
        return "0"


USER_AGENT: Final = f"milchglas/{_version()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back.

    Attributes:
        status: HTTP status; 0 if there was no complete answer head (refused, reset, deadline).
        headers: Answer headers with lower-case names; the last of equal names.
        body: The first `ANSWER_BYTES` bytes, as they came.
        forbidden: Nothing was sent, because the name leads where nothing may go.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    forbidden: bool = field(default=False, repr=False)


_Network = IPv4Network | IPv6Network
_LOOPBACK: Final = (ip_network("127.0.0.0/8"), ip_network("::1"))


def may_reach(address: str, networks: Iterable[_Network] = ()) -> bool:
    """Tell whether a recipient may be at an address: on the public Internet, or where we say.

    Args:
        address: IPv4 or IPv6, also with a zone. One that embeds an IPv4 address counts as that.
        networks: Further places. Without any, loopback, private, link-local, shared, documentation,
            multicast and reserved addresses are none.

    Source:
        The registries that `ipaddress` follows: IANA, special-purpose addresses; RFC 6890.

    >>> may_reach("169.254.169.254"), may_reach("64:ff9b::a00:1"), may_reach("1.1.1.1")
    (False, False, True)
    """
    found = ip_address(address.partition("%")[0])
    forms = [found]
    if found.version == 6 and (bits := embedded_v4(int(found))) is not None:  # noqa: PLR2004
        forms.append(IPv4Address(bits))
    if any(form in network for form in forms for network in networks):
        return True
    last = forms[-1]
    special = last.is_multicast or last.is_reserved or getattr(last, "is_site_local", False)
    return last.is_global and not special


class _ForbiddenError(OSError):
    """A name leads to an address at which no recipient may be."""


def _guarded(networks: Iterable[_Network]) -> aiohttp.TCPConnector:
    """Make connections that look at the address they go to.

    Not in a resolver: one is not asked for addresses in figures, and what it answered may differ
    from what is connected to.
    """
    allowed = tuple(networks)

    def make(found: tuple[Any, Any, int, str, tuple[Any, ...]]) -> socket.socket:
        family, kind, protocol, _, place = found
        if not may_reach(str(place[0]), allowed):
            raise _ForbiddenError("No recipient may be at this address.")
        return socket.socket(family, kind, protocol)

    return aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver(), socket_factory=make)


class Wire:
    """Makes calls for one sink.

    Args:
        session: Shared client session; its owner closes it, and says where it may go. Without one,
            sessions are made when first needed and closed with the sink.
        networks: Where a recipient may be besides the public Internet, as ``10.20.0.0/16``. To this
            machine only what a URL names as such goes: ``localhost``, or the address itself.
        connect_s: Longest time for a connection to stand, seconds.
        total_s: Longest time for a whole call, seconds. A server that answers one byte a second
            does not extend it.
    """

    def __init__(
        self,
        *,
        session: aiohttp.ClientSession | None = None,
        networks: Iterable[str] = (),
        connect_s: float = 5.0,
        total_s: float = 30.0,
    ) -> None:
        self._given = session
        self._own: dict[bool, aiohttp.ClientSession] = {}
        self._networks = tuple(ip_network(network) for network in networks)
        self._timeout = aiohttp.ClientTimeout(total=total_s, sock_connect=connect_s)

    async def call(
        self, method: str, url: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Make one call. Never raises for what the network or the server does."""
        status, head, text = 0, dict[str, str](), bytearray()
        try:
            async with self._session(url).request(
                method,
                url,
                data=body or None,
                headers={
                    "User-Agent": USER_AGENT,
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                    **(headers or {}),
                },
                allow_redirects=False,
                auto_decompress=False,
                timeout=self._timeout,
            ) as response:
                status = response.status
                head = {name.lower(): value for name, value in response.headers.items()}
                while len(text) < ANSWER_BYTES:
                    chunk = await response.content.read(ANSWER_BYTES - len(text))
                    if not chunk:
                        break
                    text += chunk
                if len(text) >= ANSWER_BYTES:
                    response.close()  # whatever follows is not worth the connection
        except aiohttp.ClientConnectorError as error:
            return Answer(status=0, forbidden=isinstance(error.os_error, _ForbiddenError))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            # A status already read holds even when the rest of the answer does not come: the
            # recipient has decided. ValueError is what aiohttp's parser lets slip for odd heads.
            return Answer(status=status, headers=head)
        return Answer(status=status, headers=head, body=bytes(text))

    def _session(self, url: str) -> aiohttp.ClientSession:
        if self._given is not None:
            return self._given
        here = _is_loopback(urlsplit(url).hostname or "")
        session = self._own.get(here)
        if session is None or session.closed:
            session = self._own[here] = aiohttp.ClientSession(
                connector=_guarded(_LOOPBACK if here else self._networks),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return session

    async def close(self) -> None:
        """Close the sessions, if they are our own."""
        while self._own:
            await self._own.popitem()[1].close()


def base_url(url: str, *, plaintext: bool = False) -> str:
    """Check the address of a recipient and return it without a trailing slash.

    Args:
        url: ``https://host[:port][/path]``; ``http`` only to this machine.
        plaintext: Allow ``http`` to other machines.

    Raises:
        ConfigError: It is no such address. The message does not repeat it: it may hold a key.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        host, parts = "", urlsplit("")
    unfit = not host or parts.query or parts.fragment or "@" in parts.netloc
    if parts.scheme not in {"http", "https"} or unfit:
        raise ConfigError("a recipient's address is not a URL.", remedy="Write https://host.")
    if parts.scheme == "http" and not plaintext and not _is_loopback(host):
        raise ConfigError("a recipient's address is plain http.", remedy="Use https.")
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def retry_after_s(value: str, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> float:
    """Read a ``Retry-After`` header.

    Args:
        value: Seconds or an HTTP date; anything else counts as absent.
        now: The clock that a date is compared with.

    Returns:
        Seconds, at least 1 and at most 3600; 0 if the header says nothing usable.

    Source:
        RFC 9110, 10.2.3.

    >>> retry_after_s("120"), retry_after_s("1000000000"), retry_after_s("-5"), retry_after_s("x")
    (120.0, 3600.0, 1.0, 0.0)
    """
    text = value.strip()[:64]
    try:
        seconds = float(text)
    except ValueError:
        try:
            at = parsedate_to_datetime(text)
            seconds = (at.replace(tzinfo=at.tzinfo or UTC) - now()).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return 0.0 if math.isnan(seconds) else min(max(seconds, _SHORTEST_S), _LONGEST_S)


def outcome_of(answer: Answer, *, several: bool) -> Outcome:
    """Say what an answer means for the deliveries of its request.

    Args:
        answer: What came back.
        several: Whether the request held more than one delivery: then a refusal may concern only
            one of them, and the forwarder looks which.
    """
    status = answer.status
    if 200 <= status < 300:  # noqa: PLR2004 - RFC 9110, 15
        if status != 207 and not _says_error(answer.body):  # noqa: PLR2004
            return Delivered()
        return Retry(split=True) if several else Refused(reason="rejected")
    if status in {400, 413, 422}:
        reason = "too_large" if status == 413 else "rejected"  # noqa: PLR2004
        return Retry(split=True) if several else Refused(reason=reason)
    if (status in {0, 408, 425, 429} or status >= 500) and not answer.forbidden:  # noqa: PLR2004
        return Retry(after_s=retry_after_s(answer.headers.get("retry-after", "")))
    # What is left is a forbidden or wrong address, a wrong key or a wrong protocol: a redirect,
    # 401, 403, 404, 410 and the like say nothing about the event, so it is kept until somebody has
    # looked.
    return Retry(blocked=True)


def _says_error(body: bytes) -> bool:
    """Tell whether a 2xx carries an error all the same (Heap's ``{"err": ...}``)."""
    if body.lstrip()[:1] != b"{":
        return False
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return any(bool(said.get(name)) for name in ("err", "error", "errors"))
