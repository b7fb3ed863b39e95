"""Values of the kinds that detectors look for: valid by format and checksum, of nobody.

Each function takes a seeded `Random` and gives one value. Formats are the public ones that
``detectors.toml`` names. Addresses come from RFC 5737 and 3849, domains from RFC 2606; secrets are
random characters in the vendors' documented shapes.
"""

# ruff: noqa: E501 - tables of formats read better unbroken
from __future__ import annotations

import base64
import json
import string
from collections.abc import Callable, Mapping
from random import Random
from urllib.parse import quote

import phonenumbers
from stdnum import ean, luhn
from stdnum.iso7064 import mod_11_10, mod_97_10

_FIRST = [
    "jana",
    "erik",
    "mira",
    "tobias",
    "lena",
    "oskar",
    "nadia",
    "felix",
    "ida",
    "jonas",
    "petra",
    "bruno",
    "klara",
    "hugo",
    "ylva",
]
_LAST = [
    "muster",
    "beispiel",
    "tester",
    "probe",
    "vorlage",
    "fiktiv",
    "example",
    "sample",
    "dummy",
    "nobody",
]
_DOMAINS = ("example.com", "mail.example.org", "example.net", "firma.example", "x-y.example.com")
_DIGITS = string.digits
_ALNUM = string.ascii_letters + string.digits
_HEX = "0123456789abcdef"


def some(r: Random, alphabet: str, size: int) -> str:
    """Draw `size` characters."""
    return "".join(r.choices(alphabet, k=size))


def token(r: Random, size: int, alphabet: str = _ALNUM) -> str:
    """Draw characters with at least one digit and one letter among them."""
    return some(r, alphabet, size - 2) + r.choice("345678") + r.choice("bcdefa")


def name(r: Random) -> str:
    """Draw a login name."""
    first, last = r.choice(_FIRST), r.choice(_LAST)
    return r.choice([f"{first}.{last}", f"{first}{last}", f"{first[0]}{last}{r.randint(1, 99)}",
                     f"{first}_{last}", f"{first}-{last}"])  # fmt: skip


def email(r: Random) -> str:
    """Plain, with subaddress, with umlauts, internationalized or punycode domain."""
    local = r.choice(
        [name(r), name(r), f"{name(r)}+{some(r, 'abcdef', 4)}", f"o'{name(r)}", "jürgen.probe"]
    )
    return f"{local}@{r.choice([*_DOMAINS, 'exämple.example', 'xn--exmple-cua.example'])}"


def email_encoded(r: Random) -> str:
    """An address whose @ is written for something else."""
    at = r.choice(
        [
            "%40",
            "%2540",
            r"\u0040",
            "&#64;",
            "&#x40;",
            "=40",
            "\uff20",
            "&commat;",
            r"\x40",
            "&amp;#64;",
        ]
    )
    return f"{name(r)}{at}{r.choice(_DOMAINS)}"


def phone(r: Random) -> str:
    """International, valid, in five ways to write one."""
    region = r.choice(["DE", "AT", "CH", "US", "GB", "FR", "NL", "PL", "SE", "IT"])
    kind = r.choice([phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE])
    number = phonenumbers.example_number_for_type(region, kind)
    for _ in range(50):
        text = str(number.national_number)
        other = phonenumbers.PhoneNumber(number.country_code, int(text[:-4] + some(r, _DIGITS, 4)))
        if phonenumbers.is_valid_number(other):
            number = other
            break
    form = phonenumbers.PhoneNumberFormat
    text = phonenumbers.format_number(number, r.choice([form.E164, form.INTERNATIONAL]))
    return r.choice(
        [text, text, text.replace("+", "00", 1), text.replace(" ", "-"), text.replace(" ", ".")]
    )


def ipv4(r: Random) -> str:
    """Documentation addresses; some as private ones, which are as personal."""
    return r.choice(
        ["203.0.113.", "198.51.100.", "192.0.2.", f"10.{r.randint(1, 250)}.{r.randint(1, 250)}."]
    ) + str(r.randint(1, 254))


def ipv6(r: Random) -> str:
    """Compressed, full, link-local, mapped."""
    parts = [some(r, _HEX, 4) for _ in range(6)]
    return r.choice([
        f"2001:db8:{':'.join(parts)}", f"2001:db8::{parts[0]}", f"2001:db8:{parts[0]}::{r.randint(1, 99)}",
        f"fe80::{parts[0]}:{parts[1][:2]}ff:fe{parts[2][:2]}:{parts[3]}", f"::ffff:{ipv4(r)}", f"2001:DB8::{parts[1].upper()}:1",
    ])  # fmt: skip


def mac(r: Random) -> str:
    """Colons, hyphens, Cisco's dots."""
    pairs = ["00", "00", "5e", "00", "53", some(r, _HEX, 2)]
    return r.choice([":".join(pairs), "-".join(pairs).upper(), "0000.5e00.53" + pairs[5]])


