"""The figures on synthetic rows: what is drawn is what was given."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from abplib.plots import decodability, scheme
from abplib.plots.style import GROUPS, spread, styled
from abplib.proxies.settings import ProxyConfig, SweepSettings
from abplib.sections.decodability import GROUPS as WORDS
from abplib.sections.decodability import curve_rows, label_of

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


def settings() -> SweepSettings:
    return SweepSettings(
        n_batches=320, batch_size=64, lr=1e-3, width=96, n_queries=8, n_heads=4, eval_every=20,
        n_curve_eval=64,
    )  # fmt: skip


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
    final = curves().query("configuration == 'final'")["center_error"]
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
