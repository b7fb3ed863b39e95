"""The events that speed is measured on, built anew in each run and the same each time.

- **A**: an analytics event as a browser client sends it, 0.8 KB, most of it undeclared.
- **B8**, **B40**: error events of 8.7 and 39 KB that sentry-sdk made of exceptions really raised in
  a small web application: locals, request, cookies, breadcrumbs, source lines, modules.

Each comes *clean* and with personal data in its free text (*pii*): 1-2, 4 and 15 places; A also
*mixed*, five events in a hundred with personal data. What is left out of a scrub by its schema
(locals, headers, bodies) is there all the same.

`HOSTILE` is what texts are made of that are meant to be slow.
"""

from __future__ import annotations

import contextlib
import io
import json
import linecache
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Final

import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.integrations.logging import LoggingIntegration
from sentry_sdk.integrations.wsgi import SentryWsgiMiddleware
from sentry_sdk.transport import Transport

__all__ = ["BATCH", "HOSTILE", "KINDS", "SIZES", "analytics_event", "build", "raising"]

KINDS: Final = {"A": "analytics_event", "B8": "error_event", "B40": "error_event"}
"""Record that describes the events of a workload."""

BATCH: Final = 64
"""Events of A that come in one call."""

SIZES: Final = {
    ("A", "clean"): 800,
    ("A", "mixed"): 807,
    ("A", "pii"): 940,
    ("B8", "clean"): 8_700,
    ("B8", "pii"): 9_500,
    ("B40", "clean"): 39_000,
    ("B40", "pii"): 42_000,
}
"""Bytes of an event on average; each workload is within ten percent of this."""

_NUMBER: Final = {"A": 4 * BATCH, "B8": 24, "B40": 8}
_SHARE: Final = {"clean": 0.0, "mixed": 0.05, "pii": 1.0}
_SEED: Final = 20261122

_AGENTS: Final = tuple(
    f"Mozilla/5.0 ({system}) AppleWebKit/537.36 (KHTML, like Gecko) "
    f"Chrome/{version}.0.0.0 Safari/537.36"
    for system in (
        "Windows NT 10.0; Win64; x64",
        "Macintosh; Intel Mac OS X 10_15_7",
        "X11; Linux x86_64",
    )
    for version in range(138, 146)
)
_NETS: Final = ("192.0.2", "198.51.100", "203.0.113")
_PEOPLE: Final = ("jane.doe", "max.mustermann", "erika.beispiel", "john.smith", "aylin.oeztuerk")
_WORDS: Final = (
    "board",
    "column",
    "filter",
    "export",
    "calendar",
    "label",
    "reminder",
    "archive",
    "template",
    "comment",
    "mention",
    "search",
    "shortcut",
    "tablet",
    "offline",
    "report",
)


def build(name: str, sort: str) -> list[bytes]:
    """Build the events of one workload.

    Args:
        name: Of `KINDS`.
        sort: ``clean``, ``pii``, or of A ``mixed``.

    Raises:
        AssertionError: They are not as large as they should be; then no figure would mean anything.
    """
    # Events must be the same each time.
    chance = random.Random(f"{_SEED}{name}{sort}")  # noqa: S311
    number, every = _NUMBER[name], round(1 / _SHARE[sort]) if _SHARE[sort] else 10**9
    events = [
        analytics_event(chance, n, pii=n % every == every - 1)
        if name == "A"
        else _error(chance, deep=name == "B40", pii=sort == "pii")
        for n in range(number)
    ]
    raw = [json.dumps(event, separators=(",", ":")).encode() for event in events]
    size, wanted = sum(map(len, raw)) / len(raw), SIZES[name, sort]
    assert 0.9 <= size / wanted <= 1.1, f"{name}: {size:.0f} bytes instead of {wanted}"
    return raw


