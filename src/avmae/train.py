"""`python -m avmae.train experiment=NAME`: pretrain or fine-tune, and test what was fine-tuned."""

import gc
import json
import re
import sys
from collections.abc import Collection
from copy import deepcopy
from pathlib import Path
from typing import Any

from avmae.cli.command import command, quiet_libraries
from avmae.cli.config import construct, instantiate, precision, spec
from avmae.cli.table import print_table
from avmae.errors import InputError, printable
from avmae.runs.launch import first_process, launch, started

RECIPE = ("mask", "augment", "optim", "task", "trainer")
"""Parts of the config that a checkpoint keeps so that a resumed run can say what has changed."""
LOST = "Connection (closed|reset) by peer|Timed out waiting|Broken pipe|timed out after"
"""What gloo and NCCL say when another process, or the way to it, is gone."""


@command("train")
def main(config: dict[str, Any]) -> dict[str, float] | float:
    """Train; see `python -m avmae.train --help`.

    Returns:
        All metrics by name, or of ``objective=NAME`` that one.
    """
    try:
        metrics, objective = launch(run, config, process_count(config)), config["objective"]
    except Exception:
        # The next job of a sweep is a run of its own.
        if (wandb := sys.modules.get("wandb")) is not None and wandb.run is not None:
            wandb.finish(exit_code=1)
        raise
    if objective is None:
        return metrics
    if objective not in metrics:
        raise InputError(f"objective={objective} is none of the metrics of this run: {', '.join(sorted(metrics))}")
    return metrics[objective]


def process_count(config: dict[str, Any]) -> int:
    """Processes on this machine: one, or for a strategy that shares the work, as many as devices.

    Settles `trainer.devices` and `trainer.num_nodes`, which torchrun or SLURM decide if they have started us. Says so
    where GPUs stay unused that nobody has counted out.

    Raises:
        InputError: GPUs are asked for where there are none.
    """
    import torch

    trainer, gpus = config["trainer"], torch.cuda.device_count()
    if trainer["accelerator"] in ("gpu", "cuda") and not gpus:
        raise InputError("trainer.accelerator=gpu, but no GPU is to be seen here; use trainer.accelerator=cpu or auto")
    single = config["strategy"].get("_args_") == ["auto"]
    launched, devices = started(), trainer["devices"]
    if trainer["num_nodes"] == "auto":
        trainer["num_nodes"] = launched[0] if launched else 1
    if devices == "auto" and launched:
        devices = launched[1]
    if devices == "auto":
        devices = 1 if single or trainer["accelerator"] == "cpu" else max(1, gpus)
        if single and trainer["accelerator"] != "cpu" and gpus > 1:
            print(f"uses 1 of {gpus} GPUs: add strategy=ddp to use all, or trainer.devices=1 if one is meant")
    if not isinstance(devices, int) or devices < 1:
        raise InputError(f"trainer.devices must be a number of processes from 1, or auto, not {devices}")
    if single and devices > 1:
        raise InputError(f"trainer.devices={devices} needs a strategy that shares the work: strategy=ddp or fsdp")
    if gpus and trainer["accelerator"] != "cpu" and devices > gpus:
        raise InputError(f"trainer.devices={devices}, but only {gpus} GPUs are to be seen here")
    trainer["devices"] = devices
    return devices


def accumulation(clips: int, config: dict[str, Any]) -> int:
    """Batches that make a step of so many clips.

    Raises:
        InputError: no whole number does, or the number of batches is given besides; it says what would do.
    """
    batch, trainer = config["data"]["batch_size"], config["trainer"]
    processes = trainer["devices"] * trainer["num_nodes"]
    if trainer["accumulate_grad_batches"] != 1:
        raise InputError(
            f"trainer.accumulate_grad_batches={trainer['accumulate_grad_batches']} and trainer.clips_per_step={clips} "
            "both say how many clips make a step; leave one out (trainer.clips_per_step=null)"
        )
    if clips % (batch * processes) == 0:
        return clips // (batch * processes)
    # The largest batch that needs no more memory.
    fitting = next((b for b in range(min(batch, clips), 0, -1) if clips % (b * processes) == 0), None)
    near = max(1, round(clips / (batch * processes))) * batch * processes
    choices = [f"data.batch_size={fitting}"] * (fitting is not None) + [f"trainer.clips_per_step={near}"]
    raise InputError(
        f"trainer.clips_per_step={clips} is no multiple of data.batch_size={batch} x {processes} "
        f"process{'es' if processes > 1 else ''} = {batch * processes}; choose {' or '.join(choices)}"
    )


