"""How and with what a run was started: command, machine, versions and commit."""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from avmae.runs.scheduler import job_id

ENVIRONMENT = "environment.json"
"""File of a run's folder: a list, an entry for each start."""


def record_environment(run_dir: str | Path, resumed: str | None) -> None:
    """Add this start, which may resume a checkpoint, to the run's `environment.json`: when, where, how, with what."""
    import torch

    checkouts = {"avmae": checkout(Path(__file__).parent), "folder": checkout(Path.cwd())}
    # `name` and `version` of a package would each read its whole file of metadata.
    packages = [package.metadata for package in importlib.metadata.distributions()]
    start: dict[str, Any] = {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command_line(),
        "folder": os.getcwd(),
        "host": platform.node(),
        "slurm_job": job_id(),
        "resumed": resumed,
        "git": {name: f"{commit} with changes" if dirty else commit for name, (commit, dirty) in checkouts.items()},
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "versions": dict(sorted((package["Name"], package["Version"]) for package in packages if package["Name"])),
    }
    temporary = Path(run_dir, f".{ENVIRONMENT}.tmp")
    temporary.write_text(json.dumps([*starts(run_dir), start], indent=2))
    temporary.replace(Path(run_dir, ENVIRONMENT))


def starts(run_dir: str | Path) -> list[dict[str, Any]]:
    """What `record_environment` has written of each start of a run."""
    file = Path(run_dir, ENVIRONMENT)
    return json.loads(file.read_text()) if file.is_file() else []


def started_in(ckpt: str | Path) -> str | None:
    """The folder in which the run of a checkpoint was last started, which its relative paths start from, if known."""
    found = starts(Path(ckpt).expanduser().absolute().parent.parent)
    return found[-1].get("folder") if found else None


def command_line() -> str:
    """How this process was called."""
    spec = sys.modules["__main__"].__spec__
    program = ["-m", spec.name] if spec else sys.argv[:1]
    return shlex.join([sys.executable, *program, *sys.argv[1:]])


def code_version() -> dict[str, Any]:
    """Versions of avmae, Python and the packages that avmae asks for, and what `checkout` says of the code."""
    packages = {}
    # Without it, the source folder is on the path, but not installed.
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        required = importlib.metadata.requires("avmae") or []
        names = [re.split(r"[^\w.-]", line)[0] for line in required if "extra ==" not in line]
        packages = {name: importlib.metadata.version(name) for name in ("avmae", *names)}
    commit, dirty = checkout(Path(__file__).parent)
    return {"commit": commit, "dirty": dirty, "python": platform.python_version(), "packages": packages}


def checkout(folder: Path) -> tuple[str | None, bool | None]:
    """The commit that a folder is checked out from, and whether tracked files differ from it; None outside of git."""
    # A folder inside a repository that does not track it, such as a virtual environment, is none of its.
    if not _git(folder, "ls-files", "."):
        return None, None
    return _git(folder, "rev-parse", "HEAD"), bool(_git(folder, "status", "--porcelain", "--untracked-files=no", ":/"))


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
