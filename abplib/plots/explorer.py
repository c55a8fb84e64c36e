"""What a run knows of some samples, to be leafed through in the page itself, offline.

The markup is the first sample at rest; `book/_static/explorer.js` turns it, with the data beside
it, into controls for keyboard and touch. Without scripts the first sample stays.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from abplib.core.boxes import Box
from abplib.samples.base import Sample

LIMIT = 3_000_000
"""Bytes that an explorer may have."""
_SIDE = 320
"""Pixels of a picture's longer side, at most."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A sample and what there is of it."""

    sample: Sample
    vlm: tuple[Box | None, str]
    """The box that the VLM answered, and what became of it."""
    proxies: Mapping[str, Box]
    """Boxes of the proxies, by what they read, in the order of the slider."""
    first: str
    """Which of these is shown first."""
    words: Sequence[str]
    """Tokens of the instruction."""
    token: int
    """Which of them is dominant."""
    maps: np.ndarray
    """Attention of each token to the image, [layers, tokens, rows, columns]."""
    edits: Mapping[str, tuple[Image.Image, str]]
    """By method: the edit, and what became of it."""


def explorer(scenes: Sequence[Scene], layers: Sequence[int]) -> tuple[str, int]:
    """HTML of the first scenes that fit into `LIMIT`, and how many these are.

    Args:
        layers: which of the `maps` goes with each proxy.
    """
    told: list[dict[str, Any]] = []
    for scene in scenes:
        told.append(_facts(scene))
        if told[1:] and len(_packed(told)) > LIMIT:
            told.pop()
            break
    first = told[0]
    edits = "".join(
        f'<figure><img src="{edit["picture"]}" alt="{html.escape(_edit_alt(edit))}">'
        f"<figcaption><b>{html.escape(edit['name'])}</b> {html.escape(edit['said'])}</figcaption>"
        "</figure>"
        for edit in first["edits"]
    )
    place = first["places"].index(scenes[0].first)
    boxes = "".join(
        f'<rect class="{kind}" {_rect(box)}/>'
        for kind, box in (
            ("exact", first["exact"]),
            ("vlm", first["vlm"]),
            ("proxy", first["boxes"][place]),
        )
        if box
    )
    data = _packed({"layers": list(layers), "scenes": told}).replace("<", "\\u003c")
    page = (
        f'<div class="abp-explorer"><p class="abp-told">{html.escape(first["instruction"])}</p>'
        f'<div class="abp-bench"><div class="abp-stage"><img src="{first["picture"]}" '
        f'alt="{html.escape(first["instruction"])}: the scene"><canvas hidden></canvas>'
        f'<svg viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true">{boxes}</svg></div>'
        '<div class="abp-controls"></div></div>'
        f'<div class="abp-edits">{edits}</div>'
        f'<script type="application/json">{data}</script></div>'
    )
    return page, len(told)


def _facts(scene: Scene) -> dict[str, Any]:
    low, high = (edge(scene.maps, axis=(-2, -1), keepdims=True) for edge in (np.min, np.max))
    shades = (scene.maps - low) / np.where(high > low, high - low, 1) * 255
    box, said = scene.vlm
    return {
        "instruction": scene.sample.instruction,
        "picture": _url(scene.sample.image),
        "exact": _rounded(scene.sample.box),
        "vlm": _rounded(box),
        "said": said,
        "places": list(scene.proxies),
        "boxes": [_rounded(box) for box in scene.proxies.values()],
        "first": list(scene.proxies).index(scene.first),
        "words": list(scene.words),
        "token": scene.token,
        "grid": scene.maps.shape[-2:],
        "maps": base64.b64encode(shades.round().astype(np.uint8).tobytes()).decode(),
        "edits": [
            {"name": name, "picture": _url(edit), "said": outcome}
            for name, (edit, outcome) in scene.edits.items()
        ],
    }


def _edit_alt(edit: Mapping[str, str]) -> str:
    return f"Edit by {edit['name']}: {edit['said']}"


def _rect(box: Sequence[float]) -> str:
    x1, y1, x2, y2 = box
    return f'x="{x1}" y="{y1}" width="{x2 - x1:.4f}" height="{y2 - y1:.4f}"'


def _rounded(box: Box | None) -> list[float] | None:
    return None if box is None else [round(float(side), 4) for side in box]


def _packed(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"))


def _url(image: Image.Image) -> str:
    small, buffer = image.convert("RGB"), io.BytesIO()
    small.thumbnail((_SIDE, _SIDE))
    small.save(buffer, "WEBP", quality=82)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
