"""Second looks at what a pattern found: checksums, ranges, and whether a word is a value at all.

A pattern says where something may stand; a validator says whether it does, and how far it reaches.
Each takes the text and a span in it (UTF-8 bytes) and returns the span to replace, or None.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from functools import cache
from socket import AF_INET6, inet_pton
from types import MappingProxyType
from typing import Any, NamedTuple

import phonenumbers
from stdnum import ean, get_cc_module, luhn, numdb
from stdnum.at import vnr
from stdnum.be import nn
from stdnum.br import cpf
from stdnum.de import idnr
from stdnum.es import dni, nie
from stdnum.fi import hetu
from stdnum.fr import nir
from stdnum.it import codicefiscale
from stdnum.us import ssn

__all__ = ["NO_PERSON", "VALIDATORS", "Span", "Validator"]

Span = tuple[int, int]
Validator = Callable[[bytes, int, int], Span | None]

_MIN_PHONE_DIGITS = 7
_MAX_PHONE_DIGITS = 15

# All expressions here see one candidate, cut by its detector to a few hundred bytes.
_MIN_CARD_DIGITS = 12
_DIGIT_GROUP = re.compile(rb"[0-9]+")
_ALNUM = re.compile(rb"[0-9A-Za-z]")
_NO_ALNUM = bytes(byte for byte in range(256) if not bytes((byte,)).isalnum())
_CARD_SHAPES = frozenset(
    {(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3), (4, 4, 4, 1), (6, 10), (6, 13), (8, 8)}
)
_CARD_BRAND = re.compile(
    rb"4[0-9]{12}(?:[0-9]{3}){0,2}"  # Visa
    # Mastercard
    rb"|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}"
    rb"|3[47][0-9]{13}"  # American Express
    rb"|3(?:0[0-5]|095|[689][0-9])[0-9]{11,16}"  # Diners
    rb"|6(?:011|5[0-9]{2}|4[4-9][0-9])[0-9]{12,15}"  # Discover
    rb"|35(?:2[89]|[3-8][0-9])[0-9]{12,15}"  # JCB
    rb"|62[0-9]{14,17}"  # UnionPay
    rb"|(?:5018|5020|5038|5893|6304|6759|676[1-3])[0-9]{8,15}"  # Maestro
    rb"|220[0-4][0-9]{12,15}|9792[0-9]{12}"  # Mir, Troy
    rb"|(?:506[0-9]|5090|6363|6362|508[5-9]|8[12][0-9]{2})[0-9]{12}"  # Verve, Elo, RuPay
)
# Numbers of requests, of moments and of messages are as long as cards, and one in ten passes Luhn.
_SERIAL_BEFORE = re.compile(
    rb"(?i)(?:trace|span|parent|request|correlation|message|event|job|build|run|block|blk|offset|seq"
    rb"(?:uence)?|timestamp|ts|epoch|zxid|txid|lsn|thread|tid|snowflake|nonce|worker|size|bytes)"
    rb"(?:[ _.-]?(?:id|no|nr|number))?[\"'\]]{0,2}[ =:#_-]{1,3}\Z"
)
_CARD_BEFORE = re.compile(
    rb"(?i)(?:card|karte|\bpan|visa|master|maestro|diners|union|amex|credit|debit|payment|zahl|\bcc)"
    rb"[^\r\n]{0,24}\Z"
)
# What stands where a value would, whether in quotes or not.
_NO_VALUE = frozenset(
    b"true false yes no null none nil undefined nan empty string str bytes int integer boolean bool"
    b" required redacted filtered removed hidden masked unset".split()
)
# How a sentence goes on after "password:".
_PROSE = _NO_VALUE | frozenset(
    b"missing invalid incorrect wrong expired unknown optional text object array number hash"
    b" hashed encrypted default set unset valid disabled enabled active inactive revoked malformed"
    b" saml2 oauth oauth2 openid oidc accepted declined not is was must should has have cannot can"
    b" may will the a an and or for of in to does did are be too error failed failure mismatch"
    b" changed reset length field value parameter".split()
)
# Behind "BIC"; libphonenumber knows which countries there are.
_COUNTRIES = frozenset(phonenumbers.SUPPORTED_REGIONS)
# Accounts that belong to software, not to a person, and words that stand where a name would.
NO_PERSON = frozenset(
    b"root admin administrator system nobody guest test tester user users daemon www-data www nginx"
    b" apache httpd postgres postgresql mysql mariadb redis mongodb oracle sa dba git svn jenkins"
    b" ci build deploy deployer runner backup operator ftp anonymous mail postfix dovecot news uucp"
    b" cyrus lp bin sys sync games sshd ntp chrony dbus polkitd systemd messagebus docker kube k8s"
    b" hadoop hdfs yarn spark hive kafka zookeeper elastic elasticsearch logstash kibana vagrant"
    b" ubuntu debian centos fedora ec2-user pi default demo example service localsystem app api web"
    b" worker public support info unauthenticated null none unknown undefined anonymoususer -"
    b" password email name username string text required invalid missing empty id".split()
)
_VARIABLE = re.compile(
    rb"\$\{?[A-Za-z_][A-Za-z0-9_.:-]*\}?|%\(?[A-Za-z_]*\)?[sdr]|\{\{?[A-Za-z0-9_. ]*\}?\}?"
    rb"|%[A-Z_]+%|<[a-z_ -]{1,32}>|\[[A-Za-z _]{1,20}\]?|[*.x#_-]{3,}|:[a-z_]+"
)
_IDENTIFIER_PATH = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_NEXT_PAIR = re.compile(
    rb"[,;)\]}]+(?=\s|\Z)|%26|,(?=\s*[\"']?[A-Za-z_][A-Za-z0-9_.-]{0,40}[\"']?[=:])"
)
_PARSER_BEFORE = re.compile(rb"(?i)\b(?:unexpected|illegal) token: \Z")
_HOST_WORDS = frozenset(
    b"ip ec host dyn dynamic static pool client user dsl adsl vdsl cable cust customer cpe ppp p c"
    b" node broadband mobile dhcp nat ns dip".split()
)
# Words of their own: as a cue they need a sign, not only a space, between them and the number.
_WEAK_CUE_BEFORE = re.compile(rb"(?i)\b(?:document|dl|sin|pass|dea|npi|mbi|cnp|tin)\s{1,2}\Z")
_CALL_BEFORE = re.compile(rb"(?i)\b(?:call|dial|dialing|sms|cell|mobile?)\s{1,2}\Z")
_DIRECTORY_BEFORE = re.compile(rb"(?i)\b(?:old)?pwd=\Z")
_VERSION_BEFORE = re.compile(
    rb"(?i)(?:(?:\bv|\bver(?:sion)?|\brelease|\bbuild|\brev(?:ision)?|\boid|\bassembly|\bfirmware)"
    rb"[\s\"'.=:/#-]{0,4}"
    rb"|\b(?:up|down)grad(?:ed?|ing)\b[^\r\n]{0,32}\s(?:from|to)\s)\Z"
)
_BETWEEN_VERSION = b" \t\n\r\f\v\"'.=:/#-"
_VERSION_ENDS = frozenset(bytes((byte,)) for byte in b"vrnedymoVRNEDYMO")
_PRE_RELEASE = re.compile(
    rb"(?i)[-_+](?:alpha|beta|rc|snapshot|dev|release|final|ga|pre|sp|hotfix|build)"
)
_PACKAGE = re.compile(rb"(?i)\.(?:tgz|tar|zip|jar|whl|gz|deb|rpm|exe|msi|dll|so|js|css)\b")
_SCALED_IMAGE = re.compile(rb"[0-9](?:\.[0-9])?x\.[A-Za-z]{2,5}")
_PACKAGE_VERSION = re.compile(rb"[0-9]+(?:\.[0-9]+)+[A-Za-z0-9.-]*\.(?:tgz|gz|zip|js|mjs|css|whl)")
_COMPARED = re.compile(rb"==\s?[\"']?\Z")
_CALLED = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*[(\[{]")
_NO_WORD = re.compile(rb"[^A-Za-z0-9_]+")
_HANDLE = re.compile(rb"0x[0-9a-fA-F]{1,16}")
_ABSOLUTE = re.compile(rb"/|[A-Za-z]:\\")
_SENTENCE_AFTER = re.compile(rb"[ ][A-Za-z]{1,20}(?:[ .,;!?]|\Z)")
_CAMEL = re.compile(rb"[a-z][A-Z]")
_BBAN = re.compile(r"([0-9]+)!([nac])")
_BBAN_CLASSES = {"n": "[0-9]", "a": "[A-Z]", "c": "[0-9A-Z]"}
_BASE_36 = str.maketrans({chr(ord("A") + n): str(n + 10) for n in range(26)})
_PRODUCT_BEFORE = re.compile(rb"(?:\A|[\s(;\"'])[A-Z][A-Za-z]{1,24}/\Z")


def email(data: bytes, start: int, end: int) -> Span | None:
    """Refuse file names and package versions that look like addresses."""
    value = data[start:end]
    local, _, domain = value.rpartition(b"@")
    # icon@2x.png, lib@1.2.tgz; most domains begin with a letter
    if domain[:1].isdigit() and (
        _SCALED_IMAGE.fullmatch(domain) or _PACKAGE_VERSION.fullmatch(domain)
    ):
        return None
    if local.lower() in {b"git", b"hg", b"svn"} and data[end : end + 1] in {b":", b"/"}:
        return None  # git@host:path names a repository
    return start, end


def ipv4(data: bytes, start: int, end: int) -> Span | None:
    """Accept four numbers up to 255 that are no version, netmask, loopback or unspecified."""
    try:
        # `inet_aton` reads 0x.. as hex and 0.. as octal; people pad with zeros. Either is meant.
        numbers = [
            int(part, 16) if part[:2] in {b"0x", b"0X"} else int(part)
            for part in data[start:end].replace(b"-", b".").split(b".")
        ]
    except ValueError:
        return None
    if len(numbers) != 4 or max(numbers) > 255:  # noqa: PLR2004
        return None
    is_netmask = numbers[:2] == [255, 255]
    if numbers[0] == 127 or numbers[1:] == [0, 0, 0] or is_netmask:  # noqa: PLR2004
        return None
    before, after = data[max(0, start - 40) : start], data[end : end + 12]
    if _PRE_RELEASE.match(after) or (before[-1:] in {b"-", b"_"} and _PACKAGE.match(after)):
        return None  # 1.2.3.4-beta, lib-1.2.3.4.tgz
    if after[:3] == b" (+" and before[-1:] == b"/":
        return None  # a crawler: name/1.2.3.4 (+https://...)
    if before[-1:] == b"/" and data[end : end + 1] != b":" and _PRODUCT_BEFORE.search(before):
        return None  # Chrome/120.0.1.2
    # Most words are none of those, which shows in their last letter.
    word = before.rstrip(_BETWEEN_VERSION)
    is_version = word[-1:] in _VERSION_ENDS and _VERSION_BEFORE.search(before)
    return None if is_version else (start, end)


def ipv6(data: bytes, start: int, end: int) -> Span | None:
    """Accept what `inet_pton` reads, unless it could as well be code (``ad::``, ``a::b``)."""
    text = re.sub(rb"%(?:25)?3[Aa]", b":", data[start:end])
    candidate = text.rstrip(b".")
    if candidate.endswith(b":") and not candidate.endswith(b"::"):
        candidate = candidate[:-1]
    try:
        packed = inet_pton(AF_INET6, candidate.decode("ascii"))
    except (OSError, ValueError):
        return None
    if int.from_bytes(packed, "big") <= 1:
        return None  # :: and ::1
    if data[end : end + 1] == b":" or data[end : end + 1].isalnum():
        return None  # a longer run: a fingerprint
    first = candidate.partition(b":")[0]
    has_digit = any(48 <= byte <= 57 for byte in candidate)  # noqa: PLR2004
    is_usual = (
        (len(first) == 4 and has_digit)  # noqa: PLR2004
        or first == b"64"
        or (not first and len(candidate) > len("::ffff"))
    )
    if b"::" in candidate and not is_usual:
        return None
    # What was cut off the end (a full stop) stays in the text.
    return start, end - (len(text) - len(candidate))


def mac(data: bytes, start: int, end: int) -> Span | None:
    """Refuse all zeros, all ones, and parts of longer runs."""
    text = re.sub(rb"(?i)%3a", b":", data[start:end])
    digits = re.sub(rb"[^0-9A-Fa-f]", b"", text).lower()
    if digits in {b"0" * 12, b"f" * 12}:
        return None
    if data[start + 4 : start + 5] == b".":
        # Four digits, four digits, four digits: a part of an OID or a version as well.
        is_called_so = re.search(rb"(?i)mac|hw|arp|ether", data[max(0, start - 24) : start])
        if data[end : end + 1] == b"." and data[end + 1 : end + 2].isalnum():
            return None
        return (start, end) if is_called_so or not digits.isdigit() else None
    if data[end : end + 1] in {b":", b"-"} and data[end + 1 : end + 2].isalnum():
        return None
    return start, end


def card(data: bytes, start: int, end: int) -> Span | None:
    """Find the part of a run of digits that has a brand's prefix and length and passes Luhn."""
    text = data[start:end].replace(b"%20", b"   ")  # as long as before, so that offsets hold
    groups = [(match.start() + start, match.end() + start)
              for match in _DIGIT_GROUP.finditer(text)]  # fmt: skip
    before = data[max(0, start - 40) : start]
    if _SERIAL_BEFORE.search(before) and not _CARD_BEFORE.search(before):
        return None
    if len(groups) == 1:
        # 17 to 19 digits in a row are mostly moments, offsets and ids.
        if end - start > 16 and not _CARD_BEFORE.search(before):  # noqa: PLR2004
            return None
        return (start, end) if _is_card(data[start:end]) else None
    sizes = tuple(stop - begin for begin, stop in groups)
    for first, last in _windows(len(groups)):
        shape = sizes[first:last]
        if shape in _CARD_SHAPES or (len(shape) == 1 and shape[0] >= _MIN_CARD_DIGITS):
            begin, stop = groups[first][0], groups[last - 1][1]
            if _is_card(b"".join(data[a:b] for a, b in groups[first:last])):
                return begin, stop
    return None