def run(config: dict[str, Any]) -> dict[str, float]:
    """Train in this process, which may be one of several.

    Args:
        config: of `conf/train.yaml`, resolved, and ``run_dir``.

    Returns:
        The final metrics by name.
    """
    import lightning as L
    import torch
    from lightning.pytorch.callbacks import WeightAveraging

    from avmae.clip import ClipSpec
    from avmae.data.augment import AugmentSpec
    from avmae.data.paths import absolute
    from avmae.models.autoencoder import MaskedAutoencoder
    from avmae.models.build import MaskSpec, ModelSpec, SizeSpec, build_autoencoder, build_classifier
    from avmae.models.classifier import Classifier
    from avmae.models.weights import start_from
    from avmae.training.checkpoints import SafeCheckpointIO, loaded_at_first
    from avmae.training.classification import Classification
    from avmae.training.loggers import log_run, model_table
    from avmae.training.mixing import MixSpec
    from avmae.training.optim import OptimSpec
    from avmae.training.pretraining import ObjectiveSpec, Pretraining
    from avmae.training.strategies import FSDP2Strategy
    from avmae.training.task import Task

    quiet_libraries()
    seed, task_config = config["seed"], config["task"]
    clip, model = spec(ClipSpec, "clip", config["clip"]), spec(ModelSpec, "model", config["model"])
    size, mask = spec(SizeSpec, "size", config["size"]), spec(MaskSpec, "mask", config["mask"])
    optim = spec(OptimSpec, "optim", config["optim"])
    datamodule = construct(
        "data",
        config["data"],
        clip=clip,
        audio="audio" in model.modalities,
        augment=spec(AugmentSpec, "augment", config["augment"]),
        seed=seed,
    )

    if str(config["objective"]).startswith("val/") and not datamodule.splits.val:
        raise InputError(f"objective={config['objective']} needs validation clips, such as data.val_groups=2 gives")

    torch.manual_seed(seed)
    model_config: dict[str, Any] = {key: config[key] for key in ("clip", "model", "size", "seed")}
    model_config |= {"data": absolute(config["data"]), "recipe": {key: deepcopy(config[key]) for key in RECIPE}}
    if task_config["name"] == "pretrain":
        network: MaskedAutoencoder | Classifier = build_autoencoder(clip, model, size, mask)
        model_config |= {"task": "pretrain", "mask": config["mask"]}
    else:
        classes, dropout, pool = datamodule.classes, task_config["dropout"], task_config["pool"]
        if len(classes) < 2:
            raise InputError(
                f"task={task_config['name']} tells classes apart, and the data set has the one class {classes[0]}; put "
                "videos into a folder per class (data=folder) or list their labels (data=csv); task=pretrain needs none"
            )
        network = build_classifier(clip, model, size, len(classes), dropout, pool, task_config["frozen"])
        model_config |= {"task": "classify", "classes": len(classes), "dropout": dropout, "class_names": classes}
        model_config["pool"] = pool
    loaded: Collection[str] = ()
    if config["resume"]:
        loaded = loaded_at_first(config["resume"])
    elif config["ckpt"]:
        match = start_from(network, config["ckpt"])
        loaded = match.filled
        if first_process():
            print(match.title)
            header = ["tensors of", "matched", "missing", "unexpected", "reshaped"]
            print_table(header, [[part, *map(str, counts)] for part, *counts in match.rows])
            print(*map(printable, match.notes), sep="\n", end="\n" if match.notes else "", flush=True)
    compile, clips_per_step = config["trainer"].pop("compile"), config["trainer"].pop("clips_per_step")
    if clips_per_step:
        config["trainer"]["accumulate_grad_batches"] = accumulation(clips_per_step, config)
    task: Task
    if isinstance(network, MaskedAutoencoder):
        objective = spec(ObjectiveSpec, "task", {k: v for k, v in task_config.items() if k != "name"})
        task = Pretraining(network, optim, model_config, seed, compile, objective)
    else:
        mixing = spec(MixSpec, "task.mix", task_config["mix"])
        task = Classification(
            network,
            optim,
            model_config,
            seed,
            compile,
            label_smoothing=task_config["label_smoothing"],
            mixing=mixing,
            drop_audio=task_config["drop_audio"],
            swap_audio=task_config["swap_audio"],
        )

    task.loaded = frozenset(loaded)

    callbacks = config["callbacks"]
    if not datamodule.splits.val:
        callbacks.pop("best", None)
    elif "best" in callbacks and callbacks["best"]["monitor"] is None:
        watched = {"pretrain": ("val/loss", "min"), "classify": ("val/top1", "max")}[task_config["name"]]
        callbacks["best"]["monitor"], callbacks["best"]["mode"] = watched
    if "best" in callbacks and callbacks["best"]["save_top_k"] not in (0, 1):
        callbacks["best"] |= {"filename": "best_{epoch:04d}", "auto_insert_metric_name": False}
    checkpoint_io = SafeCheckpointIO()
    trainer: L.Trainer = construct(
        "trainer",
        config["trainer"] | {"precision": precision(config["trainer"])},
        strategy=instantiate(config["strategy"]),
        logger=[instantiate(logger) for logger in config["logger"].values()] if first_process() else [],
        callbacks=[instantiate(callback) for callback in callbacks.values()],
        default_root_dir=config["run_dir"],
        plugins=[checkpoint_io],
    )
    averaged = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)
    if averaged and isinstance(trainer.strategy, FSDP2Strategy):
        raise InputError(
            "callbacks=ema averages whole weights, and strategy=fsdp shards them; choose strategy=ddp or callbacks=base"
        )
    if trainer.is_global_zero:
        table = model_table(network)
        describe(network, config, trainer, datamodule.splits, table)
        log_run(trainer.loggers, config, table)
    if config["resume"] and Path(config["resume"]).is_dir() and not isinstance(trainer.strategy, FSDP2Strategy):
        raise InputError(
            f"resume={config['resume']} is sharded; go on with strategy=fsdp, or start from its weights: ckpt=..."
        )
    # See `prepare_worker`; and no collection has to look at what stays for the whole run.
    gc.collect()
    gc.freeze()
    try:
        trainer.fit(task, datamodule=datamodule, ckpt_path=config["resume"], weights_only=True)
    except RuntimeError as error:
        if message := datamodule.explain(error):
            raise InputError(f"{message}; go on with resume=last") from error
        if started() and (lost := re.search(LOST, str(error))):
            raise InputError(
                f"process {trainer.global_rank} lost another ({lost[0]}); go on with resume=last"
            ) from error
        raise
    finally:
        gc.unfreeze()
    unsaved = trainer.strategy.broadcast(checkpoint_io.failures)
    if unsaved:
        path, cause = next(iter(unsaved.items()))
        raise InputError(f"trained to the end, but {path} could not be saved: {cause}; mend that, then resume=last")
    # A run that was ended after its last step has none but those.
    metrics = task.resumed_metrics | {name: float(value) for name, value in trainer.callback_metrics.items()}
    if task_config["name"] == "classify" and datamodule.splits.test and trainer.state.status == "finished":
        best = next((c.best_model_path for c in trainer.checkpoint_callbacks if getattr(c, "monitor", None)), None)
        if best and first_process():
            print(f"testing {best}")
        trainer.test(task, datamodule=datamodule, ckpt_path=best or None, weights_only=True, verbose=False)
        metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}

    if trainer.is_global_zero:
        run_dir = Path(config["run_dir"])
        (run_dir / "summary.json").write_text(json.dumps(metrics, indent=2, sort_keys=True))
        print_table(["metric", "value"], [[name, f"{value:.4g}"] for name, value in sorted(metrics.items())])
        written = ["checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.csv", "summary.json"]
        written += ["reconstructions", "confusion.png", "per_class.csv"]
        print(f"wrote {run_dir}: {', '.join(name for name in written if (run_dir / name).exists())}")
    for logger in trainer.loggers:
        finish = getattr(logger.experiment, "finish", None)
        if finish is not None:
            # The next job of a sweep is a run of its own.
            finish()
    return metrics


