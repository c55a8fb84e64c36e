"""The stages of a profile: what each does, with which models, and what that costs.

Cost is counted in floating-point operations: 2 for each parameter that a token passes and 4 T^2 for
each width of each attention block, three times that for training through a network and four where
activations are computed again. Left out: reading and decoding images, the VAE, and text beyond the
instruction's typical length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from abplib.core.errors import AbpError
from abplib.editing.methods import CONTROLS, METHODS
from abplib.experiment import Experiment
from abplib.profiles import Profile
from abplib.publish.plan_models import Model, facts, model_of
from abplib.samples.omniedit import HUB_ID

_TEXT = 100
"""Tokens of system prompt, instruction and template together."""
_ANSWER = 60
"""Tokens of an answer with a box."""
_MOST_WRITTEN = 256
"""Tokens of an instruction at most (A.2)."""
_SPATIAL, _OMNIEDIT = "abplib.samples.multi_entity:", "abplib.samples.omniedit_rows:"
_GEMINI = "gemini-2.5-pro"
_WRITING = 10
"""How many times longer a token takes that is generated than one that is read: generation waits
for memory."""


@dataclass(frozen=True)
class Stage:
    """One piece of work."""

    name: str
    does: str
    sources: tuple[str, ...]
    """Folders or hub ids of the models."""
    flops: float | None
    """None where a model's size is not known."""
    reported: str | None = None
    """Key of the paper's own figures in the data file."""
    lacks: tuple[str, ...] = ()
    """What is missing whatever the machine: a folder, a set of samples."""
    service: str | None = None
    """Key of a service that is paid for, in the data file."""
    data: str | None = None
    """Hub id of a data set to be fetched, in the data file."""
    n_rows: int = 0
    """Rows of it."""

    @property
    def models(self) -> list[Model | None]:
        """The models, None for one of unknown size."""
        return [model_of(source) for source in self.sources]


def stages(profile: Profile) -> list[Stage]:
    """The stages of a profile's chapters, in the order in which they can be run."""
    return [*_samples(profile), *_vlm(profile), *_editing(profile), *_judging(profile)]


def _samples(profile: Profile) -> Iterator[Stage]:
    """The sample sets that are not there yet, and what makes the paper's own."""
    lacking: dict[str, list[str]] = {}
    for name in ("evaluation", "training", "tuning"):
        try:
            getattr(Experiment(profile), name)
        except AbpError as error:
            lacking.setdefault(str(error), []).append(name)
    if lacking and profile.eval_set.startswith(_SPATIAL):
        yield from _multi_entity(profile)
    for sentence, names in lacking.items():
        which = ", ".join(names)
        if names == ["training"] and profile.train_set.startswith(_OMNIEDIT):
            n = profile.n_batches * profile.batch_size
            yield Stage("samples (B.1)", which, (), None, lacks=(sentence,), data=HUB_ID, n_rows=n)
        else:
            yield Stage("samples", which, (), None, lacks=(sentence,))


def _multi_entity(profile: Profile) -> Iterator[Stage]:
    """The stages of appendix A.2 that need models."""
    n = 2 * profile.n_eval
    yield Stage("prompts, structures (A.2)", f"{n:,} scenes", (), None, service=_GEMINI)
    yield _by_card("images (A.2)", "briaai/FIBO", profile, n, n_sources=0)
    yield _by_card("edits (A.2)", "Qwen/Qwen-Image-Edit-2509", profile, n)
    mistral = "mistralai/Mistral-Small-3.2-24B-Instruct-2506"
    cost = _reading(mistral, 2 * profile.image_area, n, _MOST_WRITTEN)
    yield Stage("instructions (A.2)", f"{n:,} pairs of images described", (mistral,), cost)


