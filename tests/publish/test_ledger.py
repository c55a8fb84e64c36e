"""The paper's claims beside what chapters decided of them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from abplib import paper
from abplib.core import paths, store
from abplib.core.errors import AbpError
from abplib.publish import ledger

CLAIMS = paper.claims()
NAMED = [told["check"] for told in CLAIMS if "check" in told]
DECIDED_IN = {
    "ch1": "book/chapters/01_localization_gap.md",
    "ch2": "abplib/sections/decodability.py",
    "ch3": "abplib/sections/decomposition.py",
    "ch4": "abplib/sections/information_flow.py",
    "ch5": "abplib/sections/editing_validation.py",
}


def ran(folder: Path, names: list[str]) -> dict[str, Path]:
    """Results of chapters that decided these checks, by an interval over two seeds."""
    found = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 200, "seeds": [0.4, 0.6]}
    checks: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for chapter, _, key in (name.partition(".") for name in names):
        decided = {"measured": "0.500 against 0", "verdict": "undecided", "found": found}
        checks[f"0{chapter[2:]}_chapter"][key] = decided
    for chapter, told in checks.items():
        (folder / chapter).mkdir()
        store.write_json(folder / chapter / "claims.json", told)
        store.mark_done(folder / chapter, seconds=41.6)
    return {chapter: folder / chapter for chapter in checks}


def test_each_claim_is_tested_or_says_why_not() -> None:
    assert len(CLAIMS) >= 25 and len({told["claim"] for told in CLAIMS}) == len(CLAIMS)
    for told in CLAIMS:
        assert ("check" in told) != ("why" in told) and told["where"]
        assert all(name in paper.numbers() for name in told.get("reported", ()))


@pytest.mark.parametrize("name", NAMED)
def test_what_a_claim_names_is_decided_somewhere(name: str) -> None:
    chapter, _, key = name.partition(".")
    assert f'"{key}"' in (paths.root() / DECIDED_IN[chapter]).read_text()


def test_claims_are_joined_with_what_was_decided(tmp_path: Path) -> None:
    rows = ledger.joined(ran(tmp_path, NAMED), "toy")
    assert [row["claim"] for row in rows] == [told["claim"] for told in CLAIMS]
    drop = next(row for row in rows if row["paper"] == {"mean_layer_drop": 0.6})
    assert (drop["verdict"], drop["low"], drop["seeds"]) == ("undecided", 0.4, [0.4, 0.6])
    assert drop["command"] == "abp chapter 03_chapter -p profile toy"
    without = [row for row in rows if row["command"] is None]
    assert {row["verdict"] for row in without} == {ledger.NOT_TESTABLE}
    assert [row["measured"] for row in without] == [t["why"] for t in CLAIMS if "why" in t]
    page = ledger.page(rows)
    assert page.count("<tr>") == 1 + len(rows) and ">0.6<" in page
    assert page.count("n = 200, 2 seeds, 42 s") == len(NAMED)


def test_the_first_page_has_what_was_decided_in_short(tmp_path: Path) -> None:
    chapters = ran(tmp_path, NAMED)
    told = ledger.strip(ledger.joined(chapters, "toy"), chapters)
    first, *rest = told.split("\n[](chapters/")[1:]
    assert first.startswith("01_chapter)\n: the VLM, asked, names") and len(rest) == 4
    assert first.rstrip().endswith('<span data-verdict="undecided">undecided</span>')
    assert told.count("\n: ") == sum("short" in claim for claim in CLAIMS)


def test_a_claim_that_nothing_decides_is_named(tmp_path: Path) -> None:
    with pytest.raises(AbpError, match=f"No chapter decides {NAMED[-1]}, which claims"):
        ledger.joined(ran(tmp_path, NAMED[:-1]), "toy")
