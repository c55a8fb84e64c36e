"""All that is shipped under `data/mini`, from nothing: `python -m recipes miniature`.

The VLM, the editor around it (VAE, diffusion transformer, LoRA), the VLM's own labels, the proxy
that guides the editor and the comparison of conditions, one after another. Seeded; killed and
started again it goes on from its checkpoints, and leaves what an unbroken run leaves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from abplib.profiles import LABELS_FILE
from abplib.proxies.configurations import configurations
from abplib.proxies.labels import exact_labels, predict_labels
from abplib.proxies.selection import choose
from abplib.proxies.settings import SweepSettings
from abplib.proxies.sweep import SweepInputs, sweep
from abplib.samples.scenes.sets import general, tuning
from abplib.sections import trained_conditions
from abplib.vlm.encoder import ConditionEncoder
from abplib.vlm.twins import VLMShape
from recipes.miniature.condition_comparison import ComparisonPlan, compare
from recipes.miniature.editor import EditorPlan, make_editor
from recipes.miniature.vlm_training import VLMTraining, train


@dataclass(frozen=True)
class MiniaturePlan:
    """Shapes and budgets of all that is shipped."""

    shape: VLMShape = field(default_factory=VLMShape)
    vlm: VLMTraining = field(default_factory=VLMTraining)
    editor: EditorPlan = field(default_factory=EditorPlan)
    guide: SweepSettings = field(
        default_factory=lambda: SweepSettings(
            width=32, n_queries=4, n_heads=4, lr=1e-3, micro_batch=64
        )
    )
    """Light proxies, trained on the paper's number of samples (appendix B.1)."""
    exact_labels: bool = False
    """Whether the guide learns from exact boxes, not the VLM's: for models that cannot answer."""
    comparison: ComparisonPlan = field(default_factory=ComparisonPlan)
    seed: int = 0
    """Of the guide; the other parts have their own."""


def make(folder: Path, work: Path, plan: MiniaturePlan, device: str) -> Path:
    """Make everything, or go on from what is in `work`.

    What is shipped goes to `folder`, which is returned: vlm, with tables made of it, editor, proxy.
    """
    vlm = train(folder / "vlm", work / "vlm", plan.vlm, plan.shape, device)
    editor = make_editor(folder / "editor", vlm, work / "editor", plan.editor, device)
    make_guide(folder / "proxy", vlm, plan, device)
    compare(vlm / trained_conditions.FILE, vlm, editor, work / "editor", plan.comparison, device)
    return folder


def make_guide(folder: Path, vlm: Path, plan: MiniaturePlan, device: str) -> Path:
    """Let the VLM label the general set, beside its weights, and train the proxy that guides.

    A proxy on each middle layer is trained; the one whose boxes are best on the tuning samples is
    shipped. Returns: `folder`.
    """
    encoder = ConditionEncoder.from_pretrained(vlm, image_area=plan.shape.side**2, device=device)
    n = min(plan.guide.n_batches * plan.guide.batch_size, len(general()))
    if plan.exact_labels:
        labels = exact_labels(encoder, general(), n)
    else:
        labels = predict_labels(encoder, general(), n, shipped=vlm / LABELS_FILE)
        labels.ship(vlm / LABELS_FILE)
    chosen = [
        c
        for c in configurations(encoder)
        if c.tokens == "all" and set(c.layers) <= set(encoder.middle_layers)
    ]
    inputs = SweepInputs(encoder, general(), labels, tuning(), chosen, plan.guide, plan.seed)
    swept = sweep(inputs, len(tuning()))
    choose(encoder, swept.folder / "proxies", tuning()).save(folder, encoder)
    return folder