HOSTILE: Final = {
    "letters": "a",
    "digits": "4",
    "groups": "4111 ",
    "dots": "1.2.3.",
    "at": "a@",
    "colons": "ab:",
    "secrets": "password=",
    "quotes": 'password="',
    "bearers": "bearer xxxx ",
    "cookies": "cookie: a=b ",
    "ibans": "DE89 ",
    "phones": "+49 30 ",
    "cues": "tel 123 ",
    "keys": "-----BEGIN PRIVATE KEY",
    "tokens": "eyJ",
    "urls": "://a:b@",
    "percent": "%40",
    "placeholders": "<email:1>",
    "brackets": "<",
    "escapes": '\\"secret\\":\\"',
    "umlauts": "ü@",
    "users": "/Users/",
    "ids": "user_id ",
    "flags": " -p mysql",
    "hex": "0x1.",
    "hyphens": "1-2-",
}
"""What repeats in a text that is made to be slow: heads of values without their ends."""


def _sentence(chance: random.Random, words: int) -> str:
    return " ".join(chance.choice(_WORDS) for _ in range(words)).capitalize()


def _mail(chance: random.Random) -> str:
    return f"{chance.choice(_PEOPLE)}{chance.randrange(90) + 10}@example.com"


def _address(chance: random.Random) -> str:
    return f"{chance.choice(_NETS)}.{chance.randrange(1, 255)}"


def analytics_event(chance: random.Random, number: int, *, pii: bool) -> dict[str, Any]:
    """Make a page's event: two declared properties, the rest as browser libraries add it."""
    remark = f"{_sentence(chance, 8)}."
    if pii:
        other = f", the old one was {_mail(chance)}" if number % 2 else ""
        remark += f" Please write to {_mail(chance)}{other}; {_sentence(chance, 12)}."
    return {
        "event": "feature feedback given",
        "event_id": f"{chance.getrandbits(128):032x}",
        "time": f"2026-11-22T10:{number % 60:02d}:17.{number:03d}Z",
        "account": 10_000 + chance.randrange(90_000),
        "organization": 100 + chance.randrange(900),
        "session": f"s-{chance.getrandbits(64):016x}",
        "page": f"https://app.example.com/projects/{chance.randrange(10_000)}/board?view={number}",
        "referrer": "https://app.example.com/inbox",
        "ip": _address(chance),
        "user_agent": chance.choice(_AGENTS),
        "properties": {
            "score": chance.randrange(11),
            "remark": remark,
            "screen": "1920x1080",
            "language": "de-DE",
            "plan": "business",
            "seats": chance.randrange(200),
            "library": "web",
            "utm_source": "newsletter",
            "ab_group": "b",
            "utm_campaign": "autumn-release-2026",
            "viewport": "1903x937",
            "timezone": "Europe/Berlin",
            "connection": "4g",
            "tab": chance.randrange(9),
        },
    }


# The application whose errors are sent. It is compiled under the file names of a server, so that
# neither sizes nor source lines depend on where this checkout lies.