@cache
def _windows(count: int) -> tuple[Span, ...]:
    """Give the parts of so many groups that can be a card, the longest first."""
    return tuple(
        (first, first + length)
        for length in range(min(count, 5), 0, -1)
        for first in range(count - length + 1)
    )


def _is_card(digits: bytes) -> bool:
    return _CARD_BRAND.fullmatch(digits) is not None and luhn.is_valid(digits.decode("ascii"))


def iban_number(data: bytes, start: int, end: int) -> Span | None:
    """Accept the part from the start that fits its country and ISO 7064 mod 97."""
    places = [match.start() for match in _ALNUM.finditer(data, start, end)]
    compact = data[start:end].translate(None, _NO_ALNUM)
    # Numbers of a country are all of one length, so no other part needs a look.
    country = compact[:2].decode("ascii").upper()
    form = _iban_form(country)
    if form is None or form.length > len(compact):
        return None
    stop = places[form.length - 1] + 1
    number = compact[: form.length].decode("ascii").upper()
    is_iban = (
        not data[stop : stop + 1].isalnum()
        and int((number[4:] + number[:4]).translate(_BASE_36)) % 97 == 1
        and form.bban.fullmatch(number, 4) is not None
        and (form.national is None or form.national.is_valid(number))
    )
    return (start, stop) if is_iban else None


