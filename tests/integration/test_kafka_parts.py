"""What belongs to Kafka and needs none: bytes, bounds, settings, and waiting on one's own disk."""

from __future__ import annotations

import gzip
import json
import socket
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from telemetry.brokers import DEAD, SEALED, Entry
from telemetry.brokers import buffered as buffering
from telemetry.brokers.buffered import Buffered
from telemetry.brokers.kafka import KafkaBroker, topics
from telemetry.brokers.kafka.clients import connection_options, quieten
from telemetry.brokers.kafka.records import (
    RECORD_BYTES,
    counts_of,
    encode_counts,
    frame,
    runs,
    unframe,
    without_large,
)
from telemetry.brokers.spool import Spool
from telemetry.cli import app
from telemetry.cli import operate as _o  # noqa: F401 - they register commands
from telemetry.cli import roles as _r  # noqa: F401
from telemetry.config import BrokerSection, Settings, load_settings
from telemetry.errors import BrokerError, ConfigError, DecodeError
from telemetry.parcel import Parcel
from telemetry.policy import load_policy
from telemetry.run import Part, Runner, open_broker
from telemetry.testing.brokers import make_parcel
from tests.integration.running import command

DEPLOY = Path(__file__).parents[2] / "deploy"
IN, SEAL = Entry("edge", "items_in"), Entry("edge", "sealed")
DROPPED = Entry("edge", "dropped", "undeclared_event")


def test_a_broker_that_accepts_and_says_nothing_is_an_error_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        broker = KafkaBroker(
            f"127.0.0.1:{silent.getsockname()[1]}",
            timeout_s=1,
            client_options={"api_version": (2, 3)},
        )
        started = time.monotonic()
        with pytest.raises(BrokerError):
            broker.append(SEALED, [make_parcel(0)], {SEAL: 1})
        with pytest.raises(BrokerError):
            broker.poll(SEALED, "test", 1)
        broker.close()
        assert time.monotonic() - started < 16


# ---------------------------------------------------------------------- bytes


@given(st.lists(st.integers(0, 500), max_size=40), st.integers(1, 3))
def test_a_record_holds_what_was_put_in(numbers: list[int], kinds: int) -> None:
    parcels = [make_parcel(n, kind=f"kind-{n % kinds}") for n in numbers]
    assert unframe(frame(parcels)) == parcels


@given(st.binary(max_size=80) | st.integers(0, 400))
def test_bytes_of_others_and_cut_records_are_refused(cut: bytes | int) -> None:
    whole = frame([make_parcel(n) for n in range(3)])
    raw = whole[: cut % len(whole)] if isinstance(cut, int) else cut
    if raw:
        with pytest.raises(DecodeError):
            unframe(raw)
    else:
        assert unframe(raw) == []


def test_runs_keep_the_order_and_no_record_is_larger_than_it_may_be() -> None:
    parcels = [make_parcel(n, body=b"x" * (n % 7) * 90_000) for n in range(60)]
    parts = list(runs(parcels))
    assert [p for part in parts for p in part] == parcels
    assert len(parts) > 1
    assert all(len(frame(part)) < RECORD_BYTES for part in parts)


def test_what_no_record_can_hold_is_set_apart_without_its_content() -> None:
    parcels = [make_parcel(0), make_parcel(1, body=b"x" * 3_000_000), make_parcel(2)]
    fit, large = without_large(parcels, together=False)
    assert fit == [parcels[0], parcels[2]]
    assert [(p.event_id, p.reason, p.body, p.capsule) for p in large] == [
        (parcels[1].event_id, "too_large", b"", b"")
    ]
    many = [make_parcel(n, body=b"x" * 1_900_000) for n in range(6)]
    fit, large = without_large(many, together=True)
    assert len(fit) + len(large) == 6
    assert len(frame(fit)) <= RECORD_BYTES


def test_counts_in_a_header_that_are_not_ours_count_nothing() -> None:
    counts = Counter({IN: 3, SEAL: 3})
    for raw, expected in ((encode_counts(counts), counts), (b"[[1]]", Counter()), (b"", Counter())):
        assert counts_of(SimpleNamespace(headers=[("counts", raw)])) == expected


# ---------------------------------------------------------------------- bounds


