"""What a run computes on: its processes, their precision, and the batches that make a step."""

from collections.abc import Mapping
from typing import Any

from avmae.errors import InputError
from avmae.runs.launch import started


def settle_processes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with numbers for `trainer.devices`, the processes on this machine, and `trainer.num_nodes`.

    Of processes there is one, or for a strategy that shares the work, as many as devices, unless torchrun or SLURM has
    started us and decides. Says so where GPUs stay unused that nobody has counted out.
    """
    # Here, for the help of the commands imports this file and need not load torch.
    import torch

    trainer, gpus = config["trainer"], torch.cuda.device_count()
    if trainer["accelerator"] in ("gpu", "cuda") and not gpus:
        raise InputError("trainer.accelerator=gpu, but there is no GPU here; use trainer.accelerator=cpu or auto")
    single = config["strategy"].get("_args_") == ["auto"]
    nodes, devices = started() or (1, "auto")
    devices = devices if trainer["devices"] == "auto" else trainer["devices"]
    if devices == "auto":
        devices = 1 if single or trainer["accelerator"] == "cpu" else max(1, gpus)
        if single and trainer["accelerator"] != "cpu" and gpus > 1:
            print(f"uses 1 of {gpus} GPUs: add strategy=ddp to use all, or trainer.devices=1 if one is meant")
    if not isinstance(devices, int) or devices < 1:
        raise InputError(f"trainer.devices must be a number of processes from 1, or auto, not {devices}")
    if single and devices > 1:
        raise InputError(f"trainer.devices={devices} needs a strategy that shares the work: strategy=ddp or fsdp")
    if gpus and trainer["accelerator"] != "cpu" and devices > gpus:
        raise InputError(f"trainer.devices={devices}, but there are only {gpus} GPUs here")
    nodes = nodes if trainer["num_nodes"] == "auto" else trainer["num_nodes"]
    return {**config, "trainer": trainer | {"devices": devices, "num_nodes": nodes}}


def precision(trainer: Mapping[str, Any], dim: int) -> str:
    """`trainer.precision` for an encoder with tokens of ``dim``; see `settled_precision`.

    Raises:
        InputError: half precision is asked for.
    """
    # Here, for the help of the commands imports this file and need not load torch.
    from avmae.evaluation.batches import settled_precision

    if str(trainer["precision"]).startswith("16"):
        raise InputError(
            f"trainer.precision={trainer['precision']} needs a scaled loss, with which gradients are neither measured "
            "nor clipped rightly here; choose bf16-mixed or 32-true"
        )
    return settled_precision(trainer["precision"], trainer["accelerator"], dim)


def accumulation(trainer: Mapping[str, Any], batch: int) -> int:
    """Batches that make a step.

    Args:
        trainer: settings, with numbers of processes.
        batch: clips in a batch of one process.
    """
    clips, given = trainer["clips_per_step"], trainer["accumulate_grad_batches"]
    processes = trainer["devices"] * trainer["num_nodes"]
    if not clips:
        return given
    if not isinstance(clips, int):
        raise InputError(f"trainer.clips_per_step={clips} must be a whole number, or null")
    if given != 1:
        raise InputError(
            f"trainer.accumulate_grad_batches={given} and trainer.clips_per_step={clips} both say how many clips make "
            "a step; leave one out (trainer.clips_per_step=null)"
        )
    together = batch * processes
    if clips % together == 0:
        return clips // together
    # The largest batch that needs no more memory.
    fitting = next((b for b in range(min(batch, clips), 0, -1) if clips % (b * processes) == 0), None)
    choices = [f"data.batch_size={fitting}"] * (fitting is not None)
    choices += [f"trainer.clips_per_step={max(1, round(clips / together)) * together}"]
    raise InputError(
        f"trainer.clips_per_step={clips} is no multiple of data.batch_size={batch} x {processes} "
        f"process{'es' if processes > 1 else ''} = {together}; choose {' or '.join(choices)}"
    )