class _Iban(NamedTuple):
    """What is true of all numbers of a country.

    Attributes:
        length: Characters. bban: Form of what stands behind the check digits. national: The module
            of stdnum that checks the country's own digits, or None.
    """

    length: int
    bban: re.Pattern[str]
    national: Any


@cache
def _iban_form(country: str) -> _Iban | None:
    """Read a country's form in stdnum's registry; `iban.is_valid` reads it anew for each number."""
    structure = numdb.get("iban").info(country)[0][1].get("bban", "")
    parts = [(int(size), _BBAN_CLASSES[sort]) for size, sort in _BBAN.findall(structure)]
    length = sum(size for size, _ in parts) + len("DE89")
    if not 15 <= length <= 34:  # noqa: PLR2004 -- ISO 13616: no country has a longer or shorter one
        return None
    bban = re.compile("".join(f"{allowed}{{{size}}}" for size, allowed in parts))
    return _Iban(length, bban, get_cc_module(country.lower(), "iban"))


def phone(data: bytes, start: int, end: int) -> Span | None:
    """Accept an international number that libphonenumber calls valid; drop groups behind it."""
    text = data[start:end].decode("utf-8", "replace")
    # As long as before, so that offsets hold.
    text = text.replace("%2B", "  +").replace("%2b", "  +").replace("%20", "   ")
    stop = len(text)
    for _ in range(4):
        candidate = text[:stop].rstrip(" ().-/").lstrip()
        if candidate.startswith("00"):
            candidate = f"+{candidate[2:]}"
        try:
            number = phonenumbers.parse(candidate.replace("(0)", ""))
        except phonenumbers.NumberParseException:
            return None
        if phonenumbers.is_valid_number(number):
            return start, start + len(text[:stop].rstrip(" (.-/").encode())
        stop = max(text.rfind(mark, 0, stop) for mark in " /-(")
        if stop < _MIN_PHONE_DIGITS:
            break
    return None


