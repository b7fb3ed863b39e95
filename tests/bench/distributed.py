"""The roles apart, over a real Kafka: time, memory, and what a second pseudonymizer brings.

Gateway, pseudonymizer and the forwarder to Heap are processes of their own, as in an installation;
Kafka is Apache's, one broker on loopback without protection. Clients send A in requests of 64; Heap
is a stand-in in a process of its own.

The ratio is of processor time, of the three roles together, from the first request until the last
event was delivered; Kafka's own is not in it. What is per second is of the clock on the wall: on
two processors it is shared by clients, roles, broker and recipient, so it says what a machine of
that size takes and not what a role could do.

A second pseudonymizer: events that were sealed beforehand are put on the topic all at once, four
partitions of it; how long one pseudonymizer takes for them is divided by how long two take. They
share a vault in PostgreSQL. What two processors can show of that is less than what two machines
would, because broker, database and both pseudonymizers share them: so what an event costs in
processor time with two, over what it costs with one, stands beside it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import sqlalchemy

from telemetry.admin import NoAnswerError, NotRunningError, ask
from telemetry.brokers import SEALED, Entry
from telemetry.brokers.kafka import KafkaBroker
from telemetry.edge import Edge, Item
from telemetry.identity import initialise_development, load_dead_letter_sealer, load_sealer
from telemetry.intake import Intake
from telemetry.parcel import Parcel
from telemetry.policy import load_policy
from telemetry.rules import Schemas
from tests.bench.end_to_end import (
    cpu_s,
    delivered,
    events_of,
    process,
    round_trips,
    rss_mb,
    send,
)
from tests.integration.running import COMMAND, command, environment, free_port, until
from tests.kafka.server import KafkaServer, lacking
from tests.kafka.topics import open_broker
from tests.postgres import owner, postgres, programs

__all__ = ["LONG", "ROWS", "measure_distributed", "missing"]

LONG: Final = (
    "Kafka, one pseudonymizer's time/two's",
    "Kafka, processor time of an event, two pseudonymizers/one",
)
"""What only the long form measures."""
ROWS: Final = (
    "json/Kafka end to end A",
    "Kafka, 64 a request, taken/s",
    "Kafka, 64 a request, delivered/s",
    "RSS of telemetry gateway, MB",
    "RSS of telemetry pseudonymize, MB",
    "RSS of telemetry forward heap, MB",
    *LONG,
)

_BATCH: Final = 64
_EVENTS: Final = 2_048
_BACKLOG: Final = 9_600
_APPEND: Final = 960
_TURNS: Final = 3
_PARTITIONS: Final = 4
_PATIENCE_S: Final = 120.0
_NAMES: Final = {"gateway": "gateway", "p-0": "pseudonymize", "heap": "forward heap"}


def missing(names: Collection[str]) -> str:
    """Say what this machine lacks for rows; empty if nothing."""
    if lacks := lacking():
        return f"Kafka: {lacks}"
    if set(LONG) & set(names) and (programs() is None or owner() is None):
        return "Kafka: no PostgreSQL for a vault that two pseudonymizers share"
    return ""


def measure_distributed(
    names: Collection[str], *, short: bool, tell: Callable[[str], None]
) -> dict[str, float]:
    """Measure the rows that are named."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        (folder / "kafka").mkdir()
        tell("Kafka: starting it")
        with KafkaServer(folder / "kafka") as kafka:
            if (set(ROWS) - set(LONG)) & set(names):
                figures |= _roles_apart(folder / "apart", kafka, short=short, tell=tell)
            if set(LONG) & set(names):
                with postgres() as url:
                    figures |= _one_and_two(folder, kafka, url, tell)
    return {row: figures[row] for row in ROWS if row in names}


