"""The paper's numbers, to the printed digit."""

from __future__ import annotations

import json

import pytest

from abplib.core import paths
from abplib.core.errors import AbpError
from abplib.paper import VQA, figure_8, numbers, reported, table_1

HEADINGS = ["LPIPS comp.", "L2 comp.", "VQA edit", "VQA accuracy", "VQA leakage"]
PRINTED = """
Ours             | 0.0794 ± 0.0046 | 0.0070 ± 0.0010 | 3.2550 ± 0.0964 | 3.3300 ± 0.0916 | 3.5500 ± 0.0838
Qwen Image Edit  | 0.1191 ± 0.0053 | 0.0122 ± 0.0012 | 3.1450 ± 0.0960 | 3.2250 ± 0.0988 | 3.1450 ± 0.1113
Fibo edit        | 0.2560 ± 0.0084 | 0.0181 ± 0.0013 | 2.5100 ± 0.1270 | 2.4600 ± 0.1295 | 2.1200 ± 0.1241
FLUX.2 dev       | 0.1377 ± 0.0081 | 0.0172 ± 0.0021 | 2.6100 ± 0.1129 | 2.6650 ± 0.1148 | 2.3600 ± 0.1336
Flux kontext     | 0.1847 ± 0.0123 | 0.0248 ± 0.0023 | 2.1050 ± 0.1164 | 2.5850 ± 0.1170 | 2.0850 ± 0.1374
Full description | 0.0818 ± 0.0059 | 0.0080 ± 0.0012 | 3.2050 ± 0.0991 | 3.2000 ± 0.0975 | 3.4150 ± 0.0911
Norm-AVG         | 0.0700 ± 0.0037 | 0.0065 ± 0.0009 | 2.8050 ± 0.1168 | 2.6700 ± 0.1184 | 3.4250 ± 0.0947
"""  # noqa: E501


def test_table_1_is_as_printed() -> None:
    lines = [[cell.strip() for cell in line.split("|")] for line in PRINTED.strip().splitlines()]
    table = table_1()
    assert len(table) == len(lines) * len(HEADINGS)
    assert list(table["heading"].drop_duplicates()) == HEADINGS
    for (_, rows), (name, *cells) in zip(table.groupby("method", sort=False), lines, strict=True):
        assert set(rows["name"]) == {name}
        assert list(rows["heading"]) == HEADINGS
        assert list(rows["printed"]) == cells
        written = [f"{row.mean:.4f} ± {row.sem:.4f}" for row in rows[["mean", "sem"]].itertuples()]
        assert written == cells


def test_what_is_bold_is_the_best_of_its_column() -> None:
    table = table_1()
    bold = table[table["bold"]].set_index("heading")["name"].to_dict()
    assert bold == dict(zip(HEADINGS, ["Norm-AVG"] * 2 + ["Ours"] * 3, strict=True))
    for _, column in table.groupby("metric"):
        best = column["mean"].idxmin() if set(column["better"]) == {"lower"} else None
        assert column.index[column["bold"]] == [column["mean"].idxmax() if best is None else best]
    points = table[table["metric"].isin(VQA)]["mean"] * reported("n_evaluation")
    assert points.to_numpy() == pytest.approx(points.round().to_numpy(), abs=1e-6)  # whole points


def test_figure_8_is_the_mean_of_the_three_scores() -> None:
    points = figure_8()
    assert list(points["name"]) == [
        line.split("|")[0].strip() for line in PRINTED.split("\n")[1:-1]
    ]
    assert points.loc["ours", ["lpips", "vqa"]].tolist() == pytest.approx([0.0794, 10.135 / 3])
    assert points.loc["norm_avg", ["lpips", "vqa"]].tolist() == pytest.approx([0.07, 8.9 / 3])
    ranked = points.sort_values("vqa", ascending=False)["name"]
    assert list(ranked)[:3] == ["Ours", "Full description", "Qwen Image Edit"]


def test_the_localization_gap_and_the_mean_drop() -> None:
    assert (reported("vlm_box_accuracy"), reported("edit_accuracy")) == (0.89, 0.575)
    gap = reported("vlm_box_accuracy") - reported("edit_accuracy")
    assert reported("localization_gap") == pytest.approx(gap) == 0.315
    assert reported("mean_layer_drop") == 0.6
    assert reported("n_methods") == table_1()["method"].nunique()
    assert reported("n_vqa_questions") == len(VQA)


def test_every_number_of_the_paper_says_where_it_stands() -> None:
    path = paths.root() / "data" / "paper" / "reported.json"
    entries = json.loads(path.read_text(encoding="utf-8"))["numbers"]
    assert all({"value", "unit", "where"} == entry.keys() for entry in entries.values())
    assert numbers()["n_train"] == numbers()["n_batches"] * numbers()["batch_size"]
    assert reported("vlm_box_accuracy") == 0.89
    with pytest.raises(AbpError, match="reports no 'vlm_accuracy'"):
        reported("vlm_accuracy")
