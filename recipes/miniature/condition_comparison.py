"""Where the gap comes from: the editor trained further on other conditions and instructions.

Section 4.1 names two sources of wrong edits, the image model and its condition, and studies the
second. Here both are set: the editor's transformer, whose layer that takes the condition in is made
anew, is trained on each of `condition_states.CONDITIONS`, and with instructions that name objects
by their place never, now and then, or often. Scenes, budget, the order of batches, noise and
initial weights are the same. Each then edits the multi-entity set, whose instructions always name a
place.
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

from abplib.core.errors import AbpError
from abplib.core.trainer import Schedule
from abplib.editing import qwen_pipeline
from abplib.editing.qwen_pipeline import for_stills
from abplib.editing.twins import EditorShape, build_scheduler
from abplib.judging.scene_oracle import SceneOracle
from abplib.judging.scene_reading import read
from abplib.samples.base import check_number
from abplib.samples.scenes.sets import SceneSamples, evaluation
from abplib.sections.shipped import ship
from abplib.sections.trained_conditions import transformer_of
from abplib.vlm import loading as vlms
from abplib.vlm.encoder import NOTHING, ConditionEncoder
from recipes.miniature.condition_states import CONDITIONS, layers_read, read_conditions
from recipes.miniature.editor import WEIGHTS, pairs_folder
from recipes.miniature.editor_data import Pairs, encode_pairs
from recipes.miniature.editor_training import EditorTraining, draw, flow_loss, train_dit

Run = tuple[str, str]
"""A condition, and how much is named by place: a key of `ComparisonPlan.by_place`."""

_BATCH = 20
"""Samples edited together."""


@dataclass(frozen=True)
class ComparisonPlan:
    """Size and budget of each training, and how it is measured."""

    shape: EditorShape = field(default_factory=EditorShape)
    """Of the editor."""
    dit: EditorTraining = field(
        default_factory=lambda: EditorTraining(
            Schedule(steps=300, lr=1e-3, muon_lr=5e-3, muon=r"transformer_blocks\.", average=0.98),
            scenes=1280,
        )
    )
    by_place: Mapping[str, float] = field(
        default_factory=lambda: {"none": 0.0, "few": 0.05, "many": 0.5}
    )
    """Shares of the training instructions about an object that name it by its place."""
    held_out: int = 64
    """Scenes after the training ones, with four edits each, for the loss on unseen pairs."""
    samples: int = 200
    """Evaluation samples edited, from the start."""
    n_steps: int = 4
    guidance: float = 1.0
    seed: int = 0
    """Of the new layer's weights; sample i is edited with the random numbers of `seed + i`."""


def compare(
    table: Path, vlm: Path, editor: Path, work: Path, plan: ComparisonPlan, device: str
) -> Path:
    """Train each transformer, or go on in `work`; edit with all of them and judge that.

    `table`, which is returned, is the CSV to write: a row a run and evaluation sample, see
    `_judged`. What was run is told beside it, in a JSON file of the same name.

    Raises:
        AbpError: there is no such VLM or editor, or as `fit` does.
    """
    vae, body = editor / "vae", editor / "transformer"
    started = transformer_of(editor)
    if not (vae / WEIGHTS).is_file() or started is None:
        raise AbpError(f"There is no editor in {editor}: run `train-editor`, or give another one.")
    samples = evaluation()
    check_number(plan.samples, samples)
    encoder = ConditionEncoder.from_pretrained(vlm, image_area=plan.shape.side**2, device=device)
    pipeline = _pipeline(encoder, vae, device)
    n_scenes = plan.dit.scenes + plan.held_out
    trained, runs = {}, []
    for amount, share in plan.by_place.items():
        training = replace(plan.dit, wording=replace(plan.dit.wording, by_place=share))
        place = pairs_folder(work, vae, encoder, training.wording, CONDITIONS)
        encoded = encode_pairs(place, n_scenes, training.wording, pipeline.vae, encoder, CONDITIONS)
        for condition, pairs in encoded.items():
            dit = _start(body, plan.seed)
            taught = _scenes(pairs, 0, plan.dit.scenes)
            name = f"{condition}-{started}-{plan.seed}"
            fitted = train_dit(dit, taught, place, training, plan.shape, device, name=name)
            # a copy, as the trained one is compiled for the shapes of its training
            own = _start(body, plan.seed).to(device)
            own.load_state_dict(dit.state_dict())
            trained[condition, amount] = own
            runs.append(
                {
                    "condition": condition,
                    "by_place": amount,
                    "layers": layers_read(encoder)[condition],
                    "parameters": sum(weight.numel() for weight in own.parameters()),
                    "minutes": round(fitted.seconds / 60, 1),
                    "held_out_loss": _loss(own, _scenes(pairs, plan.dit.scenes, n_scenes), plan),
                }
            )
    edits = edit_all(pipeline, trained, encoder, samples, plan)
    rows = _judged(edits, samples)
    told = {"transformer": started, "runs": runs, "plan": asdict(plan)}
    return ship(table, rows, encoder, samples, device=device, **told)


