"""`abp locate`: a person's own picture with the proxy's box, and with where the VLM looks."""

from __future__ import annotations

import textwrap

from matplotlib.figure import Figure
from PIL import Image

from abplib.plots.information_flow import overlay
from abplib.plots.pictures import outline
from abplib.plots.style import ACCENT, INK, WIDTH, canvas, styled
from abplib.sections.own_image import Located


@styled
def located(picture: Image.Image, instruction: str, found: Located) -> Figure:
    """The picture three times: as it is, and under the two maps; the box on each."""
    side = WIDTH / 3 * picture.height / picture.width
    figure = canvas(min(3 * WIDTH, side + 0.9))
    panels = (
        ("the proxy's box", None),
        (f"“{found.token}”, layer {found.layer}", found.dominant_map),
        (f"last token, layer {found.layer}", found.last_map),
    )
    grid = figure.subplots(1, len(panels))
    for axes, (title, values) in zip(grid, panels, strict=True):
        overlay(axes, picture, values)
        outline(axes, found.box, picture.size, ACCENT, "-", "the proxy's box")
        axes.set_title(title, fontsize=9.5)
    figure.suptitle(textwrap.fill(instruction, 70), x=0.01, ha="left", fontsize=9.5, color=INK)
    return figure