class _Role:
    """One process with a folder and settings of its own."""

    def __init__(self, folder: Path, name: str, kafka: KafkaServer, **more: str) -> None:
        self.folder = folder / name
        self.state = self.folder / "state"
        (self.state / "keys").mkdir(parents=True, mode=0o700)
        self.output = self.folder / "output.txt"
        self.port = free_port()
        section = {
            "kind": "kafka",
            "bootstrap": kafka.bootstrap,
            "protocol": "plaintext",
            "topic_prefix": folder.name,
            "group_prefix": folder.name,
            "partitions": _PARTITIONS,
            "replication": 1,
            "member": name,
        }
        lines = ["[gateway]", 'on_broker_loss = "reject"', "[broker]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in section.items()]
        (self.folder / "telemetry.toml").write_text("\n".join([*lines, ""]), "utf-8")
        words = {"gateway": ["gateway"], "heap": ["forward", "heap"]}.get(name, ["pseudonymize"])
        self._command = [*COMMAND, *words, "--config", str(self.folder / "telemetry.toml")]
        self._more = {
            "TELEMETRY_STATE": str(self.state),
            "TELEMETRY_BIND": f"127.0.0.1:{self.port}",
            "TELEMETRY_ADMIN_BIND": f"127.0.0.1:{free_port()}",
            **more,
        }

    def start(self) -> subprocess.Popen[bytes]:
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: S603 - our own command
                self._command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(**self._more),
            )
        return self.process

    @property
    def pid(self) -> int:
        return self.process.pid

    def up(self) -> bool:
        said = self.output.read_text("utf-8", "replace")
        assert self.process.poll() is None, said[-2000:]
        return "Health and metrics" in said

    def books(self) -> dict[str, Any]:
        try:
            figures: dict[str, Any] = ask(self.state, "GET", "/books")
        except (NoAnswerError, NotRunningError):
            return {"pending": {"unknown": 1}, "dead": {}, "dropped": {}, "delivered": {"heap": 0}}
        return figures


class _Apart(NamedTuple):
    """A pipeline of several processes: where it listens, and who knows its books."""

    port: int
    knows: _Role

    def books(self) -> dict[str, Any]:
        return self.knows.books()


@contextmanager
def _started(roles: Sequence[_Role]) -> Iterator[None]:
    try:
        for role in roles:
            role.start()
            until(role.up, _PATIENCE_S, f"{role.folder.name} is up")
        yield
    finally:
        for role in roles:
            if hasattr(role, "process"):
                role.process.kill()
                role.process.wait()


def _with_keys(pseudonymizers: Sequence[_Role], gateway: _Role | None = None) -> None:
    """Make keys where keys are; the gateway gets the public ones."""
    first, *others = pseudonymizers
    initialise_development(first.state)
    for other in others:
        shutil.copytree(first.state / "keys", other.state / "keys", dirs_exist_ok=True)
    if gateway is not None:
        shutil.copy(first.state / "keys" / "public.json", gateway.state / "keys")


def _make_topics(role: _Role) -> None:
    """Make the topics that a role's settings call for, as an administrator does."""
    config = str(role.folder / "telemetry.toml")
    done = command("topics", "apply", "--yes", "--config", config, cwd=role.folder)
    assert done.returncode == 0, done.stderr[-2000:]


def _roles_apart(
    folder: Path, kafka: KafkaServer, *, short: bool, tell: Callable[[str], None]
) -> dict[str, float]:
    figures: dict[str, float] = {}
    with process("recipients") as recipients:
        assert recipients.stdout is not None
        heap = json.loads(recipients.stdout.readline())["heap"]
        roles = {
            "gateway": _Role(folder, "gateway", kafka),
            "p-0": _Role(folder, "p-0", kafka),
            "heap": _Role(
                folder,
                "heap",
                kafka,
                TELEMETRY_HEAP_URL=heap["url"],
                TELEMETRY_HEAP_APP_ID=heap["app_id"],
            ),
        }
        _with_keys([roles["p-0"]], roles["gateway"])
        _make_topics(roles["gateway"])
        with _started(list(roles.values())):
            pipeline = _Apart(roles["gateway"].port, roles["p-0"])
            taken = _BATCH
            send(pipeline, taken, _BATCH, "warm-up")
            delivered(pipeline, taken)
            json_s = used_s = taken_s = through_s = float("inf")
            for turn in range(2 if short else 5):
                tell(f"Kafka: {_EVENTS} events, {_BATCH} a request, turn {turn + 1}")
                seed = f"Kafka {turn}"
                json_s = min(json_s, *round_trips(events_of(_EVENTS, seed)))
                began = _cpu_s_of(roles.values())
                took_s = send(pipeline, _EVENTS, _BATCH, seed)
                ended = time.perf_counter()
                taken += _EVENTS
                delivered(pipeline, taken)
                taken_s = min(taken_s, took_s)
                through_s = min(through_s, took_s + time.perf_counter() - ended)
                used_s = min(used_s, _cpu_s_of(roles.values()) - began)
            figures["json/Kafka end to end A"] = json_s / used_s
            figures["Kafka, 64 a request, taken/s"] = _EVENTS / taken_s
            figures["Kafka, 64 a request, delivered/s"] = _EVENTS / through_s
            for name, role in roles.items():
                figures[f"RSS of telemetry {_NAMES[name]}, MB"] = rss_mb(role.pid)
            assert roles["p-0"].books()["exact"], "the books do not agree"
    return figures