@torch.inference_mode()
def edit_all(
    pipeline: QwenImageEditPipeline,
    trained: Mapping[Run, QwenImageTransformer2DModel],
    encoder: ConditionEncoder,
    samples: SceneSamples,
    plan: ComparisonPlan,
) -> dict[Run, list[Image.Image]]:
    """Edits of the first `plan.samples` samples by each transformer."""
    edits: dict[Run, list[Image.Image]] = {run: [] for run in trained}
    for start in tqdm(range(0, plan.samples, _BATCH), desc="editing", mininterval=10):
        indices = range(start, min(start + _BATCH, plan.samples))
        asked = [samples[index] for index in indices]
        pictures = [
            vlms.fit_image(sample.image, encoder.image_area, encoder.processor) for sample in asked
        ]
        positive = read_conditions(encoder, pictures, [sample.instruction for sample in asked])
        guided = plan.guidance > 1
        nothing = [NOTHING] * len(asked)
        negative = read_conditions(encoder, pictures, nothing) if guided else None
        source = qwen_pipeline.source_latents(pipeline, pictures)
        for run, dit in trained.items():
            pipeline.transformer = dit
            latents = qwen_pipeline.denoise(
                pipeline,
                source,
                positive[run[0]],
                negative[run[0]] if negative else None,
                [plan.seed + index for index in indices],
                size=pictures[0].size,
                n_steps=plan.n_steps,
                guidance=plan.guidance,
            )
            made = qwen_pipeline.decode(pipeline, latents, pictures[0].size)
            edits[run] += [
                edit.resize(sample.image.size, Image.Resampling.LANCZOS)
                for edit, sample in zip(made, asked, strict=True)
            ]
    return edits


def _judged(edits: Mapping[Run, list[Image.Image]], samples: SceneSamples) -> pd.DataFrame:
    """One row a run and sample.

    Columns: condition, by_place, sample_id, target_altered (the target is no longer what it was),
    others_altered (the part of the other objects that are not), edit_success, accuracy, leakage,
    failure; the last four by the scene oracle.
    """
    judge, rows = SceneOracle(), []
    for index in tqdm(range(len(next(iter(edits.values())))), desc="judging", mininterval=10):
        scene, asked = samples.scene_edit(index)
        made = [of_run[index] for of_run in edits.values()]
        verdicts = judge.judge(samples, index, made)
        for run, verdict, seen in zip(edits, verdicts, read(scene, made), strict=True):
            altered = [
                not clear or look != (thing.kind, thing.colour)
                for thing, look, clear in zip(scene.things, seen.looks, seen.clear, strict=True)
            ]
            assert asked.target is not None  # or the judge had refused
            target = altered.pop(asked.target)
            rows.append(
                {
                    "condition": run[0],
                    "by_place": run[1],
                    "sample_id": samples[index].id,
                    "target_altered": target,
                    "others_altered": round(sum(altered) / len(altered), 4),
                    "edit_success": verdict.success,
                    "accuracy": verdict.accuracy,
                    "leakage": verdict.leakage,
                    "failure": verdict.failure,
                }
            )
    return pd.DataFrame(rows).sort_values(["condition", "by_place"], kind="stable")


def _start(body: Path, seed: int) -> QwenImageTransformer2DModel:
    """The editor's transformer, its reading of the condition forgotten."""
    dit = QwenImageTransformer2DModel.from_pretrained(body, torch_dtype=torch.float32)
    torch.manual_seed(seed)
    dit.txt_in.reset_parameters()
    torch.nn.init.ones_(dit.txt_norm.weight)
    return dit.eval()


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
