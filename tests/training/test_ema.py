"""The moving average of the weights: its values, what it leaves alone, where it lives, how it is resumed."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from commands import train
from systems import autoencoder, disturb
from torch import Tensor, nn

from avmae.errors import InputError
from avmae.training.ema import AveragedWeights
from avmae.training.optim import OptimSpec
from avmae.training.pretraining import Pretraining


class Weights(L.LightningModule):
    """Two weights, one of another dtype, a frozen one, and a table of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(3))
        self.second = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.full((2,), 0.1), requires_grad=False)
        self.register_buffer("table", torch.arange(5))
        self.skipped = torch.tensor(False)


def started(model: L.LightningModule, decay: float = 0.9999) -> tuple[AveragedWeights, Any]:
    """The callback of a training that has begun, and its trainer."""
    callback, trainer = AveragedWeights(decay), SimpleNamespace(global_step=0)
    callback.setup(trainer, model, "fit")
    callback.on_fit_start(trainer, model)
    return callback, trainer


def step(callback: AveragedWeights, trainer: Any, model: L.LightningModule, steps: int = 1) -> None:
    trainer.global_step += steps
    callback.on_train_batch_end(trainer, model, {}, {}, 0)


def averages(callback: AveragedWeights) -> dict[str, Tensor]:
    return dict(callback._average_model.module.named_parameters())


@pytest.mark.parametrize("updates", [1, 3, 20])
def test_the_decay_warms_up(updates: int) -> None:
    model = Weights()
    callback, trainer = started(model)
    nn.init.ones_(model.first)
    nn.init.ones_(model.second)
    for _ in range(updates):
        step(callback, trainer, model)
    # (1 + t) / (10 + t) multiplied up: 1 2 ... n / 10 11 ... (n + 9).
    left = 1 / math.comb(updates + 9, 9)
    found = averages(callback)
    torch.testing.assert_close(found["first"], torch.full((3,), 1 - left))
    torch.testing.assert_close(found["second"], torch.full((2, 2), 1 - left, dtype=torch.float64), rtol=1e-6, atol=0)
    assert torch.equal(found["frozen"], model.frozen)


def test_the_decay_ends_where_it_is_to_end() -> None:
    model, weight, expected = Weights(), 0.0, 0.0
    callback, trainer = started(model, decay=0.5)
    for update in range(15):
        weight += 1
        nn.init.constant_(model.first, weight)
        step(callback, trainer, model)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * weight
    # Of weights that rise by 1 a step, an average with decay 0.5 is 1 behind.
    assert expected == pytest.approx(14, abs=0.01)
    torch.testing.assert_close(averages(callback)["first"], torch.full((3,), expected))


def test_batches_between_steps_and_skipped_steps_are_no_updates() -> None:
    model = Weights()
    callback, trainer = started(model)
    nn.init.ones_(model.first)
    step(callback, trainer, model)
    before = averages(callback)["first"].clone()
    step(callback, trainer, model, steps=0)
    model.skipped = torch.tensor(True)
    step(callback, trainer, model)
    assert torch.equal(averages(callback)["first"], before)
    model.skipped = torch.tensor(False)
    step(callback, trainer, model)
    torch.testing.assert_close(averages(callback)["first"], torch.full((3,), 1 - 1 / math.comb(11, 9)))


def test_mask_tables_stay_what_they_are() -> None:
    task = Pretraining(autoencoder("avmae"), OptimSpec(base_lr=1.0), {})
    tables = {name: value.clone() for name, value in task.named_buffers()}
    assert any(not value.is_floating_point() for value in tables.values())
    callback, trainer = started(task)
    task.skipped = torch.tensor(False)
    for update in range(3):
        disturb(task, seed=update)
        step(callback, trainer, task)
    callback.on_validation_epoch_start(trainer, task)
    assert all(torch.equal(value, tables[name]) for name, value in task.named_buffers()), "while it is validated"
    callback.on_validation_epoch_end(trainer, task)
    callback.on_train_end(trainer, task)
    assert all(torch.equal(value, tables[name]) for name, value in task.named_buffers())
    assert all(torch.equal(value, averages(callback)[name]) for name, value in task.named_parameters())


def test_the_average_follows_the_model_to_its_device() -> None:
    model, callback = Weights(), AveragedWeights()
    callback.setup(SimpleNamespace(), model, "fit")
    # As Lightning does: after callbacks are set up and checkpoints read, before the training starts.
    model.to("meta")
    model.skipped = torch.tensor(False, device="meta")
    callback.on_fit_start(SimpleNamespace(), model)
    step(callback, SimpleNamespace(global_step=0), model)
    average = callback._average_model
    assert {value.device.type for value in (*average.parameters(), *average.buffers())} == {"meta"}


def test_checkpoints_whose_buffers_were_averaged_load_without_them() -> None:
    model, saved = Weights(), Weights()
    saved.state_dict()["first"].fill_(1.0)
    averaged = {name: value + 1 for name, value in saved.state_dict().items()}
    checkpoint = {
        "state_dict": averaged,
        "current_model_state": saved.state_dict(),
        "averaging_state": {"n_averaged": torch.tensor(5)},
    }
    callback, trainer = AveragedWeights(), SimpleNamespace(global_step=6)
    callback.setup(trainer, model, "fit")
    callback.on_load_checkpoint(trainer, model, checkpoint)
    callback.on_fit_start(trainer, model)
    assert torch.equal(model.first, torch.ones(3))
    assert torch.equal(averages(callback)["first"], torch.full((3,), 2.0))
    assert torch.equal(model.table, torch.arange(5))
    assert torch.equal(callback._average_model.module.table, torch.arange(5))
    step(callback, trainer, model)
    torch.testing.assert_close(averages(callback)["first"], torch.full((3,), 1 + 6 / 15))


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_is_none_is_refused(decay: float) -> None:
    with pytest.raises(InputError, match=r"callbacks\.ema\.decay"):
        AveragedWeights(decay)


def test_a_resumed_run_averages_what_a_whole_one_does(miniature: Path, tmp_path: Path) -> None:
    # At one rate, for the schedule follows the number of epochs.
    arguments = ("callbacks=ema", "callbacks.ema.decay=0.3", "optim.warmup=0", "optim.min_lr=1", "optim.base_lr=0.1")
    for name, epochs, resume in (("whole", 2, "null"), ("parts", 1, "null"), ("parts", 2, "last")):
        how = (f"name={name}", f"trainer.max_epochs={epochs}", f"resume={resume}")
        train(*arguments, *how, cwd=tmp_path, miniature=miniature)
    whole, parts = (
        torch.load(next((tmp_path / "logs" / name).glob("*/checkpoints/last.ckpt")), weights_only=True)
        for name in ("whole", "parts")
    )
    assert whole["averaging_state"]["n_averaged"] == parts["averaging_state"]["n_averaged"] == 4
    for states in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, parts[states][name]) for name, value in whole[states].items()), states
