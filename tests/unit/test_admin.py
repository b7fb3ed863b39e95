"""Health and metrics for anybody on the port, books and orders only through the owner's socket."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from telemetry.admin import (
    Admin,
    NoAnswerError,
    NotHereError,
    NotRunningError,
    ask,
    ask_each,
    socket_name,
)
from telemetry.books import Books, joined
from telemetry.brokers import SEALED, Entry, Room, clean
from telemetry.cli import app, letters, vault  # noqa: F401 - they register
from telemetry.errors import AuditError, BrokerError, ConfigError
from telemetry.identity.audit import actor_of
from telemetry.metrics import exposition
from telemetry.retention import Period
from telemetry.status import Snapshot, as_json, merged
from telemetry.testing.brokers import make_parcel
from telemetry.upkeep import Upkeep, Work

NOW = datetime(2026, 3, 2, tzinfo=UTC)

ENTRIES = {
    Entry("edge", "items_in"): 5,
    Entry("edge", "sealed"): 4,
    Entry("edge", "dropped", "expired"): 1,
    Entry("pseudonymizer", "scrubbed"): 3,
    Entry("heap", "routed"): 3,
    Entry("heap", "delivered"): 2,
}
BOOKS = Books(ENTRIES, {SEALED: 1, clean("heap"): 1}, ("heap",))


class Runner:
    """What the admin side asks of a pipeline."""

    def __init__(self) -> None:
        self.holding = ""
        self.pseudonymizer = SimpleNamespace()
        self.actors: list[str] = []
        self.witnessed: list[tuple[str, str, dict[str, str], str]] = []
        self.intake = SimpleNamespace(invalid_identifiers=Counter(account=2))
        self.edge = SimpleNamespace(
            unknown=Counter({("session", "vendor"): 3, ("session", "<key>"): 1})
        )
        self.forwarders = {
            "heap": SimpleNamespace(paused=False),
            "sentry": SimpleNamespace(paused=False),
        }
        self.identity = SimpleNamespace(keys=lambda: (Counter({("seal", "PRIMARY"): 1}), 0))
        self.redrive = None
        self.orders = SimpleNamespace(shared=False, release=self.release, revoke=self.release)
        self.released: list[str] = []
        self.seen = Counter({("requests", ("native", "200")): 7, ("refusals", ("not_json",)): 1})

    @property
    def ordered(self) -> tuple[str, ...]:
        return tuple(self.forwarders)

    async def release(self, stage: str) -> None:
        self.released.append(stage)

    async def books(self) -> Books:
        return BOOKS

    def witness(self, actor: str, action: str, what: dict[str, str], result: str) -> None:
        self.witnessed.append((actor, action, what, result))

    async def snapshot(self) -> Snapshot:
        return Snapshot(
            now=NOW,
            books=BOOKS,
            holding=self.holding,
            forwarders={"heap": "running", "sentry": "braked"},
            policy="c0" * 32,
            accepted=True,
            environment="staging",
            oldest={SEALED: replace(make_parcel(1), received_at=NOW - timedelta(seconds=90))},
            room={"": Room(5, 100), clean("heap"): Room(1, 4)},
            letters=Period(days=30),
        )

    async def order(self, names: list[str], *, paused: bool, actor: str) -> None:
        self.actors.append(actor)
        for name in names:
            self.forwarders[name].paused = paused


@pytest.fixture
def runner() -> Runner:
    return Runner()


@pytest.fixture
async def admin(runner: Runner, tmp_path: Path) -> AsyncIterator[tuple[str, int]]:
    one = Admin(runner)  # type: ignore[arg-type]
    (tmp_path / "admin.sock").touch()  # left by a process that was killed
    address = await one.start("127.0.0.1", 0, tmp_path / "admin.sock")
    yield address
    await one.stop()
    assert not (tmp_path / "admin.sock").exists()


async def get(address: tuple[str, int], path: str, method: str = "GET") -> tuple[int, str, str]:
    def call() -> tuple[int, str, str]:
        connection = HTTPConnection(*address, timeout=5)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.getheader("Content-Type", ""), answer.read().decode()
        finally:
            connection.close()

    return await asyncio.to_thread(call)


async def asked(state: Path, method: str, target: str) -> Any:
    return await asyncio.to_thread(ask, state, method, target)


async def test_health_says_whether_it_lives_and_whether_it_works(
    runner: Runner, admin: tuple[str, int]
) -> None:
    assert json.loads((await get(admin, "/health/live"))[2]) == {"live": True}
    status, _, body = await get(admin, "/health/ready")
    assert (status, json.loads(body)) == (200, {"ready": True, "holding": ""})
    runner.holding = "VaultError"
    status, _, body = await get(admin, "/health/ready")
    assert (status, json.loads(body)) == (503, {"ready": False, "holding": "VaultError"})
    assert (await get(admin, "/health/live"))[0] == 200


async def test_metrics_are_the_books_in_the_text_format_of_prometheus(
    admin: tuple[str, int],
) -> None:
    status, kind, text = await get(admin, "/metrics")
    assert status == 200
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["telemetry_items_total", "", "edge", "items_in"] == 5
    assert found["telemetry_items_total", "dropped", "edge", "expired"] == 1
    assert found["telemetry_pending", "clean.heap"] == 1
    assert found["telemetry_books_difference", "items_in"] == 0
    assert found["telemetry_books_difference", "sealed"] == 0
    assert found["telemetry_requests_total", "200", "native"] == 7
    assert found["telemetry_refusals_total", "not_json"] == 1
    assert found["telemetry_invalid_identifiers", "account"] == 2
    assert found["telemetry_undeclared_paths", "session"] == 2
    assert found["telemetry_paused", "heap"] == 0
    assert found["telemetry_stopped", "sentry"] == 1
    assert found["telemetry_stopped", "pseudonymizer"] == 0
    assert found["telemetry_oldest_age_seconds", "sealed"] == 90
    assert found["telemetry_time_to_loss_seconds", "sealed"] > 0
    assert found["telemetry_room_used_ratio", "log"] == 0.05
    assert found["telemetry_room_used_ratio", "clean.heap"] == 0.25
    assert "vendor" not in text


def test_a_difference_in_the_books_is_a_metric() -> None:
    books = Books({**ENTRIES, Entry("heap", "routed"): 9}, BOOKS.pending, ("heap",))
    text = exposition(books, {}, {}).decode()
    assert 'telemetry_books_difference{equation="routed to heap"} 6.0' in text


async def test_the_port_takes_no_orders_and_shows_no_books(
    runner: Runner, admin: tuple[str, int]
) -> None:
    for path, method in (
        ("/pause/heap", "POST"),
        ("/books", "GET"),
        ("/status", "GET"),
        ("/dead", "GET"),
        ("/dead/purge", "POST"),
        ("/dead/replay", "POST"),
        ("/policy/revoke/c0ffee12", "POST"),
        ("/resume/all", "POST"),
    ):
        assert (await get(admin, path, method))[0] == 404
    assert not runner.forwarders["heap"].paused


@pytest.mark.usefixtures("admin")
async def test_the_socket_is_its_owners_and_takes_orders(runner: Runner, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "admin.sock").stat().st_mode) == 0o600
    assert await asked(tmp_path, "GET", "/books") == BOOKS.as_json() | {"paused": []}
    assert await asked(tmp_path, "POST", "/pause/heap") == {"paused": ["heap"]}
    assert (await asked(tmp_path, "GET", "/books"))["paused"] == ["heap"]
    assert runner.forwarders["heap"].paused
    assert not runner.forwarders["sentry"].paused
    assert await asked(tmp_path, "POST", "/pause/all") == {"paused": ["heap", "sentry"]}
    assert runner.forwarders["sentry"].paused
    assert await asked(tmp_path, "POST", "/resume/all") == {"resumed": ["heap", "sentry"]}
    assert not any(forwarder.paused for forwarder in runner.forwarders.values())
    with pytest.raises(ConfigError, match="no such recipient"):
        await asked(tmp_path, "POST", "/pause/jane")
    assert {*runner.actors, runner.witnessed[0][0]} == {actor_of()}
    assert [entry[1:] for entry in runner.witnessed] == [
        ("stage.resume", {"stage": "pseudonymizer"}, "done"),  # part of all
        ("recipient.pause", {}, "refused:unknown"),
    ]
    assert await asked(tmp_path, "POST", "/resume/pseudonymizer") == {"resumed": ["pseudonymizer"]}
    assert runner.released == ["pseudonymizer", "pseudonymizer"]
    assert (await asked(tmp_path, "GET", "/status"))["recipients"]["sentry"] == "braked"
    for method, target in (("GET", "/dead"), ("POST", "/dead/purge"), ("POST", "/dead/replay")):
        with pytest.raises(ConfigError, match="lie in topics"):
            await asked(tmp_path, method, target)
    with pytest.raises(ConfigError, match="Not Found"):
        await asked(tmp_path, "POST", "/destroy/heap")


@pytest.mark.parametrize("left", ["nothing", "file", "dead socket"])
def test_where_nothing_runs_one_is_told_how_to_start_it(tmp_path: Path, left: str) -> None:
    if left == "file":
        (tmp_path / "admin.sock").touch()
    if left == "dead socket":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "admin.sock"))
    with pytest.raises(NotRunningError, match="Start it: telemetry run"):
        ask(tmp_path, "GET", "/books")


async def test_a_path_longer_than_a_socket_may_have_is_no_obstacle(
    runner: Runner, tmp_path: Path
) -> None:
    deep = tmp_path / ("d" * 90) / ("e" * 90)
    deep.mkdir(parents=True)
    one = Admin(runner)  # type: ignore[arg-type]
    await one.start("127.0.0.1", 0, deep / "admin.sock")
    try:
        assert (await asked(deep, "GET", "/books"))["exact"] is True
    finally:
        await one.stop()


@pytest.mark.usefixtures("admin")
async def test_whoever_asks_gets_the_error_that_the_pipeline_had(
    runner: Runner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object) -> None:
        raise AuditError("The audit log cannot be written.")

    async def away(_function: object) -> None:
        raise BrokerError("The log is away.")

    async def trap(_function: object) -> None:
        raise ValueError("planted-mareike")

    runner.redrive = SimpleNamespace(shelf=None)  # type: ignore[assignment]
    monkeypatch.setattr(runner, "storage", SimpleNamespace(call=away), raising=False)
    for target in ("/dead", "/dead?older_than_s=5"):
        with pytest.raises(BrokerError, match="The log is away"):
            await asked(tmp_path, "GET", target)
    for target in (
        "/dead?after=x",
        "/dead?older_than_s=planted-mareike",
        "/dead?after=" + "9" * 5000,
    ):
        with pytest.raises(ConfigError, match="which letters are meant"):
            await asked(tmp_path, "GET", target)
    with pytest.raises(ConfigError, match="no list of letters"):
        await asked(tmp_path, "POST", "/dead/replay")
    monkeypatch.setattr(runner, "storage", SimpleNamespace(call=trap), raising=False)
    with pytest.raises(NoAnswerError, match="An error of ours: ValueError"):
        await asked(tmp_path, "GET", "/dead")
    monkeypatch.setattr(runner, "witness", fails)
    with pytest.raises(AuditError, match="cannot be written"):
        await asked(tmp_path, "POST", "/dead/purge")
    assert "planted" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("answers", ["nothing", "half"])
def test_who_is_silent_is_not_taken_for_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: str
) -> None:
    monkeypatch.setattr("telemetry.admin._TIMEOUT_S", 0.2)
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(tmp_path / "admin.sock"))
        there.listen()
        if answers == "half":

            def answer() -> None:
                connection, _ = there.accept()
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{")
                connection.close()

            half = Thread(target=answer)
            half.start()
        with pytest.raises(
            NoAnswerError, match="did not answer" if answers == "nothing" else "broke off"
        ):
            ask(tmp_path, "GET", "/books")
        if answers == "half":
            half.join(5)


class Vault:
    """The upkeep of a role that has a vault."""

    def __init__(self) -> None:
        self.asked: Work | None = None

    async def stats(self) -> dict[str, object]:
        return {"wrapped": {"1": 1}, "rewrapped": 0}

    async def rewrap(self, **_: object) -> None:
        self.asked = None


@pytest.mark.usefixtures("admin")
async def test_a_command_does_not_tell_of_work_that_was_not_done(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def told(*arguments: str) -> BaseException | None:
        call = partial(CliRunner().invoke, app, [*arguments, "--state", str(tmp_path)])
        done = await asyncio.wait_for(asyncio.to_thread(call), 10)
        return done.exception

    def fails(*_: object) -> None:
        raise AuditError("The audit log cannot be written.")

    upkeep = Vault()
    monkeypatch.setattr(runner, "upkeep", None, raising=False)
    monkeypatch.setattr(runner, "redrive", SimpleNamespace(shelf=None))
    for arguments in (("stats",), ("rewrap",), ("backup", str(tmp_path / "copy"))):
        assert "This role has no vault" in str(await told("vault", *arguments))
    runner.upkeep = upkeep  # type: ignore[attr-defined]
    assert isinstance(await told("vault", "rewrap"), NoAnswerError), (
        "its work is unknown: a restart"
    )
    monkeypatch.setattr(runner, "witness", fails)
    for left in (None, Work("rewrap", done=1.0, running=False)):
        upkeep.asked = left
        for order in (
            ("vault", "rewrap", "--now", "--destroy"),
            ("vault", "backup", str(tmp_path / "copy")),
            ("dead", "purge", "--all"),
        ):
            assert isinstance(await told(*order), AuditError), order


def steps_of(error: Exception | None) -> Iterator[float]:
    yield 0.1
    if error is not None:
        raise error


async def test_work_that_did_not_come_to_its_end_says_so() -> None:
    identity = SimpleNamespace(backup=lambda _path: steps_of(None))
    upkeep = Upkeep(identity)  # type: ignore[arg-type]
    await upkeep.backup(Path("copy"))
    assert upkeep.asked is not None
    assert (upkeep.asked.running, upkeep.asked.error) == (False, "")
    identity.backup = lambda _path: steps_of(ValueError("planted-mareike"))
    await upkeep.backup(Path("copy"))
    assert upkeep.asked.error == "An error of ours ended it: ValueError."
    identity.backup = lambda _path: steps_of(None)
    stop = asyncio.Event()
    stop.set()
    await upkeep.run(stop)
    await upkeep.backup(Path("copy"))
    assert "stopped before it was through" in upkeep.asked.error


def _pages() -> dict[str, dict[str, Any]]:
    """Of a forwarder that is paused and a gateway, as they would answer."""
    forwarder = as_json(
        Snapshot(
            now=NOW,
            books=Books({Entry("heap", "routed"): 3, Entry("heap", "delivered"): 2},
                        {clean("heap"): 1}, ("heap",)),
            holding="",
            forwarders={"heap": "paused"},
            policy="c0" * 32,
            accepted=True,
            environment="staging",
            oldest={clean("heap"): replace(make_parcel(1), received_at=NOW - timedelta(days=3),
                                           retain_until=NOW + timedelta(days=4))},
            room={},
            letters=Period(days=30),
        )
    )  # fmt: skip
    gateway = as_json(
        Snapshot(
            now=NOW,
            books=Books({Entry("edge", "items_in"): 7, Entry("edge", "sealed"): 7}, {}, (),
                        whole=False),
            holding="BrokerError",
            forwarders={},
            policy="c0" * 32,
            accepted=True,
            environment="staging",
            oldest={},
            room={},
            letters=Period(days=30),
        )
    )  # fmt: skip
    return {"forward.heap": forwarder, "gateway": gateway}


def test_several_roles_of_one_folder_make_one_page() -> None:
    page = merged(_pages())
    assert not page["well"]
    assert page["holding"] == "BrokerError"
    assert page["recipients"] == {"heap": "paused"}
    assert page["time_to_loss_s"] == {clean("heap"): 4 * 86400.0}
    told = {answer["question"]: answer for answer in page["answers"]}
    assert told["safe now?"]["because"] == [
        "forward.heap: heap is paused",
        "gateway: the pseudonymizer takes nothing: BrokerError",
    ]
    assert told["time left?"]["answer"] == "4 d"
    alone = _pages()["gateway"]
    assert merged({"gateway": alone}) == alone


def test_the_books_of_several_roles_are_joined_and_nothing_is_counted_twice() -> None:
    whole = BOOKS.as_json() | {"paused": []}
    forwarder = Books(
        {Entry("heap", "routed"): 3, Entry("heap", "delivered"): 2,
         Entry("heap", "dropped", "expired"): 1},
        {}, ("heap",),
    ).as_json() | {"paused": ["heap"]}  # fmt: skip
    books = joined([whole, forwarder])
    assert books["events_in"] == 5
    assert books["delivered"] == {"heap": 2}
    assert books["dropped"] == {"expired": 2}
    assert books["dropped_at"] == {"edge": {"expired": 1}, "heap": {"expired": 1}}
    assert books["paused"] == ["heap"]
    assert books["pending"] == {"pseudonymizer": 1, "heap": 1}
    assert joined([whole]) == whole


def test_the_socket_of_each_role_has_a_name_of_its_own_whatever_its_members_name() -> None:
    names = [
        socket_name(),
        socket_name("gateway"),
        socket_name("forward", "heap"),
        socket_name("forward", "sentry"),
        socket_name("forward", "heap", "heap-0"),
        socket_name("forward", "heap", "heap-1"),
        socket_name("forward", "heap", "a/../b"),
        socket_name("forward", "heap", "n" * 200),
    ]
    assert len(set(names)) == len(names)
    assert all("/" not in name and len(name) < 85 for name in names)


async def test_roles_of_one_folder_keep_their_sockets_and_each_is_asked(tmp_path: Path) -> None:
    runners = {name: Runner() for name in ("heap", "sentry")}
    admins = []
    for name, runner in runners.items():
        runner.pseudonymizer = None  # type: ignore[assignment]
        runner.forwarders = {name: SimpleNamespace(paused=False)}
        admins.append(Admin(runner))  # type: ignore[arg-type]
        await admins[-1].start("127.0.0.1", 0, tmp_path / socket_name("forward", name))
    try:
        for name in runners:
            assert await asked(tmp_path, "POST", f"/pause/{name}") == {"paused": [name]}
        assert all(runner.forwarders[name].paused for name, runner in runners.items())
        each = await asyncio.to_thread(ask_each, tmp_path, "POST", "/resume/all")
        assert each == {
            "forward.heap": {"resumed": ["heap"]},
            "forward.sentry": {"resumed": ["sentry"]},
        }
        with pytest.raises(NotHereError, match="no such recipient"):
            await asked(tmp_path, "POST", "/pause/jane")
        # A second one of the same name is refused; the first one keeps its socket.
        twin = Admin(runners["heap"])  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="two of one role and one name"):
            await twin.start("127.0.0.1", 0, tmp_path / socket_name("forward", "heap"))
        await twin.stop()
        assert (await asked(tmp_path, "POST", "/pause/heap")) == {"paused": ["heap"]}
    finally:
        for one in admins:
            await one.stop()
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240


async def test_a_socket_whose_owner_is_too_busy_to_answer_is_not_taken(
    runner: Runner, tmp_path: Path
) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(path))
        there.listen(0)  # and never accepts
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            with suppress(BlockingIOError):
                one.connect(str(path))
        admin = Admin(runner)  # type: ignore[arg-type]
        with pytest.raises(ConfigError):
            await admin.start("127.0.0.1", 0, path)
        await admin.stop()
        for one in waiting:
            one.close()
        assert path.exists()
