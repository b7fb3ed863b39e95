"""``telemetry scrub``: a filter for whoever has a log and must hand it on."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from telemetry.cli import EXIT_NO, app
from telemetry.errors import ConfigError

__all__: list[str] = []

EXIT_REMOVED: Final = 3
_FORMS: Final = ("auto", "text", "ndjson", "envelope")


@app.command()
def scrub(
    *,
    form: Annotated[
        str, typer.Option("--as", help="What comes in: auto, text, ndjson or envelope.")
    ] = "auto",
    kind: Annotated[
        str, typer.Option(help="Record that each JSON line is an event of: error_event, …")
    ] = "",
    policy: Annotated[
        Path | None,
        typer.Option(help="Folder of a policy.", show_default="TELEMETRY_POLICY, or the shipped"),
    ] = None,
) -> None:
    """Scrub standard input to standard output: logs, JSON a line, Sentry envelopes.

    Text is redacted line by line. Of JSON, every text, number and name is redacted; with --kind,
    the record decides, and what it does not declare is gone. Items of an envelope that the policy
    has no purpose for are dropped. Identifiers are removed: there are no keys here, so no tokens.

    What was removed, by rule, stands on standard error. Exit code 3 if something was removed, 0 if
    nothing was; 1 if an envelope is broken or nobody reads the output; 2 for wrong usage.

    Examples:

      kubectl logs web-1 | telemetry scrub > for-the-vendor.log

      telemetry scrub --as ndjson < app.log.json

      telemetry scrub --kind error_event < events.ndjson

      telemetry scrub --as envelope < envelope.bin
    """
    from telemetry.dialects import Refusal  # noqa: PLC0415 - help must not wait for it
    from telemetry.filter import Filter  # noqa: PLC0415
    from telemetry.policy import load_policy, policy_dir  # noqa: PLC0415
    from telemetry.schema import load_records  # noqa: PLC0415

    if form not in _FORMS:
        raise ConfigError("there is no such form.", remedy=f"Use one of: {', '.join(_FORMS)}.")
    if kind and kind not in (kinds := sorted(load_records())):
        raise ConfigError("there is no such kind.", remedy=f"Use one of: {', '.join(kinds)}.")
    if kind and form not in ("auto", "ndjson"):
        raise ConfigError("--kind is for JSON a line.", remedy="Leave out --as.")
    loaded = load_policy(policy or policy_dir())
    running = Filter(loaded, kind=kind)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        running.run(sys.stdin.buffer, sys.stdout.buffer, form)  # type: ignore[arg-type] # checked above, and a buffered stream
    except Refusal as error:
        console.print(f"[bold red]Not an envelope:[/] {error.detail}")
        raise typer.Exit(EXIT_NO) from None
    except BrokenPipeError:
        # Nobody reads on. What was read is scrubbed; the interpreter must not flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(EXIT_NO) from None
    console.print(_summary(running.read, running.removed, running.dropped), markup=False)
    if running.removed or running.dropped:
        raise typer.Exit(EXIT_REMOVED)


def _summary(read: int, removed: Counter[str], dropped: Counter[str]) -> str:
    parts = [f"scrub: {read} read"]
    for word, counts in (("removed", removed), ("dropped", dropped)):
        if counts:
            rules = ", ".join(f"{rule} {count}" for rule, count in counts.most_common())
            parts.append(f"{counts.total()} {word} ({rules})")
    if len(parts) == 1:
        parts.append("nothing removed")
    return "; ".join(parts)
