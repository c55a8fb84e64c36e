"""What the paper reports: `data/paper/reported.json`, each number with the place it stands at."""

from __future__ import annotations

from abplib import paths, results
from abplib.errors import AbpError


def numbers() -> dict[str, float]:
    """All of the paper's numbers, by name."""
    entries = results.read_json(paths.root() / "data" / "paper" / "reported.json")["numbers"]
    return {name: entry["value"] for name, entry in entries.items()}


def reported(name: str) -> float:
    """The paper's number called `name`, for instance `vlm_box_accuracy`.

    Raises:
        AbpError: there is no such number.
    """
    known = numbers()
    if name not in known:
        raise AbpError(f"The paper reports no {name!r}: choose from {', '.join(known)}.")
    return known[name]
