"""The same small editor trained on other conditions, beside one trained on Qwen-Image-Edit's own.

Beyond the paper. Its variants hand other states to a transformer that was trained on final ones;
here a transformer is trained on each of `condition_states.CONDITIONS`. Data, budget, the order of
batches, noise and initial weights are the same, except for the layer that reads the condition where
that is wider. One more reads final states and learns by flow matching alone, without the heads that
tell the others where and what (`editor_training`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import pandas as pd
import torch
from diffusers import AutoencoderKLQwenImage, QwenImageEditPipeline, QwenImageTransformer2DModel
from PIL import Image
from tqdm import tqdm

from abplib.core import store
from abplib.core.errors import AbpError
from abplib.core.trainer import Schedule
from abplib.editing import qwen_pipeline
from abplib.editing.qwen_pipeline import for_stills
from abplib.editing.twins import EditorShape, build_dit, build_scheduler
from abplib.judging.scene_oracle import SceneOracle
from abplib.judging.scene_reading import read
from abplib.samples.base import check_number
from abplib.samples.scenes.sets import SceneSamples, evaluation
from abplib.vlm import loading as vlms
from abplib.vlm.encoder import NOTHING, ConditionEncoder
from recipes.miniature.condition_states import (
    CONDITIONS,
    conditioned,
    encode_conditions,
    layers_read,
    read_conditions,
)
from recipes.miniature.editor import VAE_FILE, pairs_folder
from recipes.miniature.editor_data import Pairs, encode_pairs
from recipes.miniature.editor_training import EditorTraining, draw, flow_loss, train_dit

UNTOLD = "final_untold"
"""The run on final states without heads."""

RUNS = {name: name for name in CONDITIONS} | {UNTOLD: "final"}
"""The condition that each run reads."""

_BATCH = 20
"""Samples edited together."""


@dataclass(frozen=True)
class ComparisonPlan:
    """Size and budget of each condition's training, and how it is measured."""

    shape: EditorShape = field(default_factory=lambda: EditorShape(layers=4))
    dit: EditorTraining = field(
        default_factory=lambda: EditorTraining(
            Schedule(steps=500, lr=2e-3, muon=r"transformer_blocks\.", average=0.99),
            batch=32,
            scenes=1280,
        )
    )
    held_out: int = 64
    """Scenes after the training ones, with four edits each, for the loss on unseen pairs."""
    samples: int = 200
    """Evaluation samples edited, from the start."""
    n_steps: int = 12
    guidance: float = 3.0
    seed: int = 0
    """Of the initial weights; sample i is edited with the random numbers of `seed + i`."""


def compare(
    table: Path, vlm: Path, vae: Path, work: Path, plan: ComparisonPlan, device: str
) -> Path:
    """Train a transformer on each condition, or go on in `work`; edit with them and judge that.

    `table`, which is returned, is the CSV to write: a row a condition and evaluation sample, see
    `_judged`. What was run is told beside it, in a JSON file of the same name. Pairs that
    `make_editor` encoded in `work` are read.

    Raises:
        AbpError: there is no such VLM or VAE, or as `fit` does.
    """
    if not (vae / VAE_FILE).is_file():
        raise AbpError(f"There is no VAE in {vae}: run `train-editor` first, or give another one.")
    samples = evaluation()
    check_number(plan.samples, samples)
    encoder = ConditionEncoder.from_pretrained(vlm, image_area=plan.shape.side**2, device=device)
    pipeline = _pipeline(encoder, vae, device)
    n_scenes = plan.dit.scenes + plan.held_out
    wording = plan.dit.wording
    folder = pairs_folder(work, vae, encoder, wording)
    pairs = encode_pairs(folder, n_scenes, wording, pipeline.vae, encoder)
    pairs = _scenes(pairs, 0, n_scenes)
    code = store.digest_files(Path(__file__).with_name("condition_states.py"))
    made_by = store.digest([folder.name, code, plan.seed])
    place = work / f"conditions-{made_by}"
    encode_conditions(place, n_scenes, wording, encoder)
    trained, about = {}, {}
    for name, condition in RUNS.items():
        own = conditioned(pairs, place, condition)
        dit = build(plan, encoder.width, own.conditions.shape[-1])
        torch.manual_seed(plan.seed)
        taught = _scenes(own, 0, plan.dit.scenes)
        training = replace(plan.dit, told=0.0) if name == UNTOLD else plan.dit
        fitted = train_dit(dit, taught, place, training, plan.shape, device, name=name)
        # a copy, as the trained one is compiled for the shapes of its training
        trained[name] = build(plan, encoder.width, own.conditions.shape[-1]).to(device)
        trained[name].load_state_dict(dit.state_dict())
        about[name] = {
            "layers": layers_read(encoder)[condition],
            "parameters": sum(weight.numel() for weight in dit.parameters()),
            "minutes": round(fitted.seconds / 60, 1),
            "held_out_loss": _loss(trained[name], _scenes(own, plan.dit.scenes, n_scenes), plan),
        }
    edits = edit_all(pipeline, trained, encoder, samples, plan)
    store.write_text(table, _judged(edits, samples).to_csv(index=False))
    store.write_json(
        table.with_suffix(".json"),
        {
            "vlm": encoder.fingerprint,
            "samples": samples.fingerprint,
            "device": device,
            "torch": torch.__version__,
            "conditions": about,
            "plan": asdict(plan),
        },
    )
    return table


