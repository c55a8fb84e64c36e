"""Figure 3: the proxy and how it is trained, drawn from the configuration that is run."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from abplib.plots.style import GROUPS, QUIET, TARGET, WIDTH, canvas, styled
from abplib.proxies.settings import ProxyConfig, SweepSettings

_STATES = ("#e8eef6", GROUPS["outer"])
_QUERIES = ("#e6f3ea", GROUPS["middle_prompt"])
_PLAIN = ("#ffffff", QUIET)
_FROZEN = ("#f1f3f5", QUIET)
_LOSS = ("#fbeceb", GROUPS["final"])


@styled
def architecture(config: ProxyConfig) -> Figure:
    """Figure 3a: queries through the blocks to a box, keys and values from the VLM's states."""
    figure, axes = _sheet(67)
    _box(axes, 3, 27, 29, 15, "VLM hidden states\n$\\{H^{(l)}\\}_{l \\in L}$", _STATES)
    _say(axes, 17.5, 22.5, f"each state {config.state_width} wide")
    _box(axes, 43, 15, 52, 39, "", ("#fafbfc", QUIET))
    _say(axes, 94, 17.3, f"× {config.n_blocks} blocks", align="right", fontweight="bold")
    _box(axes, 49, 42.5, 40, 8, "MLP", _PLAIN)
    _box(axes, 49, 31, 40, 8, "cross-attention", _STATES)
    _box(axes, 49, 19.5, 40, 8, "self-attention", _QUERIES)
    heads = f"{config.n_queries} learned queries, {config.width} wide"
    _box(axes, 45, 2, 48, 8, heads, _QUERIES)
    _box(axes, 49, 57.5, 40, 7, "coordinate head", _PLAIN)
    _say(axes, 46, 61, "$(x_1, y_1, x_2, y_2)$", align="right", size=11)
    for low, high in ((10, 19.5), (27.5, 31), (39, 42.5), (50.5, 57.5)):
        _arrow(axes, (69, low), (69, high), _QUERIES[1])
    _say(axes, 71, 29.2, "$Q$", align="left")
    _arrow(axes, (49, 61), (46.5, 61), _QUERIES[1])
    for y, name in ((37, "$K$"), (33, "$V$")):
        _arrow(axes, (32, y), (49, y), _STATES[1])
        _say(axes, 38, y + 1.9, name)
    _say(axes, 17.5, 18, f"{config.n_heads} heads, one softmax\nover all $(l, i)$ together")
    return figure


@styled
def training_scheme(settings: SweepSettings) -> Figure:
    """Figure 3b: the VLM's own answer is the target of the proxy's box."""
    figure, axes = _sheet(60)
    rest = 1 - settings.lambda_giou
    _box(axes, 2, 36, 22, 13, "image $I$\ninstruction $T$", _PLAIN)
    _box(axes, 32, 43, 26, 13, "VLM, frozen:\none forward pass", _FROZEN)
    _box(axes, 32, 15, 26, 13, "VLM, frozen:\ngenerates text", _FROZEN)
    _box(axes, 73, 43, 20, 13, "proxy,\ntrained", _QUERIES)
    _box(axes, 73, 15, 20, 13, "parse,\nfilter", _PLAIN)
    loss = f"${rest:g}\\,L_1 + {settings.lambda_giou:g}\\,L_{{GIoU}}$"
    _box(axes, 64, 31.5, 30, 8, loss, _LOSS)
    _arrow(axes, (24, 44), (32, 49.5), QUIET)
    _arrow(axes, (24, 41), (32, 21.5), QUIET)
    _arrow(axes, (58, 49.5), (73, 49.5), _STATES[1])
    _say(axes, 65.5, 53.5, "$\\{H^{(l)}\\}_{l \\in L}$")
    _arrow(axes, (58, 21.5), (73, 21.5), QUIET)
    _say(axes, 65.5, 23.6, "answer")
    _arrow(axes, (79, 43), (79, 39.5), _QUERIES[1])
    _say(axes, 77.5, 41.3, "$\\hat B$", align="right")
    _arrow(axes, (83, 28), (83, 31.5), TARGET)
    _say(axes, 84.5, 29.8, "$B$", align="left")
    _arrow(axes, (88, 39.5), (88, 43), _LOSS[1])
    _say(axes, 89.3, 41.3, "gradient", align="left", size=8)
    budget = f"{settings.n_batches:,} batches of {settings.batch_size}"
    warm = f"the first {settings.l1_steps} steps with $L_1$ alone"
    _say(axes, 50, 7.5, f"{budget}, {warm}")
    _say(axes, 50, 3, f"Adam, learning rate {settings.lr:g}, after those a cosine to 30 %")
    return figure


def _sheet(height: float) -> tuple[Figure, Axes]:
    """A figure with axes of 100 by `height` units of equal length."""
    figure = canvas(WIDTH * height / 100, layout=None)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 100), ylim=(0, height), aspect="equal")
    axes.axis("off")
    return figure, axes


def _box(
    axes: Axes, x: float, y: float, w: float, h: float, text: str, colours: tuple[str, str]
) -> None:
    shape: Any = {"boxstyle": "round,pad=0,rounding_size=1.2", "linewidth": 1.2}
    axes.add_patch(
        FancyBboxPatch((x, y), w, h, facecolor=colours[0], edgecolor=colours[1], **shape)
    )
    _say(axes, x + w / 2, y + h / 2, text, size=9.5, linespacing=1.4)


def _say(
    axes: Axes, x: float, y: float, text: str, align: str = "center", size: float = 9, **style: Any
) -> None:
    axes.text(x, y, text, ha=align, va="center", fontsize=size, parse_math=True, **style)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    style = {"arrowstyle": "-|>,head_width=0.22,head_length=0.4", "color": colour,
             "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}  # fmt: skip
    axes.annotate("", end, start, arrowprops=style)