def phone_by_cue(data: bytes, start: int, end: int) -> Span | None:
    """Accept what a cue calls a phone number if its digits are as many as one has."""
    value = data[start:end]
    digits = sum(48 <= byte <= 57 for byte in value)  # noqa: PLR2004
    if not _MIN_PHONE_DIGITS - 1 <= digits <= _MAX_PHONE_DIGITS:
        return None
    if re.fullmatch(rb"(?:19|20)[0-9]{2}[-./][0-9]{2}[-./][0-9]{2}.*", value):
        return None  # a date
    if (
        _CALL_BEFORE.search(data[max(0, start - 12) : start])
        and value.isdigit()
        and value[:1] != b"0"
    ):
        return None  # call 123456 bytes
    return start, end


def de_idnr(data: bytes, start: int, end: int) -> Span | None:
    """Accept a German tax identification number by its check digit and digit counts."""
    return (start, end) if idnr.is_valid(data[start:end].decode("ascii", "replace")) else None


def ch_ahv(data: bytes, start: int, end: int) -> Span | None:
    """Accept a Swiss AHV number by its EAN check digit."""
    digits = re.sub(rb"[^0-9]", b"", data[start:end]).decode("ascii")
    return (start, end) if ean.is_valid(digits) else None


def at_vnr(data: bytes, start: int, end: int) -> Span | None:
    """Accept an Austrian insurance number; its weak check digit needs a cue besides."""
    digits = re.sub(rb"[^0-9]", b"", data[start:end]).decode("ascii")
    return (start, end) if vnr.is_valid(digits) else None


