"""300 errors, really raised: 20 kinds, each by 15 ways through the program, of any person.

Each kind puts the person's data where applications do: into messages, parameters, keys, variables.
Kind and way make the error; who it happened to must not.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import linecache
import sqlite3
import string
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any, Never

import sentry_sdk
from msgspec import convert
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport
from sqlalchemy import create_engine, text

from telemetry.testing import Canaries

__all__ = ["KINDS", "WAYS", "capture", "capturing", "person"]

Person = Mapping[str, str]


class AccountError(Exception):
    """An application's own."""


# --- Kinds ---------------------------------------------------------------------------------------


def bad_value(who: Person) -> Never:
    raise ValueError(f"no mail to {who['email']} from {who['ipv4']}")


def missing_key(who: Person) -> object:
    return {"phone": who["phone"]}[who["email"]]


def wrong_type(who: Person) -> object:
    return who["email"] + len(who["phone"])  # type: ignore[operator]


def missing_attribute(who: Person) -> object:
    return who.email  # type: ignore[attr-defined]


def bad_number(who: Person) -> object:
    return int(who["email"])


def bad_decimal(who: Person) -> object:
    return Decimal(who["iban"])


def bad_text(who: Person) -> object:
    return f"\xfc{who['email']}".encode("latin-1").decode()


def bad_json(who: Person) -> object:
    return json.loads(f'{{"email": {who["email"]}}}')


def bad_schema(who: Person) -> object:
    return convert({"email": [who["email"]]}, type=dict[str, str])


def sql_duplicate(who: Person) -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE person (email TEXT UNIQUE)")
        for _ in "ab":
            database.execute("INSERT INTO person (email) VALUES (?)", (who["email"],))


def sql_statement(who: Person) -> None:
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        connection.execute(
            text("SELECT * FROM nobody WHERE email = :email AND phone = :phone"),
            {"email": who["email"], "phone": who["phone"]},
        )


def missing_file(who: Person) -> None:
    with open(f"/srv/exports/{who['email']}/{who['iban']}.csv", encoding="utf-8"):  # noqa: PTH123
        pass


def failed_command(who: Person) -> None:
    script = "import sys; sys.exit(3)"
    subprocess.run([sys.executable, "-Sc", script, who["email"]], check=True)  # noqa: S603


def missing_in_template(who: Person) -> str:
    return string.Template("Dear $name, $amount is due").substitute(name=who["name"])


_TEMPLATE = "def render(who):\n    yield 'Dear '\n    yield who['email'].missing\n"
linecache.cache["templates/invoice.html"] = (
    len(_TEMPLATE),
    None,
    _TEMPLATE.splitlines(keepends=True),
    "templates/invoice.html",
)
_COMPILED: dict[str, Any] = {"__name__": "templates.invoice"}
exec(compile(_TEMPLATE, "templates/invoice.html", "exec"), _COMPILED)  # noqa: S102 - as engines do


def inside_template(who: Person) -> str:
    return "".join(_COMPILED["render"](who))


def chained(who: Person) -> None:
    try:
        missing_key(who)
    except KeyError as error:
        raise AccountError(f"{who['email']} cannot pay by {who['iban']}") from error


def while_handling(who: Person) -> None:
    try:
        bad_number(who)
    except ValueError:
        raise AccountError(f"contact: {who['email']}, Tel. {who['phone']}")  # noqa: B904 - wanted


def group(who: Person) -> None:
    errors: list[Exception] = []
    for step in (bad_value, missing_key, chained):
        try:
            step(who)
        except Exception as error:  # noqa: BLE001 - all of them are the subject
            errors.append(error)
    raise ExceptionGroup(f"import of {who['email']} failed", errors)


def tasks(who: Person) -> None:
    async def one() -> None:
        await asyncio.sleep(0)
        bad_value(who)

    async def both() -> None:
        async with asyncio.TaskGroup() as running:
            running.create_task(one())

    # Ways may stand in a loop already; each thread has at most one.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, both()).result()


def own(who: Person) -> None:
    error = AccountError(
        "account of", who["email"], {"ip": who["ipv4"], "password": who["password"]}
    )
    error.add_note(f"seen from {who['ipv6']}")
    raise error


Kind = Callable[[Person], object]
KINDS: Mapping[str, Kind] = {
    kind.__name__: kind
    for kind in (
        bad_value,
        missing_key,
        wrong_type,
        missing_attribute,
        bad_number,
        bad_decimal,
        bad_text,
        bad_json,
        bad_schema,
        sql_duplicate,
        sql_statement,
        missing_file,
        failed_command,
        missing_in_template,
        inside_template,
        chained,
        while_handling,
        group,
        tasks,
        own,
    )
}


