"""The ledger: every claim of the paper, beside what the chapters of a build decided of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from abplib import paper
from abplib.chapter import CLAIMS
from abplib.core import store, tables
from abplib.core.errors import AbpError

NOT_TESTABLE = "not testable"


def joined(ran: Mapping[str, Path], profile: str) -> list[dict[str, Any]]:
    """Each claim of `paper.claims`, in its order, as JSON values.

    Keys: claim, where (in the paper), paper (what it reports, by name), verdict, measured (in
    words, or why nothing is), short (what the first page calls it), value, low, high, n (samples),
    seeds (what each gives), profile, chapter (its number), command (which decides) and seconds
    (that it took, with what earlier steps had kept); None where there is none.

    Args:
        ran: results folders of the chapters that ran, by name.
        profile: what they ran with.

    Raises:
        AbpError: a claim names a check that no chapter makes.
    """
    decided = {
        f"ch{int(name[:2])}.{key}": {
            **check,
            "chapter": int(name[:2]),
            "command": f"abp chapter {name} -p profile {profile}",
            "seconds": (store.summary_of(place) or {}).get("seconds"),
        }
        for name, place in ran.items()
        for key, check in store.read_json(place / CLAIMS).items()
    }
    rows = []
    for told in paper.claims():
        known = {name: paper.reported(name) for name in told.get("reported", ())}
        row = {key: told.get(key) for key in ("claim", "where", "short")} | {"paper": known or None}
        check: dict[str, Any] | None = decided.get(told.get("check", ""))
        if "why" in told:
            check = {"verdict": NOT_TESTABLE, "measured": told["why"]}
        if check is None:
            raise AbpError(f"No chapter decides {told['check']}, which claims.yaml names.")
        found = dict.fromkeys(("value", "low", "high", "n", "seeds")) | (check.get("found") or {})
        keys = ("verdict", "measured", "chapter", "command", "seconds")
        about = {key: check.get(key) for key in keys}
        rows.append({**row, **about, **found, "profile": profile})
    return rows


def page(rows: list[dict[str, Any]]) -> str:
    """HTML of `book/ledger.md`: the ledger as a table."""
    shown = pd.DataFrame(
        {
            "claim": row["claim"],
            "where": row["where"],
            "paper": ", ".join(f"{number:g}" for number in (row["paper"] or {}).values()),
            "verdict": row["verdict"],
            "this run": row["measured"],
            "by": _by(row),
        }
        for row in rows
    )
    return f'<div class="abp-table">{tables.to_html(shown, "ledger", rounded=False)}</div>\n'


def strip(rows: list[dict[str, Any]], chapters: Iterable[str]) -> str:
    """MyST for the first page: what each chapter decided, in short, by the chapter's name."""
    lines = [":::{container} abp-strip"]
    for name in chapters:
        own = [r for r in rows if r["short"] and r["chapter"] == int(name[:2])]
        if own:
            lines.append(f"\n[](chapters/{name})")
        for row in own:
            verdict = row["verdict"]
            lines.append(f': {row["short"]} <span data-verdict="{verdict}">{verdict}</span>')
    return "\n".join([*lines, ":::", ""])


def _by(row: Mapping[str, Any]) -> str:
    """What decided: the chapter, on how many samples and seeds, in which time."""
    if row["chapter"] is None:
        return ""
    seeds = len(row["seeds"] or ())
    told = [
        f"chapter {row['chapter']}",
        f"n = {row['n']}" if row["n"] else "",
        f"{seeds} seeds" if seeds else "",
        f"{row['seconds']:.0f} s" if row["seconds"] else "",
    ]
    return ", ".join(filter(None, told))