def es_dni(data: bytes, start: int, end: int) -> Span | None:
    """Accept a Spanish identity number, of a citizen or a foreigner, by its check letter."""
    text = data[start:end].decode("ascii", "replace")
    return (start, end) if dni.is_valid(text) or nie.is_valid(text) else None


def it_cf(data: bytes, start: int, end: int) -> Span | None:
    """Accept an Italian tax code by its check letter and its date."""
    text = data[start:end].decode("ascii", "replace")
    return (start, end) if codicefiscale.is_valid(text) else None


def fr_nir(data: bytes, start: int, end: int) -> Span | None:
    """Accept a French insurance number by its key mod 97."""
    return (start, end) if nir.is_valid(data[start:end].decode("ascii", "replace")) else None


def dated_id(data: bytes, start: int, end: int) -> Span | None:
    """Accept numbers with a date or a check digit inside, by the way they are separated.

    FI ``131052-308T``, SE ``850730-1234``, BE ``85.07.30-033.28``,
    AT ``1237 010180``, DE ``12 010180 M 123``, GB ``QQ 12 34 56 C``, BR ``390.533.447-05``.
    """
    text = data[start:end].decode("ascii", "replace")
    if text[:1].isalpha():
        return start, end  # GB: letters and gaps are shape enough
    if text[2:3] == ".":
        return (start, end) if nn.is_valid(text) else None
    if text[3:4] == ".":
        return (start, end) if cpf.is_valid(text) else None
    if text[4:5] == " ":
        return (start, end) if vnr.is_valid(text.replace(" ", "")) else None
    if len(text) > 9 and any(char.isalpha() for char in text[7:10]):  # noqa: PLR2004
        return (start, end) if _is_day_month(text.replace(" ", "")[2:6]) else None
    if text[-1].isalpha() or text[6:7] in "+ABCDEF":
        return (start, end) if hetu.is_valid(text) else None
    digits = text.partition("-")[0][-6:]
    # SE: year, month, day, and a check digit. DK and LV look the same without one: by cue only.
    is_date = _is_day_month(digits[4:6] + digits[2:4])
    return (start, end) if is_date and luhn.is_valid(digits + text[-4:]) else None


def _is_day_month(digits: str) -> bool:
    return digits.isdigit() and 1 <= int(digits[:2]) <= 31 and 1 <= int(digits[2:]) <= 12  # noqa: PLR2004


def bic(data: bytes, start: int, end: int) -> Span | None:
    """Accept a bank's code by its country."""
    country = data[start + 4 : start + 6].decode("ascii", "replace")
    return (start, end) if country in _COUNTRIES else None


def us_ssn(data: bytes, start: int, end: int) -> Span | None:
    """Refuse area, group and serial numbers that were never given out."""
    return (start, end) if ssn.is_valid(data[start:end].decode("ascii", "replace")) else None


