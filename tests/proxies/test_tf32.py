"""Proxies that learn in TF32, as a GPU multiplies for the bank, learn what they learn in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from toysweep import LEARNS

from abplib.proxies.bank import Bank
from abplib.sections import instrument

_aten = torch.ops.aten
_PRODUCTS = {_aten.mm.default, _aten.bmm.default, _aten.addmm.default, _aten.baddbmm.default}


class TF32(TorchDispatchMode):
    """Round what is multiplied to ten bits of mantissa, as a GPU's TF32 does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS:
            args = [*args[:-2], *map(_rounded, args[-2:])]
        return func(*args, **(kwargs or {}))


def _rounded(x: Tensor) -> Tensor:
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32).view(x.shape)


def test_ten_bits_are_left_of_a_number() -> None:
    exact = torch.tensor([1.0, 1 + 2.0**-10, 1 + 2.0**-12, -3.14159])
    assert _rounded(exact)[:3].tolist() == [1.0, 1 + 2.0**-10, 1.0]
    assert abs(_rounded(exact)[3] / exact[3] - 1) < 2**-11


def test_curves_are_alike_in_tf32() -> None:
    """About ten seconds: two whole trainings on planted boxes."""
    exact = instrument._taken_apart(20.0, LEARNS, 0.5)
    with TF32():
        rounded = instrument._taken_apart(20.0, LEARNS, 0.5)
    (a, b) = (t.groupby("samples")[["center_error", "both"]].mean() for t in (exact, rounded))
    errors = exact.groupby("samples")["center_error"].sem()
    assert not exact["center_error"].equals(rounded["center_error"])
    assert ((a["center_error"] - b["center_error"]).abs() < 2 * errors).all()
    assert a["both"].iloc[-1] >= 0.95 and b["both"].iloc[-1] >= 0.95


def test_a_bank_learns_in_tf32_and_leaves_the_machines_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used, matmul = [], torch.backends.cuda.matmul
    before = matmul.fp32_precision
    bank = Bank([instrument._READS], instrument.WIDTH, LEARNS)
    (stack,) = bank._stacks
    learn = stack.learn

    def seen(*args: Any) -> Tensor:
        used.append(matmul.fp32_precision)
        return learn(*args)

    monkeypatch.setattr(stack, "learn", seen)
    states, boxes, *_ = instrument._Planter(8.0).draw(4)
    bank.learn(states, boxes)
    assert used == ["tf32"] and matmul.fp32_precision == before != "tf32"
