"""What is generated from the policy for people to read: the data dictionary.

``python -m telemetry.notice`` writes ``schemas/README.md``, ``--check`` tells whether it is still
true. Everything in it comes from the records and the policy that also run, and nothing else; the
same input gives the same bytes. Knows no event and no key.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from telemetry.errors import ConfigError
from telemetry.policy import Policy, Property, Recipient, load_policy, schemas_dir
from telemetry.schema import Field, Record, load_records

__all__ = ["data_dictionary", "main"]

_HEAD: Final = """\
# Data dictionary

Generated from `schemas/*.avsc` and `schemas/policy/*.toml` by `python -m telemetry.notice`; do not
edit. It lists every field that telemetry of {product} may hold, its class, and what is done to it.
What is not listed is never decoded, so it cannot leave.

| | |
|---|---|
| Controller | {controller} |
| Data protection officer | {dpo} |
| Supervisory authority | {authority} |
| Notice | {title}, {version} |
| Policy | `{digest}` (delivered events carry these digits as the tag `policy`) |
| Kept at most | {ceiling} |
"""

_CLASSES: Final = """\
**Classes.** `identifier` names a person or device; `quasi_identifier` can do so together with other
data; `free_text` may hold anything that somebody wrote; `technical` describes programs.
"""


def data_dictionary(policy: Policy, records: Mapping[str, Record], batch: Mapping[str, Any]) -> str:
    """Write the data dictionary.

    Args:
        policy: The policy that the dictionary is of.
        records: By kind, as `load_records` gives them.
        batch: ``batch.avsc`` as JSON: what a broker stores around an event.

    Returns:
        Markdown, ending with a line break.
    """
    parts = [
        _head(policy),
        _CLASSES,
        _purposes(policy),
        _recipients(policy),
        _identifiers(policy),
        *(_record(kind, record, policy) for kind, record in sorted(records.items())),
        _events(policy),
        _user_properties(policy),
        _detectors(policy),
        _batch(batch),
    ]
    return "\n".join(parts)


def _head(policy: Policy) -> str:
    return _HEAD.format(
        product=policy.controller.product,
        controller=f"{policy.controller.name}, {policy.controller.address}",
        dpo=", ".join(policy.dpo.values()),
        authority=", ".join(policy.authority.values()),
        title=policy.notice.title,
        version=policy.notice.version,
        digest=policy.digest[:12],
        ceiling=_period(policy.ceiling.months, policy.ceiling.days),
    )


def _period(months: int, days: int) -> str:
    parts = [f"{months} calendar months"] * bool(months) + [f"{days} days"] * bool(days)
    return " and ".join(parts)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def _code(text: str) -> str:
    return f"`{text}`"


def _codes(texts: Iterable[str]) -> str:
    return ", ".join(map(_code, texts))


def _purposes(policy: Policy) -> str:
    rows = [
        [
            _code(name),
            _by_language(purpose.name),
            f"Art. {purpose.basis} GDPR"
            + (f" ({_by_language(purpose.interest)})" if purpose.interest else "")
            + (", only with consent" if purpose.consent else ""),
            _codes(purpose.kinds) or "nothing yet",
            _period(
                policy.retention[purpose.retention].months, policy.retention[purpose.retention].days
            ),
            _codes(policy.recipients_of(name)) or "nobody",
            purpose.source,
        ]
        for name, purpose in policy.purposes.items()
    ]
    header = ("Purpose", "Name", "Basis", "Kinds", "Kept for", "Received by", "Source")
    return "## Purposes\n\n" + _table(header, rows)


def _by_language(words: Mapping[str, str]) -> str:
    return "; ".join(f"{language}: {text}" for language, text in sorted(words.items()))


def _recipients(policy: Policy) -> str:
    rows = []
    for name, recipient in policy.recipients.items():
        tool = recipient.safeguard
        erasure = "by its interface" if recipient.erasure == "api" else recipient.compensation
        receives = (
            f"Nothing. {recipient.refused}" if recipient.refused else _codes(recipient.purposes)
        )
        rows.append(
            [
                _code(name),
                f"{recipient.entity}, {recipient.address}",
                receives,
                f"{recipient.place}; {tool.tool}, checked {tool.checked}",
                _kept(recipient),
                erasure,
                "for good" if recipient.epoch == "rel" else "for a quarter",
                _codes(recipient.hosts),
                recipient.source,
            ]
        )
    header = (
        "Recipient",
        "Who",
        "Receives",
        "Where; transfer tool",
        "Keeps",
        "Erasure",
        "A token stays the same",
        "Hosts",
        "Source",
    )
    return (
        "## Recipients\n\nNobody else is reachable: a sink exists because it is named here.\n\n"
        + _table(header, rows)
    )


def _kept(recipient: Recipient) -> str:
    others = [f"`{kind}`: {_code(period)}" for kind, period in recipient.kept.items()]
    return "; ".join([_code(recipient.retention), *others])


def _identifiers(policy: Policy) -> str:
    rows = [
        [_code(name), _code(entry.namespace), _code(entry.profile)]
        for name, entry in policy.pseudonyms.items()
    ]
    return (
        "## Identifiers\n\nEach becomes one token per recipient; tokens of two recipients cannot "
        "be joined.\n\n" + _table(("Kind", "Namespace", "Valid ids"), rows)
    )


def _record(kind: str, record: Record, policy: Policy) -> str:
    rows = [
        [_code(path), _code(entry.privacy), _treated(entry, kind, policy), entry.doc]
        for path, entry in _leaves(record, "")
    ]
    purpose = policy.purpose_of_kind.get(kind)
    served = f"Purpose: `{purpose}`." if purpose else "Off: no purpose names it."
    return f"## Kind `{kind}`\n\n{record.doc} {served}\n\n".replace("  ", " ") + _table(
        ("Field", "Class", "What is done", "Note"), rows
    )


def _leaves(record: Record, prefix: str) -> Iterator[tuple[str, Field]]:
    """All fields that hold a value, with their path.

    ``[]`` marks the items of a list; a name that has a dot in it stands in quotes.
    """
    for entry in record.fields:
        path = prefix + (f'"{entry.wire}"' if "." in entry.wire else entry.wire)
        if entry.record is None:
            yield path + ("[]" if entry.shape == "list" else ""), entry
        else:
            many = "[]" if entry.shape == "records" else ""
            yield from _leaves(entry.record, f"{path}{many}.")


_DONE: Final = {
    "redact_text": "searched; what is found is replaced",
    "reduce_url": "reduced to a template, then searched",
    "reduce_user_agent": "reduced to browser, system and device class",
    "shape": "only names and type classes stay, never a value",
}

_NUMBERS: Final = {"long": "a whole number", "double": "a number", "boolean": "true or false"}


def _treated(entry: Field, kind: str, policy: Policy) -> str:
    """Say in words what happens to a field."""
    if entry.declared_by:
        table = "Events" if entry.declared_by == "event" else "User properties"
        return f"only declared properties: see {table} below"
    if entry.treatment == "pseudonymize":
        return f"becomes a token (`{entry.kind}`)"
    if entry.treatment == "truncate_ip":
        profile = policy.address_profile
        if profile.drop:
            return "removed"
        return f"cut to /{profile.v4_bits} (IPv4) or /{profile.v6_bits} (IPv6)"
    if entry.treatment == "coarsen_time":
        return f"rounded down to {policy.time_grain_s(kind):g} s"
    if entry.treatment == "strip":
        return _removed(entry, policy)
    if entry.treatment == "reduce_url" and entry.keep_path:
        return "path kept without the name of a home directory, then searched"
    if entry.treatment == "keep" and entry.shape == "string":
        return f"kept if it has the form `{entry.form}`, else removed"
    if entry.treatment == "keep":
        return f"kept ({_NUMBERS[entry.shape]})"
    return _DONE[entry.treatment]


def _removed(entry: Field, policy: Policy) -> str:
    if entry.known:
        return f"removed, also wherever its value stands in other text (`{entry.known}`)"
    if keys := policy.treatments.shape.get(entry.keys):
        return f"removed, but for the type classes of {_codes(keys)}"
    return "removed"


def _properties(properties: Mapping[str, Property]) -> Iterator[list[str]]:
    for name, entry in properties.items():
        yield [_code(name), _code(entry.type), _allowed(entry)]


def _allowed(entry: Property) -> str:
    if entry.type == "enum":
        return _codes(entry.values)
    if entry.type == "integer":
        return f"{entry.minimum} to {entry.maximum}"
    if entry.type == "object":
        return "an id, which becomes a token"
    if entry.type == "text":
        return f"text, searched and redacted: {entry.reason}"
    return "true or false" if entry.type == "boolean" else "any number"


def _events(policy: Policy) -> str:
    rows: list[list[str]] = []
    for event, properties in policy.events.items():
        rows += [[_code(event), *row] for row in _properties(properties)] or [
            [_code(event), "none", "", ""]
        ]
    return (
        "## Events\n\nAn analytics event that is not listed is dropped and counted.\n\n"
        + _table(("Event", "Property", "Type", "Allowed"), rows)
    )


def _user_properties(policy: Policy) -> str:
    return "## User properties\n\n" + _table(
        ("Property", "Type", "Allowed"), _properties(policy.user_properties)
    )


def _detectors(policy: Policy) -> str:
    rows = [
        [
            _code(name),
            str(row.get("class", "")),
            _code(str(row.get("replacement", ""))),
            str(row.get("source", "")),
        ]
        for name, row in policy.detector_table.get("detector", {}).items()
    ]
    return "## Detectors\n\nWhat is looked for in every text that is searched.\n\n" + _table(
        ("Detector", "Class", "Becomes", "Source"), rows
    )


def _batch(batch: Mapping[str, Any]) -> str:
    def rows(record: Mapping[str, Any], prefix: str) -> Iterator[list[str]]:
        for entry in record["fields"]:
            kind = entry["type"]
            if isinstance(kind, Mapping) and kind["type"] == "array":
                yield from rows(kind["items"], f"{prefix}{entry['name']}[].")
            else:
                yield [
                    _code(prefix + entry["name"]),
                    _code(entry["privacy"]["class"]),
                    entry.get("doc", ""),
                ]

    return f"## What a broker stores\n\n{batch['doc']}\n\n" + _table(
        ("Field", "Class", "Note"), rows(batch, "")
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the dictionary, or check it.

    Returns:
        0 if it was written or is up to date, 1 if it is out of date, 2 if the policy is unsound.
    """
    parser = argparse.ArgumentParser(prog="python -m telemetry.notice", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only tell whether it is up to date")
    parser.add_argument("--policy", type=Path, help="folder of another policy than the shipped one")
    parser.add_argument("--output", type=Path, help="where to write instead of schemas/README.md")
    options = parser.parse_args(arguments)
    output: Path = options.output or schemas_dir() / "README.md"
    try:
        batch = json.loads((schemas_dir() / "batch.avsc").read_text("utf-8"))
        # The environment may name another policy; what is committed describes the shipped one.
        policy = load_policy(options.policy or schemas_dir() / "policy")
        text = data_dictionary(policy, load_records(), batch)
    except ConfigError as error:
        sys.stderr.write(f"Cannot write the data dictionary: {error}\n")
        return 2
    if not options.check:
        output.write_text(text, "utf-8")
    elif not output.is_file() or output.read_text("utf-8") != text:
        sys.stderr.write(
            f"{output} does not say what the schemas and the policy say. "
            "Run: python -m telemetry.notice; then commit the file with the change.\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
