"""The bank and the sweep: independence, schedule, tidy results, resuming after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import noise
from toysweep import CHOSEN, SETTINGS

from abplib.core.errors import AbpError
from abplib.proxies.bank import Bank, _Stack
from abplib.proxies.configurations import Configuration, configurations, controls, folder_of
from abplib.proxies.labels import Labels
from abplib.proxies.qformer import Proxy, box_loss
from abplib.proxies.settings import SweepSettings
from abplib.proxies.sweep import Sweep, SweepInputs, sweep
from abplib.samples.base import Sample
from abplib.vlm.encoder import ConditionEncoder, Encoding, Untrained


class Noise:
    """Sixteen noise images; reading one more than `fatal_after` samples is interrupted."""

    name = "noise"
    fingerprint = "noise-1"

    def __init__(self, fatal_after: int | None = None) -> None:
        self.left = fatal_after

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Sample:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        x1, y1, w, h = np.random.default_rng(index).uniform(0.1, 0.5, 4).tolist()
        words = "remove the second apple from the left"[: 12 + 2 * index]
        return Sample(f"n{index}", noise(64, 64, index), words, (x1, y1, x1 + w, y1 + h))


def made_labels() -> Labels:
    """Exact boxes of the noise set; sample 0 has none."""
    boxes = np.array([sample.box for sample in map(Noise().__getitem__, range(16))])
    frame = pd.DataFrame(boxes, columns=["x1", "y1", "x2", "y2"])
    frame.insert(0, "index", range(16))
    return Labels(frame.assign(reason=["no_box"] + [""] * 15), {}, "made up")


def run(
    encoder: ConditionEncoder, base: Path, train_set: Noise, n: int = 5, **changes: Any
) -> Sweep:
    inputs = SweepInputs(encoder, train_set, made_labels(), Noise(), CHOSEN, SETTINGS, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ABP_RESULTS", str(base))
        return sweep(replace(inputs, **changes), n)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def unbroken(encoder: ConditionEncoder, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return run(encoder, tmp_path_factory.mktemp("unbroken"), Noise())


@pytest.fixture(scope="module")
def encoding(encoder: ConditionEncoder) -> Encoding:
    samples = [Noise()[index] for index in (0, 5, 11)]
    return encoder.encode(
        [sample.image for sample in samples],
        [sample.instruction for sample in samples],
        layers=range(4),
        final=True,
    )


BOXES = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.2, 0.3, 0.6, 0.9], [0.0, 0.5, 0.5, 1.0]])


def assert_same(a: Sweep, b: Sweep) -> None:
    pd.testing.assert_frame_equal(a.curves, b.curves, check_exact=True)
    pd.testing.assert_frame_equal(a.samples, b.samples, check_exact=True)


def test_figure_4_has_every_layer_final_and_middle_prompt(encoder: ConditionEncoder) -> None:
    assert [c.name for c in configurations(encoder)] == [
        *(f"layer_{l}" for l in range(4)),
        "final",
        "middle_prompt",
    ]
    assert configurations(encoder)[-1].layers == encoder.middle_layers


def test_controls_are_an_untrained_decoder_the_input_and_the_prompt_tokens_of_each_layer(
    encoder: ConditionEncoder, tmp_path: Path
) -> None:
    chosen = controls(encoder, n_untrained=2, seed=7)
    swept = run(encoder, tmp_path, Noise(), chosen=chosen)
    assert chosen[1].layers == (Untrained(3, seed=7),)
    names = [
        "untrained.0",
        "untrained.3",
        "input",
        *(f"prompt_{l}" for l in range(4)),
        "prompt_final",
    ]
    assert list(swept.curves["configuration"].unique()) == names


def test_prompt_tokens_are_selected_in_order(encoding: Encoding) -> None:
    states, mask = CHOSEN[2].select(encoding)
    assert states.shape[:2] == (3, 2)
    assert mask.sum(1).tolist() == encoding.prompt_tokens.sum(1).tolist()
    for row, tokens in enumerate(encoding.prompt_tokens):
        n = int(tokens.sum())
        assert torch.equal(states[row, 1, :n], encoding.states[3][row, tokens])
    states, mask = CHOSEN[1].select(encoding)
    assert torch.equal(states[:, 0], encoding.states["final"])
    assert torch.equal(mask, encoding.mask)


def test_a_bank_equals_its_proxies_trained_alone(encoding: Encoding) -> None:
    """To rounding; every gradient is clipped. Seed s of a run is the run's seed + s, alone."""
    settings = SETTINGS.model_copy(update={"l1_steps": 1, "clip": 0.05})
    one = settings.model_copy(update={"n_seeds": 1})
    bank = Bank(CHOSEN, 64, settings, seed=5)
    alone = {(c.name, seed): Bank([c], 64, one, 5 + seed) for c in CHOSEN for seed in range(2)}
    assert bank.keys == list(bank.proxies) == list(alone)
    for _ in range(4):
        bank.learn(encoding, BOXES)
        for single, loss in zip(alone.values(), bank.step(), strict=True):
            single.learn(encoding, BOXES)
            assert single.step() == [pytest.approx(loss, rel=1e-5, abs=1e-5)]
    found = bank.predict(encoding)
    for (name, seed), single in alone.items():
        boxes = single.predict(encoding)[name][0]
        torch.testing.assert_close(boxes, found[name][seed], rtol=0, atol=1e-4)
    others = torch.cat(list(found.values()))
    assert (others[:, None] - others).abs().amax((2, 3))[~torch.eye(6, dtype=bool)].min() > 1e-2