def ipv4_in_name(data: bytes, start: int, end: int) -> Span | None:
    """Accept an address in a host's name; refuse dates, times and steps that look like one."""
    text = re.sub(rb"_", b"-", data[start:end])
    if ipv4(text, 0, len(text)) is None:
        return None
    word = re.search(rb"([A-Za-z]{1,24})[-._]?\Z", data[max(0, start - 26) : start])
    if word is None or word[1].lower() in _HOST_WORDS:
        return start, end
    numbers = [int(part) for part in re.split(rb"[-.]", text)]
    # After any other word: not what could be a date with an hour, or a version.
    return (start, end) if sum(number > 59 for number in numbers) >= 1 and numbers[0] > 9 else None  # noqa: PLR2004


def phone_national(data: bytes, start: int, end: int) -> Span | None:
    """Accept a number without country if it is one in the United States or in Germany."""
    text = data[start:end].decode("ascii", "replace")
    region = "DE" if text.lstrip("(")[:1] == "0" else "US"
    try:
        number = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return None
    return (start, end) if phonenumbers.is_valid_number(number) else None


def edged(data: bytes, start: int, end: int) -> Span | None:
    """Refuse the middle of a longer word."""
    is_inside = (start and data[start - 1 : start].isalnum()) or data[end : end + 1].isalnum()
    return None if is_inside else (start, end)


def numbered(data: bytes, start: int, end: int) -> Span | None:
    """Accept an identifier after a cue if it has at least four digits."""
    value = data[start:end]
    for cut in range(len(value), 4, -1):
        # A date or a duration behind the number is not part of it; a unit ends it.
        if value[cut - 1 : cut].isalnum() and not data[start + cut : start + cut + 1].islower():
            break
    else:
        return None
    digits = sum(48 <= byte <= 57 for byte in value[:cut])  # noqa: PLR2004
    is_document = digits > 1 and len(value) > 7 and value.isalnum()  # noqa: PLR2004 - C01XTMVZ2
    if _WEAK_CUE_BEFORE.search(data[max(0, start - 12) : start]):
        return None
    too_few = digits < 4 and not is_document  # noqa: PLR2004
    if too_few or re.match(rb"(?:19|20)[0-9]{2}-[01][0-9]-[0-3][0-9]", value):
        return None
    return start, start + cut


