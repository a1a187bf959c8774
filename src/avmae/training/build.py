"""Training in three steps: a task from the config and the data, a trainer for it, and fitting and testing."""

import gc
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging

from avmae.clip import ClipSpec
from avmae.data.augment import AugmentSpec
from avmae.data.build import by_source
from avmae.data.datamodule import ClipDataModule
from avmae.data.paths import absolute
from avmae.errors import InputError
from avmae.models.build import MaskSpec, ModelSpec, SizeSpec, build_autoencoder, build_classifier
from avmae.models.start import start_from
from avmae.runs.launch import first_process, started
from avmae.runs.settings import spec
from avmae.training.checkpoints import SafeCheckpointIO, loaded_at_first
from avmae.training.classification import Classification
from avmae.training.hardware import accumulation, precision
from avmae.training.mixing import MixSpec
from avmae.training.optim import OptimSpec
from avmae.training.pretraining import ObjectiveSpec, Pretraining
from avmae.training.strategies import FSDP2Strategy
from avmae.training.task import Task

RECIPE = ("mask", "augment", "optim", "task", "trainer")
"""Parts of the config that a checkpoint keeps so that a resumed run can say what has changed."""
OURS = ("compile", "clips_per_step")
"""Keys of `trainer` that are no arguments of Lightning's."""
LOST = "Connection (closed|reset) by peer|Timed out waiting|Broken pipe|timed out after"
"""What gloo and NCCL say when another process, or the way to it, is gone."""


class Specs(NamedTuple):
    """The parts of the config that describe clips, network and recipe, checked."""

    clip: ClipSpec
    model: ModelSpec
    size: SizeSpec
    mask: MaskSpec
    augment: AugmentSpec
    optim: OptimSpec


def read_specs(config: Mapping[str, Any]) -> Specs:
    """Read what `Specs` has of the config of `conf/train.yaml`."""
    return Specs(*(spec(cls, key, config[key]) for key, cls in Specs.__annotations__.items()))


def build_task(config: Mapping[str, Any], data: ClipDataModule) -> Task:
    """The network, started from the weights of `ckpt` if the run resumes nothing, and how it is trained.

    Args:
        config: of `conf/train.yaml`, resolved; torch's global random state is set by its seed.
        data: whose classes a classifier tells apart.

    Raises:
        InputError: a value that cannot be, weights of another network, or a classifier of a single class.
    """
    specs, settings = read_specs(config), dict(config["task"])
    torch.manual_seed(config["seed"])
    how = (specs.optim, _kept(config, data), config["seed"], config["trainer"]["compile"])
    task: Task
    if (name := settings.pop("name")) == "pretrain":
        network = build_autoencoder(specs.clip, specs.model, specs.size, specs.mask)
        task = Pretraining(network, *how, objective=spec(ObjectiveSpec, "task", settings))
    elif len(data.classes) < 2:
        raise InputError(
            f"task={name} tells classes apart, and the data set has the one class {data.classes[0]}; put videos into a "
            "folder per class (data=folder) or list their labels (data=csv); task=pretrain needs none"
        )
    elif data.splits.many_labels and name != "tag":
        raise InputError(
            f"task={name} gives each clip one class, and clips of this data set have many, or none: task=tag"
        )
    else:
        head = {key: settings[key] for key in ("dropout", "pool", "frozen")} | {"many_labels": name == "tag"}
        classifier = build_classifier(specs.clip, specs.model, specs.size, len(data.classes), **head)
        chosen = {key: settings[key] for key in ("label_smoothing", "drop_audio", "swap_audio")}
        task = Classification(classifier, *how, mixing=spec(MixSpec, "task.mix", settings["mix"]), **chosen)
    if config["resume"]:
        task.loaded = frozenset(loaded_at_first(config["resume"]))
    elif config["ckpt"]:
        task.match = start_from(task.network, config["ckpt"])
        task.loaded = frozenset(task.match.filled)
    return task


def _kept(config: Mapping[str, Any], data: ClipDataModule) -> dict[str, Any]:
    """What a checkpoint keeps of the config: all that its network is built from again, and the recipe."""
    kept: dict[str, Any] = {key: config[key] for key in ("clip", "model", "size", "seed")}
    kept |= {"data": absolute(by_source(config["data"])), "recipe": {key: config[key] for key in RECIPE}}
    if config["task"]["name"] == "pretrain":
        return kept | {"task": "pretrain", "mask": config["mask"]}
    how = {key: config["task"][key] for key in ("dropout", "pool")}
    return kept | {"task": config["task"]["name"], "classes": len(data.classes), "class_names": data.classes, **how}