def _cpu_s_of(roles: Collection[_Role]) -> float:
    return sum(cpu_s(role.pid) for role in roles)


def _one_and_two(
    folder: Path, kafka: KafkaServer, url: str, tell: Callable[[str], None]
) -> dict[str, float]:
    journal = url.replace("/postgres?", "/journal?")
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    until(partial(_answers, engine), _PATIENCE_S, "PostgreSQL takes connections")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE journal")
    engine.dispose()
    vault = {"TELEMETRY_VAULT_URL": url, "TELEMETRY_VAULT_JOURNAL": journal}
    took: dict[int, float] = {}
    used: dict[int, float] = {}
    place = folder / "several"
    both = [_Role(place, name, kafka, **vault) for name in ("p-0", "p-1")]
    _with_keys(both)
    _make_topics(both[0])
    broker = open_broker(kafka.bootstrap, place.name)
    try:
        with _started(both):
            # With two first: the second then leaves, and the first takes its partitions.
            for number in (2, 1):
                if number == 1:
                    both[1].process.terminate()
                    both[1].process.wait(30)
                for turn in range(_TURNS + 1):
                    tell(f"Kafka: {_BACKLOG} events for {number} pseudonymizer(s), turn {turn}")
                    parcels = _sealed(both[0].state, f"{number} {turn}")
                    seconds, cpu = _drain(broker, parcels, both[:number])
                    if turn:  # in the first they find their partitions
                        took[number] = min(took.get(number, seconds), seconds)
                        used[number] = min(used.get(number, cpu), cpu)
    finally:
        broker.close()
    return {
        "Kafka, one pseudonymizer's time/two's": took[1] / took[2],
        "Kafka, processor time of an event, two pseudonymizers/one": used[2] / used[1],
    }


def _answers(engine: sqlalchemy.Engine) -> bool:
    try:
        with engine.connect():
            return True
    except sqlalchemy.exc.OperationalError:
        return False


def _sealed(state: Path, seed: str) -> list[Parcel]:
    """Make parcels as a gateway would, with the public keys of a pseudonymizer's state."""
    policy = load_policy()
    edge = Edge(Schemas(policy, policy.detectors))
    public = state / "keys" / "public.json"
    intake = Intake(policy, edge, load_sealer(public), load_dead_letter_sealer(public))
    items = [Item("analytics_event", raw) for raw in events_of(_BACKLOG, seed)]
    return intake.take(items, tenant="default").parcels


def _drain(
    broker: KafkaBroker, parcels: Sequence[Parcel], working: Sequence[_Role]
) -> tuple[float, float]:
    """Put parcels on the topic and wait until none is left; give wall and processor time."""
    wanted = working[0].books()["scrubbed"] + len(parcels)
    before = _cpu_s_of(working)
    began = time.perf_counter()
    for start in range(0, len(parcels), _APPEND):
        some = parcels[start : start + _APPEND]
        broker.append(SEALED, some, {Entry("edge", "sealed"): len(some)})
    # Not until nothing is pending: that is true also before anybody has seen the new ones.
    until(lambda: working[0].books().get("scrubbed", 0) >= wanted, _PATIENCE_S, "scrubbed")
    return time.perf_counter() - began, _cpu_s_of(working) - before
