"""One target under atheris: ``python -m tests.fuzz.guided TARGET [libFuzzer's own arguments]``.

Started by ``tests.fuzz``, which puts atheris on the path; it is no dependency of anything else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

import atheris


def instrument_generated(check: Callable[[bytes], None], first: bytes) -> None:
    """Instrument the code that records are compiled into, which no import brings."""
    check(first)  # compiles it, before the clock of the first input runs
    if check is not properties.PROPERTIES["body"]:
        return
    for rules in properties._schemas().all_rules:
        for name, made in list(rules.rewrite.__globals__.items()):
            if name.startswith(("rewrite_", "recheck_", "slots_")):
                atheris.instrument_func(made)


if __name__ == "__main__":
    # What is ours is instrumented while it is imported; what we call is not, which keeps it fast.
    with atheris.instrument_imports(
        include=["scrubbers", "telemetry"], enable_loader_override=False
    ):
        properties = import_module("tests.fuzz.properties")
    check = properties.PROPERTIES[sys.argv[1]]
    instrument_generated(check, next(import_module("tests.fuzz.seeds").seeds(sys.argv[1])))
    atheris.Setup([sys.argv[0], *sys.argv[2:]], check)
    atheris.Fuzz()
