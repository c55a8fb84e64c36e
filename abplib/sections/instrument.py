"""Does the instrument work? States in which the one telling (layer, token) is known (chapter 3).

Every state is noise but one of each sample: at a layer and a token that change from sample to
sample, a box is written in a fixed linear code. A proxy learns from such samples alone and is taken
apart as in section 4.4: l* and the dominant token must be the planted ones. A control has no plant,
so there is nothing to name.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from abplib.core import store
from abplib.core.boxes import center_distance
from abplib.core.parallel import side_by_side
from abplib.proxies.attention import ProxyAttention
from abplib.proxies.bank import Bank
from abplib.proxies.configurations import Configuration
from abplib.proxies.settings import SweepSettings
from abplib.sections.decomposition import decompose
from abplib.sections.estimates import estimates
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

    Proxies of all seeds learn from the same samples, as in a sweep. Writes `samples.parquet`, a row
    for each strength, seed, number of training samples and evaluation sample: strength, seed,
    samples, sample, center_error, named (whether a head is decisive), layer and token (whether l*
    and the dominant token are the planted ones; of the control, those that a plant would have had)
    and both.
    """
    settings = settings.model_copy(update={"n_seeds": n_seeds})
    tables = side_by_side(lambda strength: _taken_apart(strength, settings, threshold), STRENGTHS)
    store.write_parquet(place / "samples.parquet", pd.concat(tables, ignore_index=True))


def rates(samples: pd.DataFrame, what: str, seed: int) -> pd.DataFrame:
    """How often `what` is so, by strength and number of training samples.

    `estimates` over seeds and samples together, with the columns strength and samples.
    """
    keys = ["strength", "samples"]
    found = samples.set_index(["seed", "sample"]).groupby(keys, sort=False)[what]
    return estimates(found, seed).rename_axis(keys).reset_index()


def summary(samples: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Rows for `values.json`: the strongest plant and the control, each at the whole budget."""
    budget = samples["samples"].max()
    whole = samples[samples["samples"] == budget]

    def at(strength: float, what: str) -> dict[str, float]:
        row = rates(whole[whole["strength"] == strength], what, seed).iloc[0]
        return dict(row[["value", "low", "high", "n", "seeds"]])

    strongest = STRENGTHS[0]
    rows = {what: at(strongest, what) for what in ("layer", "token", "both", "named")}
    rows |= {"control": at(0.0, "both"), "control_named": at(0.0, "named")}
    rows |= {"chance": {"value": CHANCE}}
    frame = pd.DataFrame(rows).T.assign(unit="fraction")
    frame.loc["n_samples", ["value", "unit", "fmt"]] = budget, "samples", ",.0f"
    return frame.assign(name="planted." + frame.index)


def _taken_apart(strength: float, settings: SweepSettings, threshold: float) -> pd.DataFrame:
    """Rows of `planted` for one strength."""
    samples = _Planter(strength)
    asked, exact, layer, token = samples.draw(_N)
    bank = Bank([_READS], WIDTH, settings)
    budgets = {max(1, round(part * settings.n_batches)) for part in _PARTS}
    tables = []
    for batch in range(1, settings.n_batches + 1):
        states, boxes, *_ = samples.draw(settings.batch_size)
        bank.learn(states, boxes)
        bank.step()
        if batch in budgets:
            apart = decompose(_attention(bank, asked), threshold)
            mass = apart.w.sum(("head", "query"))
            rows = {
                "center_error": center_distance(bank.predict(asked)[_READS.name], exact),
                "named": apart.n_decisive.values[:, None].repeat(_N, 1) > 0,
                "layer": apart.l_star.values == layer.numpy(),
                "token": mass.argmax("token").values == token.numpy(),
            }
            index = pd.MultiIndex.from_product(
                [range(settings.n_seeds), range(_N)], names=["seed", "sample"]
            )
            table = pd.DataFrame({k: np.ravel(v) for k, v in rows.items()}, index).reset_index()
            table["both"] = table["layer"] & table["token"]
            tables.append(table.assign(strength=strength, samples=batch * settings.batch_size))
    return pd.concat(tables)


class _Planter:
    """Samples without end, all in one code."""

    def __init__(self, strength: float) -> None:
        self.strength, self.random = strength, torch.Generator().manual_seed(0)
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
    """What the proxies look at; the tokens are no words."""
    read = _READS.select(encoding)
    weights = torch.stack([torch.cat(p.attention(*read), 1) for p in bank.proxies.values()])
    rows = pd.MultiIndex.from_product([map(str, range(weights.shape[1])), range(N_TOKENS)])
    tokens = rows.to_frame(index=False, name=["sample_id", "slot"])
    tokens = tokens.assign(token=tokens["slot"], span="noise", text="")
    n_heads = bank.settings.n_heads
    return ProxyAttention(weights.numpy(), tokens, tuple(range(N_LAYERS)), n_heads)
