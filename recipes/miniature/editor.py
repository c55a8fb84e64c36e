"""The miniature editor from nothing: VAE, training pairs, diffusion transformer, LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageEditPipeline

from abplib.core import parallel, store
from abplib.core.errors import AbpError
from abplib.core.trainer import Fitted, Schedule
from abplib.editing.lora.settings import LoraTraining
from abplib.editing.lora.training import train_lora
from abplib.editing.qwen_image_edit import QwenImageEditor
from abplib.editing.qwen_pipeline import for_stills
from abplib.editing.twins import EditorShape, assemble, build_dit, save_pipeline
from abplib.profiles import Profile
from abplib.samples.scenes import sets
from abplib.vlm.encoder import ConditionEncoder
from recipes.miniature import cards, condition_states, editor_data, marks
from recipes.miniature.editor_data import Wording, encode_pairs
from recipes.miniature.editor_training import SHIFT, EditorTraining, train_dit
from recipes.miniature.vae_training import VAETraining, train_vae

WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class EditorPlan:
    """Shape and budgets of everything that is trained."""

    shape: EditorShape = field(default_factory=EditorShape)
    vae: VAETraining = field(default_factory=VAETraining)
    dit: EditorTraining = field(default_factory=EditorTraining)
    large: EditorTraining = field(
        default_factory=lambda: EditorTraining(
            Schedule(steps=2200, cosine=2600, lr=2e-3, muon=r"transformer_blocks\.", average=0.998),
            batch=192,
            scenes=10240,
        )
    )
    """Of the transformer, behind `dit`: in large batches, whose gradients are less noisy."""
    lora: LoraTraining = field(default_factory=lambda: Profile.load("mini").lora_training)
    seed: int = 0


def make_editor(folder: Path, vlm: Path, work: Path, plan: EditorPlan, device: str) -> Path:
    """Train the miniature editor around a VLM, or go on from the checkpoints in `work`.

    The pipeline, with the frozen VLM, goes to `folder`, which is returned, its LoRA below it.
    """
    if parallel.share().of > 1:
        raise AbpError("One process trains the miniature editor: start it without a launcher.")
    vae, vae_run = _trained_vae(work, plan, device)
    area = plan.shape.side**2
    encoder = ConditionEncoder.from_pretrained(vlm, image_area=area, device=device)
    if plan.vae.compile and device == "cpu":
        vae.encoder.compile()
    dit = build_dit(plan.shape, encoder.width, plan.seed)

    def trained(name: str, stage: EditorTraining, after: EditorTraining | None = None) -> Fitted:
        place = pairs_folder(work, work / "vae", encoder, stage.wording)
        pairs = encode_pairs(place, stage.scenes, stage.wording, vae, encoder)["final"]
        return train_dit(dit, pairs, work, stage, plan.shape, device, name=name, after=after)

    dit_run = trained("dit", plan.dit)
    large_run = trained("dit-large", plan.large, after=plan.dit)
    stored = AutoencoderKLQwenImage.from_pretrained(work / "vae")
    save_pipeline(assemble(vlm, stored, dit).to(torch.bfloat16), folder)
    editor = QwenImageEditor.from_pretrained(folder, image_area=area)
    boxed = sets.training()
    lora_run = train_lora(editor, boxed, plan.lora, folder / "lora", base=work, device=device)
    pipeline = QwenImageEditPipeline.from_pretrained(folder)
    runs = {"vae": vae_run, "dit": dit_run, "dit-large": large_run, "lora": lora_run}
    facts = {
        "plan": asdict(plan) | {"lora": plan.lora.model_dump()},
        "minutes": {name: round(run.seconds / 60, 1) for name, run in runs.items()},
        "where": {name: run.where for name, run in runs.items()},
    }
    told = {
        "plan": plan,
        "cost": ",\n".join(f"{k} {run.seconds / 60:.0f} ({run.where})" for k, run in runs.items()),
        "vae_parameters": sum(weight.numel() for weight in pipeline.vae.parameters()),
        "dit_parameters": sum(weight.numel() for weight in pipeline.transformer.parameters()),
        "things_weight": 1 + plan.vae.things,
        "changed": 1 + plan.dit.changed,
        "shift": SHIFT,
        "marked": marks.SHARE,
        "lora_samples": len(boxed),
    }
    curves = [{"stage": name} | row for name, run in runs.items() for row in run.curves]
    cards.write_card(folder, cards.EDITOR, told, facts, curves)
    return folder


def pairs_folder(
    work: Path,
    vae: Path,
    encoder: ConditionEncoder,
    wording: Wording,
    conditions: Sequence[str] = ("final",),
) -> Path:
    """Where pairs encoded by the VAE saved in a folder and by this VLM lie."""
    code = (editor_data.__file__, condition_states.__file__, marks.__file__)
    files = store.digest_files(vae / WEIGHTS, *code)
    made_by = [encoder.fingerprint, files, asdict(wording), list(conditions)]
    return work / f"pairs-{store.digest(made_by)}"


def _trained_vae(
    work: Path, plan: EditorPlan, device: str
) -> tuple[AutoencoderKLQwenImage, Fitted]:
    """The VAE as it is shipped, rounded to bf16."""
    vae, run = train_vae(work, plan.vae, plan.shape, device)
    if not (work / "vae" / WEIGHTS).exists():
        vae.to(torch.bfloat16).save_pretrained(work / "vae")
    vae = AutoencoderKLQwenImage.from_pretrained(work / "vae", dtype=torch.float32)
    return for_stills(vae).to(device).requires_grad_(False), run
