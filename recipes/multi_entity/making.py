"""One stage of appendix A.2 with the paper's own models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from abplib.core.errors import AbpError
from abplib.judging.human.labels import read_labels
from abplib.profiles import Profile
from recipes.multi_entity import stages as spatial


def make(
    stage: str,
    folder: Path,
    n: int | None,
    labels: Path | None,
    profile: str,
    seed: int,
    log: spatial.Log,
) -> None:
    """Run it in `folder`.

    Raises:
        AbpError: there is no such stage, the one before was not run, or its model cannot be had.
    """

    def prompts() -> None:
        from recipes.multi_entity.models import GeminiWriter

        spatial.write_prompts(folder, GeminiWriter(), n or spatial.N_SAMPLES, log)

    def structures() -> None:
        from recipes.multi_entity.models import GeminiWriter

        spatial.structure_prompts(folder, GeminiWriter(), log)

    def images() -> None:
        from recipes.multi_entity.models import FiboPainter

        spatial.paint_images(folder, FiboPainter.from_pretrained(), seed, log)

    def edits() -> None:
        from abplib.experiment import Experiment

        editor = Experiment(Profile.load(profile)).other("qwen_image_edit_2509")
        spatial.edit_images(folder, editor, seed, log)

    def instructions() -> None:
        from recipes.multi_entity.models import MistralDescriber

        spatial.write_instructions(folder, MistralDescriber.from_pretrained(), log)

    def boxes() -> None:
        from abplib.experiment import Experiment
        from abplib.vlm.grounding import Grounder

        chosen = Profile.load(profile)
        spatial.ground_boxes(folder, Grounder.of(Experiment(chosen).encoder), chosen.vlm, log)

    def verification() -> None:
        if labels is None:
            raise AbpError(
                "Stage verification reads what people said: give --labels, the file of the "
                "annotation notebook."
            )
        spatial.verify(folder, read_labels(labels), log)

    stages: dict[str, Callable[[], object]] = {
        "prompts": prompts,
        "structures": structures,
        "images": images,
        "edits": edits,
        "reversal": lambda: spatial.reverse(folder, log),
        "instructions": instructions,
        "boxes": boxes,
        "verification": verification,
        "split": lambda: spatial.split(folder, seed, log),
    }
    if stage not in stages:
        raise AbpError(f"There is no stage {stage!r}: choose from {', '.join(stages)}.")
    stages[stage]()
