"""The proxy that tells an editor where: chosen among chapter 2's, or read from where it is shipped.

Appendix B.2 hands the editor the box of "the trained Q-Former" and leaves open which of them. Here
it is one that reads a single middle layer, of the run's seed 0, that of the highest mean IoU on
samples that the editor's LoRA was trained on; the evaluation has no say in it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from abplib.core import store
from abplib.core.boxes import CORNERS, Box, iou
from abplib.core.errors import AbpError
from abplib.proxies.configurations import folder_of, layer, predict
from abplib.proxies.qformer import Proxy
from abplib.samples.base import SampleSet
from abplib.vlm.encoder import ConditionEncoder

CHOICE = "choice.json"
"""Beside the weights: which layer the proxy reads, and how well."""
_SHIPPED = torch.float16
"""Of shipped weights: half the size of the trained ones, and finer than bfloat16."""


@dataclass(frozen=True, eq=False)
class GuidingProxy:
    """A trained proxy and the layer it reads."""

    proxy: Proxy
    layer: int
    iou: float
    """Mean IoU with the exact boxes of the tuning samples."""
    note: str = ""
    """One sentence on where it comes from."""

    def boxes(self, encoder: ConditionEncoder, samples: SampleSet, n: int) -> list[Box]:
        """Boxes of the first `n` samples, fractions of their images; kept on disk."""
        place = _boxes(self, encoder, samples, n)
        rows = store.read_parquet(place / "boxes.parquet")[0].to_numpy(float)
        return [(x1, y1, x2, y2) for x1, y1, x2, y2 in rows.tolist()]

    @property
    def identity(self) -> tuple[int, dict[str, Tensor]]:
        """What its boxes depend on."""
        return self.layer, {k: weight.cpu() for k, weight in self.proxy.state_dict().items()}

    @classmethod
    def load(cls, folder: Path, encoder: ConditionEncoder, note: str) -> GuidingProxy:
        """Read what `save` wrote; raises AbpError as `Proxy.load` does."""
        proxy = Proxy.load(folder, encoder.fingerprint)
        return cls(proxy, **store.read_json(folder / CHOICE), note=note)

    def save(self, folder: Path, encoder: ConditionEncoder) -> None:
        """Write the proxy, in half precision, to a folder that `load` reads."""
        (folder / CHOICE).unlink(missing_ok=True)  # a killed run leaves no guide, not a mixed one
        copy.deepcopy(self.proxy).to(_SHIPPED).save(folder, encoder.fingerprint)
        store.write_json(folder / CHOICE, {"layer": self.layer, "iou": self.iou})


@store.stored("guide")
def _boxes(
    place: Path, guide: GuidingProxy, encoder: ConditionEncoder, samples: SampleSet, n: int
) -> None:
    _, _, boxes = predict(encoder, {layer(guide.layer): [guide.proxy]}, samples, n)
    frame = pd.DataFrame(boxes[layer(guide.layer).name][0].numpy(), columns=CORNERS)
    store.write_parquet(place / "boxes.parquet", frame)


def choose(encoder: ConditionEncoder, proxies: Path, tuning: SampleSet) -> GuidingProxy:
    """The proxy of a middle layer whose boxes overlap most with the exact ones of `tuning`.

    Of each layer, that of seed 0. Its weights are rounded as `GuidingProxy.save` rounds them, so
    that it is the same when it is shipped.

    Raises:
        AbpError: a proxy is missing or of another VLM.
    """
    if not len(tuning):
        raise AbpError("There are no tuning samples to choose a proxy on: give some in tuning_set.")
    candidates = {
        c: [Proxy.load(folder_of(proxies, c), encoder.fingerprint).to(_SHIPPED).float()]
        for c in map(layer, encoder.middle_layers)
    }
    _, exact, boxes = predict(encoder, candidates, tuning, len(tuning))
    overlaps = {l: iou(boxes[layer(l).name], exact).mean().item() for l in encoder.middle_layers}
    best = max(overlaps, key=lambda l: overlaps[l])
    return GuidingProxy(candidates[layer(best)][0], best, overlaps[best])
