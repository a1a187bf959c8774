"""Strategies that Lightning needs a word on."""

from lightning.pytorch.strategies import ModelParallelStrategy


class FSDP2Strategy(ModelParallelStrategy):
    """Shards parameters, gradients and optimiser over all processes (torch's ``fully_shard``), on GPUs and on CPU.

    Checkpoints are whole, in one file, so that every command reads them.
    """

    def __init__(self) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Take all processes for data parallelism."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