@pytest.mark.parametrize("codec", ["gzip", "zstd", "lz4", "snappy"])
def test_a_batch_that_expands_without_end_is_not_expanded(codec: str) -> None:
    from kafka.record import default_records  # noqa: TID251 - what the client calls

    bomb = {"gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress}.get(codec)
    raw = bomb(bytes(256 * 1024**2)) if bomb else b"\x00" * 64
    assert len(raw) < 300_000
    started = time.process_time()
    with pytest.raises(ValueError, match=r"^$"):
        getattr(default_records, f"{codec}_decode")(memoryview(raw) if bomb else raw)
    assert time.process_time() - started < 2.0


def test_what_the_client_compresses_it_also_expands() -> None:
    from kafka.record import default_records  # noqa: TID251 - what the client calls

    quieten()
    text = json.dumps(list(range(5000))).encode()
    for name in ("gzip", "zstd"):
        raw = getattr(default_records, f"{name}_encode")(text)
        assert getattr(default_records, f"{name}_decode")(memoryview(raw)) == text
    with pytest.raises(ValueError, match=r"^$"):
        default_records.gzip_decode(memoryview(gzip.compress(text)[:-20]))


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"protocol": "sasl_tls"}, "broker.username"),
        ({"protocol": "sasl_tls", "username": "u"}, "broker.password_file"),
        ({"protocol": "sasl_tls", "mechanism": "OAUTHBEARER"}, "broker.token_file"),
        ({"username": "u"}, "sends none"),
        ({"ca_file": "/nowhere/ca.pem"}, "broker.ca_file"),
        ({"protocol": "sasl_tls", "username": "u", "password_file": "/nowhere"}, "cannot be read"),
    ],
)
def test_settings_that_do_not_fit_together_stop_the_start(
    section: Mapping[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        connection_options(BrokerSection(**section))


def test_events_cross_no_network_in_clear_but_in_development() -> None:
    section = BrokerSection(kind="kafka", bootstrap="kafka.example:9092")
    with pytest.raises(ConfigError, match="in clear"):
        open_broker(Settings(environment="staging", broker=section))
    open_broker(Settings(environment="development", broker=section)).close()


async def test_a_role_by_itself_needs_a_log_that_others_reach(tmp_path: Path) -> None:
    runner = Runner(Settings(state=str(tmp_path)), lambda _: None, Part(gateway=False))
    with pytest.raises(ConfigError, match="telemetry run"):
        await runner.open()
    await runner.close()


@pytest.mark.parametrize("path", sorted((DEPLOY / "kafka").glob("*.toml")), ids=lambda p: p.name)
def test_the_examples_of_roles_load(path: Path) -> None:
    settings = load_settings(path, environ={})
    assert settings.broker.kind == "kafka"
    assert settings.broker.protocol == "sasl_tls"
    holds = set(tomllib.loads(path.read_text("utf-8")))
    assert ("recipient" in holds) == path.name.startswith("forwarder")
    assert ("project" in holds) == path.name.startswith("gateway")


def test_the_unit_of_a_role_has_the_guards_of_the_whole() -> None:
    whole = (DEPLOY / "systemd" / "telemetry.service").read_text("utf-8").splitlines()
    role = (DEPLOY / "systemd" / "telemetry@.service").read_text("utf-8").splitlines()
    guards = set(whole[whole.index("UMask=0077") :])
    assert "NoNewPrivileges=yes" in guards
    assert guards <= set(role)
    assert "ExecStart=/opt/telemetry/bin/telemetry $ROLE" in role
    assert "User=telemetry-%i" in role


def test_topics_say_how_long_from_policy_and_in_three_languages() -> None:
    section = BrokerSection(topic_prefix="acme")
    wanted = topics.topics_for(section, load_policy())
    *streams, orders = wanted
    assert orders.name == "acme.orders.v1"
    assert (orders.partitions, orders.settings["cleanup.policy"]) == (1, "compact")
    assert "retention.ms" not in orders.settings
    kept = {
        t.stream: int(t.settings["retention.ms"]) + int(t.settings["segment.ms"]) for t in streams
    }
    day = 24 * 3600 * 1000
    assert kept == {
        "clean.heap": 7 * day,
        "clean.sentry": 7 * day,
        SEALED: 3 * day,
        DEAD: 30 * day,
        "held": 365 * day,
    }
    assert all(t.settings["message.timestamp.type"] == "LogAppendTime" for t in wanted)
    grants = topics.grants_for(section, wanted)
    reads = {(g.role, g.name) for g in grants if "Read" in g.operations and g.resource == "topic"}
    assert reads == {
        ("pseudonymizer", "acme.sealed.v1"),
        ("forwarder-heap", "acme.clean.heap.v1"),
        ("forwarder-sentry", "acme.clean.sentry.v1"),
        ("operator", "acme.dead.v1"),
        ("operator", "acme.held.v1"),
        ("pseudonymizer", "acme.orders.v1"),
        ("forwarder-heap", "acme.orders.v1"),
        ("forwarder-sentry", "acme.orders.v1"),
    }
    shell = topics.as_commands(wanted, grants)
    assert shell.count("--create") == 6
    assert "--allow-principal User:gateway --operation Write" in shell
    documents = [json.loads(d) for d in topics.as_strimzi(wanted, grants, "c").split("---\n")[1:]]
    assert [d["kind"] for d in documents].count("KafkaTopic") == 6
    assert {d["metadata"]["name"] for d in documents if d["kind"] == "KafkaUser"} == {
        g.role for g in grants
    }
    terraform = topics.as_terraform(wanted, grants)
    assert terraform.count('resource "kafka_topic"') == 6
    assert terraform.count('resource "kafka_acl"') == sum(len(g.operations) for g in grants)


def test_the_commands_print_and_say_what_clients_lose(tmp_path: Path) -> None:
    config = tmp_path / "t.toml"
    config.write_text(
        '[gateway]\non_broker_loss = "reject"\n[broker]\nkind = "kafka"\nbootstrap = "k:1"\n'
    )
    for words in (["topics", "print", "--acls"], ["topics", "print", "--as", "terraform"]):
        done = CliRunner().invoke(app, [*words, "--config", str(config)])
        assert done.exit_code == 0, done.output
        assert "telemetry.sealed.v1" in done.output
    checked = CliRunner().invoke(app, ["check", "--json", "--config", str(config)])
    assert "Sentry's clients for Python" in json.loads(checked.output)["when_kafka_is_away"]


# ---------------------------------------------------------------------- while Kafka is away


class Away:
    """A log that can be told to take nothing; what it takes goes to a spool."""

    def __init__(self, spool: Spool) -> None:
        self.spool, self.away = spool, False

    def append(
        self,
        stream: str,
        parcels: Sequence[Parcel],
        counts: Mapping[Entry, int],
        *,
        beside: Mapping[str, Sequence[Parcel]] | None = None,
    ) -> None:
        if self.away:
            raise BrokerError("away")
        self.spool.append(stream, parcels, counts, beside=beside)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.spool, name)


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[tuple[Away, Spool]]:
    spools = [Spool(tmp_path / f"{name}.sqlite3", key=b"k" * 32) for name in ("all", "own")]
    yield Away(spools[0]), spools[1]
    for spool in spools:
        spool.close()


def events(log: Away, stream: str) -> list[int]:
    found: list[int] = []
    while (polled := log.spool.poll(stream, "test", 500)).parcels:
        found += [int(parcel.event_id, 16) for parcel in polled.parcels]
        log.spool.finish(polled, {}, {})
    return found


def test_what_comes_in_while_the_log_is_away_reaches_it_later_and_is_counted_once(
    logs: tuple[Away, Spool],
) -> None:
    log, own = logs
    buffered = Buffered(log, own)  # type: ignore[arg-type]
    counts = {IN: 4, SEAL: 2, DROPPED: 1, Entry("edge", "dead", "undecodable"): 1}

    def append(first: int) -> None:
        pair = [make_parcel(first), make_parcel(first + 1)]
        buffered.append(SEALED, pair, counts, beside={DEAD: [make_parcel(first + 2)]})

    append(0)
    log.away = True
    for first in (10, 20, 30):
        append(first)
    assert buffered.away
    assert log.spool.books() == counts
    log.away = False
    deadline = time.monotonic() + 15
    while buffered.away and time.monotonic() < deadline:
        books = log.spool.books()
        # At every moment: what came in is dropped, dead or sealed, and what is sealed is there.
        assert books[IN] == sum(n for entry, n in books.items() if entry != IN)
        time.sleep(0.01)
    append(40)
    assert log.spool.books() == {entry: 5 * n for entry, n in counts.items()}
    assert sorted(events(log, SEALED)) == [0, 1, 10, 11, 20, 21, 30, 31, 40, 41]
    assert sorted(events(log, DEAD)) == [2, 12, 22, 32, 42]
    assert buffered.pending() == {}
    buffered.close()


def test_an_error_that_nobody_foresaw_is_shown_and_ends_nothing(
    logs: tuple[Away, Spool], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log, own = logs
    log.away = True
    monkeypatch.setattr(buffering, "_RETRY_S", 0.05)
    buffered = Buffered(log, own)  # type: ignore[arg-type]
    buffered.append(SEALED, [make_parcel(7)], {IN: 1, SEAL: 1})
    assert buffered.ailing == ""

    def trap(*_: object, **__: object) -> None:
        raise ValueError("planted-mareike")

    with monkeypatch.context() as broken:
        broken.setattr(log, "append", trap)
        until(lambda: buffered.ailing == "ValueError")
        buffered.append(SEALED, [make_parcel(8)], {IN: 1, SEAL: 1})  # clients are still answered
    log.away = False
    until(lambda: not buffered.away)
    assert buffered.ailing == ""
    assert events(log, SEALED) == [7, 8]
    buffered.close()
    assert buffered.ailing == "RelayDead"
    assert "planted" not in "".join(capfd.readouterr())


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_waits_survives_a_restart_of_the_gateway(
    logs: tuple[Away, Spool], tmp_path: Path
) -> None:
    log, own = logs
    log.away = True
    buffered = Buffered(log, own)  # type: ignore[arg-type]
    buffered.append(SEALED, [make_parcel(7)], {IN: 1, SEAL: 1})
    buffered.append(SEALED, [], {IN: 2, DROPPED: 2})
    buffered._closing.set()
    buffered._thread.join(10)
    own.close()
    log.away = False
    again = Buffered(log, Spool(tmp_path / "own.sqlite3", key=b"k" * 32))  # type: ignore[arg-type]
    deadline = time.monotonic() + 15
    while again.away and time.monotonic() < deadline:
        time.sleep(0.02)
    assert log.spool.books() == {IN: 3, SEAL: 1, DROPPED: 2}
    assert events(log, SEALED) == [7]
    again._spool.close()


# ---------------------------------------------------------------------- where nobody listens


def nobody() -> str:
    """Give an address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_where_no_broker_answers_one_sentence_names_the_address(tmp_path: Path) -> None:
    address = nobody()
    config = tmp_path / "t.toml"
    config.write_text(f'[broker]\nkind = "kafka"\nbootstrap = "{address}"\n', "utf-8")
    for words in (["topics", "check"], ["dead", "list", "--state", str(tmp_path / "state")]):
        done = command(*words, "--config", str(config), cwd=tmp_path)
        assert done.returncode == 1
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert f"No Kafka answers at {address}" in line
        assert "broker.bootstrap" in line


def test_a_role_says_once_that_no_broker_answers_and_once_that_one_does_again(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    address = nobody()
    broker = KafkaBroker(address, timeout_s=1)
    with pytest.raises(BrokerError, match=f"No Kafka answers at {address}"):
        broker.tend()
    broker.tend()  # asked again in half a minute only
    for _ in range(2):
        with pytest.raises(BrokerError, match=f"No Kafka answers at {address}"):
            broker.poll(SEALED, "test", 1)
        with pytest.raises(BrokerError, match=f"No Kafka answers at {address}"):
            broker.append(SEALED, [make_parcel(0)], {})
    broker.close()
    ours = [record.getMessage() for record in caplog.records if "kafka_away" in record.getMessage()]
    assert ours == [f"kafka_away bootstrap={address}"]
    assert len(caplog.records) == 1, "the client's own lines are a flood"
    # A gateway that keeps events on its own disk tells it as it starts.
    caplog.clear()
    away = KafkaBroker(address, timeout_s=1)
    buffered = Buffered(away, Spool(tmp_path / "spool.sqlite3", key=bytes(32)))
    deadline = time.monotonic() + 20
    while "kafka_away" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    buffered.close()