def test_a_stack_equals_its_proxies_alone(encoding: Encoding) -> None:
    """Of two configurations, as a GPU stacks them, and two seeds, as a CPU does."""
    alike = [CHOSEN[0], Configuration("layer_3", (3,))]
    stack = _Stack(alike, 64, SETTINGS, [0, 1], "cpu", Proxy)
    alone = [_Stack([c], 64, SETTINGS, [seed], "cpu", Proxy) for c in alike for seed in (0, 1)]
    for _ in range(3):
        losses = [single.learn(encoding, BOXES, 0.4, 1.0) for single in alone]
        torch.testing.assert_close(stack.learn(encoding, BOXES, 0.4, 1.0), torch.cat(losses))
        for made in (stack, *alone):
            made.step(1e-3)
    boxes = torch.cat([single.boxes(encoding) for single in alone])
    torch.testing.assert_close(stack.boxes(encoding), boxes, rtol=0, atol=1e-4)


def test_parts_of_a_batch_add_up(encoder: ConditionEncoder) -> None:
    """Two micro-batches, padded to other lengths, give the whole batch's losses and gradients."""
    whole, parts = (Bank(CHOSEN, 64, SETTINGS.model_copy(update={"l1_steps": 0})) for _ in range(2))
    samples = [Noise()[index] for index in (0, 5, 11)]

    def learn(bank: Bank, start: int, stop: int) -> None:
        some = samples[start:stop]
        asked = [s.image for s in some], [s.instruction for s in some]
        encoding = encoder.encode(*asked, layers=bank.layers, final=True)
        bank.learn(encoding, torch.tensor([s.box for s in some]))

    assert not any(gradient.any() for gradient in parts.gradients)
    learn(whole, 0, 3)
    learn(parts, 0, 2)
    learn(parts, 2, 3)
    torch.testing.assert_close(parts.losses, whole.losses, rtol=1e-5, atol=1e-6)
    for part, expected in zip(parts.gradients, whole.gradients, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-5)


