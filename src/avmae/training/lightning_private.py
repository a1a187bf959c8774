"""All that touches what Lightning keeps private, as it is in 2.6; each with the reason.

`ema.AveragedWeights` has to override private parts of the class that it extends: `_average_model`,
`_latest_update_step` and `_copy_average_to_current`, for `WeightAveraging` updates where the processor has to wait for
the device, and swaps and saves what it finds in the first.

A new version of Lightning is taken when the tests of signals, resuming, logging, averages and shards pass with it.
"""

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy


def leave_signals_alone(trainer: L.Trainer) -> None:
    """Keep Lightning's handler of SIGTERM from being installed.

    It communicates from within the handler, which can lock up processes that communicate already; the state it saves
    cannot be resumed exactly; and its question to all processes before each step waits for the device.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def log_step_now(trainer: L.Trainer) -> None:
    """Log what this step logged, for a run that ends in a hook of the step: Lightning logs after the hooks."""
    trainer._logger_connector.on_batch_end()
    trainer._logger_connector.update_train_step_metrics()


def saved_by_another(trainer: L.Trainer, path: str) -> bool:
    """Whether one of the run's `ModelCheckpoint` has written a path at this very step."""
    return any(
        isinstance(callback, ModelCheckpoint)
        and (callback._last_checkpoint_saved, callback._last_global_step_saved) == (path, trainer.global_step)
        for callback in trainer.checkpoint_callbacks
    )


def count_epoch_as_started(trainer: L.Trainer) -> None:
    """Put right how a resumed run counts epochs.

    After a checkpoint of an epoch's last step Lightning resumes in the next epoch without counting that as started, and
    a run that is resumed a second time would take the wrong clips.
    """
    loop = trainer.fit_loop
    if loop.restarted_mid_epoch and loop.epoch_progress.total.processed == loop.epoch_progress.total.ready:
        loop.reset_restart_stage()


def take_all_for_data(strategy: ModelParallelStrategy) -> None:
    """Shard over all processes, whose number the strategy is told only after it was made."""
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes
