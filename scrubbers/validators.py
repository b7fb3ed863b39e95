"""Second looks at what a pattern found: checksums, ranges, and whether a word is a value at all.

A pattern says where something may stand; a validator says whether it does, and how far it reaches.
Each takes the text and a span in it (UTF-8 bytes) and returns the span to replace, or None.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from socket import AF_INET6, inet_pton
from types import MappingProxyType

import phonenumbers
from stdnum import ean, iban, luhn
from stdnum.at import vnr
from stdnum.de import idnr
from stdnum.us import ssn

__all__ = ["VALIDATORS", "Span", "Validator"]

Span = tuple[int, int]
Validator = Callable[[bytes, int, int], Span | None]

_MIN_PHONE_DIGITS = 7
_MAX_PHONE_DIGITS = 15

# All expressions here see one candidate, cut by its detector to a few hundred bytes.
_DIGIT_GROUP = re.compile(rb"[0-9]+")
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
)
# What stands where a value would, whether in quotes or not.
_NO_VALUE = frozenset(
    b"true false yes no null none nil undefined nan empty string str bytes int integer boolean bool"
    b" required redacted filtered removed hidden masked unset".split()
)
# How a sentence goes on after "password:".
_PROSE = _NO_VALUE | frozenset(
    b"missing invalid incorrect wrong expired unknown optional text object array number hash"
    b" hashed encrypted default set unset not is was must should has have cannot can may will the"
    b" a an and or for of in to does did are be too error failed failure mismatch changed reset"
    b" length field value parameter".split()
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
_DIRECTORY_BEFORE = re.compile(rb"(?i)\b(?:old)?pwd=\Z")
_VERSION_BEFORE = re.compile(
    rb"(?i)(?:\bv|\bver(?:sion)?|\brelease|\bbuild|\brev(?:ision)?|\boid|\bassembly|\bfirmware)"
    rb"[\s\"'.=:/#-]{0,4}\Z"
)
_PRODUCT_BEFORE = re.compile(rb"(?:\A|[\s(;\"'])[A-Z][A-Za-z]{1,24}/\Z")


def email(data: bytes, start: int, end: int) -> Span | None:
    """Refuse file names and package versions that look like addresses."""
    value = data[start:end]
    local, _, domain = value.rpartition(b"@")
    if re.fullmatch(rb"[0-9](?:\.[0-9])?x\.[A-Za-z]{2,5}", domain):  # icon@2x.png
        return None
    if re.fullmatch(rb"[0-9]+(?:\.[0-9]+)+[A-Za-z0-9.-]*\.(?:tgz|gz|zip|js|mjs|css|whl)", domain):
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
            for part in re.split(rb"[.-]", data[start:end])
        ]
    except ValueError:
        return None
    if len(numbers) != 4 or max(numbers) > 255:  # noqa: PLR2004
        return None
    is_netmask = numbers[:2] == [255, 255]
    if numbers[0] == 127 or numbers[1:] == [0, 0, 0] or is_netmask:  # noqa: PLR2004
        return None
    before = data[max(0, start - 40) : start]
    is_product = _PRODUCT_BEFORE.search(before) and data[end : end + 1] != b":"  # Chrome/120.0.1.2
    return None if is_product or _VERSION_BEFORE.search(before) else (start, end)


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
    digits = re.sub(rb"[^0-9A-Fa-f]", b"", data[start:end]).lower()
    if digits in {b"0" * 12, b"f" * 12}:
        return None
    if data[end : end + 1] in {b":", b"-"} and data[end + 1 : end + 2].isalnum():
        return None
    return start, end


def card(data: bytes, start: int, end: int) -> Span | None:
    """Find the part of a run of digits that has a brand's prefix and length and passes Luhn."""
    groups = [(match.start() + start, match.end() + start)
              for match in _DIGIT_GROUP.finditer(data[start:end])]  # fmt: skip
    if len(groups) == 1:
        return (start, end) if _is_card(data[start:end]) else None
    for first, last in _windows(len(groups)):
        shape = tuple(stop - begin for begin, stop in groups[first:last])
        if len(shape) == 1 or shape in _CARD_SHAPES:
            begin, stop = groups[first][0], groups[last - 1][1]
            if _is_card(b"".join(data[a:b] for a, b in groups[first:last])):
                return begin, stop
    return None


def _windows(count: int) -> Iterator[Span]:
    for length in range(min(count, 5), 0, -1):
        for first in range(count - length + 1):
            yield first, first + length


def _is_card(digits: bytes) -> bool:
    return _CARD_BRAND.fullmatch(digits) is not None and luhn.is_valid(digits.decode("ascii"))


