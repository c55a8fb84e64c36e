"""The figures on synthetic rows: what is drawn is what was given."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from drawn import keys, texts
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from abplib import paper
from abplib.editing.methods import METHODS
from abplib.plots import decodability, scheme
from abplib.plots.editing_validation import trade_off
from abplib.plots.style import GROUPS, spread, styled
from abplib.proxies.settings import ProxyConfig, SweepSettings
from abplib.sections.decodability import GROUPS as WORDS
from abplib.sections.decodability import curve_rows, groups_of, label_of

NAMES = [*(f"layer_{layer}" for layer in range(8)), "final", "middle_prompt", "untrained.7"]
MADE_OF = groups_of(NAMES, 8, range(5, 8))
BASELINES = {"chance": 0.36, "centre_prior": 0.27, "text_only": 0.17}


def curves() -> pd.DataFrame:
    rows = [
        {"step": step, "configuration": name, "seed": seed,
         "center_error": (0.3 + 0.02 * seed) / (1 + place + step / 50)}
        for place, name in enumerate(MADE_OF)
        for step in range(20, 321, 20)
        for seed in (-1, 0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_spread_moves_only_what_collides() -> None:
    assert spread([0.0, 5.0, 2.0], 1.0) == pytest.approx([0, 5, 2])
    assert spread([1.0, 1.0], 1.0) == pytest.approx([0.5, 1.5])
    crowded = spread([3.0, 3.1, 2.9, 9.0], 0.5)
    assert np.diff(np.sort(crowded)).min() >= 0.5 - 1e-9
    assert list(np.argsort(crowded)) == [2, 0, 1, 3]


def test_learning_curves_show_each_configuration_in_its_colour() -> None:
    baselines = pd.DataFrame({"label": map(label_of, BASELINES), "value": BASELINES.values()})
    figure = decodability.learning_curves(curve_rows(curves(), MADE_OF), baselines)
    (axes,) = figure.axes
    drawn = [line for line in axes.lines if len(line.get_xdata()) > 2]
    assert len(drawn) == len(MADE_OF)
    final = curves().query("configuration == 'final'")
    bands = [c for c in axes.collections if to_hex(c.get_facecolor()[0]) == GROUPS["final"]]
    ends = bands[0].get_paths()[0].get_extents()
    assert (ends.ymin, ends.ymax) == pytest.approx(
        (final["center_error"].min(), final["center_error"].max())
    )
    final = final[final["seed"] == 0]["center_error"]
    (red,) = [line for line in drawn if to_hex(line.get_color()) == GROUPS["final"]]
    assert red.get_ydata() == pytest.approx(final)
    yellow = [line for line in drawn if to_hex(line.get_color()) == GROUPS["middle"]]
    assert len(yellow) == 3 and red.get_linewidth() > yellow[0].get_linewidth()
    assert {label_of(name) for name in (*MADE_OF, *BASELINES)} <= set(texts(figure))
    assert {WORDS[group] for group in MADE_OF.values()} <= set(texts(figure))
    assert axes.get_ylim()[0] >= 0
    assert axes.get_ylim()[1] > BASELINES["chance"]
    assert "image sides" in axes.get_ylabel()


def test_the_scheme_takes_its_sizes_from_the_configuration() -> None:
    config = ProxyConfig(state_width=111, width=36, n_queries=7, n_heads=3, n_blocks=5)
    said = " ".join(texts(scheme.architecture(config)))
    for part in ("111 wide", "7 learned queries, 36 wide", "3 heads", "× 5 blocks"):
        assert part in said
    settings = SweepSettings(n_batches=320, batch_size=64, lr=1e-3)
    said = " ".join(texts(scheme.training_scheme(settings)))
    for part in ("320 batches of 64", "0.001", "0.6\\,L_1 + 0.4", "100 steps"):
        assert part in said


def test_a_styled_function_leaves_the_style_of_others_alone() -> None:
    import matplotlib

    before = matplotlib.rcParams["axes.grid"]

    @styled
    def drawing() -> Figure:
        """Its words."""
        assert matplotlib.rcParams["axes.grid"]
        return Figure()

    drawing().savefig(io.BytesIO(), format="png")
    assert matplotlib.rcParams["axes.grid"] is before
    assert (drawing.__name__, drawing.__doc__) == ("drawing", "Its words.")


def test_figure_8_puts_every_method_at_its_point() -> None:
    points = paper.figure_8()
    figure = trade_off(points, "LPIPS")
    (axes,) = figure.axes
    drawn = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines]
    assert drawn == list(zip(points["lpips"], points["vqa"], strict=True))
    assert keys(figure) == list(points["name"])
    assert not axes.collections  # no intervals
    assert axes.get_xlabel().startswith("LPIPS, outside")


def test_measured_points_carry_their_intervals_and_the_papers_marks() -> None:
    point = {"lpips": 0.1, "lpips_low": 0.05, "lpips_high": 0.2,
             "vqa": 2.0, "vqa_low": 1.5, "vqa_high": 2.25}  # fmt: skip
    rows = pd.DataFrame([point] * len(METHODS), index=list(METHODS))
    rows["name"] = [method.label for method in METHODS.values()]
    figure = trade_off(rows, "LPIPS, of some network")
    (axes,) = figure.axes
    across, up = axes.collections[0].get_segments()[0], axes.collections[1].get_segments()[0]
    assert across.tolist() == [[0.05, 2.0], [0.2, 2.0]]
    assert up.tolist() == [[0.1, 1.5], [0.1, 2.25]]
    colours = {text: line.get_color() for text, line in zip(keys(figure), axes.lines, strict=True)}
    papers = trade_off(paper.figure_8(), "LPIPS")
    for name, line in zip(keys(papers), papers.axes[0].lines, strict=True):
        if name in colours:
            assert line.get_color() == colours[name]
    marks = {(line.get_color(), line.get_marker()) for line in axes.lines}
    assert len(marks) == len(METHODS)
