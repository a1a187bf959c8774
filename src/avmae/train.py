"""`python -m avmae.train experiment=NAME`: pretrain or fine-tune, and test what was fine-tuned."""

import json
from pathlib import Path
from typing import Any

from avmae.command import (
    command,
    construct,
    first_process,
    launch,
    precision,
    print_table,
    quiet_libraries,
    resume_checkpoint,
    spec,
)


@command("train")
def main(config: dict[str, Any]) -> dict[str, float]:
    """Train; see `python -m avmae.train --help`."""
    return launch(run, config, process_count(config))


def process_count(config: dict[str, Any]) -> int:
    """Processes on this machine: one, or for a strategy that shares the work, as many as devices.

    Raises:
        InputError: GPUs are asked for where there are none.
    """
    import torch

    from avmae.errors import InputError

    trainer, gpus = config["trainer"], torch.cuda.device_count()
    if trainer["accelerator"] in ("gpu", "cuda") and not gpus:
        raise InputError("trainer.accelerator=gpu, but no GPU is to be seen here; use trainer.accelerator=cpu or auto")
    single = config["strategy"].get("_args_") == ["auto"]
    devices = trainer["devices"]
    if devices == "auto":
        devices = 1 if single or trainer["accelerator"] == "cpu" else max(1, gpus)
    if not isinstance(devices, int) or devices < 1:
        raise InputError(f"trainer.devices must be a number of processes from 1, or auto, not {devices}")
    if single and devices > 1:
        raise InputError(f"trainer.devices={devices} needs a strategy that shares the work: strategy=ddp or fsdp")
    if gpus and trainer["accelerator"] != "cpu" and devices > gpus:
        raise InputError(f"trainer.devices={devices}, but only {gpus} GPUs are to be seen here")
    trainer["devices"] = devices
    return devices


def run(config: dict[str, Any]) -> dict[str, float]:
    """Train in this process, which may be one of several.

    Args:
        config: of `conf/train.yaml`, resolved, and ``run_dir``.

    Returns:
        The final metrics by name.
    """
    import lightning as L
    import torch
    from hydra.utils import instantiate

    from avmae.clip import ClipSpec
    from avmae.data.augment import AugmentSpec
    from avmae.models.autoencoder import MaskedAutoencoder
    from avmae.models.build import MaskSpec, ModelSpec, SizeSpec, build_autoencoder, build_classifier
    from avmae.models.classifier import Classifier
    from avmae.models.weights import start_from
    from avmae.training.classification import Classification
    from avmae.training.loggers import log_run, model_table
    from avmae.training.mixing import MixSpec
    from avmae.training.optim import OptimSpec
    from avmae.training.pretraining import ObjectiveSpec, Pretraining
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

    torch.manual_seed(seed)
    model_config: dict[str, Any] = {key: config[key] for key in ("clip", "model", "size", "data", "seed")}
    if task_config["name"] == "pretrain":
        network: MaskedAutoencoder | Classifier = build_autoencoder(clip, model, size, mask)
        model_config |= {"task": "pretrain", "mask": config["mask"]}
    else:
        classes, dropout, pool = datamodule.classes, task_config["dropout"], task_config["pool"]
        network = build_classifier(clip, model, size, len(classes), dropout, pool, task_config["frozen"])
        model_config |= {"task": "classify", "classes": len(classes), "dropout": dropout, "class_names": classes}
        model_config["pool"] = pool
    if config["ckpt"]:
        match = start_from(network, config["ckpt"])
        if first_process():
            print(match.title)
            header = ["tensors of", "matched", "missing", "unexpected", "reshaped"]
            print_table(header, [[part, *map(str, counts)] for part, *counts in match.rows])
            print(*match.notes, sep="\n", end="\n" if match.notes else "", flush=True)
    compile = config["trainer"].pop("compile")
    task: Task
    if isinstance(network, MaskedAutoencoder):
        objective = spec(ObjectiveSpec, "task", {k: v for k, v in task_config.items() if k != "name"})
        task = Pretraining(network, optim, model_config, seed, compile, objective)
    else:
        mixing = spec(MixSpec, "task.mix", task_config["mix"])
        task = Classification(network, optim, model_config, seed, compile, task_config["label_smoothing"], mixing)

    callbacks = config["callbacks"]
    if not datamodule.splits.val:
        callbacks.pop("best", None)
    elif "best" in callbacks and callbacks["best"]["monitor"] is None:
        watched = {"pretrain": ("val/loss", "min"), "classify": ("val/top1", "max")}[task_config["name"]]
        callbacks["best"]["monitor"], callbacks["best"]["mode"] = watched
    trainer: L.Trainer = construct(
        "trainer",
        config["trainer"] | {"precision": precision(config["trainer"])},
        strategy=instantiate(config["strategy"]),
        logger=[instantiate(logger) for logger in config["logger"].values()] if first_process() else [],
        callbacks=[instantiate(callback) for callback in callbacks.values()],
        default_root_dir=config["run_dir"],
    )
    if trainer.is_global_zero:
        table = model_table(network)
        describe(network, config, trainer, datamodule.splits, table)
        log_run(trainer.loggers, config, table)
    resume = resume_checkpoint(config["logs"], config["name"], config["resume"]) if config["resume"] else None
    trainer.fit(task, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
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
    """Print what is trained."""
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
        f"data: {source} {config['data'].get('root') or ''}, {len(splits.classes)} classes; clips: "
        f"{len(splits.train)} train, {len(splits.val)} validation, {len(splits.test)} test",
        flush=True,
    )


if __name__ == "__main__":
    main()
