"""`python -m avmae.train experiment=NAME`: pretrain or fine-tune, and test what was fine-tuned."""

import json
import sys
from pathlib import Path
from typing import Any

from avmae.cli.command import command, quiet_libraries
from avmae.cli.config import instantiate
from avmae.cli.table import print_table
from avmae.errors import InputError, printable
from avmae.runs.launch import launch
from avmae.training.hardware import settle_processes

WRITTEN = (
    "checkpoints/last.ckpt",
    "checkpoints/best.ckpt",
    "metrics.csv",
    "summary.json",
    "reconstructions",
    "confusion.png",
    "per_class.csv",
)
"""What a run may leave in its folder."""


@command("train")
def main(config: dict[str, Any]) -> dict[str, float] | float:
    """Train; see `python -m avmae.train --help`.

    Returns:
        All metrics by name, or of ``objective=NAME`` that one.
    """
    if not isinstance(config["seed"], int) or config["seed"] < 0:
        raise InputError(f"seed={config['seed']} must be a whole number from 0")
    try:
        config = settle_processes(config)
        metrics, objective = launch(run, config, config["trainer"]["devices"]), config["objective"]
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


def run(config: dict[str, Any]) -> dict[str, float]:
    """Train in this process, which may be one of several, and print what comes of it.

    Args:
        config: of `conf/train.yaml`, resolved, with ``run_dir`` and numbers of processes.

    Returns:
        The final metrics by name.
    """
    from avmae.data.build import build_data
    from avmae.training.build import build_task, build_trainer, fit_and_test, read_specs
    from avmae.training.loggers import finish, log_run

    quiet_libraries()
    specs = read_specs(config)
    data = build_data(config["data"], specs.clip, "audio" in specs.model.modalities, specs.augment, config["seed"])
    if str(config["objective"]).startswith("val/") and not data.splits.val:
        raise InputError(f"objective={config['objective']} needs validation clips, such as data.val_groups=2 gives")
    task = build_task(config, data)
    trainer = build_trainer(config, task, data, instantiate)
    if trainer.is_global_zero:
        describe(config, task, trainer, data.splits)
        log_run(trainer.loggers, config, task.network)
    metrics = fit_and_test(trainer, task, data, config["resume"])
    if trainer.is_global_zero:
        folder = Path(config["run_dir"])
        (folder / "summary.json").write_text(json.dumps(metrics, indent=2, sort_keys=True))
        print_table(["metric", "value"], [[name, f"{value:.4g}"] for name, value in sorted(metrics.items())])
        print(f"wrote {folder}: {', '.join(name for name in WRITTEN if (folder / name).exists())}")
    finish(trainer.loggers)
    return metrics


def describe(config: dict[str, Any], task: Any, trainer: Any, splits: Any) -> None:
    """Print what is trained, from which weights, and what is to be said of the data."""
    from avmae.data.build import by_source
    from avmae.data.splits import some
    from avmae.models.summary import step_flop
    from avmae.training.loggers import model_table

    if task.match:
        print(task.match.title)
        header = ["tensors of", "matched", "missing", "unexpected", "reshaped"]
        print_table(header, [[part, *map(str, counts)] for part, *counts in task.match.rows])
        print(*(f"{printable(note)}\n" for note in task.match.notes), sep="", end="")
    print(
        f"{config['name']}: {config['task']['name']} {config['model']['name']} {config['size']['name']}, "
        f"{trainer.world_size} process{'es' if trainer.world_size > 1 else ''} on {trainer.strategy.root_device.type}, "
        f"{trainer.precision}, {step_flop(task.network) / 1e9:.3g} GFLOP a clip (forward and backward)"
    )
    header, *rows = model_table(task.network)
    print_table(header, rows)
    source = by_source(config["data"])["source"]
    counts = f"{len(splits.train)} train, {len(splits.val)} validation, {len(splits.test)} test"
    print(f"data: {source} {config['data'].get('root') or ''}; clips: {counts}")
    classes = f"{len(splits.classes)} class{'es' if len(splits.classes) > 1 else ''}: {some(splits.classes)}"
    print(*map(printable, (classes, *(f"note: {note}" for note in splits.notes))), sep="\n", flush=True)


if __name__ == "__main__":
    # By its module's name: processes that a submitit job starts cannot find what is of this process's __main__.
    from avmae.train import main as named

    named()
