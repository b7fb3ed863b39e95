"""What a policy may say at most and at least, key by key: the edge is taken, one step on is not."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from telemetry.errors import PolicyError
from tests.checks.promises import loaded, shipped_tables

# File, way to the key, the last value that is taken, and the first that is not.
LIMITS: list[tuple[str, tuple[Any, ...], Any, Any]] = [
    ("addresses.toml", ("profile", "default", "v4_bits"), 24, 25),
    ("addresses.toml", ("profile", "default", "v4_bits"), 0, -1),
    ("addresses.toml", ("profile", "default", "v6_bits"), 64, 65),
    ("addresses.toml", ("profile", "default", "v6_bits"), 0, -1),
    ("treatments.toml", ("coarsen_time", "span"), 0.001, 0.0009),
    ("treatments.toml", ("coarsen_time", "span"), 86400, 86401),
    ("treatments.toml", ("shape", "body"), ["a" * 64], ["a" * 65]),
    ("treatments.toml", ("shape", "body"), ["_id.x$"], ["erika@example.org"]),
    ("treatments.toml", ("shape", "body"), ["x1"], ["1x"]),
    ("recipients.toml", ("heap", "rates", 0, "events"), 1, 0),
    ("recipients.toml", ("heap", "rates", 0, "period_s"), 0.1, 0),
    ("recipients.toml", ("heap", "label"), "ab", "a"),
    ("recipients.toml", ("heap", "label"), "a" * 12, "a" * 13),
    ("recipients.toml", ("heap", "label"), "heap2", "Heap"),
    ("recipients.toml", ("heap", "domain"), "a@b", "ab"),
    ("recipients.toml", ("heap", "domain"), "a-1@b-2", "a@b@c"),
    ("recipients.toml", ("heap", "epoch"), "quarter", "month"),
    ("recipients.toml", ("heap", "event_ids"), "original", "none"),
    ("recipients.toml", ("heap", "erasure"), "api", "never"),
    ("recipients.toml", ("heap", "retention"), "P12M", "P12M1D"),
    ("recipients.toml", ("heap", "retention"), "P365D", "P367D"),
    ("retention.toml", ("ceiling",), "P12M", "P12M1D"),
    ("retention.toml", ("class", "12m", "period"), "P12M", "P13M"),
    ("pseudonyms.toml", ("account", "namespace"), "a" * 61, "a" * 62),
    ("pseudonyms.toml", ("account", "namespace"), "app:user", "App:user"),
    ("pseudonyms.toml", ("account", "profile"), "email", "name"),
    ("events.toml", ("task created", "recurring", "type"), "number", "object_id"),
]


def changed(file: str, way: tuple[Any, ...], value: Any) -> dict[str, Any]:
    tables = {**shipped_tables(), file: copy.deepcopy(shipped_tables()[file])}
    holder = tables[file]
    for key in way[:-1]:
        holder = holder[key]
    holder[way[-1]] = value
    return tables


@pytest.mark.parametrize(("file", "way", "taken", "refused"), LIMITS)
def test_a_key_may_go_up_to_its_limit(
    file: str, way: tuple[Any, ...], taken: Any, refused: Any
) -> None:
    loaded(changed(file, way, taken))
    with pytest.raises(PolicyError) as caught:
        loaded(changed(file, way, refused))
    assert caught.value.path is not None
    assert caught.value.path.name == file


@pytest.mark.parametrize("name", ["Heap", "a" * 42, "1heap", "he ap", "erika@example.org"])
@pytest.mark.parametrize(
    "file", ["recipients.toml", "purposes.toml", "pseudonyms.toml", "addresses.toml"]
)
def test_a_name_is_a_short_word_in_small_letters(file: str, name: str) -> None:
    table = copy.deepcopy(shipped_tables()[file])
    holder = table["profile"] if file == "addresses.toml" else table
    holder[name] = next(iter(holder.values()))
    # The sorts of identifiers are a closed list.
    refused = "unknown field" if file == "pseudonyms.toml" else "regex"
    with pytest.raises(PolicyError, match=refused):
        loaded({**shipped_tables(), file: table})


@pytest.mark.parametrize(
    ("file", "way"),
    [
        ("controller.toml", ("colour",)),
        ("purposes.toml", ("marketing", "colour")),
        ("recipients.toml", ("heap", "colour")),
        ("recipients.toml", ("heap", "safeguard", "colour")),
        ("recipients.toml", ("heap", "rates", 0, "colour")),
        ("retention.toml", ("colour",)),
        ("retention.toml", ("class", "12m", "colour")),
        ("pseudonyms.toml", ("account", "colour")),
        ("treatments.toml", ("colour",)),
        ("treatments.toml", ("truncate_ip", "colour")),
        ("addresses.toml", ("profile", "default", "colour")),
        ("events.toml", ("task created", "recurring", "colour")),
        ("user_properties.toml", ("colour",)),
    ],
)
def test_a_key_that_no_file_declares_is_refused(file: str, way: tuple[Any, ...]) -> None:
    with pytest.raises(PolicyError, match="colour"):
        loaded(changed(file, way, "red"))


@pytest.mark.parametrize("key", ["domain", "label"])
def test_two_recipients_never_share_what_keeps_their_tokens_apart(key: str) -> None:
    other = shipped_tables()["recipients.toml"]["sentry"][key]
    with pytest.raises(PolicyError, match=f"{key} is that of 'heap' too") as caught:
        loaded(changed("recipients.toml", ("heap", key), other))
    assert "joined" in str(caught.value)


def test_times_need_a_default() -> None:
    with pytest.raises(PolicyError, match="has no `default`"):
        loaded(changed("treatments.toml", ("coarsen_time",), {"span": 0.001}))
