"""Commands as functions, for notebooks."""

import subprocess
import sys
from pathlib import Path

from commands import ENVIRONMENT, TINY

SCRIPT = """
import sys
from avmae.train import train
trained = train(*sys.argv[1:])
assert trained.metrics["train/loss"] > 0 and (trained.run_dir / "checkpoints/last.ckpt").is_file()
"""


def test_a_training_from_python_prints_nothing(miniature: Path, tmp_path: Path) -> None:
    data = ("data=ucf101", f"data.root={miniature}", "data.val_groups=1", "trainer.max_steps=1")
    command = [sys.executable, "-c", SCRIPT, *TINY, *data]
    assert subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, check=True).stdout == b""