def account_id(r: Random) -> str:
    """A number or a prefixed id."""
    return r.choice(
        [
            str(r.randint(1000, 99_999_999)),
            str(r.randint(1000, 999_999)),
            f"cus_{token(r, 14)}",
            f"usr-{token(r, 8)}",
        ]
    )


def uuid(r: Random) -> str:
    """Version 4."""
    return f"{some(r, _HEX, 8)}-{some(r, _HEX, 4)}-4{some(r, _HEX, 3)}-a{some(r, _HEX, 3)}-{some(r, _HEX, 12)}"


def card(r: Random) -> str:
    """Eight brands; compact, grouped with spaces or hyphens."""
    prefix, size = r.choice([("4", 16), ("4", 16), ("51", 16), ("2221", 16), ("55", 16), ("34", 15), ("37", 15),
                             ("6011", 16), ("36", 14), ("3528", 16), ("62", 16), ("6759", 16), ("65", 16)])  # fmt: skip
    body = prefix + some(r, _DIGITS, size - len(prefix) - 1)
    digits = body + luhn.calc_check_digit(body)
    groups = {15: (4, 6, 5), 14: (4, 6, 4), 16: (4, 4, 4, 4)}[size]
    parts, at = [], 0
    for length in groups:
        parts.append(digits[at : at + length])
        at += length
    return r.choice([digits, digits, " ".join(parts), "-".join(parts)])


def iban(r: Random) -> str:
    """DE, AT, CH, NL, FR; compact, in groups, lower case."""
    country, body = r.choice([
        ("DE", some(r, _DIGITS, 18)), ("AT", some(r, _DIGITS, 16)), ("CH", some(r, _DIGITS, 17)),
        ("NL", some(r, "ABN", 4) + some(r, _DIGITS, 10)), ("LU", some(r, _DIGITS, 16)), ("LI", some(r, _DIGITS, 17)),
    ])  # fmt: skip
    check = mod_97_10.calc_check_digits(body + country)
    compact = country + check + body
    grouped = " ".join(compact[i : i + 4] for i in range(0, len(compact), 4))
    return r.choice([compact, grouped, compact.lower() if country == "DE" else compact])


def bic(r: Random) -> str:
    """Eight or eleven characters."""
    return (
        some(r, string.ascii_uppercase, 4)
        + r.choice(["DE", "AT", "CH", "FR"])
        + some(r, "FMBX2", 2)
        + r.choice(["", "XXX"])
    )


def jwt(r: Random) -> str:
    """Whole, or cut off by a log's line length."""

    def part(value: object) -> str:
        return (
            base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode())
            .decode()
            .rstrip("=")
        )

    whole = ".".join(
        [
            part({"alg": "HS256", "typ": "JWT"}),
            part({"sub": name(r), "exp": 1_800_000_000}),
            some(r, _ALNUM + "-_", 43),
        ]
    )
    return r.choice([whole, whole, whole[: r.randint(30, 70)].rstrip(".")])


def bearer(r: Random) -> str:
    """An opaque token."""
    return r.choice(
        [token(r, 32), token(r, 40, _HEX), f"{token(r, 12)}.{token(r, 12)}-{token(r, 8)}"]
    )


def basic(r: Random) -> str:
    """Base64 of a name and a password."""
    return base64.b64encode(f"{name(r)}:{token(r, r.randint(6, 14))}".encode()).decode()


def cookie(r: Random) -> str:
    """A session id."""
    return r.choice(
        [
            token(r, 26, string.ascii_lowercase + _DIGITS),
            token(r, 32, _HEX),
            f"s%3A{token(r, 20)}.{token(r, 20)}",
        ]
    )


def key_body(r: Random) -> str:
    """Base64 as a private key has it."""
    return "MIIE" + some(r, _ALNUM + "+/", 120)


def cloud_key(r: Random) -> str:
    """AWS, Google, Alibaba, Azure client secrets."""
    upper = string.ascii_uppercase + "234567"
    return r.choice(["AKIA" + some(r, upper, 16), "ASIA" + some(r, upper, 16), "AI" + "za" + token(r, 35),
                     "LTAI" + token(r, 20), token(r, 3) + "8Q~" + token(r, 34), "ya29." + token(r, 60)])  # fmt: skip


