"""Strategies that Lightning needs a word on."""

import shutil
from collections import ChainMap
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from avmae.models.weights import MODEL, shards_of
from avmae.runs.folder import SHARDED, checksum
from avmae.training.checkpoints import beside, is_full, make_room, nonfinite, publish, write_synced
from avmae.training.lightning_private import take_all_for_data

SHARDS = "shards"
"""Subfolder of a sharded checkpoint."""


class FSDP2Strategy(ModelParallelStrategy):
    """Shards parameters, gradients and optimiser over all processes (torch's ``fully_shard``), on GPUs and on CPU.

    A checkpoint is whole, in one file, or a folder to which every process writes the part it has. Every command reads
    both, and a run resumes from either with any number of processes. The folder holds a subfolder of safetensors files
    and `meta.pt`, plain data, with their checksums; it takes its place as `avmae.training.checkpoints` says.

    Args:
        sharded: write folders.
        timeout: a process that does not answer for so long ends the run.
    """

    def __init__(self, sharded: bool = False, timeout: timedelta = timedelta(minutes=30)) -> None:
        super().__init__(
            data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=sharded, timeout=timeout
        )
        self.sharded = sharded

    def setup_environment(self) -> None:
        take_all_for_data(self)
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, in which tensors are this process's parts if it is to be sharded.

        What cannot be written is reported as `SafeCheckpointIO` does it, and training continues.
        """
        if not self.sharded:
            # Not ModelParallelStrategy's, which deletes a sharded checkpoint before the whole one is written.
            super(ModelParallelStrategy, self).save_checkpoint(checkpoint, filepath, storage_options)
            return
        path, new = self.broadcast((Path(filepath), beside(Path(filepath)) if self.is_global_zero else None))
        states, weights = checkpoint.pop("optimizer_states", []), checkpoint.pop("state_dict")
        rest = checkpoint | {"shards": SHARDS, "param_groups": [state["param_groups"] for state in states]}
        tensors = _flatten(weights, states)
        lost = next((part for part in self._gather(nonfinite(weights)) if part), None)
        cause, full = (f"{lost} is not finite", False) if lost else self._write(tensors, rest, new, path)
        if full and self.broadcast(self.is_global_zero and make_room(path)):
            cause, _ = self._write(tensors, rest, new, path)
        if self.is_global_zero or cause is None:
            self.checkpoint_io.note(path, cause)

    def _write(
        self, tensors: dict[str, Tensor], rest: dict[str, Any], new: Path, path: Path
    ) -> tuple[str | None, bool]:
        """Try once; tells all processes what went wrong, if anything, and whether the disk is full."""
        shards, wrong = new / SHARDS, None
        try:
            dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(shards), save_distributed=True))
            written = shards.glob(f"shard-{self.global_rank + 1:05}-*")
            checksums = self._gather({file.name: checksum(file) for file in written})
            if self.is_global_zero:
                write_synced(rest | {"checksums": dict(ChainMap(*checksums))}, new / SHARDED)
                publish(new, path)
        except (CheckpointException, OSError, RuntimeError) as error:
            first: Any = next(iter(error.failures.values())) if isinstance(error, CheckpointException) else error
            first = first[0] if isinstance(first, tuple) else first
            wrong = str(first).splitlines()[0], is_full(first)
            if self.is_global_zero:
                shutil.rmtree(new, ignore_errors=True)
        return self.broadcast(wrong or (None, False))

    def _gather(self, value: Any) -> list[Any]:
        """A value of every process."""
        gathered: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, value)
        return gathered

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Take up model and optimiser from a file or a folder; returns the rest of the checkpoint."""
        path = Path(self.broadcast(checkpoint_path))
        if not (path / SHARDED).is_file():
            return super().load_checkpoint(path, weights_only)
        assert self.model is not None
        checkpoint, shards = shards_of(path)
        weights = get_model_state_dict(self.model)
        states = [get_optimizer_state_dict(self.model, optimizer) for optimizer in self.optimizers]
        reader = dcp.HuggingFaceStorageReader(str(shards))
        known = reader.read_metadata().state_dict_metadata
        tensors = _flatten(weights, states)
        # Earlier versions did not keep the decoders' positions, which were the computed ones.
        wanted = {name: x for name, x in tensors.items() if name in known or not name.endswith(".positions")}
        dcp.load(wanted, storage_reader=reader)
        set_model_state_dict(self.model, weights)
        for optimizer, state, groups in zip(self.optimizers, states, checkpoint["param_groups"], strict=False):
            set_optimizer_state_dict(
                self.model, optimizer, optim_state_dict={"state": state["state"], "param_groups": groups}
            )
        return dict(checkpoint)


def _flatten(weights: dict[str, Any], states: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The tensors of a model and its optimisers by one name each."""
    tensors = {f"{MODEL}{name}": value for name, value in weights.items()}
    for number, state in enumerate(states):
        for parameter, values in state["state"].items():
            tensors |= {f"optimizer.{number}.{parameter}.{name}": value for name, value in values.items()}
    return tensors
