"""The training loop: killed and resumed equals unbroken, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from abplib.core.errors import AbpError
from abplib.core.trainer import Batch, Fitted, Schedule, bf16_autocast, fit


class Killed(Exception):
    """Raised in the middle of a run."""


def schedule(**changes: object) -> Schedule:
    settings = {"steps": 12, "lr": 1e-2, "muon": "blocks", "warmup": 3, "average": 0.9}
    return Schedule(**{**settings, "checkpoint_every": 4, **changes})  # type: ignore[arg-type]


def model() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"blocks": nn.Linear(6, 4), "head": nn.Linear(4, 1)})


def run(net: nn.ModuleDict, work: Path, plan: Schedule, die_at: int | None = None) -> Fitted:
    def losses(batch: Batch) -> dict[str, torch.Tensor]:
        x = batch["x"] + 0.1 * torch.randn_like(batch["x"])
        return {"square": (net["head"](net["blocks"](x).tanh()) - 1).square().mean()}

    def batches(step: int) -> list[Batch]:
        if step == die_at:
            raise Killed
        return [{"x": torch.randn(5, 6, generator=torch.Generator().manual_seed(step))}]

    return fit(net, losses, batches, plan, work, name="toy", settings={"a": 1})


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, broken = model(), model()
    first = run(whole, tmp_path / "whole", schedule())
    for die_at in (6, 9):
        with pytest.raises(Killed):
            run(model(), tmp_path / "broken", schedule(), die_at)
    second = run(broken, tmp_path / "broken", schedule())
    assert first.curves == second.curves
    for one, other in zip(whole.parameters(), broken.parameters(), strict=True):
        assert torch.equal(one, other)


def test_it_learns_and_returns_averaged_weights(tmp_path: Path) -> None:
    plan = schedule(steps=200, lr=3e-2)
    net = model()
    curves = run(net, tmp_path, plan).curves
    assert curves[-1]["square"] < 0.2 * curves[0]["square"]
    last = torch.load(tmp_path / "toy.pt")
    head = dict(net.named_parameters())["head.weight"]
    assert torch.equal(head, last["average"]["head.weight"])
    assert not torch.equal(head, last["weights"]["head.weight"])


def test_muon_trains_the_matrices_that_the_pattern_names(tmp_path: Path) -> None:
    frozen = model()
    before = {name: p.clone() for name, p in frozen.named_parameters()}
    run(frozen, tmp_path, schedule(muon_lr=0.0, weight_decay=0.0, average=0.0))
    after = dict(frozen.named_parameters())
    assert torch.equal(after["blocks.weight"], before["blocks.weight"])
    assert not torch.equal(after["blocks.bias"], before["blocks.bias"])
    assert not torch.equal(after["head.weight"], before["head.weight"])


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    run(model(), tmp_path, schedule())
    with pytest.raises(AbpError, match="other settings"):
        run(model(), tmp_path, schedule(lr=2e-2))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    net = model()
    with torch.no_grad():
        net["head"].bias.fill_(torch.inf)
    with pytest.raises(AbpError, match="not finite at step 0"):
        run(net, tmp_path, schedule())
    assert not list(tmp_path.iterdir())


def test_a_batch_in_parts_teaches_what_the_whole_does(tmp_path: Path) -> None:
    x = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))

    def trained(*parts: slice) -> nn.ModuleDict:
        net = model()

        def losses(batch: Batch) -> dict[str, torch.Tensor]:
            return {"square": (net["head"](net["blocks"](batch["x"])) - 1).square().sum() / len(x)}

        fit(
            net, losses, lambda step: [{"x": x[part]} for part in parts], schedule(),
            tmp_path / str(len(parts)), name="toy", settings={}, mixed_precision=False,
        )  # fmt: skip
        return net

    whole, parted = trained(slice(6)), trained(slice(2), slice(2, 6))
    for one, other in zip(whole.parameters(), parted.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_cosine_may_be_longer_than_the_run() -> None:
    whole, cut = schedule(steps=12), schedule(steps=8, cosine=12)
    assert [cut.share(step) for step in range(8)] == [whole.share(step) for step in range(8)]


@pytest.mark.parametrize("able", [True, False])
def test_a_cpu_without_instructions_for_bf16_keeps_float32(
    monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": able})
    with bf16_autocast("cpu"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if able else torch.float32)
