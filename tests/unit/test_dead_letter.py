"""What goes no further is readable nowhere here, and what an operator ordered is not forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from scrubbers.model import Remark
from telemetry.brokers import DEAD, SEALED, Entry
from telemetry.brokers.spool import Spool
from telemetry.dead_letter import burying, forgetting
from telemetry.errors import ConfigError
from telemetry.identity import (
    initialise_development,
    load_dead_letter_opener,
    load_dead_letter_sealer,
)
from telemetry.pipeline import _with_names_hidden
from telemetry.run import _Paused
from telemetry.testing.brokers import make_parcel

BODY = b'{"message":"what may not be read here"}'


def test_a_buried_parcel_opens_only_where_the_private_key_is(tmp_path: Path) -> None:
    initialise_development(tmp_path)
    keys = tmp_path / "keys"
    parcel = make_parcel(1, body=BODY)
    letter = burying(load_dead_letter_sealer(keys / "public.json"))(parcel, "rejected")
    assert b"may not be read" not in letter.body
    assert (letter.reason, letter.remarks, letter.event_id) == ("rejected", b"", parcel.event_id)
    private = keys / "dead-letter" / "keyset.json"
    opener = load_dead_letter_opener(private, environment="development")
    assert opener.open(letter.body, event_id=letter.event_id) == BODY


def test_without_a_key_the_original_is_forgotten() -> None:
    letter = forgetting(make_parcel(1, body=BODY), "rejected")
    assert (letter.body, letter.reason) == (b"", "rejected")


def test_parcels_dead_letters_and_counts_are_stored_together(tmp_path: Path) -> None:
    counts = {Entry("edge", "items_in"): 2}
    spool = Spool(tmp_path / "spool.sqlite3", key=bytes(32))
    spool.append(SEALED, [make_parcel(1)], counts, beside={DEAD: [make_parcel(2)]})
    spool.close()
    again = Spool(tmp_path / "spool.sqlite3", key=bytes(32))
    assert (again.pending()[SEALED], again.pending()[DEAD]) == (1, 1)
    assert again.books()[Entry("edge", "items_in")] == 2
    again.close()


def test_what_was_paused_is_known_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "paused.json"
    assert _Paused(path).read() == []
    _Paused(path).write(["sentry", "heap"])
    assert _Paused(path).read() == ["heap", "sentry"]
    path.write_bytes(b"{")
    with pytest.raises(ConfigError, match="nobody knows"):
        _Paused(path).read()


def test_the_names_of_a_map_are_hidden_once_one_of_them_is_personal() -> None:
    shown = Remark(("tags", "DE89370400440532013000"), "email", "replace", 0, 7)
    other = Remark(("message",), "email", "replace", 0, 7)
    today = Remark(("tags", "<key>"), "iban", "remove")
    assert _with_names_hidden([shown, other]) == [shown, other]
    assert _with_names_hidden([shown, other, today]) == [
        Remark(("tags", "<key>"), "email", "replace", 0, 7),
        other,
        today,
    ]
