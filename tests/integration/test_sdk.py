"""An application, sentry-sdk and the SDK as they are, against a server that records the bytes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentry_sdk

import telemetry
from telemetry.client import active
from telemetry.context import current
from telemetry.integrations import asgi, wsgi
from telemetry.integrations.sentry import TelemetryTransport
from tests.sdk_gateway import RecordingGateway

ROOT = Path(__file__).parents[2]

PLANTED = {
    "mail": "erika.beispiel@example.com",
    "address": "203.0.113.77",
    "proxy": "198.51.100.23",
    "cookie": "c00kie-0123456789abcdef",
    "token": "t0ken-abcdef0123456789",
    "local": "locally-Erika-Beispiel",
    "query": "q=Erika-Suche",
    "body": "body-of-Erika",
    "extra": "extra-of-Erika",
}


@pytest.fixture
def gateway() -> Iterator[RecordingGateway]:
    with RecordingGateway() as running:
        yield running


@pytest.fixture
def flow(gateway: RecordingGateway) -> Iterator[RecordingGateway]:
    """An application that calls init once."""
    sentry_sdk.get_global_scope().set_client(None)
    with sentry_sdk.isolation_scope() as scope:
        scope.clear()
        telemetry.init(service="flow", environment="test", release="1.2.3", url=gateway.url)
        yield gateway
        telemetry.shutdown()
    sentry_sdk.get_global_scope().set_client(None)


def leaks(data: bytes) -> list[str]:
    text = data.decode()
    return [name for name, value in PLANTED.items() if value in text]


def serving() -> Any:
    return telemetry.request(
        method="POST",
        url=f"https://flow.example.com/boards/4711/x?{PLANTED['query']}",
        route="/boards/{board}/x",
        headers={
            "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
            "Cookie": f"sid={PLANTED['cookie']}",
            "Authorization": f"Bearer {PLANTED['token']}",
            "X-Forwarded-For": PLANTED["proxy"],
        },
        client_ip=PLANTED["address"],
        account=471142,
        organization=12,
        session="session-0815-abc",
    )


def fail(error: Exception) -> str | None:
    local = PLANTED["local"]
    number, nothing, names = len(local), None, [local]
    try:
        raise error  # noqa: TRY301 - the frame is the point
    except Exception:  # noqa: BLE001 - as applications do
        return telemetry.capture_exception()
    finally:
        del number, nothing, names


def test_no_planted_value_leaves_except_ids_where_they_are_sealed(flow: RecordingGateway) -> None:
    everything = " ".join(PLANTED[n] for n in ("mail", "address", "proxy", "cookie", "token"))
    with serving():
        sentry_sdk.set_user({"email": PLANTED["mail"], "username": PLANTED["extra"]})
        sentry_sdk.set_extra("cart", PLANTED["extra"])
        sentry_sdk.add_breadcrumb(message=f"mail to {PLANTED['mail']}", data={"b": PLANTED["body"]})
        fail(ValueError(f"471142 in session-0815-abc, {PLANTED['extra']}: {everything}"))
        telemetry.capture_message(f"from {PLANTED['address']} by {PLANTED['mail']}")
        telemetry.track(
            "feature feedback given",
            properties={"score": 3, "remark": everything, "undeclared": PLANTED["body"]},
        )
        telemetry.track("board opened", properties={"project": "p-77", "columns": 5})
        telemetry.identify(471142, properties={"plan": "team", "seats": 5})
    assert telemetry.flush(10)
    assert leaks(flow.everything()) == []
    assert len(flow.items("event")) == 2
    for event in flow.items("event"):
        assert event.pop("user") == {
            "id": 471142,
            "organization": 12,
            "session": "session-0815-abc",
            "ip_address": "203.0.113.0/24",
        }
        assert "471142" not in json.dumps(event)
        assert "session-0815-abc" not in json.dumps(event)
    opened, feedback, plan = sorted(flow.events, key=lambda event: event.get("event", "~"))
    assert opened["properties"] == {"project": "p-77", "columns": 5}
    assert (opened["page"], opened["ip"]) == ("/boards/{board}/x", "203.0.113.0/24")
    assert feedback["properties"].keys() == {"score", "remark"}
    assert plan["properties"] == {"plan": "team", "seats": 5}
    for event in flow.events:
        assert event.pop("account") == 471142
        assert event.pop("organization") == 12
        assert "471142" not in json.dumps(event)
        assert len(event["event_id"]) == 32


def test_an_error_stays_debuggable(flow: RecordingGateway) -> None:
    with serving():
        fail(KeyError("columns"))
    telemetry.flush(10)
    (event,) = flow.items("event")
    (value,) = event["exception"]["values"]
    frame = value["stacktrace"]["frames"][-1]
    assert (value["type"], value["value"]) == ("KeyError", "'columns'")
    assert frame["function"] == "fail"
    assert frame["context_line"].strip().startswith("raise error")
    assert frame["vars"] == {
        "error": "object",
        "local": "text",
        "number": "number",
        "nothing": "null",
        "names": "list",
    }
    assert event["transaction"] == "/boards/{board}/x"
    assert event["transaction_info"] == {"source": "route"}
    assert event["request"]["method"] == "POST"
    assert event["tags"] == {"service": "flow"}
    assert (event["release"], event["environment"]) == ("1.2.3", "test")


def test_causes_and_groups_keep_the_shapes_of_their_variables(flow: RecordingGateway) -> None:
    def inner() -> None:
        depth = 1
        raise ValueError(str(depth))

    def outer() -> None:
        mapping: dict[str, str] = {}
        try:
            inner()
        except ValueError as error:
            raise ExceptionGroup("both", [RuntimeError(str(mapping))]) from error

    try:
        outer()
    except ExceptionGroup as error:
        telemetry.capture_exception(error)
    telemetry.flush(10)
    (event,) = flow.items("event")
    shapes = {
        frame["function"]: frame.get("vars")
        for value in event["exception"]["values"]
        for frame in value.get("stacktrace", {}).get("frames", ())
    }
    assert shapes["inner"] == {"depth": "number"}
    assert shapes["outer"]["mapping"] == "empty"


def test_the_id_shown_to_a_user_is_the_one_that_sentry_gets(flow: RecordingGateway) -> None:
    shown = fail(ValueError())
    assert telemetry.last_event_id() == shown == sentry_sdk.last_event_id()
    other = sentry_sdk.capture_message("by the application's existing calls")
    telemetry.flush(10)
    assert [event["event_id"] for event in flow.items("event")] == [shown, other]
    envelopes = [body for path, body in flow.bodies if path == "/api/1/envelope/"]
    assert [json.loads(body.split(b"\n")[0])["event_id"] for body in envelopes] == [shown, other]


def test_existing_calls_go_the_same_way(flow: RecordingGateway) -> None:
    import logging

    logging.getLogger("flow.billing").error("no invoice for %s", PLANTED["mail"])
    sentry_sdk.crons.capture_checkin(monitor_slug="nightly", status="ok")
    telemetry.flush(10)
    (event,) = flow.items("event")
    assert event["logger"] == "flow.billing"
    assert event["logentry"]["message"] == "no invoice for %s"
    assert flow.items("check_in")[0]["monitor_slug"] == "nightly"
    assert leaks(flow.everything()) == []


def test_sessions_pass_and_their_user_is_an_id_only(flow: RecordingGateway) -> None:
    with sentry_sdk.isolation_scope() as scope:
        scope.set_user({"id": "471142", "ip_address": PLANTED["address"]})
        scope.start_session()
        scope.end_session()
    sentry_sdk.flush(2)
    telemetry.flush(10)
    sessions = [*flow.items("session"), *flow.items("sessions")]
    assert sessions
    assert leaks(flow.everything()) == []


def test_a_bucket_of_sessions_keeps_its_id_for_the_gateway_and_several_keep_none(
    flow: RecordingGateway,
) -> None:
    client = active()
    assert client is not None
    named = {"started": "2026-11-22T10:14:00Z", "exited": 1, "did": "471142"}
    for buckets in ([named], [named, {"exited": 2, "did": "471143"}]):
        client.put_error("sessions", {"aggregates": buckets, "attrs": {"release": "shop@1"}})
    assert telemetry.flush(10)
    one, several = flow.items("sessions")
    assert one["aggregates"][0]["did"] == "471142"
    assert not any("did" in bucket for bucket in several["aggregates"])


def test_other_items_and_attachments_are_dropped_and_counted(flow: RecordingGateway) -> None:
    with sentry_sdk.new_scope() as scope:
        scope.add_attachment(bytes=PLANTED["body"].encode(), filename=PLANTED["mail"])
        scope.capture_message("with an attachment")
    assert telemetry.flush(10)
    assert leaks(flow.everything()) == []
    assert telemetry.stats()["sentry_dropped:attachment"] == 1
    (report,) = flow.items("client_report")
    assert report["discarded_events"] == [
        {"reason": "event_processor", "category": "attachment", "quantity": 1}
    ]


def test_our_own_requests_leave_no_trace_in_the_applications_events(flow: RecordingGateway) -> None:
    for _ in range(3):
        telemetry.track("board opened")
        telemetry.flush(10)
    sentry_sdk.capture_message("after")
    telemetry.flush(10)
    (event,) = flow.items("event")
    assert event.get("breadcrumbs", {}).get("values", []) == []
    assert all("sentry-trace" not in headers for headers in flow.headers)


def test_an_application_with_its_own_dsn_keeps_it_and_we_do_not_follow(
    gateway: RecordingGateway,
) -> None:
    with RecordingGateway() as elsewhere:
        sentry_sdk.init(
            dsn=elsewhere.url.replace("//", "//key@") + "/9", auto_session_tracking=False
        )
        before = sentry_sdk.get_client()
        try:
            telemetry.init(service="flow", environment="test", url=gateway.url)
            assert sentry_sdk.get_client() is before
            with serving():
                shown = telemetry.capture_exception(ValueError(PLANTED["mail"]))
                assert telemetry.last_event_id() == shown
                sentry_sdk.capture_message("its own")
            sentry_sdk.flush(5)
            assert telemetry.flush(10)
            (event,) = gateway.items("event")
            assert event["event_id"] == shown
            assert leaks(gateway.everything()) == []
            assert shown is not None
            assert shown.encode() not in b"".join(elsewhere.raw)
            assert b"471142" not in elsewhere.everything()
        finally:
            telemetry.shutdown()
            sentry_sdk.get_client().close(timeout=0)
            sentry_sdk.get_global_scope().set_client(None)


def test_an_application_may_name_the_transport_itself(gateway: RecordingGateway) -> None:
    sentry_sdk.init(
        dsn=gateway.url.replace("//", "//key@") + "/7",
        transport=TelemetryTransport,
        auto_session_tracking=False,
    )
    try:
        with serving():
            shown = sentry_sdk.capture_exception(ValueError(PLANTED["mail"]))
        sentry_sdk.flush(10)
        assert [path for path, _ in gateway.bodies] == ["/api/7/envelope/"]
        (event,) = gateway.items("event")
        assert event["event_id"] == shown
        assert event["user"]["id"] == 471142
        assert "session" not in event["user"]
        assert leaks(gateway.everything()) == []
        assert "sentry_key=key" in gateway.headers[0]["x-sentry-auth"]
    finally:
        sentry_sdk.get_client().close(timeout=0)
        sentry_sdk.get_global_scope().set_client(None)


@pytest.mark.usefixtures("flow")
def test_capturing_what_is_no_exception_does_nothing() -> None:
    assert telemetry.capture_exception() is None
    assert telemetry.capture_exception("no exception") is None  # type: ignore[arg-type]
    assert telemetry.stats()["rejected:no_exception"] == 2


def test_an_exception_that_cannot_be_printed_is_reported_all_the_same(
    flow: RecordingGateway,
) -> None:
    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

        __repr__ = __str__

    class Evil:
        def __repr__(self) -> str:
            raise AssertionError("asked")

    evil = Evil()
    try:
        raise UnprintableError(evil)  # noqa: TRY301 - the frame is the point
    except UnprintableError:
        shown = telemetry.capture_exception()
    telemetry.flush(10)
    (event,) = flow.items("event")
    assert event["event_id"] == shown
    assert event["exception"]["values"][0]["stacktrace"]["frames"][-1]["vars"]["evil"] == "object"


async def test_asgi_requests_complete_their_events(flow: RecordingGateway) -> None:
    class Route:
        path = "/boards/{board}"

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        await asyncio.sleep(0)
        scope["route"] = Route()
        telemetry.track("board opened")
        raise ValueError("broken")

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/boards/4711",
        "headers": [(b"user-agent", b"Firefox"), (b"cookie", PLANTED["cookie"].encode())],
        "client": (PLANTED["address"], 1234),
    }
    with pytest.raises(ValueError, match="broken"):
        await asgi.TelemetryMiddleware(app)(scope, None, None)  # type: ignore[arg-type]
    await asyncio.to_thread(telemetry.flush, 10)
    assert (flow.events[0]["page"], flow.events[0]["ip"]) == ("/boards/{board}", "203.0.113.0/24")
    assert flow.items("event")[0]["transaction"] == "/boards/{board}"
    assert leaks(flow.everything()) == []


def test_wsgi_requests_complete_their_events(flow: RecordingGateway) -> None:
    closed = []

    class Pages:
        def __init__(self) -> None:
            self.left = 2

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> bytes:
            self.left -= 1
            if self.left < 0:
                raise StopIteration
            telemetry.track("board opened")
            return b"page"

        def close(self) -> None:
            closed.append(current() is not None)

    def app(_environ: dict[str, Any], _start: Any) -> Any:
        request = current()
        assert request is not None
        request.account, request.route = 42, "/boards/{board}"
        return Pages()

    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/boards/4711",
        "REMOTE_ADDR": PLANTED["address"],
        "HTTP_USER_AGENT": "Firefox",
        "HTTP_COOKIE": PLANTED["cookie"],
    }
    body: Any = wsgi.TelemetryMiddleware(app)(environ, None)  # type: ignore[arg-type]
    assert list(body) == [b"page", b"page"]
    body.close()
    assert closed == [True]
    assert current() is None
    telemetry.flush(10)
    assert [(e["account"], e["page"]) for e in flow.events] == [(42, "/boards/{board}")] * 2


def run(code: str, *arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    begun_at = time.monotonic()
    done = subprocess.run(  # noqa: S603 - our own interpreter, our own words
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
    )
    return done, time.monotonic() - begun_at


def test_two_lines_are_enough(gateway: RecordingGateway) -> None:
    code = """
        import os, sys
        os.environ["TELEMETRY_URL"] = sys.argv[1]
        import telemetry
        telemetry.init(service="flow", environment="production")
        telemetry.track("board opened", account=42, properties={"columns": 5})
    """
    done, _ = run(code, gateway.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (event,) = gateway.events
    assert (event["event"], event["account"]) == ("board opened", 42)


def test_without_re2_the_gateway_on_this_host_scrubs_alone(gateway: RecordingGateway) -> None:
    code = """
        import sys
        sys.modules["re2"] = None
        import telemetry
        telemetry.init(service="flow", environment="production", url=sys.argv[1])
        with telemetry.request(route="/b", headers={"User-Agent": "x"}, account=42):
            telemetry.track("board opened")
            telemetry.capture_message("hello")
        assert telemetry.flush(10), telemetry.stats()
        print(telemetry.stats()["handed_over"])
    """
    done, _ = run(code, gateway.url)
    assert (done.returncode, done.stdout) == (0, "2\n")
    assert done.stderr == "re2 cannot be imported: the gateway scrubs alone.\n"
    assert gateway.events[0]["account"] == 42
    assert len(gateway.events[0]["event_id"]) == 32
    assert gateway.items("event")[0]["user"]["id"] == 42


def test_leaving_with_a_dead_gateway_takes_two_seconds_and_says_nothing() -> None:
    code = """
        import atexit, time
        atexit.register(lambda: print(time.monotonic() - ended))
        import telemetry
        telemetry.init(service="flow", environment="production", url="http://127.0.0.1:9")
        for _ in range(100):
            telemetry.track("board opened")
        telemetry.capture_message("x")
        ended = time.monotonic()
    """
    done, _ = run(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert float(done.stdout) < 2.3


def test_a_forked_worker_reports_its_own_errors_and_none_of_its_parent(
    gateway: RecordingGateway,
) -> None:
    code = """
        import os, sys, time
        import telemetry
        telemetry.init(service="flow", environment="production", url=sys.argv[1])
        telemetry.track("board opened", account=1)
        if os.fork() == 0:
            begun_at = time.monotonic()
            telemetry.track("board opened", account=2)
            telemetry.capture_message("from the child")
            ok = telemetry.flush(10)
            print(ok, telemetry.stats()["accepted"])
            sys.stdout.flush()
            os._exit(0)
        os.wait()
        telemetry.shutdown(10)
    """
    done, _ = run(code, gateway.url)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "True 2\n")
    assert sorted(event["account"] for event in gateway.events) == [1, 2]
    assert len(gateway.items("event")) == 1


def test_a_call_from_a_signal_handler_does_not_hang(gateway: RecordingGateway) -> None:
    code = """
        import signal, sys, time
        import telemetry
        telemetry.init(service="flow", environment="production", url=sys.argv[1], errors=False)
        signal.signal(signal.SIGALRM, lambda *_: telemetry.track("board opened", account=2))
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        for _ in range(5000):
            telemetry.track("board opened", account=1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(telemetry.flush(20), telemetry.stats()["pending"])
    """
    done, _ = run(code, gateway.url)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "True 0\n")
    assert sum(event["account"] == 1 for event in gateway.events) == 5000
    assert sum(event["account"] == 2 for event in gateway.events) > 0


def test_the_documented_snippets_run(gateway: RecordingGateway) -> None:
    page = (ROOT / "docs" / "sdk.md").read_text("utf-8")
    blocks = [
        part.partition("```")[0]
        for part in page.split("```python\n")[1:]
        if "framework" not in part
    ]
    assert len(blocks) >= 3
    code = "import os, sys\nos.environ['TELEMETRY_URL'] = sys.argv[1]\n" + "\n".join(blocks)
    done, _ = run(code, gateway.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert {event.get("event") for event in gateway.events} >= {"board opened", "task created"}
    assert gateway.items("event")