def vendor_token(r: Random) -> str:
    """Documented prefixes of two dozen vendors."""
    prefix, size = r.choice([
        ("ghp" + "_", 36), ("github" + "_pat_", 60), ("glpat" + "-", 20), ("xoxb" + "-", 40), ("sk_" + "live_", 24),
        ("SG" + ".", 50), ("npm" + "_", 36), ("pypi" + "-", 80), ("sk-" + "proj-", 60), ("sk-" + "ant-api03-", 80),
        ("hf" + "_", 34), ("dop" + "_v1_", 64), ("glsa" + "_", 32), ("shpat" + "_", 32), ("dckr" + "_pat_", 27),
        ("xkeysib" + "-", 64), ("lin" + "_api_", 40), ("sntrys" + "_", 64), ("NRAK" + "-", 27), ("hvs" + ".", 60),
        ("tskey" + "-auth-", 30), ("nfp" + "_", 36), ("CCIPAT" + "_", 40), ("dapi", 32), ("rzp" + "_live_", 14),
        ("PMAK" + "-", 50), ("key" + "-", 32), ("rdme" + "_", 70), ("pcsk" + "_", 60), ("sqp" + "_", 40),
    ])  # fmt: skip
    return prefix + token(r, size, _HEX if prefix in {"dapi", "sqp_", "dop_v1_"} else _ALNUM)


def password(r: Random) -> str:
    """What people choose."""
    return r.choice([token(r, 10), f"{r.choice(_FIRST).title()}!{r.randint(10, 2030)}", "Sommer-2026!", "hunter2", "S3cr3t$Pw#9",
                     "pa55w0rd", "qwertz", f"x{token(r, 6)}%{token(r, 4)}", "correcthorse", "Tr0ub4dor&3"[:9]])  # fmt: skip


def safe_password(r: Random) -> str:
    """One that needs no encoding in a URL."""
    return token(r, r.randint(7, 16))


def query(r: Random) -> str:
    """What a person typed, encoded."""
    return r.choice(
        [
            r.choice(_FIRST).title(),
            quote(f"{r.choice(_FIRST)} {r.choice(_LAST)}"),
            f"{r.choice(_FIRST)}+{r.choice(_LAST)}",
        ]
    )


def signature(r: Random) -> str:
    """Hexadecimal, or Base64 percent-encoded."""
    return r.choice([token(r, 64, _HEX), quote(token(r, 42) + "+/=", safe=""), token(r, 24)])


def _weighted(digits: str, weights: str, modulus: int) -> int:
    return sum(int(a) * int(b) for a, b in zip(digits, weights, strict=True)) % modulus


def tax_id(r: Random) -> str:
    """DE identification and tax numbers, VAT ids, US ITIN."""
    while True:
        body = r.choice("123456789") + some(r, _DIGITS, 9)
        if len(set(body)) in {8, 9} and max(body.count(d) for d in body) <= 3:
            break
    number = body + mod_11_10.calc_check_digit(body)
    grouped = f"{number[:2]} {number[2:5]} {number[5:8]} {number[8:]}"
    return r.choice([number, number, grouped, f"{some(r, '123456789', 2)}/{some(r, _DIGITS, 3)}/{some(r, _DIGITS, 5)}",
                     "DE" + some(r, "123456789", 9), "ATU" + some(r, _DIGITS, 8), f"9{some(r, _DIGITS, 2)}-7{some(r, '0123', 1)}-{some(r, _DIGITS, 4)}"])  # fmt: skip


def _born(r: Random) -> tuple[str, str, str]:
    return f"{r.randint(1, 28):02d}", f"{r.randint(1, 12):02d}", f"{r.randint(50, 99)}"


def national_id(r: Random) -> str:
    """Numbers of nine countries, with their check digits."""
    day, month, year = _born(r)
    kind = r.randrange(9)
    if kind == 0:
        return f"{r.randint(100, 665)}-{r.randint(10, 99)}-{r.randint(1000, 9999)}"
    if kind == 1:
        body = "756" + some(r, _DIGITS, 9)
        full = body + ean.calc_check_digit(body)
        return f"{full[:3]}.{full[3:7]}.{full[7:11]}.{full[11:]}"
    if kind == 2:
        return f"{r.randint(10, 89)} {day}{month}{year} {r.choice('MPRST')} {r.randint(100, 999)}"
    if kind == 3:
        while True:
            serial = some(r, "123456789", 3)
            check = _weighted(serial + day + month + year, "379584216", 11)
            if check < 10:
                return r.choice(["{}{} {}", "{}{}{}"]).format(serial, check, day + month + year)
    if kind == 4:
        body = year + month + day + some(r, _DIGITS, 4)
        return body + str(-_weighted(body, "1379137913", 10) % 10)
    if kind == 5:
        number = r.randint(10_000_000, 99_999_999)
        return f"{number}{'TRWAGMYFPDXBNJZSQVHLCKE'[number % 23]}"
    if kind == 6:
        return f"{day}{month}{year}-{r.randint(1000, 9999)}"
    if kind == 7:
        return f"{r.choice('ABCEGHJ')}{r.choice('ABCEGHJ')} {some(r, _DIGITS, 2)} {some(r, _DIGITS, 2)} {some(r, _DIGITS, 2)} {r.choice('ABCD')}"
    body = f"{r.choice('12')}{year}{month}{r.randint(1, 95):02d}{some(r, _DIGITS, 6)}"
    return f"{body}{97 - int(body) % 97:02d}"