# --- Ways ----------------------------------------------------------------------------------------


def directly(kind: Kind, who: Person) -> None:
    kind(who)


class Service:
    def __init__(self, kind: Kind) -> None:
        self._kind = kind

    def method(self, who: Person) -> None:
        self._kind(who)

    @classmethod
    def of_class(cls, kind: Kind, who: Person) -> None:
        cls(kind).method(who)

    @property
    def attribute(self) -> object:
        return self._kind(person(0))


def by_method(kind: Kind, who: Person) -> None:
    Service(kind).method(who)


def by_class(kind: Kind, who: Person) -> None:
    Service.of_class(kind, who)


def by_property(kind: Kind, who: Person) -> None:
    _ = Service(lambda _: kind(who)).attribute


def by_lambda(kind: Kind, who: Person) -> None:
    (lambda: kind(who))()  # noqa: PLC3002 - a frame of its own


def by_closure(kind: Kind, who: Person) -> None:
    def inner() -> None:
        kind(who)

    inner()


def _logged(function: Kind) -> Kind:
    @functools.wraps(function)
    def wrapper(who: Person) -> object:
        return function(who)

    return wrapper


def by_decorator(kind: Kind, who: Person) -> None:
    _logged(kind)(who)


def by_generator(kind: Kind, who: Person) -> None:
    def rows() -> Iterator[object]:
        yield 1
        yield kind(who)

    list(rows())


def by_comprehension(kind: Kind, who: Person) -> None:
    _ = {one["email"]: kind(one) for one in (who,)}


def by_context(kind: Kind, who: Person) -> None:
    @contextlib.contextmanager
    def transaction() -> Iterator[str]:
        yield who["account"]

    with transaction():
        kind(who)


def by_key(kind: Kind, who: Person) -> None:
    sorted([who, who], key=kind)  # type: ignore[arg-type]


def by_partial(kind: Kind, who: Person) -> None:
    functools.partial(kind, who)()


def by_recursion(kind: Kind, who: Person, depth: int = 5) -> None:
    if depth:
        by_recursion(kind, who, depth - 1)
    kind(who)


def by_coroutine(kind: Kind, who: Person) -> None:
    async def handler() -> None:
        await asyncio.sleep(0)
        kind(who)

    asyncio.run(handler())


def by_thread(kind: Kind, who: Person) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(kind, who).result()


WAYS: Mapping[str, Callable[[Kind, Person], None]] = {
    way.__name__: way
    for way in (
        directly,
        by_method,
        by_class,
        by_property,
        by_lambda,
        by_closure,
        by_decorator,
        by_generator,
        by_comprehension,
        by_context,
        by_key,
        by_partial,
        by_recursion,
        by_coroutine,
        by_thread,
    )
}


# --- Capturing -----------------------------------------------------------------------------------


@functools.cache
def person(number: int) -> Person:
    """Invent somebody, the same for the same number."""
    return Canaries(number).values


class _Kept(Transport):
    """Keeps the bytes of events as sentry-sdk would post them."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[bytes] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        self.events += [item.get_bytes() for item in envelope.items if item.type == "event"]


@contextlib.contextmanager
def capturing(who: Person, **options: Any) -> Iterator[list[bytes]]:
    """Let sentry-sdk capture inside, as of a request of `who`; give the bytes of the events."""
    kept = _Kept()
    client = sentry_sdk.Client(
        dsn="http://" + "ab" * 16 + "@127.0.0.1:1/1",
        transport=kept,
        release="shop@1.2.3",
        environment="test",
        in_app_include=["tests", "templates"],
        **options,
    )
    with sentry_sdk.isolation_scope() as scope:
        scope.clear()
        scope.set_client(client)
        names = {"username": who["username"], "name": who["name"]}
        scope.set_user(
            {"id": who["account"], "email": who["email"], "ip_address": who["ipv4"], **names}
        )
        yield kept.events


def capture(kind: str, way: str, who: Person, **options: Any) -> bytes:
    """Raise one of the 300 and give the bytes of its event."""
    with capturing(who, **options) as events:
        try:
            WAYS[way](KINDS[kind], who)
        except Exception:  # noqa: BLE001 - whatever it is, it is the subject
            sentry_sdk.capture_exception()
    (event,) = events
    return event
