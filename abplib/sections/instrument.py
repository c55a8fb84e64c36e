"""Does the instrument work? States in which the one telling (layer, token) is known (chapter 3).

Every state is noise but one of each sample: at a layer and a token that change from sample to
sample, a box is written in a fixed linear code. A proxy learns from such samples alone and is taken
apart as in section 4.4: l* and the dominant token must be the planted ones. A control has no plant,
so there is nothing to name.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from abplib.core import store
from abplib.core.boxes import center_distance
from abplib.core.parallel import side_by_side
from abplib.core.stats import bootstrap_nested
from abplib.proxies.attention import ProxyAttention
from abplib.proxies.bank import Bank
from abplib.proxies.configurations import Configuration
from abplib.proxies.settings import SweepSettings
from abplib.sections.decomposition import decompose
from abplib.vlm.encoder import Encoding

N_LAYERS, N_TOKENS, WIDTH = 4, 8, 32
"""Size of a sample's states."""
STRENGTHS = (12.0, 8.0, 4.0, 0.0)
"""Length of what is planted, in deviations of the noise in each of its `WIDTH` numbers; at zero
nothing is."""
CHANCE = 1 / (N_LAYERS * N_TOKENS)
"""That both are right."""
_PARTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Of the budget, after which the proxy is taken apart."""
_READS = Configuration("planted", tuple(range(N_LAYERS)))
_N = 200


@store.stored("planted")
def planted(place: Path, settings: SweepSettings, threshold: float, n_seeds: int) -> None:
    """Train and take apart a proxy for each strength and seed.

    Writes `samples.parquet`, a row for each strength, seed, number of training samples and
    evaluation sample: strength, seed, samples, sample, center_error, named (whether a head is
    decisive), layer and token (whether l* and the dominant token are the planted ones; of the
    control, those that a plant would have had) and both.
    """
    runs = list(product(STRENGTHS, range(n_seeds)))
    tables = side_by_side(lambda run: _taken_apart(*run, settings, threshold), runs)
    store.write_parquet(place / "samples.parquet", pd.concat(tables, ignore_index=True))


def rates(samples: pd.DataFrame, what: str, seed: int) -> pd.DataFrame:
    """How often `what` is so, by strength and number of training samples.

    Columns: strength, samples, value, low, high (over seeds and samples together), n (evaluation
    samples of a seed).
    """
    rows = []
    for (strength, budget), part in samples.groupby(["strength", "samples"], sort=False):
        right = part.pivot(index="seed", columns="sample", values=what).to_numpy(float)
        found = bootstrap_nested(right, seed=seed)
        rows.append({"strength": strength, "samples": budget, **found._asdict()})
    return pd.DataFrame(rows)


def summary(samples: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Rows for `values.json`: the strongest plant and the control, each at the whole budget."""
    budget = samples["samples"].max()
    whole = samples[samples["samples"] == budget]

    def at(strength: float, what: str) -> dict[str, float]:
        row = rates(whole[whole["strength"] == strength], what, seed).iloc[0]
        return dict(row[["value", "low", "high", "n"]])

    strongest = STRENGTHS[0]
    rows = {what: at(strongest, what) for what in ("layer", "token", "both", "named")}
    rows |= {"control": at(0.0, "both"), "control_named": at(0.0, "named")}
    rows |= {"chance": {"value": CHANCE}}
    frame = pd.DataFrame(rows).T.assign(unit="fraction")
    frame.loc["n_samples", ["value", "unit", "fmt"]] = budget, "samples", ",.0f"
    return frame.assign(name="planted." + frame.index)


def _taken_apart(
    strength: float, seed: int, settings: SweepSettings, threshold: float
) -> pd.DataFrame:
    """Rows of `planted` for one strength and seed."""
    samples = _Planter(strength, seed)
    asked, exact, layer, token = samples.draw(_N)
    bank = Bank([_READS], WIDTH, settings, seed)
    budgets = {max(1, round(part * settings.n_batches)) for part in _PARTS}
    tables = []
    for batch in range(1, settings.n_batches + 1):
        states, boxes, *_ = samples.draw(settings.batch_size)
        bank.learn(states, boxes)
        bank.step()
        if batch in budgets:
            apart = decompose(_attention(bank, asked), threshold)
            mass = apart.a.sel(head=apart.heads, layer=apart.l_star).sum(("head", "query"))
            right = {
                "layer": apart.l_star.values == layer.numpy(),
                "token": mass.argmax("token").values == token.numpy(),
            }
            error = center_distance(bank.predict(asked)[_READS.name], exact).numpy()
            about: dict[str, Any] = {
                "strength": strength,
                "seed": seed,
                "samples": batch * settings.batch_size,
            }
            about |= {"sample": np.arange(_N), "center_error": error}
            both = right["layer"] & right["token"]
            tables.append(
                pd.DataFrame({**about, "named": apart.n_decisive > 0, **right, "both": both})
            )
    return pd.concat(tables)


class _Planter:
    """Samples without end, all in the code of one seed."""

    def __init__(self, strength: float, seed: int) -> None:
        self.strength, self.random = strength, torch.Generator().manual_seed(seed)
        basis = torch.linalg.qr(torch.randn(WIDTH, 5, generator=self.random)).Q.T
        self.mark, self.code = basis[:1], basis[1:]
        """What all plants have in common, [1, d], and the axes of a box's numbers, [4, d]."""

    def draw(self, n: int) -> tuple[Encoding, Tensor, Tensor, Tensor]:
        """States, boxes [n, 4], planted layers [n] and tokens [n]."""
        place, size = torch.rand(2, n, 2, generator=self.random)
        size = 0.1 + 0.3 * size
        corner = place * (1 - size)
        boxes = torch.cat([corner, corner + size], 1)
        layer, token = (
            torch.randint(of, (n,), generator=self.random) for of in (N_LAYERS, N_TOKENS)
        )
        states = torch.randn(N_LAYERS, n, N_TOKENS, WIDTH, generator=self.random)
        plant = (self.mark + (2 * boxes - 1) @ self.code) / 2**0.5
        states[layer, torch.arange(n), token] += self.strength * plant
        every = torch.ones(n, N_TOKENS, dtype=torch.bool)
        encoding = Encoding(
            states=dict(enumerate(states)), mask=every, image_tokens=~every, prompt_tokens=every,
            template_tokens=~every, input_ids=every.long(), grids=[], attention={},
        )  # fmt: skip
        return encoding, boxes, layer, token


def _attention(bank: Bank, encoding: Encoding) -> ProxyAttention:
    """What the proxy looks at; the tokens are no words."""
    proxy = bank.proxies[_READS.name]
    weights = torch.cat(proxy.attention(*_READS.select(encoding)), 1).numpy()
    rows = pd.MultiIndex.from_product([map(str, range(len(weights))), range(N_TOKENS)])
    tokens = rows.to_frame(index=False, name=["sample_id", "slot"])
    tokens = tokens.assign(token=tokens["slot"], span="noise", text="")
    return ProxyAttention(weights, tokens, tuple(range(N_LAYERS)), proxy.config.n_heads)