def basic(data: bytes, start: int, end: int) -> Span | None:
    """Accept Base64 of ``user:password``, also cut off."""
    text = data[start:end].replace(b"-", b"+").replace(b"_", b"/").rstrip(b"=")
    try:
        plain = base64.b64decode(text[: len(text) // 4 * 4] or b"!", validate=True)
    except (binascii.Error, ValueError):
        return None
    printable = all(byte >= 32 for byte in plain)  # noqa: PLR2004
    return (start, end) if printable and (b":" in plain or len(text) >= 24) else None  # noqa: PLR2004


def opaque(data: bytes, start: int, end: int) -> Span | None:
    """Accept what is no word of a sentence: it has a digit, mixed case inside, or great length."""
    value = data[start:end].rstrip(b".,;:")
    return (start, start + len(value)) if value and _is_opaque(value) else None


def _is_opaque(value: bytes) -> bool:
    if value.lower() in _PROSE or _VARIABLE.fullmatch(value):
        return False
    if any(48 <= byte <= 57 for byte in value):  # noqa: PLR2004
        return True
    if _CAMEL.search(value) and not value[:1].isupper():
        return True
    return len(value) >= 24 and re.search(rb"[_-]", value) is None  # noqa: PLR2004


def secret(data: bytes, start: int, end: int) -> Span | None:
    """Accept the value of a key that names a secret; refuse prose, code and variables.

    ``password: must contain 8 characters``, ``password=password`` and ``token = read()`` stay.
    """
    value = data[start:end]
    before = data[max(0, start - 60) : start]
    quoted = before[-1:] in {b'"', b"'"}
    if not quoted:
        if (cut := _NEXT_PAIR.search(value)) and cut.start() > 0:
            value = value[: cut.start()]
        value = value.rstrip(b".,)]}") if len(value) > 1 else value
    if not value or _VARIABLE.fullmatch(value):
        return None
    if _COMPARED.search(before) and not _is_opaque(value):
        return None  # a comparison in code
    if value.lower() in (_NO_VALUE if quoted else _PROSE):
        return None
    end = start + len(value)
    if not quoted and _is_code_or_prose(data, before, value, end):
        return None
    return start, end


def argument(data: bytes, start: int, end: int) -> Span | None:
    """Accept the argument of an option; refuse the sentence that explains the option."""
    value = data[start:end].rstrip(b"\"',;)]")
    if not value or _VARIABLE.fullmatch(value) or value.lower() in _PROSE:
        return None
    return start, start + len(value)


def element(data: bytes, start: int, end: int) -> Span | None:
    """Accept the content of an element that names a secret."""
    value = data[start:end].strip()
    return (
        None if not value or value.lower() in _PROSE or _VARIABLE.fullmatch(value) else (start, end)
    )


def weak_secret(data: bytes, start: int, end: int) -> Span | None:
    """Accept the value of a short key (``pass``, ``pin``) if it looks like no word and no count."""
    found = secret(data, start, end)
    if found is None:
        return None
    value = data[found[0] : found[1]]
    key = re.search(rb"([A-Za-z]+)[^A-Za-z0-9]*\Z", data[max(0, start - 40) : start])
    if value.isdigit():
        is_code = key is not None and key[1].lower() in {b"pin", b"tan", b"puk"}
        return found if is_code and len(value) >= 4 else None  # noqa: PLR2004
    if re.fullmatch(rb"[0-9.]+(?:ms|s|%|kb|mb|gb)?", value.lower()):
        return None
    before = data[max(0, start - 40) : start]
    is_password = key is not None and key[1].lower() in {b"pass", b"pw", b"psw"}
    # Code assigns with spaces, or names to names; a configuration and a dump do not.
    if is_password and before[-1:] in {b'"', b"'", b"=", b"(", b">"}:
        return found if b"_" not in value and b"." not in value else None
    if is_password and before[-3:] == b"=> ":
        return found
    return found if _is_opaque(value) or re.search(rb"[!$*?@#~]", value) else None


def prose_secret(data: bytes, start: int, end: int) -> Span | None:
    """Accept a word behind a cue if no sentence has such a word."""
    value = data[start:end].rstrip(b".,;:")
    if not value or _VARIABLE.fullmatch(value) or value.lower() in _PROSE:
        return None
    before = data[max(0, start - 40) : start]
    if re.search(rb"(?i)(?:unexpected|illegal|invalid) token:? [\"'`]?\Z", before):
        return None
    is_quoted = data[start - 1 : start] in {b'"', b"'", b"`"}
    has_digit = any(48 <= byte <= 57 for byte in value)  # noqa: PLR2004
    if value.isdigit():
        return (
            (start, start + len(value))
            if re.search(rb"(?i)(?:code|otp|pin|tan)\W", before)
            else None
        )
    if re.fullmatch(rb"(?:0x)?[0-9a-f]{1,4}|v?[0-9]+(?:[.,][0-9]+)*[a-z%]{0,3}", value):
        return None
    is_mixed = has_digit and any(chr(byte).isalpha() for byte in value)
    if re.fullmatch(rb"[0-9 -]+", value):
        return start, start + len(value)
    is_shouted = re.search(rb"[a-z][A-Z]|[!$#%&*?@~^]", value[:-1]) is not None
    if is_quoted and re.search(rb"(?i)pass|kennwort", before):
        return start, start + len(value)
    return (start, start + len(value)) if is_mixed or is_shouted else None


def parameter(data: bytes, start: int, end: int) -> Span | None:
    """Refuse a parameter whose value is a variable or a placeholder of a document."""
    return None if _VARIABLE.fullmatch(data[start:end]) else (start, end)


def _is_code_or_prose(data: bytes, before: bytes, value: bytes, end: int) -> bool:
    after = data[end : end + 40]
    if _CALLED.match(value + after[:1]):
        return True  # token = read()
    if _IDENTIFIER_PATH.fullmatch(value):
        key = _NO_WORD.split(before.rstrip(b" =:\"'>"))[-1].lower()
        name = value.rpartition(b".")[2].lower()
        if (key and key.endswith(name)) or (
            len(key) > 3 and name.endswith(key.rpartition(b"_")[2])  # noqa: PLR2004
        ):
            return True  # password=password, password=self.password, token=current_token
        if value in {b"await", b"self", b"yield", b"lambda", b"new", b"function"}:
            return True
    if _HANDLE.fullmatch(value):
        return True  # a handle, not a credential
    if _PARSER_BEFORE.search(before) and len(value) < 16:  # noqa: PLR2004
        return True  # unexpected token: punc
    if _DIRECTORY_BEFORE.search(before) and _ABSOLUTE.match(value):
        return True  # PWD=/srv/app
    if before.rstrip(b" ")[-1:] == b":" and value.isalpha() and value.islower():
        # After a colon a plain word with more plain words behind it is a sentence.
        return _SENTENCE_AFTER.match(after) is not None
    return False


def vendor_key(data: bytes, start: int, end: int) -> Span | None:
    """Refuse words joined with hyphens or underscores, and the middle of a longer word."""
    value = data[start:end].rstrip(b".=-_:/+")
    if start and (data[start - 1 : start].isalnum() or data[start - 1 : start] == b"_"):
        return None
    # After a prefix of up to 12 characters something random: ten in a row as no word has them.
    for run in re.findall(rb"[0-9A-Za-z]{10,}", value[3:]):
        has_digit = any(48 <= byte <= 57 for byte in run)  # noqa: PLR2004
        if (has_digit and not run.isdigit()) or len(re.findall(rb"[a-z][A-Z]", run)) > 1:
            return start, start + len(value)
    return None


def identity(data: bytes, start: int, end: int) -> Span | None:
    """Refuse ids that are words (``user_id no-such-row``) and parts of longer ones."""
    value = data[start:end]
    if data[end : end + 1].isalnum() or value.startswith(b"0x"):
        return None
    digits = sum(48 <= byte <= 57 for byte in value)  # noqa: PLR2004
    return (start, end) if digits >= (1 if len(value) > 7 else 2) else None  # noqa: PLR2004


def identity_word(data: bytes, start: int, end: int) -> Span | None:
    """Accept a number behind a word for a person, unless it counts or is a status."""
    value, after = data[start:end], data[end : end + 12]
    if re.match(
        rb"[.,:][0-9]|(?: of |/| ?(?:ms|s|kb|mb|min|times|items|rows|%))(?:[0-9]|\b)", after.lower()
    ):
        return None
    is_status = len(value) == 3 and (after[:1] == b":" or value[:1] in b"45")  # noqa: PLR2004
    return None if is_status else (start, end)


def path_account(data: bytes, start: int, end: int) -> Span | None:
    """Refuse the number of a local account (``/run/user/1000``) and words with a hyphen."""
    if data[max(0, start - 10) : start].endswith(b"/run/user/"):
        return None
    return (start, end) if any(48 <= byte <= 57 for byte in data[start:end]) else None  # noqa: PLR2004


def person_name(data: bytes, start: int, end: int) -> Span | None:
    """Accept what stands behind a key for a name; refuse accounts of services, code and prose."""
    found = secret(data, start, end)
    if found is None:
        return None
    value = data[found[0] : found[1]].lower()
    return (
        None if value in NO_PERSON or value.startswith((b"$", b"?", b"%s", b"{", b"[")) else found
    )


def user_name(data: bytes, start: int, end: int) -> Span | None:
    """Refuse the directories that every machine has."""
    shared = {b"public", b"default", b"shared", b"all users", b"defaultuser0", b"..", b"."}
    return None if data[start:end].lower() in shared else (start, end)


VALIDATORS: Mapping[str, Validator] = MappingProxyType(
    {
        "argument": argument,
        "at_vnr": at_vnr,
        "basic": basic,
        "bic": bic,
        "card": card,
        "ch_ahv": ch_ahv,
        "dated_id": dated_id,
        "de_idnr": de_idnr,
        "edged": edged,
        "element": element,
        "email": email,
        "es_dni": es_dni,
        "fr_nir": fr_nir,
        "iban": iban_number,
        "identity": identity,
        "identity_word": identity_word,
        "ipv4": ipv4,
        "ipv4_in_name": ipv4_in_name,
        "ipv6": ipv6,
        "it_cf": it_cf,
        "mac": mac,
        "numbered": numbered,
        "opaque": opaque,
        "parameter": parameter,
        "path_account": path_account,
        "person_name": person_name,
        "phone": phone,
        "phone_by_cue": phone_by_cue,
        "phone_national": phone_national,
        "prose_secret": prose_secret,
        "secret": secret,
        "us_ssn": us_ssn,
        "user_name": user_name,
        "vendor_key": vendor_key,
        "weak_secret": weak_secret,
    }
)
"""By the name that ``detectors.toml`` uses."""