def _vlm(profile: Profile) -> Iterator[Stage]:
    n_train = profile.n_batches * profile.batch_size
    try:
        vlm = Experiment(profile).vlm_source
    except AbpError as error:
        yield Stage("VLM", "all chapters", (), None, lacks=(str(error),))
        return
    if profile.labels == "predicted":
        does = f"the VLM answers {n_train:,} training samples"
        yield Stage(
            "labels (ch. 2)", does, (vlm,), _reading(vlm, profile.image_area, n_train, _ANSWER)
        )
    yield Stage(
        "proxies (ch. 2)",
        f"{n_train:,} passes of the VLM; a proxy for each layer and two more learn beside it",
        (vlm,),
        _reading(vlm, profile.image_area, n_train),
        reported="proxies",
    )
    yield Stage(
        "boxes, routing, flow (ch. 1, 3, 4)",
        f"the VLM answers {profile.n_eval:,} samples and is read on them three times",
        (vlm,),
        _reading(vlm, profile.image_area, profile.n_eval, _ANSWER, n_passes=4),
    )


def _editing(profile: Profile) -> Iterator[Stage]:
    if profile.editor is None:
        return
    try:
        editor = Experiment(profile).editor_source
    except AbpError as error:
        yield Stage("edits (ch. 1, 5)", "editing", (), None, lacks=(str(error),))
        return
    if profile.lora is not None and not Experiment(profile).lora_place.is_dir():
        budget = profile.lora_training
        cost = 4 if budget.gradient_checkpointing else 3
        yield Stage(
            "LoRA (B.2)",
            f"{budget.steps:,} steps of {budget.batch} samples through the editor: abp train-lora",
            (editor,),
            _denoising(editor, profile, cost * budget.steps * budget.batch),
            reported="lora",
        )
    n_edits = profile.n_eval * (len(METHODS) - len(CONTROLS))
    n_passes = profile.n_steps * (1 if profile.guidance == 1 else 2)
    yield Stage(
        "edits (ch. 1, 5)",
        f"{n_edits:,} edits of {profile.n_steps} steps",
        (editor,),
        _denoising(editor, profile, n_edits * n_passes),
    )
    for name in profile.other_editors:
        try:
            source = Experiment(profile).other_source(name)
        except AbpError as error:
            yield Stage(f"{name} (ch. 5)", "", (), None, lacks=(str(error),))
        else:
            yield _by_card(f"{name} (ch. 5)", source, profile, profile.n_eval)


def _judging(profile: Profile) -> Iterator[Stage]:
    """The judge, where it is a service."""
    if profile.editor is not None and profile.judge.endswith(":gemini"):
        n = profile.n_eval * len(METHODS)
        yield Stage("judging (ch. 5)", f"{n:,} edits, repeatedly", (), None, service=_GEMINI)


def _by_card(name: str, source: str, profile: Profile, n: int, *, n_sources: int = 1) -> Stage:
    """`n` images by another system, with its model card's settings."""
    model = model_of(source)
    does = f"{n:,} images" + (f" in {model.steps} steps" if model else "")
    passes = model.steps * model.passes if model else 0
    return Stage(name, does, (source,), _denoising(source, profile, n * passes, n_sources))


def _reading(
    source: str, image_area: int, n: int, n_written: int = 0, *, n_passes: int = 1
) -> float | None:
    """Cost of a VLM on `n` samples: passes over image and instruction, and an answer."""
    model = model_of(source)
    if model is None:
        return None
    part = model.part("vlm", "text_encoder")
    n_tokens = round(image_area / part.token_side**2 + _TEXT)
    return n * (n_passes * part.flops(n_tokens) + _WRITING * 2.0 * part.seen * n_written)


def _denoising(source: str, profile: Profile, n: int, n_sources: int = 1) -> float | None:
    """Cost of `n` passes of a transformer over noise, source images and text."""
    model = model_of(source)
    if model is None:
        return None
    part = model.part("transformer")
    n_image = (1 + n_sources) * profile.image_area / part.token_side**2
    return n * part.flops(round(n_image + profile.image_area / 28**2 + _TEXT))


def gpu_hours(flops: float, utilisation: float) -> float:
    """Hours on the paper's GPU at a part of its peak."""
    return flops / (facts()["paper"]["gpu"]["tflops"] * 1e12 * utilisation) / 3600
