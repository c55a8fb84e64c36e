"""One stage of appendix A.2 with the paper's own models."""

from __future__ import annotations

from pathlib import Path

from abplib.core.errors import AbpError
from abplib.experiment import Experiment
from abplib.judging.human.labels import read_labels
from abplib.profiles import Profile
from abplib.vlm.grounding import Grounder
from recipes.multi_entity import stages
from recipes.multi_entity.models import FiboPainter, GeminiWriter, MistralDescriber


def make(
    stage: str,
    folder: Path,
    n: int,
    labels: Path | None,
    profile: str,
    seed: int,
    log: stages.Log,
) -> None:
    """Run it in `folder`.

    Raises:
        AbpError: the one before was not run, or its model or people's labels cannot be had.
    """
    made = Experiment(Profile.load(profile))
    match stage:
        case "prompts":
            stages.write_prompts(folder, GeminiWriter(), n, log)
        case "structures":
            stages.structure_prompts(folder, GeminiWriter(), log)
        case "images":
            stages.paint_images(folder, FiboPainter.from_pretrained(), seed, log)
        case "edits":
            stages.edit_images(folder, made.other("qwen_image_edit_2509"), seed, log)
        case "reversal":
            stages.reverse(folder, log)
        case "instructions":
            stages.write_instructions(folder, MistralDescriber.from_pretrained(), log)
        case "boxes":
            stages.ground_boxes(folder, Grounder(made.encoder), made.profile.vlm, log)
        case "verification":
            if labels is None:
                raise AbpError(
                    "Stage verification reads what people said: give --labels, the file of the "
                    "annotation notebook."
                )
            stages.verify(folder, read_labels(labels), log)
        case "split":
            stages.split(folder, seed, log)
