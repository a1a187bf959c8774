"""A training from its config to what it prints."""

import io
import json
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from avmae.cli.command import quiet_libraries
from avmae.cli.config import instantiate
from avmae.cli.table import print_table
from avmae.errors import InputError, printable
from avmae.runs.folder import discard_unused, link_latest
from avmae.runs.launch import first_process, launch
from avmae.training.hardware import settle_processes

WRITTEN = ["checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.csv", "summary.json", "reconstructions"]
WRITTEN += ["confusion.png", "per_class.csv"]


def launch_training(config: dict[str, Any], verbose: bool) -> dict[str, float]:
    """Train in this process, or in as many as the config says; returns the final metrics by name.

    Args:
        config: of `conf/train.yaml`, resolved, with ``run_dir``.
        verbose: print what is trained, how far it is, and what comes of it.
    """
    with printing(verbose):
        if first_process():
            print(f"run folder: {printable(config['run_dir'])}", flush=True)
        try:
            if not isinstance(config["seed"], int) or config["seed"] < 0:
                raise InputError(f"seed={config['seed']} must be a whole number from 0")
            config = settle_processes(config)
            return launch(_run, config | {"verbose": verbose}, config["trainer"]["devices"])
        except InputError:
            if first_process():
                discard_unused(config["run_dir"], config["logs"], config["name"])
            raise


def printing(verbose: bool) -> AbstractContextManager[Any]:
    """A context in which what is printed is thrown away, unless `verbose`."""
    return nullcontext() if verbose else redirect_stdout(io.StringIO())


def _run(config: dict[str, Any]) -> dict[str, float]:
    """Train in this process, which may be one of several."""
    # Here, for the help of the commands need not load torch.
    from avmae.data.build import build_data
    from avmae.evaluation.metrics import metric_text
    from avmae.training.build import build_task, build_trainer, fit_and_test, read_specs
    from avmae.training.loggers import finish, log_run

    quiet_libraries()
    specs = read_specs(config)
    with printing(config["verbose"]):
        data = build_data(config["data"], specs.clip, "audio" in specs.model.modalities, specs.augment, config["seed"])
        if str(config["objective"]).startswith("val/") and not data.splits.val:
            raise InputError(f"objective={config['objective']} needs validation clips, such as data.val_groups=2 gives")
        task = build_task(config, data)
        trainer = build_trainer(config, task, data, instantiate)
        first, failed = trainer.is_global_zero, True
        try:
            if first:
                link_latest(config["run_dir"], config["logs"], config["name"])
                _describe(config, task, trainer, data.splits)
                log_run(trainer.loggers, config, task.network)
            metrics = fit_and_test(trainer, task, data, config["resume"])
            failed = False
        finally:
            finish(trainer.loggers, failed)
        if first:
            folder = Path(config["run_dir"])
            (folder / "summary.json").write_text(json.dumps(metrics, indent=2, sort_keys=True))
            print_table(
                ["metric", "value"], [[name, metric_text(name, value)] for name, value in sorted(metrics.items())]
            )
            print(f"wrote {folder}: {', '.join(name for name in WRITTEN if (folder / name).exists())}")
    return metrics


def _describe(config: dict[str, Any], task: Any, trainer: Any, splits: Any) -> None:
    """Print what is trained, from which weights, and what is to be said of the data."""
    from avmae.data.build import by_source
    from avmae.data.splits import some
    from avmae.models.summary import step_flop
    from avmae.training.loggers import model_table

    if task.match:
        print(task.match.title)
        print_table(["tensors of", "matched", "missing", "unexpected", "reshaped"], task.match.rows)
        print(*(f"{printable(note)}\n" for note in task.match.notes), sep="", end="")
    print(
        f"{config['name']}: {config['task']['name']} {config['model']['name']} {config['size']['name']}, "
        f"{trainer.world_size} process{'es' if trainer.world_size > 1 else ''} on {trainer.strategy.root_device.type}, "
        f"{trainer.precision}, {step_flop(task.network) / 1e9:.3g} GFLOP a clip (forward and backward)"
    )
    header, *rows = model_table(task.network)
    print_table(header, rows)
    counts = f"{len(splits.train)} train, {len(splits.val)} validation, {len(splits.test)} test"
    print(f"data: {by_source(config['data'])['source']} {config['data'].get('root') or ''}; clips: {counts}")
    classes = f"{len(splits.classes)} class{'es' if len(splits.classes) > 1 else ''}: {some(splits.classes)}"
    print(*map(printable, (classes, *(f"note: {note}" for note in splits.notes))), sep="\n", flush=True)
