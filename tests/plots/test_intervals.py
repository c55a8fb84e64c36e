"""Dots and bars on made-up rows, and free text on any figure: what is drawn is what was given."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import CASES
from drawn import texts
from drawn import ticks as labels
from matplotlib.figure import Figure

from abplib.plots import style
from abplib.plots.intervals import COLOURS, intervals

ROWS = pd.DataFrame(
    {
        "label": ["leftmost", "topmost"],
        "value": [0.9, 0.5],
        "low": [0.8, 0.3],
        "high": [0.95, 0.7],
        "note": ["n = 40", "n = 8"],
    }
)


def dots(figure: Figure) -> list[tuple[float, float]]:
    """The values drawn and their places, group by group."""
    marked = [line for axes in figure.axes for line in axes.lines if line.get_marker() in "oDXs"]
    return [(float(x), float(y)) for line in marked for x, y in line.get_xydata()]


def bars(figure: Figure) -> list[list[float]]:
    drawn = [line for axes in figure.axes for line in axes.lines if line.get_alpha() == 0.45]
    return [list(line.get_xdata()) for line in drawn]


def test_lines_keep_the_order_of_the_frame_and_say_n() -> None:
    figure = intervals(ROWS.assign(reference=0.8), xlabel="accurate boxes")
    (axes,) = figure.axes
    assert labels(figure) == ["leftmost", "topmost"] and axes.yaxis_inverted()
    assert texts(figure) == ["n = 40", "n = 8"]
    assert dots(figure) == [(0.9, 0), (0.5, 1)]
    assert bars(figure) == [[0.8, 0.95], [0.3, 0.7]]
    assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() != "-"][-1] == 0.8
    assert axes.get_xlabel() == "accurate boxes" and axes.get_xlim() == (0, 1)


def test_groups_share_a_line_and_an_unknown_interval_has_no_bar() -> None:
    unknown = ROWS.assign(value=[0.2, 0.3], low=np.nan, high=np.nan)
    rows = pd.concat([ROWS.assign(of="this run"), unknown.assign(of="the paper")])
    figure = intervals(rows, "of")
    (first, second, third, fourth) = dots(figure)
    assert (first[0], second[0], third[0], fourth[0]) == (0.9, 0.5, 0.2, 0.3)
    assert first[1] < 0 < third[1] and third[1] - first[1] < 0.5
    assert texts(figure)[-2:] == ["this run", "the paper"]
    assert [bar for bar in bars(figure) if np.isfinite(bar).all()] == [[0.8, 0.95], [0.3, 0.7]]
    assert labels(figure) == ["leftmost", "topmost"]
    assert len(set(COLOURS)) == len(COLOURS)


def test_a_panel_has_its_own_rows_and_reference() -> None:
    rows = pd.concat(
        [ROWS.assign(panel="hit", reference=0.1), ROWS.assign(panel="AUROC", reference=0.5)]
    ).drop(columns="note")
    figure = intervals(rows)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["hit", "AUROC"]
    assert [axes.lines[-1].get_xdata()[0] for axes in figure.axes] == [0.1, 0.5]
    assert dots(figure) == [(0.9, 0), (0.5, 1)] * 2


def test_factors_stand_on_a_logarithmic_axis_with_their_targets() -> None:
    rows = ROWS.assign(value=[2.0, 8.0], low=[1.5, 7.0], high=[3.0, 9.0], target=[3.0, np.nan])
    figure = intervals(rows, scale="factor")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    (target,) = [line for line in axes.lines if line.get_fillstyle() == "none"]
    assert target.get_xydata()[0].tolist() == [3.0, 0.0]


def test_each_seed_is_a_tick_on_its_line() -> None:
    figure = intervals(ROWS.assign(seeds=[(0.25, 0.5), ()]))
    (ticks,) = [c for c in figure.axes[0].collections if len(c.get_offsets()) == 2]
    assert ticks.get_offsets().tolist() == [[0.25, 0.0], [0.5, 0.0]]


@pytest.mark.parametrize(
    "typed", (CASES / "10-instruction-dollar/instructions.txt").read_text().splitlines()
)
def test_dollars_and_backslashes_are_drawn_as_typed(typed: str) -> None:
    figure = intervals(ROWS.assign(label=[typed, "b"], note=[typed, "b"]), xlabel=typed)
    figure.savefig(io.BytesIO(), format="svg")  # a formula here would be a ParseException
    written = [*figure.axes[0].get_yticklabels(), figure.axes[0].xaxis.label, *figure.axes[0].texts]
    shown = [text for text in written if text.get_text() == typed]
    assert len(shown) == 3 and not any(text.get_parse_math() for text in shown)


def test_a_script_that_the_machine_lacks_is_noted_once_and_warns_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(style, "_fonts", lambda lacking: {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = intervals(ROWS.assign(label=["把杯子变红", "left"], note=["🙂", "n"]))
        figure.savefig(io.BytesIO(), format="png")
    assert labels(figure) == ["□□□□□", "left"]
    assert texts(figure) == ["□", "n"]
    assert figure.get_supxlabel() == "□: a letter that no font of the machine has"


def test_a_script_that_another_font_has_is_drawn_in_it() -> None:
    other = style._letters(style.findfont("cmsy10")) | style._letters(
        style.findfont("STIXNonUnicode")
    )
    letter = max(other - style._letters(style.findfont("DejaVu Sans")))
    figure = intervals(ROWS.assign(label=[letter, "left"]))
    assert labels(figure) == [letter, "left"] and figure.get_supxlabel() == ""
    family = figure.axes[0].get_yticklabels()[0].get_fontfamily()
    assert family[0] == "DejaVu Sans" and letter in style._letters(style.findfont(family[1]))


def test_known_letters_need_no_note() -> None:
    assert intervals(ROWS.assign(label=["Größe", "κόσμος"])).get_supxlabel() == ""


def test_panels_share_one_label() -> None:
    figure = intervals(ROWS.assign(panel=["one", "two"]), xlabel="accurate boxes")
    assert figure.get_supxlabel() == "accurate boxes"
    assert [axes.get_xlabel() for axes in figure.axes] == ["", ""]
