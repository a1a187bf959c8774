"""What a run records of how it was started, and from which code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch


def test_a_run_records_how_it_was_started(whole: Path) -> None:
    (start,) = json.loads((whole / "environment.json").read_text())
    assert "-m avmae.train" in start["command"]
    assert "model.drop_path=0.5" in start["command"]
    assert start["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert (start["resumed"], start["slurm_job"]) == (None, None)
    top = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    if top.returncode == 0:
        assert start["git"]["avmae"].startswith(top.stdout.strip())


def test_the_commit_is_known_in_a_checkout_alone(tmp_path: Path) -> None:
    import subprocess

    import avmae

    shutil.copytree(Path(avmae.__file__).parent, tmp_path / "avmae", ignore=shutil.ignore_patterns("conf"))
    script = "from avmae.runs.environment import code_version as v; c = v(); print(c['commit'], c['dirty'])"

    def known() -> str:
        # As light as `import avmae`: no torch is loaded.
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        return subprocess.check_output([sys.executable, "-c", script], env=environment, cwd=tmp_path, text=True).strip()

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        return subprocess.check_output(["git", *who, *arguments], cwd=tmp_path, text=True).strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "another project's")
    assert known() == "None None", "the commit of a project that does not hold this code"
    git("add", "avmae")
    git("commit", "-q", "-m", "code")
    commit = git("rev-parse", "HEAD")
    assert known() == f"{commit} False"
    (tmp_path / "avmae/errors.py").open("a").write("# changed\n")
    assert known() == f"{commit} True"
