"""Ways to write a value down that hide it from whoever looks for the value itself."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import html
import io
import json
import pickle  # noqa: TID251 - written, never read
import quopri
import unicodedata
import zlib
from base64 import a85encode, b32encode, b64encode, b85encode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import quote, quote_plus

import fastavro
import zstandard

__all__ = ["ENCODINGS"]

_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def _base58(text: str) -> str:
    number, digits = int.from_bytes(text.encode(), "big"), ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return digits


def _avro(text: str) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, {"type": "string"}, text)
    return out.getvalue()


def _each(template: str) -> Callable[[str], str]:
    return lambda text: "".join(template.format(byte) for byte in text.encode())


def _jwt(text: str) -> str:
    parts = (b'{"alg":"none"}', json.dumps({"sub": text}).encode(), b"signature")
    return ".".join(urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def _b64(data: bytes) -> str:
    return b64encode(data).decode()


ENCODINGS: Final[Mapping[str, Callable[[str], str]]] = {
    "plain": lambda text: text,
    "upper case": str.upper,
    "with zero-width spaces": "\u200b".join,
    "with soft hyphens": "\u00ad".join,
    "with dashes": "-".join,
    "with spaces": " ".join,
    "backwards": lambda text: text[::-1],
    "first half": lambda text: text[: len(text) // 2],
    "last half": lambda text: text[len(text) // 2 :],
    "first twelve": lambda text: text[:12],
    "last twelve": lambda text: text[-12:],
    "one by one": lambda text: json.dumps(list(text)),
    "base64": lambda text: _b64(text.encode()),
    "base64, shifted by one": lambda text: _b64(b"x" + text.encode()),
    "base64, shifted by two": lambda text: _b64(b"xy" + text.encode()),
    "base64, for URLs, unpadded": lambda text: urlsafe_b64encode(text.encode()).decode().strip("="),
    "base32": lambda text: b32encode(text.encode()).decode(),
    "base58": _base58,
    "base85": lambda text: b85encode(text.encode()).decode(),
    "ascii85": lambda text: a85encode(text.encode()).decode(),
    "hex": lambda text: text.encode().hex(),
    "HEX": lambda text: text.encode().hex().upper(),
    "decimal": lambda text: ", ".join(map(str, text.encode())),
    "percent": lambda text: quote(text, safe=""),
    "percent twice": lambda text: quote(quote(text, safe=""), safe=""),
    "percent three times": lambda text: quote(quote(quote(text, safe=""), safe=""), safe=""),
    "percent, each character": _each("%{:02X}"),
    "form": quote_plus,
    "html": lambda text: html.escape(text).replace("@", "&#64;"),
    "html, each character": lambda text: "".join(f"&#{ord(char)};" for char in text),
    "html, each character in hex": lambda text: "".join(f"&#x{ord(char):x};" for char in text),
    "json": lambda text: text.replace("@", "\\u0040"),
    "json, each character": lambda text: "".join(f"\\u{ord(char):04x}" for char in text),
    "json in json": lambda text: json.dumps(json.dumps({"mail": text})),
    "escaped": lambda text: text.replace("@", "\\x40"),
    "escaped, each character": _each("\\x{:02x}"),
    "octal": lambda text: text.replace("@", "\\100"),
    "octal, each character": _each("\\{:03o}"),
    "quoted-printable": lambda text: (
        quopri.encodestring(text.encode()).decode().replace("@", "=40")
    ),
    "quoted-printable, each character": _each("={:02X}"),
    "utf-7": lambda text: text.replace("@", "+AEA-"),
    "utf-16, little end": lambda text: text.encode("utf-16-le").decode("latin-1"),
    "utf-16, big end": lambda text: text.encode("utf-16-be").decode("latin-1"),
    "punycode": lambda text: f"ü{text}".encode("punycode").decode(),
    "NFD": lambda text: unicodedata.normalize("NFD", text),
    "full-width": lambda text: text.translate({code: code + 0xFEE0 for code in range(0x21, 0x7F)}),
    "Cyrillic": lambda text: text.translate(str.maketrans("aceopxy", "асеорху")),  # noqa: RUF001
    "gzip": lambda text: _b64(gzip.compress(text.encode(), mtime=0)),
    "zlib": lambda text: _b64(zlib.compress(text.encode())),
    "zstd": lambda text: _b64(zstandard.compress(text.encode())),
    "gzip in zlib in base64": lambda text: _b64(zlib.compress(gzip.compress(text.encode()))),
    "avro": lambda text: _avro(text).decode("latin-1"),
    "pickle": lambda text: pickle.dumps(text, protocol=4).decode("latin-1"),
    "jwt": _jwt,
    "md5": lambda text: hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(),
    "sha1": lambda text: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(),
    "sha256": lambda text: hashlib.sha256(text.encode()).hexdigest(),
    "sha512, in base64": lambda text: _b64(hashlib.sha512(text.encode()).digest()),
    "blake2": lambda text: hashlib.blake2b(text.encode()).hexdigest(),
    "crc32": lambda text: f"{zlib.crc32(text.encode()):08x}",
    "hmac under an empty key": lambda text: hmac.new(b"", text.encode(), "sha1").hexdigest(),
}
"""By name. LZ4 stores a text that repeats nothing as it is, which is ``plain``."""
