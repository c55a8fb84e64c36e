"""What the paper reports, each number with the place it stands at: the files of `data/paper`."""

from __future__ import annotations

from functools import cache
from typing import Any

import pandas as pd
import yaml

from abplib.core import paths, store
from abplib.core.errors import AbpError

REPORTED = "numbers reported by the paper, none measured here"
"""The source of figures and tables that show the paper's own."""

VQA = ("vqa_edit", "vqa_accuracy", "vqa_leakage")
"""The metrics of Table 1 whose mean is the VQA score of Figure 8."""


def numbers() -> dict[str, float]:
    """All of the paper's single numbers, by name."""
    return {name: entry["value"] for name, entry in _read("reported")["numbers"].items()}


def reported(name: str) -> float:
    """The paper's number called `name`, for instance `vlm_box_accuracy`.

    Raises:
        AbpError: there is no such number.
    """
    known = numbers()
    if name not in known:
        raise AbpError(f"The paper reports no {name!r}: choose from {', '.join(known)}.")
    return known[name]


def table_1() -> pd.DataFrame:
    """Table 1 (appendix C.1): one row a method and metric, in the order of print.

    Columns: method and metric (keys), name and heading (as printed), better ("lower" or "higher"),
    mean, sem, printed (the cell as it stands, four digits), bold (whether it is printed so). LPIPS
    and L2 are outside the exact box; VQA scores run from 0 to 4.
    """
    table = _read("table_1")
    rows = []
    for method, line in table["methods"].items():
        for (metric, column), cell in zip(table["metrics"].items(), line["values"], strict=True):
            mean, sem = map(float, cell.split(" ± "))
            rows.append(
                {
                    "method": method,
                    "metric": metric,
                    "name": line["name"],
                    "heading": column["heading"],
                    "better": column["better"],
                    "mean": mean,
                    "sem": sem,
                    "printed": cell,
                    "bold": column["bold"] == method,
                }
            )
    return pd.DataFrame(rows)


def figure_8() -> pd.DataFrame:
    """Figure 8's points, computed from Table 1; indexed by method, in its order.

    Columns: name (as printed), lpips, and vqa, the mean of the three VQA scores.
    """
    table = table_1()
    means = table.pivot(index="method", columns="metric", values="mean")
    names = table.drop_duplicates("method").set_index("method")["name"]
    points = names.to_frame()
    return points.assign(lpips=means["lpips"], vqa=means[list(VQA)].mean(axis=1))


def claims() -> list[dict[str, Any]]:
    """The paper's claims in its order: claim, where, and check, short, reported, why where given.

    `check` names the check of a chapter that decides it, such as `ch2.middle_final`, `short` is
    what the first page calls it, `reported` names the paper's numbers; `why` says why nothing does.
    """
    text = (paths.root() / "data" / "paper" / "claims.yaml").read_text(encoding="utf-8")
    return list(yaml.safe_load(text))


def _read(file: str) -> dict[str, Any]:
    return store.read_json(paths.root() / "data" / "paper" / f"{file}.json")


@cache
def facts() -> dict[str, Any]:
    """What planning needs to know of the paper's models, data and GPU.

    Raises:
        AbpError: the file is missing.
    """
    path = paths.root() / "data" / "paper" / "models.yaml"
    if not path.is_file():
        raise AbpError(f"{path} is missing: restore it from the repository.")
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
