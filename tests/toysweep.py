"""The smallest sweep, of three configurations and two seeds, and the least that learns to look."""

from __future__ import annotations

from abplib.proxies.configurations import Configuration
from abplib.proxies.settings import SweepSettings

SETTINGS = SweepSettings(
    n_seeds=2,
    n_batches=7,
    batch_size=3,
    lr=1e-3,
    width=8,
    n_queries=2,
    n_heads=2,
    n_blocks=2,
    eval_every=2,
    n_curve_eval=2,
    l1_steps=3,
    checkpoint_every=3,
    micro_batch=2,
)
LEARNS = SweepSettings(
    width=16, n_queries=2, n_heads=2, n_blocks=3, lr=3e-3, n_batches=160, l1_steps=20
)
"""As little as learns to look at what is planted (`sections.instrument`): three seconds a proxy."""
CHOSEN = (
    Configuration("layer_1", (1,)),
    Configuration("final", ("final",)),
    Configuration("middle_prompt", (2, 3), "prompt"),
)
