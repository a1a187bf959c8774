"""Kill a training many times at random moments and go on with it; the weights must equal an uninterrupted run's.

    python tests/stress/kills.py --kills 20

A tiny training saves a checkpoint after every second step, so that of its time a good part is writing. It is killed by
SIGKILL at a random moment after it has started to train, every third time while a checkpoint is being written, and gone
on with by resume=last. At the end weights, optimiser and schedule are compared to the bit with those of a run that
nobody killed. Prints what happened and exits with 1 if a bit differs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from avmae.data.embedded.synthetic import write_synthetic

TINY = """
clip.frames=4 clip.size=32 clip.mel_bins=32 model.video_patch=[2,8,8] model.drop_path=0.5 data.val_groups=1
size=tiny size.dim=96 size.depth=4 size.audio_depth=2 size.decoder_dim=48 size.decoder_depth=1
data=ucf101 data.batch_size=2 data.workers=1 trainer.accelerator=cpu trainer.log_every_n_steps=1 name=run
callbacks.last.every_n_train_steps=2 callbacks.last.every_n_epochs=null trainer.check_val_every_n_epoch=20
""".split()


def start(folder: Path, root: Path, epochs: int, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "avmae.train", *TINY, f"data.root={root}", f"trainer.max_epochs={epochs}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "printed.txt").open("a") as output:
        return subprocess.Popen([*command, *overrides], cwd=folder, env=environment, stdout=output, stderr=output)


def equal(one: Any, other: Any) -> bool:
    """Whether nested states are the same to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def writing(folder: Path) -> bool:
    """Whether a checkpoint is half-written."""
    return any(folder.glob("logs/run/*/checkpoints/.*.tmp"))


def age(folder: Path) -> tuple[float, ...]:
    """When checkpoints were written; changes when one is."""
    return tuple(sorted(file.stat().st_mtime for file in folder.glob("logs/run/*/checkpoints/last.ckpt")))


def kill(process: subprocess.Popen, folder: Path, moment: str, rng: random.Random) -> bool:
    """Wait for the moment and kill; False if the run ended before."""
    before = age(folder)
    while age(folder) == before:
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 1.5))
    while moment == "writing" and not writing(folder):
        if process.poll() is not None:
            return False
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=300, help="of the whole run, 4 steps each")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        root, whole, cut = (Path(temporary, name) for name in ("data", "whole", "cut"))
        write_synthetic(root, groups=10, clips_per_group=1, classes=4, seconds=1.5, workers=1)
        for folder in (whole, cut):
            folder.mkdir()
        if start(whole, root, arguments.epochs).wait():
            sys.exit((whole / "printed.txt").read_text())
        (uninterrupted,) = whole.glob("logs/run/*/checkpoints/last.ckpt")
        counts = {"any moment": 0, "writing": 0, "left half-written": 0, "last.ckpt damaged": 0}
        lost: list[int] = []
        for number in range(arguments.kills):
            process = start(cut, root, arguments.epochs, *(["resume=last"] if number else []))
            moment = "writing" if number % 3 == 2 else "any moment"
            if not kill(process, cut, moment, rng):
                sys.exit(f"the run ended before kill {number + 1}: {(cut / 'printed.txt').read_text()[-2000:]}")
            counts[moment] += 1
            counts["left half-written"] += writing(cut)
            (last,) = cut.glob("logs/run/*/checkpoints/last.ckpt")
            step = torch.load(last, weights_only=True)["global_step"]
            rows = (last.parents[1] / "metrics.csv").read_text().splitlines()
            lost.append(len({row.split(",")[1] for row in rows[1:]} - {str(i) for i in range(step)}))
            print(f"kill {number + 1}, {moment}: at step {step}, {lost[-1]} steps lost", flush=True)
        if start(cut, root, arguments.epochs, "resume=last").wait():
            sys.exit((cut / "printed.txt").read_text()[-2000:])
        counts["last.ckpt damaged"] = (cut / "printed.txt").read_text().count("is damaged")
        states = [torch.load(file, weights_only=True) for file in (uninterrupted, last)]
        same = all(
            equal(states[0][key], states[1][key])
            for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
        )
        for name, count in counts.items():
            print(f"{name:20} {count}")
        print(f"{'steps lost a kill':20} {sum(lost) / len(lost):.1f}, at most {max(lost)}")
        print(f"{'final state':20} {'equal to the bit' if same else 'DIFFERS'} after {states[1]['global_step']} steps")
        sys.exit(not same)


if __name__ == "__main__":
    main()
