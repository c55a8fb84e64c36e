"""What stands in a figure that was drawn."""

from __future__ import annotations

from matplotlib.figure import Figure


def keys(figure: Figure) -> list[str]:
    """All that is written in keys."""
    return [text.get_text() for key in figure.legends for text in key.get_texts()]


def texts(figure: Figure) -> list[str]:
    """All that is written in the axes, at the ends of lines and in keys."""
    figure.draw_without_rendering()
    return [text.get_text() for axes in figure.axes for text in axes.texts] + keys(figure)


def ticks(figure: Figure) -> list[str]:
    """What stands beside the vertical axis of the first axes."""
    return [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