def build(plan: ComparisonPlan, width: int, read: int) -> QwenImageTransformer2DModel:
    """A transformer that reads states of width `read`; its other weights depend on no condition.

    `width` is that of one state of the VLM.
    """
    common = build_dit(plan.shape, width, plan.seed).state_dict()
    dit = build_dit(plan.shape, read, plan.seed)
    own = dit.state_dict()
    same = {name: w for name, w in common.items() if w.shape == own[name].shape}
    dit.load_state_dict(own | same)
    return dit


@torch.inference_mode()
def edit_all(
    pipeline: QwenImageEditPipeline,
    trained: Mapping[str, QwenImageTransformer2DModel],
    encoder: ConditionEncoder,
    samples: SceneSamples,
    plan: ComparisonPlan,
) -> dict[str, list[Image.Image]]:
    """Edits of the first `plan.samples` samples by each condition's transformer."""
    edits: dict[str, list[Image.Image]] = {name: [] for name in trained}
    for start in tqdm(range(0, plan.samples, _BATCH), desc="editing", mininterval=10):
        indices = range(start, min(start + _BATCH, plan.samples))
        asked = [samples[index] for index in indices]
        pictures = [
            vlms.fit_image(sample.image, encoder.image_area, encoder.processor) for sample in asked
        ]
        positive = read_conditions(encoder, pictures, [sample.instruction for sample in asked])
        negative = read_conditions(encoder, pictures, [NOTHING] * len(asked))
        source = qwen_pipeline.source_latents(pipeline, pictures)
        for name, dit in trained.items():
            pipeline.transformer = dit
            latents = qwen_pipeline.denoise(
                pipeline,
                source,
                positive[RUNS[name]],
                negative[RUNS[name]],
                [plan.seed + index for index in indices],
                size=pictures[0].size,
                n_steps=plan.n_steps,
                guidance=plan.guidance,
            )
            made = qwen_pipeline.decode(pipeline, latents, pictures[0].size)
            edits[name] += [
                edit.resize(sample.image.size, Image.Resampling.LANCZOS)
                for edit, sample in zip(made, asked, strict=True)
            ]
    return edits


def _judged(edits: Mapping[str, list[Image.Image]], samples: SceneSamples) -> pd.DataFrame:
    """One row a condition and sample.

    Columns: condition, sample_id, target_altered (the target is no longer what it was),
    others_altered (the part of the other objects that are not), edit_success, accuracy, leakage,
    failure; the last four by the scene oracle.
    """
    judge, rows = SceneOracle(), []
    for index in tqdm(range(len(next(iter(edits.values())))), desc="judging", mininterval=10):
        scene, asked = samples.scene_edit(index)
        made = [of_condition[index] for of_condition in edits.values()]
        verdicts = judge.judge(samples, index, made)
        for name, verdict, seen in zip(edits, verdicts, read(scene, made), strict=True):
            altered = [
                not clear or look != (thing.kind, thing.colour)
                for thing, look, clear in zip(scene.things, seen.looks, seen.clear, strict=True)
            ]
            assert asked.target is not None  # or the judge had refused
            target = altered.pop(asked.target)
            rows.append(
                {
                    "condition": name,
                    "sample_id": samples[index].id,
                    "target_altered": target,
                    "others_altered": round(sum(altered) / len(altered), 4),
                    "edit_success": verdict.success,
                    "accuracy": verdict.accuracy,
                    "leakage": verdict.leakage,
                    "failure": verdict.failure,
                }
            )
    return pd.DataFrame(rows).sort_values("condition", kind="stable")


def _pipeline(encoder: ConditionEncoder, vae: Path, device: str) -> QwenImageEditPipeline:
    """The VLM and the VAE as a pipeline that still lacks its transformer."""
    still = for_stills(AutoencoderKLQwenImage.from_pretrained(vae, dtype=torch.float32))
    return QwenImageEditPipeline(
        scheduler=build_scheduler(),
        vae=still.to(device).requires_grad_(False),
        text_encoder=encoder.model,
        tokenizer=encoder.processor.tokenizer,
        processor=encoder.processor,
        transformer=None,
    )


def _scenes(pairs: Pairs, start: int, stop: int) -> Pairs:
    """The pairs of some of the scenes."""
    n = len(pairs.sources)
    arrays = {part.name: getattr(pairs, part.name) for part in fields(pairs)}
    each = {name: len(array) // n for name, array in arrays.items()}
    return Pairs(**{name: a[start * each[name] : stop * each[name]] for name, a in arrays.items()})


@torch.no_grad()
def _loss(dit: QwenImageTransformer2DModel, pairs: Pairs, plan: ComparisonPlan) -> float:
    """Mean flow loss, every pair seen about four times under the same noise whatever the model."""
    settings = replace(plan.dit, nothing=0.0)
    losses = []
    with torch.random.fork_rng():
        for step in range(-(-4 * len(pairs.targets) // settings.batch)):
            torch.manual_seed(step)
            batch = {
                name: part.to(dit.device) for name, part in draw(pairs, settings, step).items()
            }
            losses.append(flow_loss(dit, batch, settings.changed).item())
    return round(sum(losses) / len(losses), 5)
