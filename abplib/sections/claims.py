"""What of the paper's claims holds on a run, decided by rule over seeds and samples together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from abplib.core.stats import Interval, with_interval

HOLDS, REVERSED, UNDECIDED = "holds", "does not hold", "undecided"


@dataclass(frozen=True)
class ClaimCheck:
    """A claim of the paper beside what this run says of it."""

    key: str
    claim: str
    where: str
    """In the paper."""
    measured: str
    verdict: str
    """`HOLDS`, `REVERSED` or `UNDECIDED`."""
    found: Interval | None = None
    """What it was decided by; None where something else than an interval decided."""


def decide(interval: Interval, bound: float = 0.0, above: bool = True) -> str:
    """Of the claim that a number is above (or below) `bound`.

    It holds where the whole interval, over seeds and samples together, lies on the claim's side,
    and does not hold where it lies on the other. It is undecided where the interval takes in the
    bound or is not known (NaN), and where what two seeds give lies on either side of the bound.
    """
    sides = interval.low > bound, interval.high < bound
    if not any(sides) or len({each > bound for each in interval.seeds}) > 1:
        return UNDECIDED
    return HOLDS if sides == (above, not above) else REVERSED


def agreed(verdicts: Iterable[str]) -> str:
    """What is decided for each seed by itself: the verdict that all give, or undecided."""
    given = {*verdicts}
    return given.pop() if len(given) == 1 else UNDECIDED


def against(
    key: str,
    claim: str,
    where: str,
    differences: Mapping[str, Interval],
    *,
    above: bool = True,
    fmt: str = "+.3f",
    of: str = "",
) -> ClaimCheck:
    """Of the claim that something is above (or below) each of its rivals.

    It holds where it does by all differences, does not hold where it does not by one, and is
    undecided otherwise. Shown is the difference that goes least the claim's way.

    Args:
        differences: to each rival, by the rival's name.
        fmt: how a difference is written.
        of: what it is a difference of, written before it.
    """
    decided = {decide(difference, above=above) for difference in differences.values()}
    verdict = next(v for v in (REVERSED, UNDECIDED, HOLDS) if v in decided)
    bounds = {rival: d.low if above else -d.high for rival, d in differences.items()}
    rival = min(bounds, key=bounds.__getitem__)
    measured = f"{of}{with_interval(differences[rival], fmt)} against {rival}"
    return ClaimCheck(key, claim, where, measured, verdict, differences[rival])


def claims_table(checks: Sequence[ClaimCheck]) -> pd.DataFrame:
    """Claim, verdict, what was measured, where the paper makes the claim."""
    table = pd.DataFrame(map(asdict, checks)).set_index("claim")[["verdict", "measured", "where"]]
    return table.rename(columns={"measured": "this run", "where": "paper"})


def differences(checks: Sequence[ClaimCheck], unit: str) -> pd.DataFrame:
    """The intervals that decided, to be recorded as `difference.<key>`."""
    rows = {f"difference.{c.key}": c.found._asdict() for c in checks if c.found}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name").assign(unit=unit)
