"""ASGI middleware: each request or WebSocket of an application becomes the current `request`.

Works with whatever speaks ASGI (Starlette, FastAPI, Django, Quart). Reads no body and changes no
response. Where the framework notes the matched route in the scope, as Starlette and FastAPI do,
events carry its template; else set ``route`` on the current request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import telemetry

__all__ = ["TelemetryMiddleware"]

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


class TelemetryMiddleware:
    """Wrap an ASGI application.

    An exception that leaves the application is reported once and goes on its way.

    Args:
        app: The application.
    """

    def __init__(self, app: _App) -> None:
        self._app = app

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Serve one connection."""
        if scope.get("type") not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        client = scope.get("client") or (None,)
        request = telemetry.request(
            method=scope.get("method"),
            url=scope.get("path"),
            headers=scope.get("headers"),
            client_ip=client[0],
        )
        request.route_source = lambda: _route(scope)
        with request:
            try:
                await self._app(scope, receive, send)
            except Exception as error:
                telemetry.capture_exception(error)
                raise


def _route(scope: _Scope) -> str | None:
    """Read the template of the matched route, which is known only once routing is done."""
    path = getattr(scope.get("route"), "path", None)
    return path if type(path) is str else None
