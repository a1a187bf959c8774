"""What a run was: its settings, the version of the code, and the model, for the loggers."""

import importlib.metadata
import json
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.classifier import Classifier
from avmae.models.summary import parts
from avmae.training.loggers import log_table


def code_version() -> dict[str, Any]:
    """Versions of avmae, Python and the packages that avmae asks for; `commit` and `dirty` in a git checkout.

    `dirty` says whether tracked files differ from the commit. Both are None where the code is not from a checkout, or
    git is not installed.
    """
    required = importlib.metadata.requires("avmae") or []
    names = [re.split(r"[^\w.-]", line)[0] for line in required if "extra ==" not in line]
    packages = {name: importlib.metadata.version(name) for name in ("avmae", *names)}
    commit = dirty = None
    # A virtual environment may lie inside another project's checkout, whose commit says nothing of this code.
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is not None:
        commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no", ":/")
        dirty = bool(changes)
    return {"commit": commit, "dirty": dirty, "python": platform.python_version(), "packages": packages}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).resolve().parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def model_table(network: MaskedAutoencoder | Classifier) -> list[list[str]]:
    """The model in rows of part, parameters, those trained, and tokens of a clip that go through; a header first."""
    rows = [[part.name, _count(part.parameters), _count(part.trained), f"{part.tokens}"] for part in parts(network)]
    total = [sum(p.numel() for p in network.parameters() if p.requires_grad >= trained) for trained in (False, True)]
    return [["part", "parameters", "trained", "tokens"], *rows, ["all", *map(_count, total), ""]]


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.1f} k" if number >= 1e3 else f"{number}"


def log_run(loggers: Iterable[Logger], config: Mapping[str, Any], table: list[list[str]]) -> None:
    """Log the whole config, `code_version` and the model's table; print where W&B shows the run.

    Args:
        loggers: of the run.
        config: resolved, plain data.
        table: of `model_table`.
    """
    loggers, code = list(loggers), code_version()
    for logger in loggers:
        logger.log_hyperparams({**config, "code": code})
        if isinstance(logger, TensorBoardLogger):
            for name, content in (("config", config), ("code", code)):
                text = json.dumps(content, indent=2, default=str)
                logger.experiment.add_text(f"run/{name}", "\n".join(f"    {line}" for line in text.splitlines()))
        elif isinstance(logger, WandbLogger) and not logger.experiment.offline:
            print(f"W&B: {logger.experiment.url}")
    header, *rows = table
    log_table(loggers, "run/model", header, rows, step=0)
