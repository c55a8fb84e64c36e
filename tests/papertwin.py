"""A checkout in which the profile `paper` can run here: twins in place of its models and its data.

Models are found by their ids in an offline cache of the hub. The VLM and the editor are the shipped
miniatures, whose classes are the paper's; the other systems are random-weight twins. The data sets
are made by the library's own stages, with scenes of the mini world in place of what Gemini, FIBO,
2509 and Mistral-Small make.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import othertwins
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
import yaml
from hubcache import lay, offline, revisions
from labelling import label
from PIL import Image

from abplib.core import paths
from abplib.core.boxes import to_pixels
from abplib.editing import twins
from abplib.editing.base import Editor, Request
from abplib.experiment import Experiment
from abplib.judging.human.labels import DRAW_BOX
from abplib.profiles import Profile
from abplib.samples import multi_entity, omniedit
from abplib.samples.scenes.sets import evaluation, general
from abplib.vlm.grounding import Grounder
from recipes.multi_entity import stages
from recipes.multi_entity.prompts import SCENES_SYSTEM

REPOSITORY = paths.root()
SCENES = evaluation()

N_SCENES, N_ROWS = 12, 32
OTHERS = {
    "qwen_image_edit_2509": othertwins.smoke_2509,
    "fibo_edit": othertwins.smoke_fibo,
    "flux2_dev": othertwins.smoke_flux2,
    "flux_kontext": twins.smoke_kontext,
}
SIZES = {
    "image_area": 128 * 128, "n_steps": 2, "n_eval": 6, "sweep": {
        "n_batches": 4, "batch_size": 6, "eval_every": 2, "n_curve_eval": 4, "width": 16,
        "n_queries": 2, "n_heads": 2,
    },
}  # fmt: skip
"""What a CPU can do in a test; no setting of another kind is changed."""


class Author:
    """Writes prompt pairs, and scenes as JSON."""

    name = "author"

    def write(self, system: str, request: str, schema: object = None) -> str:
        if system != SCENES_SYSTEM:
            return '{"short_description": "a scene"}'
        scenes = [{"generation": f"Scene {k}.", "edit": "Make all alike."} for k in range(N_SCENES)]
        return json.dumps(scenes)


class Painter:
    """Paints the scene of its seed with the odd object in it."""

    name = "painter"

    def paint(self, prompt: str, seed: int) -> Image.Image:
        return SCENES.edited(seed)


class Leveller(Editor):
    """Makes all objects of the scene of its seed alike."""

    name = "leveller"
    fingerprint = "leveller"

    def _edit_many(self, requests: Sequence[Request]) -> list[Image.Image]:
        return [SCENES[request.seed].image for request in requests]


class Speaker:
    """Names a place."""

    name = "speaker"

    def __init__(self) -> None:
        self._terms: Iterator[str] = itertools.cycle(("leftmost", "second from the left"))

    def describe(self, system: str, image: Image.Image) -> str:
        return f"Turn the {next(self._terms)} object into a star."


def quiet(_line: str) -> None:
    pass


def make(root: Path, patch: pytest.MonkeyPatch) -> Path:
    """The checkout in `root`, with its data sets; its profile, for which `patch` sets the rest."""
    linked = "abplib/plots", "benchmarks", "book/chapters", "data/lpips", "data/paper", "data/mini"
    for name in linked:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(REPOSITORY / name)
    (root / "runs/paper").mkdir(parents=True)
    (root / "runs/paper/lora").symlink_to(REPOSITORY / "data/mini/editor/lora")
    fields = yaml.safe_load((REPOSITORY / "abplib/profiles/paper.yaml").read_text()) | SIZES
    folders = {fields[name]: REPOSITORY / "data/mini" / name for name in ("vlm", "editor")}
    for name, made in OTHERS.items():
        fields["other_editors"][name]["n_steps"] = 2
        folders[fields["other_editors"][name]["source"]] = made()
    cache = offline(root / "cache", patch)
    pinned = revisions(Profile.load("paper"))
    for number, (hub_id, folder) in enumerate(folders.items()):
        lay(cache, hub_id, folder, pinned.get(hub_id) or f"{number:040x}")
    path = root / "paper.yaml"
    path.write_text(yaml.safe_dump(fields))
    patch.setenv("ABP_ROOT", str(root))
    patch.setenv("ABP_RESULTS", str(root / "results"))
    _multi_entity(root / multi_entity.FOLDER, Profile.load(str(path)))
    _omniedit(root / "hub", root / omniedit.FOLDER)
    _alexnet(root / "torch")
    patch.setenv("TORCH_HOME", str(root / "torch"))
    return path


def _multi_entity(folder: Path, profile: Profile) -> None:
    stages.write_prompts(folder, Author(), N_SCENES, quiet)
    stages.structure_prompts(folder, Author(), quiet)
    stages.paint_images(folder, Painter(), 0, quiet)
    stages.edit_images(folder, Leveller(), 0, quiet)
    stages.reverse(folder, quiet)
    stages.write_instructions(folder, Speaker(), quiet)
    stages.ground_boxes(folder, Grounder(Experiment(profile).encoder), profile.vlm, quiet)
    labels = []
    for task in stages.verification_tasks(folder):
        if task.step == DRAW_BOX:
            exact = to_pixels(SCENES[int(task.item)].box, task.source.size)
            labels.append(label(task, "rater", box=exact))
        else:
            labels.append(label(task, "rater", "yes"))
    stages.verify(folder, labels, quiet)
    stages.split(folder, 0, quiet)


def _omniedit(hub: Path, folder: Path) -> None:
    rows = []
    for index in range(N_ROWS):
        sample, file = general()[index], io.BytesIO()
        sample.image.resize((160, 128)).save(file, format="png")
        rows.append(
            {
                "omni_edit_id": sample.id,
                "task": str(sample.facts["task"]),
                "src_img": {"bytes": file.getvalue()},
                "edited_prompt_list": [sample.instruction],
            }
        )
    hub.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), hub / "train-00000-of-00001.parquet")
    omniedit.fetch(omniedit.choose(str(hub), n=N_ROWS), folder, quiet)


def _alexnet(home: Path) -> None:
    """Random weights where torchvision looks for those of ImageNet."""
    name = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1]
    place = home / "hub/checkpoints" / name
    place.parent.mkdir(parents=True)
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), place)