def describe(network: Any, config: dict[str, Any], trainer: Any, splits: Any, table: list[list[str]]) -> None:
    """Print what is trained, and what is to be said of the data."""
    from avmae.data.splits import some
    from avmae.models.summary import step_flop

    header, *rows = table
    print(
        f"{config['name']}: {config['task']['name']} {config['model']['name']} {config['size']['name']}, "
        f"{trainer.world_size} process{'es' if trainer.world_size > 1 else ''} on {trainer.strategy.root_device.type}, "
        f"{trainer.precision}, {step_flop(network) / 1e9:.3g} GFLOP a clip (forward and backward)"
    )
    print_table(header, rows)
    source = config["data"]["_target_"].split(".")[-1].removesuffix("DataModule")
    print(
        f"data: {source} {config['data'].get('root') or ''}; clips: "
        f"{len(splits.train)} train, {len(splits.val)} validation, {len(splits.test)} test"
    )
    print(printable(f"{len(splits.classes)} class{'es' if len(splits.classes) > 1 else ''}: {some(splits.classes)}"))
    for note in splits.notes:
        print(printable(f"note: {note}"))
    sys.stdout.flush()


if __name__ == "__main__":
    # By its module's name: processes that a submitit job starts cannot find what is of this process's __main__.
    from avmae.train import main as named

    named()