def build_trainer(
    config: Mapping[str, Any], task: Task, data: ClipDataModule, instantiate: Callable[[Mapping[str, Any]], Any]
) -> L.Trainer:
    """Lightning's trainer, with the callbacks, loggers and strategy of the config.

    Args:
        config: of `conf/train.yaml`, resolved, with ``run_dir`` and numbers of processes (`settle_processes`).
        task: what is trained.
        data: without validation clips, there is no best checkpoint.
        instantiate: makes an object of a node with a ``_target_``, as Hydra does.

    Raises:
        InputError: an unknown key, or parts that do not go together.
    """
    strategy, resume = instantiate(config["strategy"]), config["resume"]
    nodes = dict(config["callbacks"])
    if not data.splits.val:
        nodes.pop("best", None)
    elif best := nodes.get("best"):
        watched = {"monitor": task.watched[0], "mode": task.watched[1]} if best["monitor"] is None else {}
        several = {"filename": "best_{epoch:04d}", "auto_insert_metric_name": False}
        nodes["best"] = best | watched | (several if best["save_top_k"] not in (0, 1) else {})
    callbacks = [instantiate(node) for node in nodes.values()]
    shards = isinstance(strategy, FSDP2Strategy)
    if shards and any(isinstance(callback, WeightAveraging) for callback in callbacks):
        raise InputError(
            "callbacks=ema averages whole weights, and strategy=fsdp shards them; choose strategy=ddp or callbacks=base"
        )
    if resume and Path(resume).is_dir() and not shards:
        raise InputError(f"resume={resume} is sharded; resume with strategy=fsdp, or start from its weights: ckpt=...")
    given = {
        key: instantiate(value) if isinstance(value, Mapping) and "_target_" in value else value
        for key, value in config["trainer"].items()
        if key not in OURS
    }
    given["precision"] = precision(config["trainer"], config["size"]["dim"])
    given["accumulate_grad_batches"] = accumulation(config["trainer"], config["data"]["batch_size"])
    if unknown := given.keys() - inspect.signature(L.Trainer).parameters.keys():
        raise InputError(f"unknown key trainer.{min(unknown)}; trainer has {', '.join(OURS)}, and lightning.Trainer's")
    try:
        return L.Trainer(
            **given,
            strategy=strategy,
            logger=[instantiate(node) for node in config["logger"].values()] if first_process() else [],
            callbacks=callbacks,
            default_root_dir=config["run_dir"],
            plugins=[SafeCheckpointIO()],
        )
    except ValueError as error:
        raise InputError(f"trainer: {str(error).splitlines()[0]}") from error


def fit_and_test(trainer: L.Trainer, task: Task, data: ClipDataModule, resume: str | None = None) -> dict[str, float]:
    """Train, and test what was fine-tuned: the best checkpoint if there is one, else the last weights.

    Returns:
        The final metrics by name.

    Raises:
        InputError: training failed in a way that the user can mend, or its last checkpoint could not be saved.
    """
    # See `prepare_worker`; and no collection has to look at what stays for the whole run.
    gc.collect()
    gc.freeze()
    try:
        trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
    except RuntimeError as error:
        if message := data.explain(error):
            raise InputError(f"{message}; continue with resume=last") from error
        if started() and (lost := re.search(LOST, str(error))):
            lines = f"process {trainer.global_rank} lost another ({lost[0]}); continue with resume=last"
            raise InputError(lines) from error
        raise
    finally:
        gc.unfreeze()
    unsaved = trainer.strategy.broadcast(trainer.strategy.checkpoint_io.failures)
    if unsaved:
        path, cause = next(iter(unsaved.items()))
        raise InputError(f"trained to the end, but {path} could not be saved: {cause}; mend that, then resume=last")
    # A run that is resumed after its last step has only those of the checkpoint.
    metrics = task.resumed_metrics | _numbers(trainer)
    if isinstance(task, Classification) and data.splits.test and trainer.state.status == "finished":
        best = next((c.best_model_path for c in trainer.checkpoint_callbacks if getattr(c, "monitor", None)), None)
        if best:
            task.print(f"testing {best}")
        trainer.test(task, datamodule=data, ckpt_path=best or None, weights_only=True, verbose=False)
        metrics |= _numbers(trainer)
    return metrics


def _numbers(trainer: L.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
