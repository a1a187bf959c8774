"""What lies in the folder of a run, and whether two runs are the same."""

import csv
from pathlib import Path

import torch

from avmae.models.weights import read_checkpoint


def checkpoint(step: int) -> dict:
    return {"state_dict": {"weight": torch.full((1000,), float(step))}, "global_step": step}


def logged(run_dir: Path, name: str) -> list[float]:
    with (run_dir / "metrics.csv").open() as stream:
        return [float(row[name]) for row in csv.DictReader(stream) if row.get(name)]


def assert_same_weights(one: Path, other: Path, lr: float) -> None:
    expected = read_checkpoint(one).weights
    for name, value in read_checkpoint(other).weights.items():
        # Adam's first steps turn rounding errors of gradients near zero into parts of a full step.
        torch.testing.assert_close(value, expected[name], atol=lr * 1e-2, rtol=1e-4, msg=name)


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load(path)["state_dict"]


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, optimiser and schedule, to the bit, and the epochs by which a further resume would go."""
    first, second = load(one), load(other)
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name
    for a, b in zip(first["optimizer_states"], second["optimizer_states"], strict=True):
        for key, state in a["state"].items():
            assert all(torch.equal(v, b["state"][key][n]) for n, v in state.items())
    assert first["lr_schedulers"] == second["lr_schedulers"]
    assert first["global_step"] == second["global_step"]
    assert first["loops"]["fit_loop"]["epoch_progress"] == second["loops"]["fit_loop"]["epoch_progress"]


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))
