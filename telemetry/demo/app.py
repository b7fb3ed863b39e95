"""A web application: organizations, projects, tasks, boards, comments, and plenty of mistakes.

It runs twice, as two applications would: once instrumented with our SDK (``sdk``), once with
nothing but sentry-sdk, whose DSN was changed (``sentry``). Its exceptions are real; what they carry
is what such exceptions carry everywhere: e-mail addresses in messages, whole accounts in local
variables, bodies, cookies and query strings.

``python -m telemetry.demo.app sdk http://127.0.0.1:4180 40`` prints its port and serves until its
input ends; then it hands over what waits, and says whether everything was.
"""

from __future__ import annotations

import json
import logging
import smtplib
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any, Final
from urllib.error import URLError
from urllib.parse import parse_qs
from urllib.request import urlopen
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import sentry_sdk
from sentry_sdk.integrations.wsgi import SentryWsgiMiddleware

import telemetry
from telemetry.demo.people import Person, World

__all__ = ["Flow", "PlainSentry", "WithSdk", "main"]

log = logging.getLogger("flow")

_FLUSH_S: Final = 20.0
Environ = dict[str, Any]
Start = Callable[[str, list[tuple[str, str]]], Any]


class ForbiddenError(Exception):
    """Somebody may not do that."""


class PaymentError(Exception):
    """A bank said no."""


class Flow:
    """What the application does, whoever watches it. Each method serves one route."""

    def __init__(self, world: World) -> None:
        self._by_session = {person.session: person for person in world.people}
        self._members = {
            organization.number: {
                p.username: p for p in world.people if p.organization is organization
            }
            for organization in world.organizations
        }

    def who(self, environ: Mapping[str, Any]) -> Person | None:
        """Find whose session cookie a request carries."""
        for pair in environ.get("HTTP_COOKIE", "").split(";"):
            name, _, value = pair.strip().partition("=")
            if name == "flow_session":
                return self._by_session.get(value)
        return None

    def board(self, person: Person, _form: Mapping[str, str]) -> dict[str, Any]:
        """Show a board."""
        return {"organization": person.organization.number, "columns": ["open", "doing", "done"]}

    def task(self, _person: Person, form: Mapping[str, str]) -> dict[str, Any]:
        """Create a task."""
        log.info("task %s for %s", form["title"], form.get("assignee", "nobody"))
        return {"task": len(form["title"])}

    def comment(self, person: Person, form: Mapping[str, str]) -> dict[str, Any]:
        """Add a comment, and mail it to somebody whose name has to fit into an old mail header."""
        author, text = person.name, form["text"]
        header = f"From: {author} <{person.email}>\r\nSubject: {text[:40]}"
        return {"sent": len(header.encode("ascii"))}

    def sign_in(self, person: Person, form: Mapping[str, str]) -> dict[str, Any]:
        """Refuse a password, and tell everything in the message."""
        email, password = form["email"], form["password"]
        log.warning("sign-in of %s failed", email)
        raise ForbiddenError(
            f"login failed for {email} (account {person.account}) from {person.ipv4}: "
            f"password={password}"
        )

    def invite(self, person: Person, form: Mapping[str, str]) -> dict[str, Any]:
        """Invite somebody; the mail server repeats the address in its refusal."""
        recipient = form["email"]
        log.info("inviting %s by order of %s", recipient, person.email)
        raise smtplib.SMTPRecipientsRefused(
            {recipient: (550, f"5.1.1 <{recipient}> user unknown".encode())}
        )

    def pay(self, person: Person, form: Mapping[str, str]) -> dict[str, Any]:
        """Take money; the bank's answer names card and account."""
        iban, card = form["iban"], form["card"]
        debtor = {"name": person.name, "iban": iban, "street": person.street}
        raise PaymentError(f"card {card} declined, debit of IBAN {iban} returned ({len(debtor)})")

    def profile(self, person: Person, form: Mapping[str, str]) -> dict[str, Any]:
        """Save a profile; somebody took a telephone number for a whole number."""
        born, street = form["birth_date"], form["street"]
        return {"born": born, "street": street, "phone": int(form["phone"]), "of": person.username}

    def export(self, person: Person, _form: Mapping[str, str]) -> dict[str, Any]:
        """Open an export that is not there; the path holds a user name."""
        path = Path(f"/home/{person.username}/exports/{person.account}.csv")
        return {"bytes": len(path.read_bytes())}

    def webhook(self, person: Person, form: Mapping[str, str]) -> dict[str, Any]:
        """Call a webhook whose address holds credentials."""
        url = f"http://{person.username}:{person.password}@127.0.0.1:9/in?token={form['token']}"
        try:
            with urlopen(url.replace(f"{person.username}:{person.password}@", ""), timeout=2):  # noqa: S310 - loopback
                return {}
        except URLError as error:
            raise ConnectionError(f"webhook {url} is not reachable") from error

    def api(self, person: Person, form: Mapping[str, str]) -> dict[str, Any]:
        """Refuse an API key, header and all."""
        known = {p.api_token: p.account for p in self._members[person.organization.number].values()}
        if form["token"] in known and person.account:
            raise ForbiddenError(
                f"Authorization: Bearer {form['token']} expired for account {person.account}, "
                f"client {person.ipv6}"
            )
        return {}

    def progress(self, person: Person, form: Mapping[str, str]) -> dict[str, Any]:
        """Divide by the tasks that are done, of which there are none."""
        board = {
            "owner": {"name": person.name, "email": person.email, "born": person.birth_date},
            "project": form.get("title", ""),
            "tasks": [form.get("task", "")],
        }
        done = [task for task in board["tasks"] if task.endswith("✓")]
        return {"progress": len(board["tasks"]) / len(done)}

    def mention(self, person: Person, form: Mapping[str, str]) -> dict[str, Any]:
        """Look for a member by name; a `KeyError` is its key."""
        members = dict(self._members[person.organization.number])
        del members[person.username]
        return {"mentioned": members[form["username"]].number}


