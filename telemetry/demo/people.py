"""The people of the demo: invented, the same for the same seed, each with values of their own.

Owns what is planted. Every value is unique, long enough to be searched for, and belongs to nobody:
addresses from RFC 5737 and 3849, domains from RFC 2606, telephone numbers from the range that the
German regulator keeps for fiction, bank codes and card numbers that no bank has issued.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from random import Random
from types import MappingProxyType
from typing import Final

__all__ = ["Organization", "Person", "Project", "World"]

_GIVEN: Final = [
    "Jördis", "Ansgar", "Wiebke", "Lorenz", "Henrike", "Gesine", "Valentin", "Thorben",
    "Roswitha", "Ekkehard", "Friederike", "Leopold", "Swantje", "Bartholomä", "Irmgard",
    "Konstantin", "Mechthild", "Ruprecht", "Sieglinde", "Tjark",
]  # fmt: skip
_FAMILY: Final = [
    "Falkenried", "Osterwald", "Brückmann", "Sonnleitner", "Wiesengrund", "Hollerbach",
    "Achterberg", "Dünnwald", "Rabenstein", "Kirschbaum", "Mühlenbrock", "Niederlein",
    "Pfefferkorn", "Quendel", "Schönfelder", "Tannhäuser",
]  # fmt: skip
_STREETS: Final = [
    "Ahornstieg", "Buchenkamp", "Deichgraben", "Erlengrund", "Fliederweg", "Ginsterpfad",
]  # fmt: skip
_TRADES: Final = [
    "Bäckerei", "Gärtnerei", "Kanzlei", "Schreinerei", "Hebammenpraxis", "Druckerei",
]  # fmt: skip
_NETS: Final = ("192.0.2", "198.51.100", "203.0.113")
_LETTERS: Final = "bcdfghjklmnpqrstvwxz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody with an account. `repr` shows only who among the invented it is.

    Attributes:
        number: From 1.
        account: Account id, ten digits. session: Session id. api_token: Key of the API.
    """

    number: int
    account: int
    name: str
    email: str
    username: str
    session: str
    ipv4: str
    ipv6: str
    phone: str
    iban: str
    card: str
    street: str
    birth_date: str
    password: str
    api_token: str
    organization: Organization

    def __repr__(self) -> str:
        return f"Person({self.number})"

    @property
    def planted(self) -> dict[str, str]:
        """Each value under a name that says whose and what it is."""
        kinds = [
            "name", "email", "username", "session", "ipv4", "ipv6", "phone",
            "iban", "card", "street", "password", "api_token",
        ]  # fmt: skip
        values = {kind: str(getattr(self, kind)) for kind in kinds}
        values["account"] = str(self.account)
        values["birth date"] = self.birth_date
        return {f"person {self.number}: {kind}": value for kind, value in values.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Organization:
    """A customer.

    Attributes:
        number: From 1.
        id: Ten digits.
    """

    number: int
    id: int
    name: str
    projects: tuple[Project, ...]

    def __repr__(self) -> str:
        return f"Organization({self.number})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A project; its title, its task's title and its comment were typed by somebody."""

    number: int
    id: str
    title: str
    task: str
    comment: str

    def __repr__(self) -> str:
        return f"Project({self.number})"


class World:
    """Everybody and everything in the sample application.

    Args:
        people: How many people.
        seed: Which ones.

    >>> World(people=12).planted == World(people=12).planted
    True
    >>> len(World(people=12).planted)
    204
    """

    def __init__(self, *, people: int = 40, seed: int = 7) -> None:
        draw = Random(seed)  # noqa: S311 - reproducible, no secret
        names = [f"{given} {family}" for given in _GIVEN for family in _FAMILY]
        draw.shuffle(names)
        hosts = [f"{net}.{host}" for net in _NETS for host in range(100, 255)]
        draw.shuffle(hosts)
        extensions = draw.sample(range(100, 1000), people)
        # Ten digits: fewer would turn up by chance in megabytes of hexadecimal ids.
        ids = iter(draw.sample(range(7_000_000_000, 9_999_999_999), people + len(_TRADES)))
        self.organizations = tuple(
            _organization(number, next(ids), trade, draw) for number, trade in enumerate(_TRADES, 1)
        )
        self.people = tuple(
            _person(
                number,
                name,
                account=next(ids),
                ipv4=hosts[number],
                extension=extensions[number - 1],
                organization=self.organizations[number % len(self.organizations)],
                draw=draw,
            )
            for number, name in enumerate(names[:people], 1)
        )

    @property
    def planted(self) -> Mapping[str, str]:
        """Every planted value by its name."""
        values: dict[str, str] = {}
        for person in self.people:
            values |= person.planted
        for organization in self.organizations:
            whose = f"organization {organization.number}"
            values |= {f"{whose}: id": str(organization.id), f"{whose}: name": organization.name}
            for project in organization.projects:
                which = f"project {project.number}"
                values |= {
                    f"{which}: id": project.id,
                    f"{which}: title": project.title,
                    f"{which}: task": project.task,
                    f"{which}: comment": project.comment,
                }
        return MappingProxyType(values)


def _organization(number: int, id_: int, trade: str, draw: Random) -> Organization:
    family = draw.choice(_FAMILY)
    mark = "".join(draw.choices(_LETTERS, k=4)).capitalize()
    return Organization(
        number=number,
        id=id_,
        name=f"{trade} {family} & {mark} GmbH",
        projects=(_project(number, mark, draw),),
    )


def _project(number: int, mark: str, draw: Random) -> Project:
    who = draw.choice(_FAMILY)
    return Project(
        number=number,
        id=f"prj-{''.join(draw.choices(_LETTERS + '23456789', k=14))}",
        title=f"Umzug {mark} im Frühling",
        task=f"Kündigung von {who} ({mark}) vorbereiten",
        comment=f'{who} ist seit Montag krank, bitte {mark} "nicht" anrufen!',
    )


def _person(
    number: int,
    name: str,
    *,
    account: int,
    ipv4: str,
    extension: int,
    organization: Organization,
    draw: Random,
) -> Person:
    given, family = name.split()
    mark = "".join(draw.choices(_LETTERS, k=5))
    plain = family.lower().replace("ä", "ae").replace("ö", "oe").replace("ü", "ue")
    born = date(1950, 1, 1) + timedelta(days=number * 311 + draw.randrange(300))
    return Person(
        number=number,
        account=account,
        name=name,
        email=f"{plain}.{mark}@mail.example.org",
        username=f"{plain[:5]}{mark}{draw.randrange(10, 99)}",
        session=f"s{draw.randrange(16**23):023x}{mark}",
        ipv4=ipv4,
        ipv6=f"2001:db8:{draw.randrange(4096, 65536):x}:{draw.randrange(4096, 65536):x}"
        f"::{draw.randrange(4096, 65536):x}",
        phone=f"+49 30 23125 {extension}",
        iban=_iban("DE", f"00000000{draw.randrange(10**9, 10**10)}"),
        card=_card(f"400000{draw.randrange(10**8, 10**9)}"),
        street=f"{draw.choice(_STREETS)} {number}{given[0].lower()}, 00{draw.randrange(100, 999)}",
        birth_date=born.isoformat(),
        password=f"Geheim!{mark}{draw.randrange(100, 999)}",
        api_token=f"flow_{mark}{draw.randrange(16**20):020x}",
        organization=organization,
    )


def _iban(country: str, account: str) -> str:
    """Make an IBAN with valid check digits (ISO 13616)."""
    digits = "".join(str(int(char, 36)) for char in f"{account}{country}00")
    return f"{country}{98 - int(digits) % 97:02}{account}"


def _card(stem: str) -> str:
    """Make a card number with a valid check digit (ISO/IEC 7812-1, annex B)."""
    total = sum(
        sum(divmod(int(digit) * (2 - at % 2), 10)) for at, digit in enumerate(reversed(stem))
    )
    return f"{stem}{-total % 10}"
