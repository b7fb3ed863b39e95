"""A gateway's two endpoints on loopback that record what an application really sent."""

from __future__ import annotations

import gzip
import json
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class RecordingGateway:
    """Answers every POST with what `answers` says next, else 200, and keeps the bodies."""

    def __init__(self, *, port: int = 0, unix: str = "") -> None:
        self.bodies: list[tuple[str, bytes]] = []
        self.raw: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.connections = 0
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.largest_events = 10**9
        self._port, self._unix = port, unix
        self._server: socketserver.BaseServer | None = None

    def __enter__(self) -> Self:
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                gateway.connections += 1

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                zipped = self.headers.get("Content-Encoding") == "gzip"
                body = gzip.decompress(raw) if zipped else raw
                status, headers = gateway.answers.pop(0) if gateway.answers else (200, {})
                if self.path == "/v1/events" and body.count(b"\n") > gateway.largest_events:
                    status = 413
                if status == 200:
                    gateway.bodies.append((self.path, body))
                gateway.raw.append(raw)
                gateway.headers.append({k.lower(): v for k, v in self.headers.items()})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                pass

        class UnixServer(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        class UnixHandler(Handler):
            disable_nagle_algorithm = False

            def address_string(self) -> str:
                return "unix"

        if self._unix:
            self._server = UnixServer(self._unix, UnixHandler)
        else:
            self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
            self._port = self._server.server_address[1]
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"unix:{self._unix}" if self._unix else f"http://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    @property
    def events(self) -> list[dict[str, Any]]:
        """What came to the native endpoint, event by event."""
        return [
            json.loads(line)
            for path, body in list(self.bodies)
            if path == "/v1/events"
            for line in body.splitlines()
        ]

    def items(self, item_type: str) -> list[dict[str, Any]]:
        """What came to the Sentry endpoint, by type of item."""
        found = []
        for path, body in list(self.bodies):
            if path.endswith("/envelope/"):
                _, header, payload = body.split(b"\n", 2)
                if json.loads(header)["type"] == item_type:
                    found.append(json.loads(payload[: json.loads(header)["length"]]))
        return found

    def everything(self) -> bytes:
        """All bytes that came, decompressed."""
        return b"\n".join(body for _, body in self.bodies)


def wait_until(condition: Any, timeout_s: float = 10.0) -> bool:
    """Wait for a condition; tell whether it came true."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.01)
    return bool(condition())