ROUTES: Final = {
    ("GET", "board"): "/organizations/{organization}/boards/{board}",
    ("POST", "task"): "/projects/{project}/tasks",
    ("POST", "comment"): "/tasks/{task}/comments",
    ("POST", "sign_in"): "/sign-in",
    ("POST", "invite"): "/organizations/{organization}/invitations",
    ("POST", "pay"): "/payments",
    ("POST", "profile"): "/profile",
    ("GET", "export"): "/exports/{account}",
    ("POST", "webhook"): "/webhooks",
    ("GET", "api"): "/api/tasks",
    ("POST", "progress"): "/projects/{project}/progress",
    ("POST", "mention"): "/mentions",
}
"""Route template by method and name of what `Flow` does. The name is the path's last part."""


class _Web:
    """WSGI: finds the route, reads the body, answers; a failure becomes a page with a reference."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        action = environ["PATH_INFO"].rpartition("/")[2]
        person = self._flow.who(environ)
        if person is None or (method, action) not in ROUTES:
            return _answer(start, HTTPStatus.NOT_FOUND, {})
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        form = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
        if body:
            form |= json.loads(body)
        reference = self.serve(action, ROUTES[method, action], person, form, environ)
        if reference:
            return _answer(start, HTTPStatus.INTERNAL_SERVER_ERROR, {"reference": reference})
        return _answer(start, HTTPStatus.OK, {"done": action})

    def serve(
        self, action: str, route: str, person: Person, form: Mapping[str, str], environ: Environ
    ) -> str:
        """Serve one request; give the reference of an error, empty if there was none."""
        raise NotImplementedError

    def finish(self) -> bool:
        """Hand over what waits; tell whether everything was."""
        raise NotImplementedError


class WithSdk(_Web):
    """The application with two lines of our SDK: `telemetry.init`, and what it tracks."""

    def __init__(self, flow: Flow, gateway: str) -> None:
        super().__init__(flow)
        telemetry.init(service="flow", environment="development", release="flow@2.4.0", url=gateway)
        self._identified: set[int] = set()

    def serve(
        self, action: str, route: str, person: Person, form: Mapping[str, str], environ: Environ
    ) -> str:
        """Serve within `telemetry.request`: events and errors inside are completed from it."""
        headers = {
            name.removeprefix("HTTP_").replace("_", "-").title(): value
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        with telemetry.request(
            method=environ["REQUEST_METHOD"],
            url=f"http://flow.example{environ['PATH_INFO']}?{environ['QUERY_STRING']}",
            route=route,
            headers=headers,
            client_ip=environ.get("HTTP_X_FORWARDED_FOR"),
            account=person.account,
            organization=person.organization.id,
            session=person.session,
        ):
            if person.account not in self._identified and person.number % 2:
                self._identified.add(person.account)
                telemetry.identify(person.account, properties={"plan": "team", "role": "member"})
            project = person.organization.projects[0].id
            try:
                getattr(self._flow, action)(person, form)
            except Exception as error:  # noqa: BLE001 - an application's last resort
                return telemetry.capture_exception(error) or ""
            telemetry.track("page viewed")
            if action == "board":
                telemetry.track("board opened", properties={"project": project, "columns": 3})
            elif action == "task":
                properties = {"project": project, "priority": "normal", "title": form["title"]}
                telemetry.track("task created", properties=properties)
            return ""

    def finish(self) -> bool:
        """Hand over what waits."""
        return telemetry.shutdown(_FLUSH_S)


class PlainSentry(_Web):
    """The application with sentry-sdk as its vendor ships it; only the DSN is ours.

    It is set to send all it can, as many are: bodies, cookies, local variables.
    """

    def __init__(self, flow: Flow, gateway: str) -> None:
        super().__init__(flow)
        sentry_sdk.init(
            dsn=f"{gateway.replace('://', '://demo@')}/1",
            environment="development",
            release="flow@1.9.3",
            send_default_pii=True,
            max_request_body_size="always",
            include_local_variables=True,
            shutdown_timeout=_FLUSH_S,
            # Half a thousand errors in some seconds: the transport's queue holds a hundred.
            transport_queue_size=5000,
        )

    def serve(
        self, action: str, route: str, person: Person, form: Mapping[str, str], environ: Environ
    ) -> str:
        """Serve, telling Sentry who it is for, as its documentation proposes."""
        scope = sentry_sdk.get_isolation_scope()
        sentry_sdk.get_current_scope().set_transaction_name(route, source="route")
        scope.set_user(
            {
                "id": str(person.account),
                "email": person.email,
                "username": person.username,
                "name": person.name,
                "ip_address": person.ipv4,
            }
        )
        scope.set_tag("customer", person.email)
        scope.set_tag("plan", "team")
        scope.set_extra("profile", {**person.planted, "form": dict(form)})
        scope.set_context("organization", {"id": person.organization.id, "owner": person.name})
        scope.add_event_processor(_with_body(form, environ.get("HTTP_COOKIE", "")))
        sentry_sdk.add_breadcrumb(
            category="httplib",
            type="http",
            message=f"lookup of {person.phone} for {person.email}",
            data={
                "url": f"https://crm.example.net/v1/people/{person.account}?mail={person.email}",
                "method": "GET",
                "status_code": 404,
                "reason": "Not Found",
            },
        )
        log.info("request of %s from %s", person.name, person.ipv6)
        try:
            getattr(self._flow, action)(person, form)
        except Exception as error:  # noqa: BLE001 - an application's last resort
            return sentry_sdk.capture_exception(error) or ""
        return ""

    def finish(self) -> bool:
        """Hand over what waits."""
        client = sentry_sdk.get_client()
        client.close(timeout=_FLUSH_S)
        return True


def _with_body(form: Mapping[str, str], cookie: str) -> Callable[[Any, Any], Any]:
    """Attach body and cookies, as sentry-sdk's integrations of web frameworks do."""

    def attach(event: Any, _hint: Any) -> Any:
        request = event.setdefault("request", {})
        request["data"] = dict(form)
        request["cookies"] = dict(
            pair.strip().partition("=")[::2] for pair in cookie.split(";") if pair
        )
        return event

    return attach


def _answer(start: Start, status: HTTPStatus, body: Mapping[str, Any]) -> list[bytes]:
    start(f"{status.value} {status.phrase}", [("Content-Type", "application/json")])
    return [json.dumps(body).encode()]


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as inherited
        """Say nothing: the request line holds a query string."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128


def main(arguments: list[str]) -> int:
    """Serve until the input ends."""
    client, gateway, people = arguments
    flow = Flow(World(people=int(people)))
    logging.basicConfig(level=logging.CRITICAL)
    log.setLevel(logging.INFO)
    web: _Web = WithSdk(flow, gateway) if client == "sdk" else PlainSentry(flow, gateway)
    app: Any = web if client == "sdk" else SentryWsgiMiddleware(web)
    with make_server("127.0.0.1", 0, app, _Server, _Quiet) as server:
        print(server.server_port, flush=True)  # noqa: T201 - how the demo learns of it
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdin.read()
        server.shutdown()
    done = web.finish()
    print(json.dumps({"handed_over": done}), flush=True)  # noqa: T201 - as above
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
