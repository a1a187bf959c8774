"""What pretraining and classification share: optimiser, schedule, sharding, and randomness by step."""

import math
import re
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from avmae.errors import InputError
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.classifier import Classifier
from avmae.models.decoder import CrossBlock
from avmae.models.start import Match
from avmae.runs.history import flat
from avmae.runs.settings import arguments
from avmae.training.nonfinite import skip_if
from avmae.training.optim import OptimSpec, build_optimizer, warmup_cosine
from avmae.training.report import StepReport

FIXED = re.compile(
    r"seed$|(model|size|clip)\."
    # Which clips are trained on.
    r"|data\.(fold|val_groups|val_share|only|train_share|balanced)$"
    # Without them, a checkpoint's state of the optimiser means something else.
    r"|optim\.(kind|layer_decay)$"
)
"""Settings that a resumed run has to have as they were."""


class Stream(IntEnum):
    """What randomness is for."""

    MASKS = 0
    VALIDATION_MASKS = 1
    NETWORK = 2
    MIXING = 3
    OTHER_AUDIO = 4


class Task(L.LightningModule):
    """Trains a network that was built elsewhere.

    All randomness of a step is a function of the run's seed, the step and the process, so a resumed run needs no random
    state to equal an uninterrupted one.

    Args:
        network: what is trained.
        optim: the recipe's optimiser.
        config: plain data from which the network can be built again; kept in the checkpoint.
        seed: of the run.
        compile: compile the network in place, so that its weights keep their names; a name is torch.compile's backend.

    Attributes:
        watched: the metric that the best checkpoint is chosen by, and whether it is to be `min` or `max`.
        report: of the step under way.
        match: how the weights that the run starts from met the network, if it starts from any.
        skipped: 0-d bool, whether the last optimiser step was left out because its loss or gradient was not finite.
        loaded: names of the network's tensors that came from weights when the run began; layer decay is theirs.
        resumed_metrics: of the checkpoint that the run resumes.
    """

    watched: tuple[str, str]
    skipped: Tensor

    def __init__(
        self,
        network: MaskedAutoencoder | Classifier,
        optim: OptimSpec,
        config: Mapping[str, Any],
        seed: int = 0,
        compile: bool | str = False,
    ) -> None:
        super().__init__()
        self.network, self.optim, self.config, self.seed = network, optim, dict(config), seed
        self.report = StepReport()
        self.loaded: frozenset[str] = frozenset()
        self.match: Match | None = None
        self.resumed_metrics: dict[str, float] = {}
        self._changed: list[str] = []
        if compile:
            network.compile(backend="inductor" if compile is True else compile)

    def step_seed(self, stream: Stream, step: int, rank: int = 0) -> int:
        """A seed of its own for each purpose, step and process."""
        return int(np.random.SeedSequence((self.seed, stream, step, rank)).generate_state(1, np.uint64)[0] >> 1)

    def draw(self, clips: int, generator: torch.Generator, part: int = 0, parts: int = 1) -> Tensor:
        """(clips,) uniform numbers for this process's clips in one of the parts that share a generator's state.

        They do not depend on how many processes share the clips, or into how many parts they are cut.
        """
        world = self.trainer.world_size
        first = (world * part + self.global_rank) * clips
        drawn = torch.rand(world * parts * clips, generator=generator, device=self.device)
        return drawn[first : first + clips]

    def configure_model(self) -> None:
        """Shard block by block where the strategy shards (FSDP2); nothing elsewhere."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not hasattr(self, "_sharded"):
            mesh = self.device_mesh["data_parallel"]
            for block in [m for m in self.network.modules() if isinstance(m, Block | CrossBlock)]:
                fully_shard(block, mesh=mesh)
            fully_shard(self.network, mesh=mesh)
            self._sharded = True

    def on_train_start(self) -> None:
        """Have the optimiser follow settings that were changed on resuming; the checkpoint brought the former ones."""
        if not self._changed:
            return
        optimizer, schedule = self.trainer.optimizers[0], self.trainer.lr_scheduler_configs[0].scheduler
        assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
        schedule.base_lrs = [group["initial_lr"] for group in self._groups]
        rates = [lr * schedule.lr_lambdas[0](schedule.last_epoch) for lr in schedule.base_lrs]
        for group, now, lr in zip(optimizer.param_groups, self._groups, rates, strict=True):
            group.update({**now, "lr": lr})
        schedule._last_lr = rates

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout and drop path by step and process."""
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        torch.manual_seed(self.step_seed(Stream.NETWORK, step, self.global_rank))

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW and its schedule; says what the learning rate is made of.

        Raises:
            InputError: more batches are accumulated than an epoch has.
        """
        trainer = self.trainer
        # Not trainer.estimated_stepping_batches: that starts the loader before a resumed run knows where it stopped.
        batches, limit = len(trainer.datamodule.train_sampler()), trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        accumulated, clips = trainer.accumulate_grad_batches, trainer.datamodule.loading.batch_size * trainer.world_size
        effective = clips * accumulated
        if accumulated > batches:
            raise InputError(
                f"trainer.accumulate_grad_batches={accumulated}, a step of {effective} clips, exceeds the {batches} "
                f"batches of an epoch; lower it, or trainer.clips_per_step to {batches * clips} at most"
            )
        ends = [(trainer.max_epochs or -1) * math.ceil(batches / accumulated), trainer.max_steps]
        steps = min((end for end in ends if end > 0), default=0)
        if not steps:
            raise InputError("trainer.max_epochs or trainer.max_steps must say when training ends")
        # So that the curves of a short run have ten points, too.
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, max(1, steps // 10))
        if isinstance(trainer.strategy, ModelParallelStrategy) and self.optim.kind == "muon":
            raise InputError("optim.kind=muon needs whole matrices, and strategy=fsdp shards them; choose adamw or ddp")
        optimizer = build_optimizer(self.network, self.optim, effective, self.loaded)
        self.print(
            f"lr {self.optim.base_lr * effective / 256:.3g} = {self.optim.base_lr:g} x {effective} clips a step / 256, "
            f"{steps} steps, {int(self.optim.warmup * steps)} of them warm-up"
        )
        if self.optim.layer_decay < 1 and trainer.ckpt_path is None:
            decay = f"layer decay {self.optim.layer_decay:g} of what was loaded"
            self.print(decay if self.loaded else "no layer decay, for no weights were loaded: training is from scratch")
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(self.optim, steps))
        own = ("params", "fused")
        self._groups = [{k: v for k, v in group.items() if k not in own} for group in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_backward(self, loss: Tensor) -> None:
        """Report whether a loss of the step is not finite: its gradient may be, where NaN is masked."""
        self.report.count("lost", ~loss.isfinite())

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Clip by the recipe's norm, skip what is not finite, and log what the step reports either way."""
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.optim.clip_norm or float("inf"))
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        sums, means = self.report.reduce(self.trainer.world_size)
        # The gradient is that of all processes, a loss of one.
        self.skipped = (sums["lost"] > 0) | ~norm.isfinite()
        skip_if(self.skipped, optimizer)
        self.report.hand_over(sums | {"skipped": self.skipped})
        # As a number, Lightning would copy the rate to the device and wait for that.
        rate = torch.tensor(max(group["lr"] for group in optimizer.param_groups))
        self.log_dict(means | {"train/grad_norm": norm, "train/lr": rate})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the network can be built from, what was loaded, and the metrics."""
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        checkpoint |= {"config": self.config, "loaded": sorted(self.loaded), "metrics": metrics}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the metrics; say where the run resumes, and with which changed settings.

        Raises:
            InputError: the checkpoint is of a run with another model, window, seed, choice of clips or optimiser.
        """
        before, now = (flat({**config, **config.get("recipe", {})}) for config in (checkpoint["config"], self.config))
        changed = [key for key in before if key in now and before[key] != now[key]]
        # Recomputing activations changes no result.
        if wrong := [key for key in changed if FIXED.match(key) and key != "model.checkpointing"]:
            differing = ", ".join(f"{key}={before[key]} (now {now[key]})" for key in wrong)
            raise InputError(
                f"resume= continues a run of {differing}; add {arguments(before, now, wrong)} to the command, "
                "or start a new run from its weights with ckpt="
            )
        self.resumed_metrics = checkpoint.get("metrics", {})
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.print(f"resuming {self.trainer.ckpt_path} after step {checkpoint['global_step']}")
            parts = ("data", *checkpoint["config"].get("recipe", ()))
            self._changed = [key for key in changed if key.partition(".")[0] in parts]
            for key in self._changed:
                self.print(f"changed: {key}: {before[key]} -> {now[key]}")
