"""Which version of the code runs."""

import contextlib
import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path
from typing import Any


def code_version() -> dict[str, Any]:
    """Versions of avmae, Python and the packages that avmae asks for; `commit` and `dirty` in a git checkout.

    `dirty` says whether tracked files differ from the commit. Both are None where the code is not from a checkout, or
    git is not installed.
    """
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
