"""Chapter 4's maps of one sample to leaf through: a layer slider and its tokens, offline.

The maps are in the page itself, eight bits a cell. Without scripts, what stays is a picture of the
dominant token's map at l*.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import string

import matplotlib
import numpy as np
from PIL import Image

from abplib.sections.pointing import Example

_SIDE = 336
"""Pixels of the longer side of the picture."""
_VEIL = 0.68
"""How opaque a map lies over the picture."""

_PAGE = string.Template("""\
<div class="abp-maps" id="$id">
<style>
.abp-maps { max-width: ${width}px; margin: 1rem 0; font-size: 0.95rem; }
.abp-maps .stage { position: relative; line-height: 0; }
.abp-maps .stage > * { width: 100%; height: auto; }
.abp-maps [hidden] { display: none; }
.abp-maps label { display: flex; gap: 0.6rem; align-items: center; margin: 0.5rem 0; }
.abp-maps input { flex: 1; min-width: 0; min-height: 2rem; }
.abp-maps .words { display: flex; flex-wrap: wrap; gap: 0.3rem; }
.abp-maps button { font: inherit; padding: 0.25rem 0.55rem; min-height: 2.2rem; cursor: pointer;
  color: inherit; background: none; border: 1px solid #8a94a0; border-radius: 0.3rem; }
.abp-maps button[aria-pressed=true] { background: #2f5d8c; border-color: #2f5d8c; color: #fff; }
.abp-maps p { margin: 0.5rem 0; }
.abp-maps small { overflow-wrap: anywhere; }
</style>
<p>$instruction</p>
<div class="stage"><img alt="$alt" src="$static" width="$width" height="$height"><canvas
 width="$width" height="$height" role="img" aria-label="Attention map over the source" hidden
></canvas></div>
<div class="controls" hidden>
<label>layer <input type="range" min="0" max="$last" step="1" value="$start">
<output></output></label>
<div class="words" role="group" aria-label="token"></div>
<label><input type="checkbox" style="flex: none">relative map</label>
</div>
<p><small>$made</small></p>
<script>
(function () {
  const root = document.getElementById("$id"), data = $data;
  const find = (selector) => root.querySelector(selector);
  const still = find("img"), canvas = find("canvas"), pen = canvas.getContext("2d");
  const slider = find("input[type=range]"), relative = find("input[type=checkbox]");
  const output = find("output"), words = find(".words"), picture = new Image();
  const bytes = {};
  for (const kind of ["raw", "relative"])
    bytes[kind] = Uint8Array.from(atob(data[kind]), (letter) => letter.charCodeAt(0));
  const size = data.rows * data.columns, grid = document.createElement("canvas");
  grid.width = data.columns;
  grid.height = data.rows;
  let token = data.token;
  function draw() {
    const layer = +slider.value, cells = bytes[relative.checked ? "relative" : "raw"];
    const first = (layer * data.words.length + token) * size;
    const pixels = new ImageData(data.columns, data.rows);
    for (let cell = 0; cell < size; cell++) {
      pixels.data.set(data.colours[cells[first + cell]], 4 * cell);
      pixels.data[4 * cell + 3] = 255;
    }
    grid.getContext("2d").putImageData(pixels, 0, 0);
    pen.globalAlpha = 1;
    pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
    pen.globalAlpha = $veil;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(grid, 0, 0, canvas.width, canvas.height);
    pen.globalAlpha = 1;
    const box = data.box.map((side, i) => side * (i % 2 ? canvas.height : canvas.width));
    for (const [colour, width] of [["#fff", 5], ["#15a34a", 2.5]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = width;
      pen.strokeRect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
    }
    output.textContent = data.layers[layer] + (data.layers[layer] === data.best ? " (l*)" : "");
    [...words.children].forEach((word, i) => word.setAttribute("aria-pressed", i === token));
  }
  data.words.forEach((word, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = word;
    button.addEventListener("click", () => { token = i; draw(); });
    words.appendChild(button);
  });
  slider.addEventListener("input", draw);
  relative.addEventListener("change", draw);
  picture.addEventListener("load", () => {
    draw();
    still.hidden = true;
    canvas.hidden = find(".controls").hidden = false;
  });
  picture.src = data.picture;
})();
</script>
</div>""")


def page(example: Example, name: str, made: str) -> str:
    """HTML of its own: the maps of all layers and tokens of one sample, over its image.

    Args:
        example: the sample.
        name: of the element, unique in its page.
        made: what made it, in words.
    """
    image = example.sample.image
    scale = _SIDE / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    grey = image.convert("L").resize(size, Image.Resampling.LANCZOS).point(_lighter)
    palette = (matplotlib.colormaps["inferno"](np.arange(256))[:, :3] * 255).round().astype(int)
    template = len(example.maps.tokens) - example.maps.n_prompt
    words = example.words + [f"template {place + 1}" for place in range(template)]
    cells = {kind: _bytes(getattr(example.maps, kind).numpy()) for kind in ("raw", "relative")}
    token = example.dominant[0]
    layer = example.layers.index(example.best)
    rows, columns = example.maps.raw.shape[-2:]
    first = np.frombuffer(cells["raw"], np.uint8).reshape(len(example.layers), -1, rows, columns)
    still = Image.fromarray(palette[first[layer, token]].astype(np.uint8))
    still = Image.blend(grey.convert("RGB"), still.resize(size, Image.Resampling.BICUBIC), _VEIL)
    data = {
        "layers": list(example.layers),
        "best": example.best,
        "words": words,
        "token": token,
        "rows": rows,
        "columns": columns,
        "box": [round(float(side), 5) for side in example.sample.box],
        "colours": palette.tolist(),
        "picture": _url(grey.convert("RGB")),
        **{kind: base64.b64encode(found).decode() for kind, found in cells.items()},
    }
    said = example.words[token]
    return _PAGE.substitute(
        id=html.escape(name),
        width=size[0],
        height=size[1],
        instruction=html.escape(example.sample.instruction),
        alt=html.escape(f"Attention of “{said}” in layer {example.best}, over the source"),
        static=_url(still),
        last=len(example.layers) - 1,
        start=layer,
        veil=_VEIL,
        made=html.escape(made),
        data=json.dumps(data, separators=(",", ":")).replace("</", "<\\/"),
    )


def _lighter(value: float) -> float:
    """A grey on which a map can be read: less contrast."""
    return math.floor(49 + value * 0.61)


def _bytes(maps: np.ndarray) -> bytes:
    """Maps [..., rows, columns], each from its least value (0) to its largest (255)."""
    low, high = (edge(maps, axis=(-2, -1), keepdims=True) for edge in (np.min, np.max))
    spread = np.where(high > low, high - low, 1)
    return ((maps - low) / spread * 255).round().astype(np.uint8).tobytes()


def _url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