_VIEWS: Final = '''\
"""HTTP views of orders."""

from shop import billing


def checkout(request, session):
    """Take an order."""
    form = request["form"]
    cart = session["cart"]
    currency = form.get("currency", "EUR")
    discount = form.get("discount")
    if not cart["items"]:
        raise ValueError("the cart is empty")
    total = billing.total(cart, currency, discount)
    return billing.charge(session, total, form)


def dispatch(request, session):
    """Find the view of a request."""
    route = request["route"]
    started = request["started"]
    view = {"/orders": checkout}[route]
    return view(request, session)
'''
_BILLING: Final = '''\
"""Prices, taxes and payments."""

RATES = {"EUR": 1.0, "USD": 1.08}


def total(cart, currency, discount):
    """Sum up a cart."""
    rate = RATES[currency]
    amount = 0
    for position, item in enumerate(cart["items"]):
        amount += price(item, rate, position)
    return amount


def price(item, rate, depth):
    """Price of an item with everything that belongs to it."""
    parts = item.get("parts", [])
    own = item["price_cents"] * rate
    label = item["label"]
    if parts:
        return own + sum(price(part, rate, depth + 1) for part in parts)
    return own


def charge(session, amount, form):
    """Charge the account of a session."""
    account = session["account"]
    method = form["method"]
    attempt = {"amount": amount, "method": method, "retries": 2}
    if session["limit_cents"] < amount:
        raise PaymentError(session["complaint"])
    return book(account, attempt, method, session)


def book(account, attempt, method, session):
    """Enter a payment."""
    entry = {"account": account, **attempt}
    ledger = session["ledger"]
    reference = ledger["prefix"] + str(ledger["next"])
    raise PaymentError(session["complaint"])


class PaymentError(Exception):
    """A payment failed."""
'''
_MIDDLEWARE: Final = '''\
"""What stands around every view."""


def authenticated(request, session, inner, depth):
    """Let in whom we know."""
    trace = request["trace"]
    remaining = depth - 1
    timing = {"layer": depth, "trace": trace, "slow": False}
    if depth <= 0:
        return inner(request, session)
    try:
        return authenticated(request, session, inner, remaining)
    finally:
        timing["slow"] = True
'''


def _application() -> tuple[Any, Any]:
    modules: dict[str, dict[str, Any]] = {}
    for name, source in (("billing", _BILLING), ("views", _VIEWS), ("middleware", _MIDDLEWARE)):
        path = f"/srv/shop/releases/2026-11-20/shop/{name}.py"
        lines = source.splitlines(keepends=True)
        linecache.cache[path] = (len(source), None, lines, path)
        modules[name] = {"__name__": f"shop.{name}", "__file__": path}
        if name == "views":
            source = source.replace("from shop import billing", "")  # noqa: PLW2901
            modules[name]["billing"] = SimpleNamespace(**modules["billing"])
        # Line numbers stay as the source has them.
        exec(compile(source, path, "exec"), modules[name])  # noqa: S102 - our own text
    return modules["views"]["dispatch"], modules["middleware"]["authenticated"]


