"""Speed of `python -m avmae.train` from files to weights, and its share of waiting for data, by number of workers.

Each row is a separate training, from the data set's files or from their packed copy. On a GPU, every step after the
first few fails if an operation in it waits for the device.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import lightning as L
import torch

SETTLED = 5
"""Steps before measuring or refusing begins: compilation, the choice of kernels and the first reads."""


class RefuseWaiting(L.Callback):
    """Makes any operation of a training step raise if it waits for the GPU."""

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Refuse from here to the end of the step."""
        if trainer.global_step >= SETTLED:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, *_: Any) -> None:
        """Logging and reading may wait."""
        torch.cuda.set_sync_debug_mode("default")


def train(data: list[str], workers: int, steps: int, overrides: list[str]) -> dict[str, Any]:
    """Train some steps and read the speed that the run logged."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*data, f"data.workers={workers}", f"trainer.max_steps={SETTLED + steps}", "data.val_groups=0"]
        arguments += [f"trainer.log_every_n_steps={SETTLED}", "callbacks.reconstructions.clips=0"]
        if torch.cuda.is_available():
            arguments.append("+callbacks.waiting._target_=end_to_end.RefuseWaiting")
        command = [sys.executable, "-m", "avmae.train", *arguments, *overrides, f"hydra.run.dir={folder}/run"]
        path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        with Path(folder, "run/metrics.csv").open(newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row.get("train/clips_per_second")][1:]
    speed = statistics.harmonic_mean([float(row["train/clips_per_second"]) for row in rows])
    waited = statistics.mean(float(row["train/data_wait"]) for row in rows)
    return {"workers": workers, "clips_per_s": round(speed, 2), "data_wait": round(waited, 3)}


def main() -> None:
    """Read the options, train, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["data=ucf101"], help="settings of the files, data.root=...")
    parser.add_argument("--packed", type=Path, help="folder of its packed copy, by python -m avmae.prepare pack=DIR")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=20, help="measured steps of each training")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    parser.add_argument("overrides", nargs="*", help="settings of avmae.train, after --: such as size=small")
    asked = parser.parse_args()
    sources = {"files": asked.data} | ({"packed": ["data=shards", f"data.root={asked.packed}"]} if asked.packed else {})
    rows = []
    print(f"{'source':>8}{'workers':>9}{'clips/s':>10}{'data wait':>11}")
    for (source, data), workers in product(sources.items(), asked.workers):
        row = {"source": source, **train(data, workers, asked.steps, asked.overrides)}
        print(f"{source:>8}{workers:>9}{row['clips_per_s']:>10}{row['data_wait']:>11.1%}", flush=True)
        rows.append(row)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
