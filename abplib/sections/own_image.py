"""Where an edit of one's own picture belongs: the proxy's box, and where the VLM looks (4.5, 4.6).

One forward pass gives both. The maps are alpha^(l) of the block that the proxy reads: of its
dominant token, the prompt token with the largest weight over all its heads and queries, and of the
last token of the template, where an answer would begin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from abplib.core.boxes import Box
from abplib.core.images import ImageLike
from abplib.proxies import configurations
from abplib.proxies.selection import GuidingProxy
from abplib.vlm.encoder import ConditionEncoder


@dataclass(frozen=True, eq=False)
class Located:
    """What a single pass tells of one picture and instruction."""

    box: Box
    """The proxy's, fractions of the picture."""
    layer: int
    """The block that the proxy reads and the maps are of."""
    token: str
    """The dominant token's text."""
    dominant_map: Tensor
    """fp32 [rows, columns] on the grid of image tokens."""
    last_map: Tensor
    """The same of the last template token."""


@torch.inference_mode()
def locate(
    encoder: ConditionEncoder, guide: GuidingProxy, image: ImageLike, instruction: str
) -> Located:
    """Ask a trained proxy and the VLM's attention. Raises AbpError as `encode` does."""
    layer = guide.layer
    encoding = encoder.encode([image], [instruction], layers=[layer], attention=[layer])
    states, mask = configurations.layer(layer).select(encoding)
    proxy = guide.proxy.to(states.device)
    x1, y1, x2, y2 = proxy(states, mask)[0].tolist()
    shares = sum(block[0].sum((0, 1, 2)) for block in proxy.attention(states, mask))
    prompt = encoding.prompt_tokens[0]
    dominant = int(torch.where(prompt, torch.as_tensor(shares), -1.0).argmax())
    first, last = int(prompt.int().argmax()), int(mask[0].sum()) - 1
    rows = encoding.attention[layer][0][:, encoding.image_tokens[0]].unflatten(
        -1, encoding.grids[0]
    )
    word = encoder.processor.tokenizer.decode([int(encoding.input_ids[0, dominant])]).strip()
    return Located(
        (x1, y1, x2, y2), layer, word, rows[dominant - first].cpu(), rows[last - first].cpu()
    )
