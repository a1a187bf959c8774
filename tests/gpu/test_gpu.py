"""What a GPU does otherwise than a CPU: bf16, inductor, steps that nothing waits for, sharding by NCCL.

`make test-gpu` runs these where there is one. Each also runs on the CPU, where it shows that the test itself is sound.
"""

import copy
import csv
from pathlib import Path

import pytest
import torch
from commands import CALLBACKS, start_train, train
from systems import autoencoder, batch, classifier

from avmae.models.masking import Mask

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ACCELERATORS = {"cpu": "trainer.accelerator=cpu", "cuda": "trainer.accelerator=gpu"}
RUN = ("hydra.run.dir=run", "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "optim.warmup=0")


def losses(folder: Path) -> list[float]:
    with (folder / "run/metrics.csv").open() as stream:
        return [float(row["train/loss"]) for row in csv.DictReader(stream) if row["train/loss"]]


@pytest.fixture(scope="module")
def expected(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of four steps in float32 on the CPU."""
    folder = tmp_path_factory.mktemp("expected")
    train(*RUN, cwd=folder, miniature=miniature)
    return losses(folder)


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_trains_as_float32_does(device: str, expected: list[float], miniature: Path, tmp_path: Path) -> None:
    how = (ACCELERATORS[device], f"trainer.precision={'auto' if device == 'cuda' else 'bf16-mixed'}")
    printed = train(*RUN, *how, cwd=tmp_path, miniature=miniature)
    assert f"1 process on {device}, bf16-mixed" in printed
    # Masks are drawn on the device, whose numbers are its own, so the losses are alike and not the same.
    found = losses(tmp_path)
    assert found == pytest.approx(expected, rel=0.02 if device == "cpu" else 0.1)
    assert found != expected


@pytest.mark.parametrize("device", DEVICES)
def test_one_process_shards_and_trains_as_without(
    device: str, expected: list[float], miniature: Path, tmp_path: Path
) -> None:
    sharded = ("strategy=fsdp", "trainer.devices=1", "trainer.precision=32-true", ACCELERATORS[device])
    train(*RUN, *sharded, cwd=tmp_path, miniature=miniature)
    assert losses(tmp_path) == pytest.approx(expected, rel=1e-5 if device == "cpu" else 0.1)
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(type(value) is torch.Tensor and value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("kind", ["autoencoder", "classifier"])
@pytest.mark.parametrize("device", DEVICES)
def test_compiled_equals_eager(device: str, kind: str) -> None:
    torch._dynamo.reset()
    eager = (autoencoder if kind == "autoencoder" else classifier)("avmae").to(device)
    compiled = copy.deepcopy(eager)
    # The CPU's inductor needs a compiler and minutes.
    compiled.compile(backend="inductor" if device == "cuda" else "aot_eager")
    clips = {name: value.to(device) for name, value in batch((True, False, True)).items()}
    masks = autoencoder("avmae").draw_masks(3, torch.Generator().manual_seed(0))
    masks = {name: Mask(*(index.to(device) for index in mask)) for name, mask in masks.items()}
    for network in (eager, compiled):
        result = network(clips, masks).loss if kind == "autoencoder" else network(clips).square().sum()
        result.backward()
        network.result = float(result.detach())
    assert compiled.result == pytest.approx(eager.result, rel=1e-4)
    for (name, one), other in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    "recipe",
    [
        ("task.hide_audio=0.25",),
        ("task=classify", "optim=finetune", "task.mix.mixup=0.8", "task.mix.cutmix=1", "task.drop_audio=0.25"),
    ],
    ids=["pretraining", "fine-tuning"],
)
@pytest.mark.parametrize("device", DEVICES)
def test_a_step_waits_for_nothing(device: str, recipe: tuple[str, ...], miniature: Path, tmp_path: Path) -> None:
    output = tmp_path / "printed.txt"
    how = (ACCELERATORS[device], "callbacks=ema", "+callbacks.sync._target_=sync.NothingWaits")
    # Logging reads the numbers of a step from the GPU.
    seldom = ("trainer.max_epochs=2", "trainer.log_every_n_steps=1000", "data.batch_size=2")
    where = {"cwd": tmp_path, "miniature": miniature, "output": output, "env": CALLBACKS}
    process = start_train(*recipe, *how, *seldom, **where)
    assert process.wait(240) == 0, output.read_text()
    # Of 2 x 4 batches, without the very first and the last of each epoch.
    assert "watched 5 batches" in output.read_text()
