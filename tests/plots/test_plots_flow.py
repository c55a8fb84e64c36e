"""The figures of chapters 3 and 4: what is drawn is what was given."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import seaborn as sns
import torch
from drawn import texts, ticks
from matplotlib.colors import to_hex
from matplotlib.patches import StepPatch
from PIL import Image
from test_decomposition import ROUTED, of

from abplib.plots import decomposition as plots
from abplib.plots import information_flow
from abplib.plots.decomposition import CLASS_COLOURS
from abplib.samples.base import Sample
from abplib.samples.words import CLASSES
from abplib.sections import decomposition
from abplib.sections.information_flow import MappedSample
from abplib.vlm.maps import AttentionMaps


@pytest.fixture
def example() -> MappedSample:
    """Three layers, four words, one token of the template, a 2 x 3 grid."""
    maps = AttentionMaps(
        raw=torch.arange(3 * 5 * 2 * 3).float().view(3, 5, 2, 3),
        baseline=torch.ones(3, 2, 3),
        tokens=torch.arange(20, 25),
        n_prompt=4,
    )
    words = ["Turn", " left", "most", " <cup>"]
    tokens = pd.DataFrame(
        {
            "token": range(20, 24),
            "text": words,
            "share": [0.1, 0.2, 0.1, 0.6],
            "word_class": [CLASSES[3], CLASSES[2], CLASSES[2], CLASSES[0]],
        }
    )
    picture = Image.new("RGB", (90, 60), "gray")
    sample = Sample("s", picture, "Turn leftmost <cup>", (0.1, 0.2, 0.5, 0.6))
    return MappedSample(sample, (0, 1, 2), maps, 1, tokens, [3], 0.625)


def test_the_scheme_shows_the_steepest_head_and_the_vote() -> None:
    split = decomposition.decompose(ROUTED, 0.5)
    a = decomposition.labelled(ROUTED)
    shown = decomposition.example(a, split.H, split.l_star, ROUTED.tokens, 0)
    figure = plots.scheme(shown, 0.5)
    figure.draw_without_rendering()
    bars, votes, grid = figure.axes[:3]
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([0.9, 0.1, 0.0])
    assert "0.80, T = 0.5" in bars.get_xlabel()
    assert votes.lines[0].get_xdata().tolist() == [0.5, 0.5, 2.5]
    assert [tick.get_text() for tick in votes.get_yticklabels()] == ["0.0", "0.1", "1.0"]
    assert "$l^*$ = 5" in votes.get_title(loc="left")
    assert [tick.get_text() for tick in grid.get_xticklabels()] == ["Turn", "left"]
    np.testing.assert_allclose(grid.collections[0].get_array(), shown.weights)


@pytest.mark.parametrize("decisive", [["0.0", "0.1"], ["0.0", "0.1", "1.0", "1.1"]])
def test_sorted_curves_draw_each_group_and_each_decisive_query(decisive: list[str]) -> None:
    r = decomposition.rank(decomposition.labelled(ROUTED).sum("token"), "layer")
    curves, lines = decomposition.sorted_curves(r, of(*decisive))
    (axes,) = plots.sorted_curves(curves, lines, "rank").axes
    drawn = [line for line in axes.lines if len(line.get_xdata())]
    thin = [line for line in drawn if line.get_linewidth() < 1]
    thick = [line for line in drawn if line.get_linewidth() > 1]
    assert len(thin) == 2 * len(decisive)
    assert len(thick) == curves["group"].nunique()
    assert thick[0].get_ydata() == pytest.approx(curves["mean"][:3])
    assert len([band for band in axes.collections if band.get_alpha() == 0.14]) == len(thick)


def test_heads_are_counted_above_each_threshold() -> None:
    heads = pd.MultiIndex.from_product([range(2), range(3)], names=["seed", "head"])
    figure = plots.heads_above(pd.Series([0.2, 0.2, 0.6, 0.0, 0.0, 0.0], heads), 0.25)
    assert "T = 0.25" in texts(figure)
    steps = [patch for patch in figure.axes[0].patches if isinstance(patch, StepPatch)]
    assert len(steps) == 2  # seeds
    counts, edges, _ = steps[0].get_data()
    above = [int(counts[np.searchsorted(edges, at, "right") - 1]) for at in (0.1, 0.2, 0.4, 0.6)]
    assert above == [3, 1, 1, 0]


def test_each_line_of_the_histogram_sums_to_one() -> None:
    counts = pd.DataFrame({5: [4, 3, 1], 6: [4, 1, 3]}, index=["all, seed 0", "left", "right"])
    figure = plots.layer_histogram(counts)
    (axes,) = figure.axes
    widths = {
        (round(bar.get_y() + bar.get_height() / 2), to_hex(bar.get_facecolor())): bar.get_width()
        for bar in axes.patches
    }
    first, second = (to_hex(colour) for colour in sns.color_palette("viridis", 2))
    assert [widths[row, first] for row in range(3)] == pytest.approx([0.5, 0.75, 0.25])
    assert [widths[row, second] for row in range(3)] == pytest.approx([0.5, 0.25, 0.75])
    assert ticks(figure) == ["all, seed 0", "left", "right"]
    assert texts(figure)[:3] == ["n = 8", "n = 4", "n = 4"]
    assert texts(figure)[3:] == ["layer 5", "layer 6"]


def test_word_classes_show_attention_and_tokens() -> None:
    table = pd.DataFrame(
        {"value": 0.2, "low": 0.1, "high": 0.3, "tokens": [0.1, 0.2, 0.3, 0.2, 0.2]}, index=CLASSES
    ).assign(seeds=[(0.1, 0.3)] * 5)
    (axes,) = plots.word_classes(table).axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.2] * 5)
    (diamonds,) = [line for line in axes.lines if line.get_marker() == "D"]
    assert diamonds.get_xdata() == pytest.approx(table["tokens"].to_numpy())
    assert axes.collections[-1].get_offsets()[:2].tolist() == [[0.1, 0.0], [0.3, 0.0]]
    assert set(CLASS_COLOURS) == set(CLASSES)


def test_maps_are_those_of_the_dominant_token(example: MappedSample) -> None:
    figure = information_flow.maps([example, example])
    assert len(figure.axes) == 6
    source, raw, relative = figure.axes[:3]
    assert len(source.images) == 1
    np.testing.assert_allclose(raw.images[1].get_array(), example.maps.raw[1, 3])
    np.testing.assert_allclose(relative.images[1].get_array(), example.maps.relative[1, 3])
    assert raw.get_title(loc="left") == "“<cup>”, layer 1"
    assert raw.get_xlabel() == "AUROC 0.62"
    for axes in (source, raw, relative):
        assert axes.patches[0].get_bbox().bounds == pytest.approx((8.5, 11.5, 36, 24))


def test_tokens_stand_in_reading_order(example: MappedSample) -> None:
    figure = information_flow.token_bars([example])
    (axes,) = figure.axes
    assert ticks(figure) == ["Turn", "left", "most", "<cup>"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.1, 0.2, 0.1, 0.6])
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_the_grid_writes_every_cell_and_how_often_a_layer_is_chosen() -> None:
    grid = pd.DataFrame({"1": [0.4, 0.9], "last": [0.5, 0.6]}, index=pd.Index([5, 6], name="layer"))
    figure = information_flow.layers_and_tokens(grid, pd.Series({6: 0.25}), "AUROC")
    assert texts(figure)[:4] == ["0.40", "0.50", "0.90", "0.60"]
    assert ticks(figure) == ["5", "6  (25%)"]
