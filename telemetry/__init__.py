"""Milchglas: telemetry that keeps a privacy notice.

Two lines, and nothing personal leaves the process except ids that the gateway seals::

    telemetry.init(service="flow", environment="production")
    telemetry.track("board opened", account=42, properties={"columns": 5})

None of these functions raises, and none waits for the network except `flush` and `shutdown`
(docs/sdk.md). Importing this loads the standard library and msgspec, nothing else.
"""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Mapping
from typing import Any

from telemetry.client import EXIT_S, Client, activate, active, count, log, lost, never_raising
from telemetry.context import Request, bounded_text
from telemetry.errors import ConfigError

__all__ = [
    "capture_exception",
    "capture_message",
    "flush",
    "identify",
    "init",
    "last_event_id",
    "request",
    "shutdown",
    "stats",
    "track",
]


@never_raising(lambda: None)
def init(  # noqa: PLR0913 - all of it optional but two
    *,
    service: str,
    environment: str,
    release: str | None = None,
    url: str | None = None,
    policy: str | None = None,
    errors: bool = True,
    allow_plain_http: bool = False,
    max_events: int = 10_000,
    max_bytes: int = 16 * 1024 * 1024,
) -> None:
    """Connect this process to a gateway. Call it once, at start; a second call replaces the first.

    Args:
        service: Name of the service.
        environment: For example ``production``. In ``development`` a wrong call is an error.
        release: Version of the application.
        url: The gateway: ``http[s]://[key@]host[:port][/project]`` (a Sentry DSN is such a URL) or
            ``unix:/path``. Default: ``TELEMETRY_URL``, else ``http://127.0.0.1:4180``.
        policy: Folder of the policy. Default: ``TELEMETRY_POLICY``, else the shipped one.
        errors: Initialise sentry-sdk, unless the application has done so.
        allow_plain_http: Send over plain HTTP to another host; refused otherwise, because ids
            could be read on the way.
        max_events: Most events that wait while the gateway is away.
        max_bytes: Most bytes that wait while the gateway is away.
    """
    try:
        client = Client(
            service=service,
            environment=environment,
            release=release,
            url=url,
            policy=policy,
            allow_plain_http=allow_plain_http,
            max_events=max_events,
            max_bytes=max_bytes,
        )
    except ConfigError as error:
        count("failed_calls")
        log.warning("telemetry.init() failed, nothing is sent: %s", error)
        return
    former = activate(client)
    client.handover.start()
    if former is None:
        atexit.register(_at_exit)
    else:
        former.handover.close(EXIT_S)
    if errors:
        from telemetry.integrations import sentry  # noqa: PLC0415 - loaded when used

        sentry.connect(client)


@never_raising(lambda: None)
def track(
    event: str,
    *,
    account: str | int | None = None,
    organization: str | int | None = None,
    session: str | None = None,
    page: str | None = None,
    properties: Mapping[str, Any] | None = None,
) -> None:
    """Record that a function of the application was used.

    What is not given is taken from the current `request`. The event and its properties must be
    declared in the policy's ``events.toml``; what is not declared is dropped.

    Args:
        event: Its declared name.
        account: Id of the account. Becomes a token; never reaches a recipient.
        organization: Id of the organization. Becomes a token.
        session: Id of the session. Becomes a token.
        page: Route template or URL; reduced to a template.
        properties: A dict, copied before the call returns.
    """
    client = active()
    if client is None:
        count("not_initialized")
        return
    client.track(
        event,
        account=account,
        organization=organization,
        session=session,
        page=page,
        properties=properties,
    )


@never_raising(lambda: None)
def identify(
    account: str | int,
    *,
    organization: str | int | None = None,
    properties: Mapping[str, Any] | None = None,
) -> None:
    """Record facts about an account, for example its plan.

    Args:
        account: Id of the account. Becomes a token.
        organization: Id of its organization. Becomes a token.
        properties: As declared in the policy's ``user_properties.toml``.
    """
    client = active()
    if client is None:
        count("not_initialized")
        return
    client.identify(account, organization=organization, properties=properties)


@never_raising(Request)
def request(
    *,
    method: str | None = None,
    url: str | None = None,
    route: str | None = None,
    headers: Any = None,
    client_ip: str | None = None,
    account: str | int | None = None,
    organization: str | int | None = None,
    session: str | None = None,
) -> Request:
    """Say what the application is serving, for as long as the returned context is entered.

    Events and errors inside it are completed from it, and its address, ids, cookies and
    ``Authorization`` are removed wherever they turn up in an event.

    Args:
        method: HTTP method.
        url: The URL as requested.
        route: Template of its path, for example ``/boards/{board}``.
        headers: Mapping or pairs; of these only browser and system are sent.
        client_ip: The client's address, as you trust it.
        account: Id of the account; may be set later on what ``with`` gives.
        organization: Id of the organization.
        session: Id of the session.
    """
    return Request(
        method=method,
        url=url,
        route=route,
        headers=headers,
        client_ip=client_ip,
        account=account,
        organization=organization,
        session=session,
    )


@never_raising(lambda: None)
def capture_exception(error: BaseException | None = None) -> str | None:
    """Report an exception, or the one being handled.

    Returns:
        Its event id (32 hex digits): show it to the user as reference. Sentry shows the same. None
        if nothing was reported.
    """
    client = active()
    if client is None:
        count("not_initialized")
        return None
    from telemetry.integrations import sentry  # noqa: PLC0415 - loaded when used

    return sentry.capture_exception(client, error)


@never_raising(lambda: None)
def capture_message(text: str, level: str = "info") -> str | None:
    """Report a message; `level` is one of debug, info, warning, error, fatal.

    Returns:
        Its event id, or None if nothing was reported.
    """
    client = active()
    message = bounded_text(text)
    if client is None or message is None:
        count("not_initialized" if client is None else "rejected:message_is_no_text")
        return None
    from telemetry.integrations import sentry  # noqa: PLC0415 - loaded when used

    return sentry.capture_message(client, message, bounded_text(level) or "info")


@never_raising(lambda: None)
def last_event_id() -> str | None:
    """Give the id of the last error that was reported here: the one that Sentry shows."""
    from telemetry.integrations import sentry  # noqa: PLC0415 - loaded when used

    return sentry.last_event_id()


@never_raising(lambda: False)
def flush(timeout_s: float = 2.0) -> bool:
    """Wait until everything recorded so far is handed over; tell whether it is.

    Args:
        timeout_s: Longest wait in seconds.
    """
    client = active()
    return client is None or client.handover.flush(timeout_s)


@never_raising(lambda: False)
def shutdown(timeout_s: float = 2.0) -> bool:
    """Flush and stop; tell whether everything was handed over. Called at exit unasked.

    Args:
        timeout_s: Longest wait in seconds.
    """
    begun_at = time.monotonic()
    client = activate(None)
    if client is None:
        return True
    sentry = sys.modules.get("telemetry.integrations.sentry")
    if sentry is not None:
        sentry.disconnect(client)
    return client.handover.close(timeout_s - (time.monotonic() - begun_at))


@never_raising(dict)
def stats() -> dict[str, int]:
    """Count what became of what was recorded: accepted, handed over, pending, dropped by reason."""
    client = active()
    return lost() if client is None else client.handover.stats()


def _at_exit() -> None:
    shutdown(EXIT_S)