def document(r: Random) -> str:
    """Passports and identity cards of DE, US, FR, AT."""
    charset = "CFGHJKLMNPRTVWXYZ0123456789"
    return r.choice(["C01X" + some(r, charset, 4) + r.choice(_DIGITS), "L" + some(r, _DIGITS, 4) + some(r, charset, 4), some(r, "123456789", 9),
                     f"{some(r, _DIGITS, 2)}{some(r, 'ABCDEF', 2)}{some(r, _DIGITS, 5)}", "P " + some(r, _DIGITS, 7), "U" + some(r, _DIGITS, 7)])  # fmt: skip


def licence(r: Random) -> str:
    """DE, GB, US."""
    return r.choice([f"B072{token(r, 5, 'ABCDE012345').upper()}{some(r, _DIGITS, 2)}", "MUSTE" + some(r, _DIGITS, 6) + "JA9" + some(r, "ABCDE", 2),
                     some(r, "ABCDEFGH", 1) + some(r, _DIGITS, 7), some(r, "ABCDEFGH", 1) + some(r, _DIGITS, 12)])  # fmt: skip


def plate(r: Random) -> str:
    """DE, AT, GB, CH."""
    return r.choice([f"B-{some(r, 'ABCDEF', 2)} {r.randint(1, 9999)}", f"HH {some(r, 'ABCDEF', 1)} {r.randint(10, 999)}", f"M-{some(r, 'XYZ', 2)}{r.randint(100, 999)}",
                     f"{some(r, 'ABCDEF', 2)}{r.randint(10, 70)} {some(r, 'ABCDEF', 3)}", f"ZH {r.randint(1000, 999999)}", f"W-{r.randint(10000, 99999)}{r.choice('ABC')}"])  # fmt: skip


def health_id(r: Random) -> str:
    """German insured person's number, NHS, MRN."""
    return r.choice(
        [
            r.choice("ABCDEF") + some(r, _DIGITS, 9),
            f"{some(r, '4567', 3)} {some(r, _DIGITS, 3)} {some(r, _DIGITS, 4)}",
            some(r, "123456789", 8),
        ]
    )


def birth_date(r: Random) -> str:
    """Six ways to write a date."""
    day, month, year = _born(r)
    return r.choice([f"19{year}-{month}-{day}", f"{day}.{month}.19{year}", f"{int(day)}.{int(month)}.{year}", f"{month}/{day}/19{year}",
                     f"{day}. März 19{year}", f"March {int(day)}, 19{year}"])  # fmt: skip


def geo(r: Random) -> str:
    """One coordinate, or two."""
    lat, lon = f"{r.uniform(45, 55):.5f}", f"{r.uniform(5, 16):.5f}"
    return r.choice([lat, f"{lat}, {lon}", f"{lat},{lon}"])


def device(r: Random) -> str:
    """IMEI with check digit, IMSI."""
    body = "35" + some(r, _DIGITS, 12)
    whole = body + luhn.calc_check_digit(body)
    return r.choice(
        [
            whole,
            f"{whole[:2]}-{whole[2:8]}-{whole[8:14]}-{whole[14]}",
            "26201" + some(r, _DIGITS, 10),
        ]
    )


def vin(r: Random) -> str:
    """Seventeen characters without I, O, Q."""
    return (
        r.choice(["WVWZZZ", "WDB2030", "1HGCM"]).ljust(7, "1")
        + some(r, "ABCDEFGHJKLMNPRSTUVWXYZ0123456789", 4)
        + some(r, _DIGITS, 6)
    )


VALUES: Mapping[str, Callable[[Random], str]] = {
    "email": email, "email_encoded": email_encoded, "phone": phone, "ipv4": ipv4, "ipv6": ipv6, "mac": mac,
    "user_path": name, "user_name": name, "account_id": account_id, "identity_uuid": uuid, "card": card,
    "iban": iban, "bic": bic, "jwt": jwt, "bearer": bearer, "basic": basic, "cookie": cookie,
    "private_key": key_body, "cloud_key": cloud_key, "vendor_token": vendor_token, "password": password,
    "secret": bearer, "cli_secret": safe_password, "url_credentials": safe_password,
    "connection_string": safe_password, "query_param": query, "presigned": signature, "tax_id": tax_id,
    "national_id": national_id, "document": document, "licence": licence, "plate": plate,
    "health_id": health_id, "birth_date": birth_date, "geo": geo, "device": device, "vin": vin,
}  # fmt: skip
"""By type."""
