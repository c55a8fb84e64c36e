"""Pictures that somebody has marked: a coloured outline around one of their things.

Photographs with drawings on them are among what real image editors were trained on. An editor that
has never seen a line can neither keep what it surrounds nor take it away, which the LoRA has to
learn (appendix B.2). A mark says nothing about an edit: whatever is asked for, it stays.
"""

from __future__ import annotations

from PIL import Image

from abplib.core.boxes import Box, draw_overlay
from abplib.samples.scenes.render import box_of, masks
from abplib.samples.scenes.scene import Random, Scene, choose

SHARE = 0.25
"""Of the training pictures of the VAE and of the scenes of the transformer's."""

COLOURS = ("red", "lime", "blue", "yellow", "cyan", "magenta", "white", "black")

Mark = tuple[Box, int, str]
"""A box, the thickness of its outline in pixels of the small picture, and its colour."""


def draw_mark(scene: Scene, random: Random) -> Mark | None:
    """An outline around one of the things of a scene, or, for most scenes, none."""
    if random.random() >= SHARE:
        return None
    around = masks(scene)[int(random.integers(len(scene.things)))]
    return box_of(around), int(random.integers(1, 4)), choose(random, COLOURS)


def marked(picture: Image.Image, mark: Mark | None) -> Image.Image:
    """The small picture with the mark, if there is one."""
    return draw_overlay(picture, *mark) if mark else picture
