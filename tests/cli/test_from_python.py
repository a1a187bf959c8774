"""Commands as functions, for notebooks."""

from pathlib import Path

from commands import python, tiny_arguments

SCRIPT = """
import os, sys
os.dup2(os.open("errors.txt", os.O_WRONLY | os.O_CREAT), 2)
from avmae.train import train
trained = train(*sys.argv[1:])
assert trained.metrics["train/loss"] > 0 and (trained.run_dir / "checkpoints/last.ckpt").is_file()
"""


def test_a_training_from_python_prints_nothing(miniature: Path, tmp_path: Path) -> None:
    assert python("-c", SCRIPT, *tiny_arguments(("trainer.max_steps=1",), miniature), cwd=tmp_path) == ""