class _Catch(Transport):
    """Keeps events instead of sending them."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        event = envelope.get_event()
        if event is not None:
            self.events.append(json.loads(envelope.items[0].get_bytes()))


_MODULES: Final = {
    f"{word}-{kind}": f"{len(word)}.{len(kind)}.{n}"
    for n, word in enumerate(("http", "async", "data", "form", "image", "report", "queue", "text"))
    for kind in ("core", "client", "types", "contrib")
}


def raising() -> BaseException:
    """Give an exception that was raised in the application, four frames down."""
    dispatch, authenticated = _application()
    session = {
        "cart": _cart(random.Random(_SEED), 3),  # noqa: S311 - the same each time
        "account": 4711,
        "limit_cents": 10**9,
        "ledger": {"prefix": "L-", "next": 17},
        "complaint": "payment 17 failed at step 3",
    }
    request = {
        "route": "/orders",
        "form": {"currency": "EUR", "method": "card"},
        "started": 1_795_341_600,
        "trace": "0" * 32,
    }
    try:
        authenticated(request, session, dispatch, 1)
    except Exception as error:  # noqa: BLE001 - of a class that the application made
        return error
    raise AssertionError


def _error(chance: random.Random, *, deep: bool, pii: bool) -> dict[str, Any]:
    """Raise an error in the application behind sentry-sdk's own WSGI middleware; keep its event."""
    catch = _Catch()
    hits = iter(range(15 if deep else 4)) if pii else iter(())

    def personal(plain: str) -> str:
        """Put something personal behind a text while the budget of this event lasts."""
        if (n := next(hits, None)) is None:
            return plain
        sorts = (
            f"mail {_mail(chance)} bounced",
            f"client {_address(chance)} closed the connection",
            "IBAN DE89 3704 0044 0532 0130 00 was refused",
            f"password=example-{chance.randrange(10**6)} was not accepted",
        )
        return f"{plain}: {sorts[n % len(sorts)]}"

    dispatch, authenticated = _application()
    complaint = personal(f"payment {chance.randrange(10**6)} failed at step {chance.randrange(9)}")

    def application(_environ: dict[str, Any], _start: Any) -> Iterator[bytes]:
        scope = sentry_sdk.get_isolation_scope()
        for n in range(70 if deep else 5):
            sentry_sdk.add_breadcrumb(
                category=chance.choice(("query", "httplib", "cache")),
                message=personal(f"{_sentence(chance, 6)} took {chance.randrange(900)} ms"),
                level="info",
                data={"rows": chance.randrange(500), "table": f"orders_{n}"},
            )
        scope.set_user({"id": str(chance.randrange(10**5)), "email": _mail(chance)})
        scope.set_tag("region", "eu-central")
        cart = _cart(chance, 9 if deep else 1)
        request = {
            "route": "/orders",
            "form": {"currency": "EUR", "method": "card", "discount": "AUTUMN26"},
            "started": 1_795_341_600,
            "trace": f"{chance.getrandbits(128):032x}",
        }
        session = {
            "cart": cart,
            "account": chance.randrange(10**5),
            "limit_cents": 10**9,
            "ledger": {"prefix": "L-", "next": chance.randrange(10**6)},
            "complaint": complaint,
        }
        authenticated(request, session, dispatch, 16 if deep else 1)
        return iter((b"",))

    with sentry_sdk.isolation_scope(), sentry_sdk.new_scope() as scope:
        client = sentry_sdk.Client(
            dsn="http://public@127.0.0.1:9/1",
            transport=catch,
            release="shop@2026.11.20",
            environment="production",
            server_name="shop-web-1",
            send_default_pii=True,
            in_app_include=["shop"],
            default_integrations=False,
            integrations=[LoggingIntegration()],
            max_breadcrumbs=100,
            auto_enabling_integrations=False,
        )
        scope.set_client(client)
        with contextlib.suppress(Exception):  # raised on purpose; sentry-sdk has seen it
            list(SentryWsgiMiddleware(application)(_environ(chance), lambda *_: None))
        client.close(timeout=0)
    (event,) = catch.events
    # Which packages are installed here is this machine's affair.
    event["modules"] = dict(list(_MODULES.items())[: 32 if deep else 12])
    event.setdefault("request", {})["data"] = {
        "note": _sentence(chance, 40 if deep else 12),
        "items": list(range(40 if deep else 8)),
    }
    event["exception"]["values"][-1]["stacktrace"]["frames"] = [
        frame
        for frame in event["exception"]["values"][-1]["stacktrace"]["frames"]
        if frame["abs_path"].startswith("/srv/shop/")
    ]
    return event


def _cart(chance: random.Random, items: int) -> dict[str, Any]:
    return {
        "items": [
            {
                "label": _sentence(chance, 3),
                "price_cents": chance.randrange(10_000),
                "parts": [{"label": _sentence(chance, 2), "price_cents": 100}],
            }
            for _ in range(items)
        ]
    }


def _environ(chance: random.Random) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/orders",
        "QUERY_STRING": f"step={chance.randrange(9)}&token={chance.getrandbits(64):016x}",
        "SERVER_NAME": "shop.example.com",
        "SERVER_PORT": "443",
        "REMOTE_ADDR": _address(chance),
        "wsgi.url_scheme": "https",
        "wsgi.input": io.BytesIO(b""),
        "wsgi.errors": io.StringIO(),
        "HTTP_HOST": "shop.example.com",
        "HTTP_USER_AGENT": chance.choice(_AGENTS),
        "HTTP_ACCEPT": "text/html,application/json",
        "HTTP_ACCEPT_LANGUAGE": "de-DE,de;q=0.9",
        "HTTP_COOKIE": f"sid={chance.getrandbits(128):032x}; theme=dark",
        "HTTP_X_FORWARDED_FOR": _address(chance),
    }
