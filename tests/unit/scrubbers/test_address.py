from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from scrubbers import AddressError, AddressProfile, RuleError, truncate_ip

_VECTORS = tomllib.loads(
    (Path(__file__).parents[2] / "vectors" / "addresses.toml").read_text(encoding="utf-8")
)["vectors"]


@pytest.mark.parametrize(("address", "default", "ga", "strict"), _VECTORS)
def test_an_address_keeps_its_network_only(
    address: str, default: str, ga: str, strict: str
) -> None:
    for profile, wanted in (("default", default), ("ga", ga), ("strict", strict)):
        if wanted == "!":
            with pytest.raises(AddressError):
                truncate_ip(address, profile=profile)
        else:
            assert truncate_ip(address, profile=profile) == wanted


@pytest.mark.parametrize("value", [3405803853, b"203.0.113.7", None, 1.5, ["203.0.113.7"]])
def test_what_is_no_text_is_no_address(value: object) -> None:
    with pytest.raises(AddressError):
        truncate_ip(value)  # type: ignore[arg-type]


def test_the_profile_drop_leaves_nothing_not_even_a_class() -> None:
    assert truncate_ip("203.0.113.7", profile="drop") == ""
    assert truncate_ip("10.0.0.1", profile="drop") == ""
    assert truncate_ip("private", profile="drop") == ""
    assert truncate_ip("", profile="drop") == ""


def test_an_output_of_a_finer_profile_gets_coarser_and_never_finer() -> None:
    assert truncate_ip(truncate_ip("203.0.113.7"), profile="strict") == "203.0.0.0/16"
    assert truncate_ip(truncate_ip("203.0.113.7", profile="strict")) == "203.0.0.0/16"
    ga = truncate_ip("2001:db8:85a3:8d3::1", profile="ga")
    assert truncate_ip(ga) == "2001:db8:8500::/40"
    assert truncate_ip("2001:db8:8500::/40", profile="ga") == "2001:db8:8500::/40"


def test_an_error_repeats_no_part_of_the_address() -> None:
    with pytest.raises(AddressError) as caught:
        truncate_ip("203.0.113.77x")
    assert "203" not in str(caught.value) + repr(caught.value)
    assert caught.value.__suppress_context__


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(RuleError, match="no address profile"):
        truncate_ip("203.0.113.7", profile="lenient")
    with pytest.raises(RuleError, match="bits"):
        AddressProfile("wide", 33, 40)


def test_a_profile_of_ones_own_cuts_where_it_says() -> None:
    assert truncate_ip("203.0.113.77", profile=AddressProfile("own", 20, 36)) == "203.0.112.0/20"
