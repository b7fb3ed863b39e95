"""URLs and file paths, cut to what names code and not people. Owns what counts as an identifier.

Knows no route table: who has the application's own route template uses that instead.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise

__all__ = ["reduce_url"]

_CACHE_SIZE = 16_384
_MAX_LENGTH = 2_048
_MAX_SEGMENTS = 24
_ROUNDS = 5

# The expressions here have bounded repeats without nesting and see at most _MAX_LENGTH characters,
# so that this module works where RE2 has no wheel.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,31}):")
_HOST_AND_PORT = re.compile(r"[A-Za-z0-9.-]{1,253}:[0-9]{1,5}(?=[/?#]|\Z)")
# Their content is data, code or a person, and nothing before it is of use.
_CONTENT_SCHEMES = frozenset(
    {"data", "javascript", "mailto", "tel", "sms", "sip", "vbscript", "cid", "mid", "xmpp", "urn"}
)
_PLACEHOLDER = re.compile(r"<(?:id|ip|user|email|redacted|truncated)>")
_NUMBERED = re.compile(r"<[a-z_]{1,20}:[0-9]{1,4}>")
_PARAMETER = re.compile(r"[:*][A-Za-z_]{1,32}|\{[A-Za-z_:]{1,32}\}|\[[.A-Za-z_]{1,32}\]|\*{1,2}")
_WORD = re.compile(r"(?:[A-Za-z]{1,24}[0-9]{0,2})(?:[-_+][A-Za-z]{1,24}[0-9]{0,2}){0,7}")
_VERSION = re.compile(r"v?[0-9]{1,2}(?:\.[0-9]{1,3}){1,2}|v[0-9]{1,3}(?:(?:alpha|beta|rc)[0-9]?)?")
_EXTENSION = re.compile(
    r"\.(?:html?|xhtml|php|aspx?|jspx?|cgi|do|json|xml|txt|csv|pdf|css|m?js|cjs|ts|tsx|jsx|map|"
    r"png|jpe?g|gif|svg|webp|ico|woff2?|ttf|rss|atom|zip|gz|wasm|webmanifest|py|rb|go|min\.js)\Z"
)
_HEX_TAIL = re.compile(r"[-_]?(?:[0-9a-f]{5,}|[0-9A-F]{5,})\Z")
# After these a segment names a person even when it is a plain word: /users/jane.
_SUBJECTS = frozenset(
    {
        "user",
        "users",
        "u",
        "account",
        "accounts",
        "member",
        "members",
        "profile",
        "profiles",
        "people",
        "person",
        "customer",
        "customers",
        "employee",
        "employees",
        "contact",
        "contacts",
        "author",
        "authors",
        "owner",
        "owners",
        "by",
        "benutzer",
        "kunde",
        "kunden",
        "konto",
        "konten",
        "mitglied",
        "mitglieder",
        "mitarbeiter",
    }
)
# What routes put there instead of a person.
_STATIC_AFTER_SUBJECT = frozenset(
    {
        "me",
        "self",
        "current",
        "new",
        "edit",
        "create",
        "delete",
        "list",
        "search",
        "login",
        "logout",
        "signin",
        "signup",
        "register",
        "settings",
        "profile",
        "password",
        "reset",
        "invite",
        "invites",
        "import",
        "export",
        "api",
        "index",
        "home",
        "overview",
    }
)
_IP_V4 = re.compile(
    r"(?:0x[0-9A-Fa-f]{1,8}|[0-9]{1,10})(?:\.(?:0x[0-9A-Fa-f]{1,8}|[0-9]{1,10})){0,3}"
)
_IP_NAME = re.compile(r"(?:^|[.-])(?:[0-9]{1,3}[.-]){3}[0-9]{1,3}(?=[.-]|\Z)")
_HOST = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63}){0,15}\.?")
_LOOPBACK = re.compile(r"localhost|(?:[a-z0-9-]{1,63}\.)?localhost|127(?:\.[0-9]{1,3}){3}|\[::1\]")

_SLASH = r"(?:/|\\{1,4}|%2[Ff]|%5[Cc]|%252[Ff]|%255[Cc])"
# Only at a root: src/users/list.js and views/home/index.py are code, and nobody's home.
_ROOT = (
    rf"(?:^|[:!\s(\"'=,]{_SLASH}{{0,3}}|%3[Aa]|%253[Aa]|@fs|file://[^/]{{0,253}}"
    rf"|\\{{2,4}}[^\\/]{{1,64}}|{_SLASH}(?:var|export|usr|private|System/Volumes/Data|host)"
    rf"|{_SLASH}(?:mnt{_SLASH}|cygdrive{_SLASH})?[A-Za-z])"
)
_HOME = re.compile(
    rf"({_ROOT}{_SLASH}?(?i:home|users|documents(?: |%20|\+)and(?: |%20|\+)settings){_SLASH})"
    r"((?:(?!%2[Ff]|%5[Cc]|%252[Ff]|%255[Cc])[^/\\:?#\"'<>|\n]){1,64})"
)
_TILDE = re.compile(r"(^|[/\\])~([A-Za-z0-9._-]{1,64})")
_MAIL = re.compile(r"[^/\\@\s<>]{1,64}(?:@|%40)[^/\\@\s<>]{1,190}\.[A-Za-z]{2,24}(?=[/\\]|\Z)")
_USER_INFO = re.compile(r"(?<=//)[^/\\?#]{0,512}@")


def reduce_url(url: str, *, keep_path: bool = False) -> str:
    """Keep the part of a URL that names a place in the application.

    Never raises; what cannot be understood becomes ``<redacted>``. Twice is the same as once.

    Args:
        url: Absolute or relative URL, or (with `keep_path`) the path of a source file.
        keep_path: The path names code (``abs_path``, ``filename``, ``code_file``): keep it, so
            that source maps still join, but for the user's name in a home directory. Otherwise
            the path becomes a template.

    Returns:
        Scheme, host, port and path. User info, query and fragment are gone; a host that is an IP
        address is ``<ip>``, loopback stays. Of ``data:``, ``javascript:``, ``mailto:`` and the
        like only the scheme is left.

    Source:
        Art. 5(1)(c) GDPR; RFC 3986, 3; RFC 8089 for file URLs.

    >>> reduce_url("https://jane:pw@app.example.com/projects/4711/edit?token=x#top")
    'https://app.example.com/projects/<id>/edit'
    >>> reduce_url("/home/jane/app/views.py", keep_path=True)
    '/home/<user>/app/views.py'
    """
    text = str(url)
    # What no encoding can write (lone surrogates) stops no later step.
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return _reduce(text, keep_path)


@lru_cache(maxsize=_CACHE_SIZE)
def _reduce(url: str, keep_path: bool) -> str:  # noqa: FBT001 -- behind the cache, called once
    reduce = _reduce_code_path if keep_path else _reduce_location
    # A part that was taken away can bring another form to light: `C:http://…`. Once it is settled
    # no second pass, by another hop, can change it.
    for _ in range(_ROUNDS):
        reduced = reduce(url)
        if reduced == url:
            return reduced
        url = reduced
    return "<redacted>"


# A transaction is often a name of several words, a function, or a method and a path.
_WORDS = re.compile(
    r"[A-Za-z<][^/\\:?#%@&=]{0,200} [^/\\:?#%@&=]{1,200}"
    r"|[A-Za-z_]\w{0,80}(?:\.[A-Za-z_]\w{0,80}){1,12}",
    re.ASCII,
)
_METHOD_AND_PLACE = re.compile(r"([A-Z]{3,10}) +([/h].*)", re.DOTALL)


def _reduce_location(url: str) -> str:
    url = url.strip()
    # "generic WSGI request", "app.views.save": no location; the text scan sees it.
    # What that scan put there is a word too: "call <phone:1>" must not change a second time.
    if _WORDS.fullmatch(_NUMBERED.sub("x", url)):
        return url
    if match := _METHOD_AND_PLACE.fullmatch(url):
        return f"{match[1]} {_reduce_location(match[2])}"
    scheme, rest = _split_scheme(url)
    if scheme in _CONTENT_SCHEMES:
        return f"{scheme}:"
    if scheme == "blob":
        return f"blob:{_reduce_location(rest)}" if not rest.startswith("blob:") else "blob:"
    if scheme == "about":
        return "about:" + (rest if rest in {"blank", "srcdoc"} else "")
    rest = _before(rest, "?#")
    if scheme == "file":
        return "file:///" + "/".join(["<id>"] * any(part for part in rest.split("/")))
    if scheme and not rest.startswith(("//", "\\\\")):
        return "<redacted>"
    rest = rest.replace("\\", "/")
    if rest.startswith("//"):
        authority, slash, path = rest[2:].partition("/")
        origin = f"{scheme}:" * bool(scheme) + "//" + _reduce_authority(authority)
        return origin + slash + _template(path)
    if _HOST_AND_PORT.match(rest):
        authority, slash, path = rest.partition("/")
        return _reduce_authority(authority) + slash + _template(path)
    return _template(rest)


def _split_scheme(url: str) -> tuple[str, str]:
    match = _SCHEME.match(url)
    # C:\ is no scheme, and in localhost:3000 the part before the colon is a host.
    if match is None or len(match[1]) == 1 or _HOST_AND_PORT.match(url):
        return "", url
    return match[1].lower(), url[match.end() :]


def _before(text: str, marks: str) -> str:
    for mark in marks:
        text = text.partition(mark)[0]
    return text


def _reduce_authority(authority: str) -> str:
    host = authority.rpartition("@")[2].lower()
    name, port = host, ""
    if (colon := host.rfind(":")) > host.rfind("]"):
        name, port = host[:colon], host[colon:]
        if not (port[1:].isascii() and port[1:].isdigit() and len(port) <= len(":65535")):
            port = ""
    return _reduce_host(name) + port


def _reduce_host(host: str) -> str:
    if not host or _LOOPBACK.fullmatch(host) or host in {"<ip>", "<id>", "<redacted>"}:
        return host
    if host.startswith("[") or ":" in host or _IP_V4.fullmatch(host) or _IP_NAME.search(host):
        return "<ip>"
    if len(host) > 253:  # noqa: PLR2004 -- RFC 1035, 3.1
        return "<redacted>"
    if not host.isascii():
        # A name in another script is a name; what is no letter, digit or hyphen is not.
        if all(part.replace("-", "").isalnum() for part in host.split(".")):
            return host
        return "<redacted>"
    if not _HOST.fullmatch(host):
        return "<redacted>"
    return ".".join(
        "<id>" if len(label) >= 16 and _is_opaque(label) else label  # noqa: PLR2004
        for label in host.split(".")
    )


def _template(path: str) -> str:
    if len(path) > _MAX_LENGTH:
        return "<truncated>"
    segments = path.split("/")
    kept, before = [], ""
    for segment in segments[:_MAX_SEGMENTS]:
        bare = segment.partition(";")[0]
        kept.append(_reduce_segment(bare, before))
        before = bare.lower()
    if len(segments) > _MAX_SEGMENTS and kept[-1] != "<truncated>":
        kept[-1] = "<truncated>"
    return "/".join(kept)


def _reduce_segment(segment: str, before: str) -> str:
    if not segment or segment in {".", "..", ".well-known"}:
        return segment
    if _PLACEHOLDER.fullmatch(segment) or _PARAMETER.fullmatch(segment):
        return segment
    if before in _SUBJECTS and segment.lower() not in _STATIC_AFTER_SUBJECT:
        return "<id>"
    if _VERSION.fullmatch(segment):
        return segment
    stem = _EXTENSION.sub("", segment)
    # main-4f3a2b1c.js: the digest names a build, but so might another's account; no one needs it.
    return segment if _WORD.fullmatch(stem) and not _is_opaque(stem) else "<id>"


def _is_opaque(word: str) -> bool:
    """Tell random text from words: by length, digits among letters, and case that jumps."""
    plain = word.replace("-", "").replace("_", "")
    if _HEX_TAIL.search(word) and any(character.isdigit() for character in plain):
        return True
    if len(plain) >= 8 and re.fullmatch(r"[0-9a-fA-F]+", plain):  # noqa: PLR2004
        return True
    turns = sum(left.isdigit() != right.isdigit() for left, right in pairwise(plain))
    if turns > 2:  # noqa: PLR2004 -- step2of3 at most
        return True
    # camelCase turns to upper once in some six letters, base64 about every second.
    jumps = sum(left.islower() and right.isupper() for left, right in pairwise(plain))
    return jumps > 2 and jumps * 3 >= len(plain)  # noqa: PLR2004


def _reduce_code_path(path: str) -> str:
    if len(path) > _MAX_LENGTH:
        return "<truncated>"
    scheme, rest = _split_scheme(path)
    if scheme in _CONTENT_SCHEMES:
        return f"{scheme}:"
    if scheme == "blob":
        return f"blob:{_reduce_code_path(rest)}" if not rest.startswith("blob:") else "blob:"
    is_url = rest.startswith("//")
    # A file may be called `C#/x.cs`, but no source file has a question mark that anybody needs.
    path = _before(path, "?#" if is_url else "?")
    if is_url:
        path = _USER_INFO.sub("", path)
        head, _, tail = path.partition("//")
        authority, slash, after = tail.partition("/")
        if authority and scheme not in {"file", "webpack", "webpack-internal", "app"}:
            path = f"{head}//{_reduce_authority(authority)}{slash}{after}"
    path = _HOME.sub(_keep_before, path)
    path = _TILDE.sub(r"\1~<user>", path)
    return _MAIL.sub("<email>", path)


def _keep_before(match: re.Match[str]) -> str:
    return f"{match[1]}<user>"
