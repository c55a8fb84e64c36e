"""The figures on synthetic rows: what is drawn is what was given."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from abplib.plots import decodability, pictures, scheme
from abplib.plots.style import ANSWER, GROUPS, TARGET, spread, styled
from abplib.proxies.settings import ProxyConfig, SweepSettings
from abplib.sections.decodability import name_of

LAYERS = [f"layer_{layer}" for layer in range(8)]
MADE_OF = {
    **{name: "middle" if layer >= 5 else "outer" for layer, name in enumerate(LAYERS)},
    "final": "final",
    "middle_prompt": "middle_prompt",
}
BASELINES = {"chance": 0.36, "centre_prior": 0.27, "text_only": 0.17}


def texts(figure: Figure) -> list[str]:
    """All that is written in the axes, at the ends of lines and in keys."""
    figure.draw_without_rendering()
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    found += [text.get_text() for key in figure.legends for text in key.get_texts()]
    return found


def curves() -> pd.DataFrame:
    rows = [
        {"step": step, "configuration": name, "center_error": 0.3 / (1 + place + step / 50)}
        for place, name in enumerate(MADE_OF)
        for step in range(20, 321, 20)
    ]
    return pd.DataFrame(rows)


def errors() -> pd.DataFrame:
    value = np.linspace(0.2, 0.1, len(MADE_OF))
    frame = pd.DataFrame({"value": value, "low": value - 0.01, "high": value + 0.02})
    return frame.set_index(pd.Index(MADE_OF, name="configuration"))


def settings() -> SweepSettings:
    return SweepSettings(320, 64, 1e-3, 96, 8, 4, 20, 64)


def test_spread_moves_only_what_collides() -> None:
    assert spread([0.0, 5.0, 2.0], 1.0) == pytest.approx([0, 5, 2])
    assert spread([1.0, 1.0], 1.0) == pytest.approx([0.5, 1.5])
    crowded = spread([3.0, 3.1, 2.9, 9.0], 0.5)
    assert np.diff(np.sort(crowded)).min() >= 0.5 - 1e-9
    assert list(np.argsort(crowded)) == [2, 0, 1, 3]


def test_learning_curves_show_each_configuration_in_its_colour() -> None:
    figure = decodability.learning_curves(curves(), MADE_OF, BASELINES)
    (axes,) = figure.axes
    drawn = [line for line in axes.lines if len(line.get_xdata()) > 2]
    assert [line.get_color() for line in drawn] == [GROUPS[g][0] for g in MADE_OF.values()]
    final = curves().query("configuration == 'final'")["center_error"]
    assert drawn[8].get_ydata() == pytest.approx(final)
    assert {name_of(name) for name in (*MADE_OF, *BASELINES)} <= set(texts(figure))
    assert axes.get_ylim()[0] >= 0
    assert axes.get_ylim()[1] > BASELINES["chance"]
    assert "image sides" in axes.get_ylabel()


def test_final_errors_stand_over_their_layer_with_their_interval() -> None:
    figure = decodability.final_errors(errors(), MADE_OF, BASELINES)
    (axes,) = figure.axes
    spans = [tuple(lines.get_segments()[0][:, 1]) for lines in axes.collections]
    assert spans == [pytest.approx(span) for span in errors()[["low", "high"]].to_numpy()]
    marks = {tick.get_text() for tick in axes.get_xticklabels()}
    assert marks == {*map(str, range(8)), "final\nstates", "middle,\nprompt"}


def test_rates_keep_the_order_and_say_n() -> None:
    rows = pd.DataFrame(
        {
            "label": ["leftmost", "topmost"],
            "value": [0.9, 0.5],
            "low": [0.8, 0.3],
            "high": [0.95, 0.7],
            "note": ["n = 40", "n = 8"],
        }
    )
    figure = pictures.rates(rows, "accurate boxes", reference=0.8)
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["leftmost", "topmost"]
    assert axes.yaxis_inverted()
    assert texts(figure) == ["n = 40", "n = 8"]


def test_gallery_draws_both_boxes_in_pixels_and_leaves_out_what_is_not_there() -> None:
    picture = Image.new("RGB", (100, 50), "gray")
    answered = pictures.Card(picture, (0.1, 0.2, 0.5, 0.6), (0.2, 0.2, 0.5, 1), "a", "move it")
    silent = pictures.Card(picture, (0.1, 0.2, 0.5, 0.6), None, "b", "move it")
    figure = pictures.gallery([answered, silent, silent])
    outlines = [p for axes in figure.axes for p in axes.patches if isinstance(p, Rectangle)]
    assert [patch.get_label() for patch in outlines] == ["exact box", "box of the VLM"] + [
        "exact box"
    ] * 2
    assert outlines[0].get_bbox().bounds == pytest.approx((9.5, 9.5, 40, 20))
    assert outlines[1].get_bbox().bounds == pytest.approx((19.5, 9.5, 30, 40))
    assert [axes.axison for axes in figure.axes] == [True, True, True, False]
    assert texts(figure) == ["exact box", "box of the VLM"]
    assert TARGET != ANSWER


def test_the_scheme_takes_its_sizes_from_the_configuration() -> None:
    config = ProxyConfig(state_width=111, width=36, n_queries=7, n_heads=3, n_blocks=5)
    said = " ".join(texts(scheme.architecture(config)))
    for part in ("111 wide", "7 learned queries, 36 wide", "3 heads", "× 5 blocks"):
        assert part in said
    said = " ".join(texts(scheme.training_scheme(settings())))
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