def iban_number(data: bytes, start: int, end: int) -> Span | None:
    """Accept the longest part from the start that fits its country and ISO 7064 mod 97."""
    compact, ends = bytearray(), []
    for offset in range(start, end):
        if data[offset : offset + 1].isalnum():
            compact += data[offset : offset + 1]
            ends.append(offset + 1)
    for length in range(min(len(compact), 34), 14, -1):
        stop = ends[length - 1]
        if data[stop : stop + 1].isalnum():
            continue
        if iban.is_valid(compact[:length].decode("ascii")):
            return start, stop
    return None


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


def us_ssn(data: bytes, start: int, end: int) -> Span | None:
    """Refuse area, group and serial numbers that were never given out."""
    return (start, end) if ssn.is_valid(data[start:end].decode("ascii", "replace")) else None


def imei(data: bytes, start: int, end: int) -> Span | None:
    """Accept 15 digits that pass Luhn, or 14 or 16 without check digit."""
    digits = re.sub(rb"[^0-9]", b"", data[start:end])
    if len(digits) == 15 and not luhn.is_valid(digits.decode("ascii")):  # noqa: PLR2004
        return None
    return start, end


def numbered(data: bytes, start: int, end: int) -> Span | None:
    """Accept an identifier after a cue if it has at least four digits."""
    digits = sum(48 <= byte <= 57 for byte in data[start:end])  # noqa: PLR2004
    return (start, end) if digits >= 4 else None  # noqa: PLR2004


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
    if re.search(rb"[a-z][A-Z]", value) and not value[:1].isupper():
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
    if value.lower() in (_NO_VALUE if quoted else _PROSE):
        return None
    end = start + len(value)
    if not quoted and _is_code_or_prose(data, before, value, end):
        return None
    return start, end


def _is_code_or_prose(data: bytes, before: bytes, value: bytes, end: int) -> bool:
    after = data[end : end + 40]
    if re.match(_IDENTIFIER_PATH.pattern + rb"[(\[]", value + after[:1]):
        return True  # token = read()
    if _IDENTIFIER_PATH.fullmatch(value):
        key = re.split(rb"[^A-Za-z0-9_]+", before.rstrip(b" =:\"'>"))[-1].lower()
        if key.endswith(value.rpartition(b".")[2].lower()):
            return True  # password=password, password=self.password
    if _PARSER_BEFORE.search(before) and len(value) < 16:  # noqa: PLR2004
        return True  # unexpected token: punc
    if _DIRECTORY_BEFORE.search(before) and re.match(rb"/|[A-Za-z]:\\", value):
        return True  # PWD=/srv/app
    if before.rstrip(b" ")[-1:] == b":" and value.isalpha() and value.islower():
        # After a colon a plain word with more plain words behind it is a sentence.
        return re.match(rb"[ ][A-Za-z]{1,20}(?:[ .,;!?]|\Z)", after) is not None
    return False


def vendor_key(data: bytes, start: int, end: int) -> Span | None:
    """Refuse words joined with hyphens or underscores, and the middle of a longer word."""
    value = data[start:end].rstrip(b".=-_")
    if data[start - 1 : start].isalnum() and start:
        return None
    has_digit = any(48 <= byte <= 57 for byte in value[5:])  # noqa: PLR2004
    has_case = re.search(rb"[a-z][A-Z]|[A-Z][a-z]", value[5:]) is not None
    return (start, start + len(value)) if has_digit or has_case else None


def identity(data: bytes, start: int, end: int) -> Span | None:
    """Refuse ids that are words (``user_id no-such-row``) and parts of longer ones."""
    value = data[start:end]
    if data[end : end + 1].isalnum():
        return None
    return (start, end) if any(48 <= byte <= 57 for byte in value) else None  # noqa: PLR2004


def user_name(data: bytes, start: int, end: int) -> Span | None:
    """Refuse the directories that every machine has."""
    shared = {b"public", b"default", b"shared", b"all users", b"defaultuser0", b"..", b"."}
    return None if data[start:end].lower() in shared else (start, end)


VALIDATORS: Mapping[str, Validator] = MappingProxyType(
    {
        "at_vnr": at_vnr,
        "basic": basic,
        "card": card,
        "ch_ahv": ch_ahv,
        "de_idnr": de_idnr,
        "email": email,
        "iban": iban_number,
        "identity": identity,
        "imei": imei,
        "ipv4": ipv4,
        "ipv6": ipv6,
        "mac": mac,
        "numbered": numbered,
        "opaque": opaque,
        "phone": phone,
        "phone_by_cue": phone_by_cue,
        "secret": secret,
        "us_ssn": us_ssn,
        "user_name": user_name,
        "vendor_key": vendor_key,
    }
)
"""By the name that ``detectors.toml`` uses."""
