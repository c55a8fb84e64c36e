"""The proxy that tells an editor where: chosen among chapter 2's, or read from where it is shipped.

Appendix B.2 hands the editor the box of "the trained Q-Former" and leaves open which of them. Here
it is one that reads a single middle layer, that of the highest mean IoU on samples that the
editor's LoRA was trained on; the evaluation has no say in it.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import safetensors.torch
import torch
from torch import Tensor

from abplib.core import store
from abplib.core.boxes import Box, iou
from abplib.core.errors import AbpError
from abplib.editing.methods import Guide as Source
from abplib.judging.box_accuracy import centre_inside, evaluate_box
from abplib.profiles import Profile
from abplib.proxies import configurations as training
from abplib.proxies import qformer as proxies
from abplib.proxies.configurations import Configuration, configurations
from abplib.proxies.qformer import Proxy
from abplib.proxies.sweep import Sweep, sweep
from abplib.samples.base import SampleSet
from abplib.sections.decodability import labels_of, sweep_settings
from abplib.vlm.encoder import ConditionEncoder

_CHOICE = "choice.json"
_CORNERS = ["x1", "y1", "x2", "y2"]
_SHIPPED = torch.float16
"""Of shipped weights: half the size of the trained ones, and finer than bfloat16."""


@dataclass(frozen=True, eq=False)
class Guide:
    """A trained proxy and the layer it reads."""

    proxy: Proxy
    layer: int
    iou: float
    """Mean IoU with the exact boxes of the tuning samples."""
    note: str = ""
    """One sentence on where it comes from."""

    def boxes(
        self, encoder: ConditionEncoder, samples: SampleSet, n: int, *, base: Path | None = None
    ) -> list[Box]:
        """Boxes of the first `n` samples, fractions of their images; kept on disk."""
        weights = {name: tensor.contiguous() for name, tensor in self.proxy.state_dict().items()}
        place = store.folder(
            "guide",
            base=base,
            vlm=encoder.fingerprint,
            image_area=encoder.image_area,
            dtype=str(encoder.model.dtype),
            samples=samples.fingerprint,
            n=n,
            layer=self.layer,
            proxy=hashlib.sha256(safetensors.torch.save(weights)).hexdigest(),
            code=store.digest_files(__file__, proxies.__file__, training.__file__),
        )
        path = place / "boxes.parquet"
        with store.alone(path):
            if not path.exists():
                found = predict(encoder, {self.layer: self.proxy}, samples, n)[self.layer]
                store.write_parquet(path, pd.DataFrame(found.numpy(), columns=_CORNERS))
        rows = store.read_parquet(path)[0].to_numpy(float)
        return [(x1, y1, x2, y2) for x1, y1, x2, y2 in rows.tolist()]

    def save(self, folder: Path, encoder: ConditionEncoder) -> None:
        """Write the proxy, in half precision, to a folder that `find_guide` reads."""
        (folder / _CHOICE).unlink(missing_ok=True)  # a killed run leaves no guide, not a mixed one
        copy.deepcopy(self.proxy).to(_SHIPPED).save(folder, encoder.fingerprint)
        store.write_json(folder / _CHOICE, {"layer": self.layer, "iou": self.iou})


def find_guide(profile: Profile, encoder: ConditionEncoder, seed: int) -> Guide:
    """The shipped proxy where it was trained on this VLM, else that of `swept_guide`."""
    folder, missing = profile.proxy_folder, ""
    if folder is not None:
        if not (folder / _CHOICE).exists():
            missing = f" ({folder.name} is not there)"
        elif store.read_json(folder / "config.json")["encoder"] == encoder.fingerprint:
            choice = store.read_json(folder / _CHOICE)
            proxy = Proxy.load(folder, encoder.fingerprint)
            return Guide(proxy, **choice, note=f"The proxy is the shipped one, {profile.proxy}.")
        else:
            missing = f" ({profile.proxy} was trained on another VLM)"
    found = swept_guide(profile, encoder, seed)
    return replace(found, note=f"The proxy was trained in this run's sweep{missing}.")


def swept_guide(profile: Profile, encoder: ConditionEncoder, seed: int) -> Guide:
    """The best of `sweep_of` by `choose`."""
    swept = sweep_of(profile, encoder, seed)
    return choose(encoder, swept.folder / "proxies", profile.tuning)


def sweep_of(profile: Profile, encoder: ConditionEncoder, seed: int) -> Sweep:
    """Chapter 2's sweep, read where it has been run with this profile and seed, run where not."""
    settings = sweep_settings(profile, seed)
    n_labels = min(settings.n_batches * settings.batch_size, len(profile.training))
    return sweep(
        encoder, profile.training, labels_of(profile, encoder, n_labels), profile.evaluation,
        configurations(encoder), settings, n_eval=profile.n_eval,
    )  # fmt: skip


def choose(encoder: ConditionEncoder, proxies: Path, tuning: SampleSet) -> Guide:
    """The proxy of a middle layer whose boxes overlap most with the exact ones of `tuning`.

    Its weights are rounded as `Guide.save` rounds them, so that it is the same when it is shipped.

    Raises:
        AbpError: a proxy is missing or of another VLM.
    """
    if not len(tuning):
        raise AbpError("There are no tuning samples to choose a proxy on: give some in tuning_set.")
    candidates = {
        layer: Proxy.load(proxies / f"layer_{layer}", encoder.fingerprint).to(_SHIPPED).float()
        for layer in encoder.middle_layers
    }
    exact = torch.tensor([tuning[index].box for index in range(len(tuning))])
    found = predict(encoder, candidates, tuning, len(tuning))
    overlaps = {layer: iou(boxes, exact).mean().item() for layer, boxes in found.items()}
    best = max(overlaps, key=lambda layer: overlaps[layer])
    return Guide(candidates[best], best, overlaps[best])


@torch.inference_mode()
def predict(
    encoder: ConditionEncoder, proxies: Mapping[int, Proxy], samples: SampleSet, n: int
) -> dict[int, Tensor]:
    """Each layer's proxy's boxes of the first `n` samples, {layer: [n, 4]}."""
    found: dict[int, list[Tensor]] = {layer: [] for layer in proxies}
    for _, encoding in encoder.over(samples, n, layers=list(proxies)):
        for layer, proxy in proxies.items():
            states, mask = Configuration(f"layer_{layer}", (layer,)).select(encoding)
            found[layer].append(proxy.to(states.device)(states, mask).cpu())
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def answered_boxes(rows: pd.DataFrame) -> list[Box | None]:
    """The VLM's boxes in rows of `localization.ask`; None where it gave none."""
    corners = rows[_CORNERS].to_numpy(float)
    return [
        (x1, y1, x2, y2) if answered else None
        for (x1, y1, x2, y2), answered in zip(corners.tolist(), rows["answered"], strict=True)
    ]


def box_rows(samples: SampleSet, found: Mapping[Source, Sequence[Box | None]]) -> pd.DataFrame:
    """How good the boxes are that editors are shown: one row a source of boxes and sample.

    Columns: source, index, sample_id, those of `metrics.BoxRow`, and centre_inside, whether the
    box's centre lies in the exact box.
    """
    rows = []
    for source, shown in found.items():
        for index, box in enumerate(shown):
            sample = samples[index]
            about = {"source": source, "index": index, "sample_id": sample.id}
            inside = box is not None and centre_inside(box, sample.box)
            rows.append({**about, **evaluate_box(sample, box), "centre_inside": inside})
    return pd.DataFrame(rows)