def test_a_step_is_adam_on_the_papers_loss(encoding: Encoding) -> None:
    """Written out with torch's defaults for one proxy: warm-up on L1, then with GIoU."""
    settings = SETTINGS.model_copy(update={"l1_steps": 2})
    bank = Bank([CHOSEN[0]], 64, settings)
    proxy = bank.proxies["layer_1", 1]
    optimizer = torch.optim.Adam(proxy.parameters(), lr=1.0)
    for step in range(4):
        bank.learn(encoding, BOXES)
        bank.step()
        weight = 0.0 if step < 2 else 0.4
        loss = box_loss(proxy(encoding.states[1][:, None], encoding.mask), BOXES, weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(proxy.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = settings.rate(step)
        optimizer.step()
    for trained, expected in zip(
        bank.proxies["layer_1", 1].parameters(), proxy.parameters(), strict=True
    ):
        torch.testing.assert_close(trained, expected, rtol=0, atol=1e-4)


def test_learning_rate_falls_to_30_percent_after_the_warm_up() -> None:
    settings = SETTINGS.model_copy(update={"n_batches": 2000, "l1_steps": 100, "lr": 1e-4})
    assert settings.rate(0) == settings.rate(100) == 1e-4
    assert settings.rate(1050) == pytest.approx(0.65e-4)
    assert settings.rate(2000) == pytest.approx(0.3e-4)
    assert settings.model_copy(update={"n_batches": 40}).rate(39) == 1e-4


def test_a_loss_that_is_not_finite_names_its_proxy(encoding: Encoding) -> None:
    states = {**encoding.states, "final": torch.full_like(encoding.states["final"], torch.nan)}
    bank = Bank(CHOSEN, 64, SETTINGS)
    bank.learn(replace(encoding, states=states), BOXES)
    with pytest.raises(AbpError, match="loss of proxy final is nan at batch 0"):
        bank.step()


def test_results_are_tidy_rows(unbroken: Sweep, encoder: ConditionEncoder) -> None:
    names = [c.name for c in CHOSEN]
    curves = unbroken.curves
    assert list(curves["step"]) == [2] * 6 + [4] * 6 + [6] * 6 + [7] * 6
    assert list(curves["configuration"]) == [name for name in names for _ in range(2)] * 4
    assert list(curves["seed"]) == [0, 1] * 12
    assert curves["center_error"].between(0, 1.5).all()

    samples = unbroken.samples
    assert samples["configuration"].unique().tolist() == [*names, "chance", "centre_prior"]
    assert samples.groupby("configuration", sort=False)["seed"].nunique().tolist() == [
        2,
        2,
        2,
        1,
        1,
    ]
    assert samples["sample_id"].tolist() == [f"n{i}" for i in range(5)] * 8
    samples = samples[samples["seed"] == samples.groupby("configuration")["seed"].transform("max")]
    first = samples[samples["configuration"] == "layer_1"].head(2)
    assert curves["center_error"].iloc[-5] == pytest.approx(first["center_error"].mean())
    folder = folder_of(unbroken.folder / "proxies", CHOSEN[1], seed=1)
    proxy = Proxy.load(folder, encoder.fingerprint)
    sample = Noise()[1]
    encoding = encoder.encode([sample.image], [sample.instruction], final=True)
    row = samples[(samples["configuration"] == "final") & (samples["sample_id"] == "n1")]
    box = proxy(encoding.states["final"][:, None], encoding.mask)[0].tolist()
    assert row[["x1", "y1", "x2", "y2"]].to_numpy()[0] == pytest.approx(box, abs=1e-5)
    assert unbroken.summary["epochs"] == pytest.approx(21 / 15)


def test_a_finished_sweep_is_read(
    unbroken: Sweep, encoder: ConditionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = unbroken.folder.parent.parent
    with monkeypatch.context() as patch:
        patch.setattr(ConditionEncoder, "prepare", None)
        assert_same(run(encoder, base, Noise()), unbroken)
    assert not (unbroken.folder / "checkpoint.safetensors").exists()
    with pytest.raises(KeyboardInterrupt):  # other inputs are another sweep
        run(encoder, base, Noise(fatal_after=0), seed=1)


def test_interrupted_and_resumed_equals_unbroken(
    unbroken: Sweep, encoder: ConditionEncoder, tmp_path: Path
) -> None:
    for fatal_after in (2, 15, 9):  # before the first checkpoint, after it, after the second
        with pytest.raises(KeyboardInterrupt):
            run(encoder, tmp_path, Noise(fatal_after))
    assert_same(run(encoder, tmp_path, Noise()), unbroken)


def test_a_damaged_checkpoint_is_named(encoder: ConditionEncoder, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(encoder, tmp_path, Noise(fatal_after=15))
    (checkpoint,) = tmp_path.rglob("checkpoint.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(AbpError, match="is damaged: delete it"):
        run(encoder, tmp_path, Noise())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_batches": 0}, "n_batches\n  .*greater than or equal to 1"),
        ({"lr": -1.0}, "lr\n  .*greater than 0"),
        ({"l1_steps": -1}, "l1_steps\n  .*greater than or equal to 0"),
        ({"lambda_giou": 1.5}, "lambda_giou\n  .*less than or equal to 1"),
        ({"n_heads": 3}, "width 8 cannot have 3 heads"),
        ({"n_queries": 0}, "n_queries\n"),
        ({"n_seeds": 0}, "n_seeds\n"),
    ],
)
def test_settings_refuse_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SweepSettings(**{**SETTINGS.model_dump(), **wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"chosen": (Configuration("a", (9,)),)}, "no layer 9; the model has layers 0 to 3"),
        ({"chosen": ()}, "at least one configuration"),
        ({"chosen": (CHOSEN[0], CHOSEN[0])}, "each with its own name"),
        ({"n": 17}, "17 samples are asked for, but noise holds 16"),
        ({"labels": Labels(made_labels().frame.head(1), {}, "")}, "No training label is usable"),
    ],
)
def test_sweep_refuses_before_work(
    encoder: ConditionEncoder, tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(AbpError, match=message):
        run(encoder, tmp_path, Noise(fatal_after=0), **wrong)
