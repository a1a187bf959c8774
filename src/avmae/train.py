"""`python -m avmae.train experiment=NAME`: pretrain or fine-tune, and test what was fine-tuned."""

from pathlib import Path
from typing import Any, NamedTuple

from avmae.cli.command import command
from avmae.cli.config import composed
from avmae.cli.training import launch_training, printing
from avmae.errors import InputError


class Trained(NamedTuple):
    """The folder of a run, with its `checkpoints`, and its final metrics by name."""

    run_dir: Path
    metrics: dict[str, float]


def train(*overrides: str, verbose: bool = False) -> Trained:
    """Train one run; Ctrl-C and signals save it first.

    Args:
        overrides: of `conf/train.yaml`, as on the command line: ``train("experiment=finetune", "data.root=DIR")``.
        verbose: print what the command prints.

    Raises:
        InputError: a setting cannot be, or training failed in a way that the user can mend.
        Interrupted: a signal ended it.
    """
    with printing(verbose):
        config = composed("train", overrides)
    return Trained(Path(config["run_dir"]), launch_training(config, verbose))


@command("train")
def main(config: dict[str, Any]) -> dict[str, float] | float:
    """Train; returns all metrics by name, or of ``objective=NAME`` that one, for sweepers that optimise."""
    metrics, objective = launch_training(config, verbose=True), config["objective"]
    if objective is None:
        return metrics
    if objective not in metrics:
        raise InputError(f"objective={objective} is none of the metrics of this run: {', '.join(sorted(metrics))}")
    return metrics[objective]


if __name__ == "__main__":
    # By its module's name: processes that a submitit job starts cannot find what is of this process's __main__.
    from avmae.train import main as named

    named()
