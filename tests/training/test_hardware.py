"""Processes, batches of a step, and precision, by what the machine has."""

import pytest
import torch
from composing import composed

from avmae.errors import InputError
from avmae.evaluation import batches
from avmae.training.hardware import accumulation, precision, settle_processes


@pytest.mark.parametrize(
    ("batch", "devices", "said"),
    [
        (24, 1, "data.batch_size=16 or trainer.clips_per_step=120"),
        (16, 16, "data.batch_size=8 or trainer.clips_per_step=256"),
        (16, 3, "choose trainer.clips_per_step=144"),
        (1, 200, "choose trainer.clips_per_step=200"),
    ],
)
def test_clips_of_a_step_that_do_not_divide_say_what_would(batch: int, devices: int, said: str) -> None:
    trainer = {"devices": devices, "num_nodes": 1, "accumulate_grad_batches": 1, "clips_per_step": 128}
    with pytest.raises(InputError, match=f"clips_per_step=128 is no multiple of data.batch_size={batch}") as raised:
        accumulation(trainer, batch)
    assert said in str(raised.value)


def test_two_numbers_for_the_batches_of_a_step_are_refused() -> None:
    trainer = {"devices": 1, "num_nodes": 1, "accumulate_grad_batches": 4, "clips_per_step": 128}
    with pytest.raises(InputError, match=r"accumulate_grad_batches=4 and trainer\.clips_per_step=128"):
        accumulation(trainer, 16)


@pytest.mark.parametrize(
    ("overrides", "processes", "said"),
    [
        ((), 1, "uses 1 of 8 GPUs: add strategy=ddp"),
        (("strategy=ddp",), 8, ""),
        (("trainer.devices=1",), 1, ""),
        (("trainer.accelerator=cpu",), 1, ""),
    ],
)
def test_unused_gpus_are_said(
    overrides: tuple[str, ...],
    processes: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert settle_processes(composed(*overrides))["trainer"]["devices"] == processes
    printed = capsys.readouterr().out
    assert said in printed
    assert ("GPUs" in printed) == bool(said)


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_gpu_that_only_emulates_bf16_computes_in_full(
    native: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    monkeypatch.setattr(batches, "_cpu_computes_in_bf16", lambda: False)
    trainer = composed()["trainer"]
    assert precision(trainer, dim=48) == expected
    assert precision(trainer | {"accelerator": "cpu"}, dim=768) == "32-true"


@pytest.mark.parametrize(
    ("amx", "avx", "onednn", "expected"),
    [
        (True, False, True, "bf16-mixed"),
        (False, True, True, "bf16-mixed"),
        (False, False, True, "32-true"),
        (True, True, False, "32-true"),
    ],
)
def test_a_cpu_computes_in_bf16_where_it_can_and_the_model_is_wide(
    amx: bool, avx: bool, onednn: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    trainer = composed()["trainer"] | {"accelerator": "cpu"}
    assert precision(trainer, dim=768) == expected
    assert precision(trainer, dim=128) == "32-true"
    assert precision(trainer | {"precision": "bf16-mixed"}, dim=128) == "bf16-mixed"
    assert precision(trainer | {"precision": "32-true"}, dim=768) == "32-true"


def test_a_step_of_clips_that_do_not_divide() -> None:
    trainer = {"devices": 2, "num_nodes": 3, "accumulate_grad_batches": 1, "clips_per_step": 48}
    assert accumulation(trainer, 4) == 2
    with pytest.raises(InputError, match="clips_per_step=36 is no multiple"):
        accumulation(trainer | {"clips_per_step": 36}, 4)
