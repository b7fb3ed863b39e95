"""``python -m tests.mutation``: change each rule, treatment and annotation, and see a check fail.

Examples: ``--list``; ``--only "recipients.toml heap.domain"`` (every mutant that begins so);
``--json`` for machines. Exit code 1 if a mutant survives that nobody explained.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import Counter

import structlog

from tests.mutation.run import Verdict, all_mutants, equivalent, judge


def _as_json(verdict: Verdict) -> dict[str, object]:
    return {
        "id": verdict.mutant.id,
        "killed_by": verdict.killed.check if verdict.killed else None,
        "how": verdict.killed.how if verdict.killed else None,
        "equivalent": verdict.reason or None,
        "sound": verdict.is_sound,
    }


def main() -> int:
    """Judge the mutants that were asked for, and tell."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--list", action="store_true", help="only name the mutants")
    parser.add_argument(
        "--only", metavar="ID", default="", help="only mutants whose name begins so"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object for each mutant")
    options = parser.parse_args()
    chosen = [mutant for mutant in all_mutants() if mutant.id.startswith(options.only)]
    if not chosen:
        parser.error(f"no mutant begins with {options.only!r}; see --list")
    if options.list:
        names = [json.dumps({"id": one.id}) if options.json else one.id for one in chosen]
        sys.stdout.write("\n".join(names) + "\n")
        return 0
    # Rejected identifiers are logged; here they are the point.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    counts: Counter[tuple[str, str]] = Counter()
    unsound = 0
    for verdict in judge(chosen):
        ended = verdict.killed.check if verdict.killed else "survives"
        counts[verdict.mutant.table, "changes nothing" if verdict.reason else ended] += 1
        unsound += not verdict.is_sound
        if options.json:
            sys.stdout.write(json.dumps(_as_json(verdict), ensure_ascii=False) + "\n")
        elif options.only or not verdict.is_sound:
            sys.stdout.write(f"{verdict}\n")
    if not options.json:
        for (table, ended), count in sorted(counts.items()):
            sys.stdout.write(f"{table:24} {ended:24} {count:5}\n")
        sys.stdout.write(f"{len(chosen)} mutants, {unsound} unexplained\n")
    if not options.only:
        for name in equivalent().keys() - {mutant.id for mutant in chosen}:
            sys.stderr.write(f"equivalent.toml names what is no mutant any more: {name}\n")
            unsound += 1
    return 1 if unsound else 0


if __name__ == "__main__":
    sys.exit(main())
