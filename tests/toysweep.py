"""The smallest sweep: three proxies of both kinds of token, for training in seconds."""

from __future__ import annotations

from abplib.proxies.configurations import Configuration
from abplib.proxies.settings import SweepSettings

SETTINGS = SweepSettings(
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
CHOSEN = (
    Configuration("layer_1", (1,)),
    Configuration("final", ("final",)),
    Configuration("middle_prompt", (2, 3), "prompt"),
)
