"""Show an environment exactly the dependencies that the installed wheel declares, no others.

Usage: ``python link_dependencies.py ENVIRONMENT EXTRA``. Links them from the environment that runs
this. A dependency that is used and not declared is then missing, as it would be for a user.
"""

from __future__ import annotations

import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def _wanted(
    root: Distribution, extra: str, installed: dict[str, Distribution]
) -> dict[str, Distribution]:
    found: dict[str, Distribution] = {}
    pending = [(root, frozenset({"", extra}))]
    while pending:
        distribution, extras = pending.pop()
        for text in distribution.requires or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": name}) for name in extras):
                continue
            name = canonicalize_name(requirement.name)
            if name not in found:
                found[name] = installed[name]
                pending.append((installed[name], frozenset({"", *requirement.extras})))
    return found


def main(environment: Path, extra: str) -> None:
    """Link every top-level file and folder of the declared dependencies."""
    target = next(environment.glob("lib/python3*/site-packages"))
    (root,) = (d for d in distributions(path=[str(target)]) if d.name == "milchglas")
    installed = {canonicalize_name(d.name): d for d in distributions()}
    for distribution in _wanted(root, extra, installed).values():
        base = Path(str(distribution.locate_file("")))
        for top in {file.parts[0] for file in distribution.files or ()}:
            if top not in ("..", "__pycache__") and not (target / top).exists():
                (target / top).symlink_to(base / top)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
