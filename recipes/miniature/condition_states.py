"""The conditions that a transformer can be trained on, read in one pass of the frozen VLM.

- `final`: the last block's normed states, Qwen-Image-Edit's own condition.
- `middle`: one layer, the middle one of the middle layers (section 4.3).
- `pooled`: the mean over all middle layers.

States that the VLM does not norm itself are layer-normalised without parameters, as Norm-AVG does,
so that the late layers, whose states are longer, do not outweigh the early ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch.nn import functional as F

from abplib.editing.conditions import Condition
from abplib.vlm.encoder import ConditionEncoder, Layer

CONDITIONS = ("final", "middle", "pooled")


def layers_read(encoder: ConditionEncoder) -> dict[str, tuple[Layer, ...]]:
    """The layers behind each of `CONDITIONS`, for a VLM of this depth."""
    middle = encoder.middle_layers
    return {"final": ("final",), "middle": (middle[len(middle) // 2],), "pooled": middle}


def read_conditions(
    encoder: ConditionEncoder,
    images: Sequence[Image.Image],
    instructions: Sequence[str],
    names: Sequence[str] = CONDITIONS,
) -> dict[str, Condition]:
    """The conditions of some names, [B, T, d], for B images and instructions."""
    wanted = {name: layers for name, layers in layers_read(encoder).items() if name in names}
    blocks = sorted({l for layers in wanted.values() for l in layers if l != "final"})
    encoding = encoder.encode(images, instructions, layers=blocks, final="final" in wanted)
    normed = {
        l: states.float() if l == "final" else F.layer_norm(states.float(), (encoder.width,))
        for l, states in encoding.states.items()
    }
    return {
        name: Condition(torch.stack([normed[l] for l in layers]).mean(0), encoding.mask)
        for name, layers in wanted.items()
    }
