"""`python -m avmae.study`: does sound help, and most where pictures are poor? Every training and test of the answer."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from avmae.cli.command import command, quiet_libraries
from avmae.cli.config import check_counts
from avmae.cli.table import print_table
from avmae.clip import ClipSpec
from avmae.errors import InputError
from avmae.evaluation.data import evaluation_data
from avmae.runs.folder import newest_sound
from avmae.runs.launch import end_with_parent
from avmae.training.hardware import precision

HEARING = ("avmae_concat", "avmae")
QUICK = {
    "seeds": [0],
    "labels": [1.0],
    "degradations": ["lowres:8", "blur:16", "drop:0.75", "noise:0", "silence", "swap"],
}
QUICK_PRETRAINING = ("trainer.max_epochs=4", "trainer.check_val_every_n_epoch=4")

started: list[subprocess.Popen[bytes]] = []
"""The trainings of this process of `side_by_side`."""


@dataclass(frozen=True)
class Training:
    """One run of `python -m avmae.train`.

    Args:
        name: of its folder.
        start: what the weights start from: `pretraining` itself, `pretrained` or `scratch`.
        labels: share of the training clips.
        arguments: of the command, but for the data and the folder.
    """

    name: str
    start: str
    labels: float
    arguments: tuple[str, ...]


@command("study")
def main(config: dict[str, Any]) -> None:
    """Train, test, tabulate; see `python -m avmae.study --help`."""
    quiet_libraries()
    check_counts(config, "jobs")
    study = config["study"]
    if study["quick"]:
        study |= QUICK
    output = Path(config["output"] or f"logs/study_{study['name']}{'_quick' if study['quick'] else ''}")
    study["labels"] = [float(share) for share in study["labels"]]
    if 1.0 not in study["labels"]:
        raise InputError(f"study.labels={study['labels']} must contain 1.0, a fine-tuning on all training clips")
    data = HydraConfig.get().runtime.choices["data"]
    handed_on = [f"data={data}", *(o for o in HydraConfig.get().overrides.task if o.startswith("data."))]
    # Seeds and systems may be added to a study later.
    begin(output, {k: v for k, v in study.items() if k not in ("seeds", "systems")} | {"data": handed_on})

    began = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    train_units(output, config, study, handed_on)
    rows = [
        row
        for seed in study["seeds"]
        for system in study["systems"]
        for row in json.loads(rows_of(output, system, seed).read_text(encoding="utf-8"))
    ]
    controlled = output / "controls.json"
    if not controlled.is_file():
        write(controlled, measure_controls(output))
    # Accuracy is what is asked for, so a report begins with it.
    rows.sort(key=lambda row: row["start"] == "pretraining")
    content = {"study": study, "controls": json.loads(controlled.read_text(encoding="utf-8")), "rows": rows}
    write(output / "study.json", content)
    report(content, summarize(rows))
    plot(output, rows)
    print(f"wrote {output}: study.json, top1.png, hidden_mse.png in {time.monotonic() - began:.0f} s")


def train_units(output: Path, config: dict[str, Any], study: dict[str, Any], handed_on: list[str]) -> None:
    """Train and test every system with every seed that was not before; see `unit`."""
    # The dearest systems first, so that the last one to end is a short one.
    every = [(system, seed) for seed in study["seeds"] for system in reversed(study["systems"])]
    units = [(system, seed) for system, seed in every if not rows_of(output, system, seed).is_file()]
    if not units:
        return
    from avmae.data.build import build_data

    # Data that are written at first use, before two trainings find them missing.
    build_data(config["data"], ClipSpec()).require_test()
    began = time.monotonic()
    pool, jobs = side_by_side(config["jobs"], config["accelerator"])
    with pool:
        waiting, running, done = deque(units), dict[Future[None], str](), 0
        try:
            while waiting or running:
                # No more than are run, for what the pool has taken cannot be called back.
                while waiting and len(running) < jobs:
                    system, seed = waiting.popleft()
                    future = pool.submit(unit, output, system, seed, study, handed_on, config["accelerator"])
                    running[future] = f"{system}, seed {seed}"
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    future.result()
                    done += 1
                    took = time.monotonic() - began
                    print(f"[{done}/{len(units)}] {running.pop(future)}: {took:.0f} s so far", flush=True)
        except BaseException:
            for process in pool._processes.values():
                process.terminate()
            raise


def rows_of(output: Path, system: str, seed: int) -> Path:
    """Where the results of one system with one seed lie."""
    return output / system / f"seed{seed}" / "rows.json"


def begin(output: Path, settings: dict[str, Any]) -> None:
    """Make the study's folder, or go on in it.

    Raises:
        InputError: it cannot be made, or holds a study with other settings.
    """
    file = output / "settings.json"
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        differs = sorted(key for key in found.keys() | settings.keys() if found.get(key) != settings.get(key))
        if differs:
            raise InputError(
                f"{output} holds a study with another {', '.join(differs)} ({found.get(differs[0])}, now "
                f"{settings.get(differs[0])}); give output=NEWDIR, or delete it"
            )
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
        write(file, settings)
    except OSError as error:
        raise InputError(f"output={output} cannot be written: {error.strerror}; choose another") from error


def side_by_side(jobs: int | None, accelerator: str) -> tuple[ProcessPoolExecutor, int]:
    """Processes that train one system each, on a GPU of their own or on an equal share of the cores; how many.

    Args:
        jobs: how many; None for one a GPU, or up to four on as many cores.
        accelerator: `auto`, `gpu` or `cpu`.

    Raises:
        InputError: no number of processes.
    """
    import torch

    gpus = list(map(str, range(0 if accelerator == "cpu" else torch.cuda.device_count())))
    if gpus and (visible := os.environ.get("CUDA_VISIBLE_DEVICES")):
        # Numbers or names of those that are ours, of all that the machine has.
        gpus = visible.split(",")[: len(gpus)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = jobs if jobs is not None else len(gpus) or min(4, cores)
    if jobs < 1:
        raise InputError(f"jobs={jobs} must be at least 1, or null")
    context = get_context("spawn")
    places = context.Queue()
    for job in range(jobs):
        places.put({"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} if gpus else {})
    threads = str(max(1, cores // jobs))
    return ProcessPoolExecutor(jobs, context, initializer=take_place, initargs=(places, threads)), jobs


def take_place(places: Any, threads: str) -> None:
    """Settle, in a process of `side_by_side`, where it and what it starts compute."""
    end_with_parent()
    # A terminal's Ctrl-C reaches all processes, and the first ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, leave)
    os.environ |= {"OMP_NUM_THREADS": threads} | places.get()
    quiet_libraries()


def leave(number: int, _: Any) -> NoReturn:
    """End this process of `side_by_side` and its training, which saves first."""
    if started:
        started[-1].terminate()
        # Popen's own wait is what the signal has interrupted.
        with suppress(ChildProcessError):
            os.waitpid(started[-1].pid, 0)
    os._exit(128 + number)


def write(file: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    temporary = file.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    temporary.replace(file)


def trainings(folder: Path, system: str, seed: int, study: dict[str, Any]) -> Iterator[Training]:
    """What is trained of one system with one seed, the pretraining first."""
    common, last = (f"model={system}", f"seed={seed}"), study["overrides"]
    hearing = study["hearing"] if system in HEARING else {"pretrain": [], "finetune": []}
    shorter = QUICK_PRETRAINING if study["quick"] else ()
    pretrain = (f"experiment={study['pretrain']}", *common, *hearing["pretrain"], *shorter, *last)
    yield Training("pretrain", "pretraining", 1.0, pretrain)
    for share in study["labels"]:
        few = (f"data.train_share={share}", *study["few_labels"]) if share < 1 else ()
        finetune = (f"experiment={study['finetune']}", *common, *hearing["finetune"], *few, *last)
        ckpt = override("ckpt", folder / "pretrain/checkpoints/last.ckpt")
        yield Training(f"finetune_{share:g}", "pretrained", share, (*finetune, ckpt))
        if not study["quick"]:
            yield Training(f"scratch_{share:g}", "scratch", share, finetune)


def override(key: str, path: Path) -> str:
    """Hydra's override of a path, whatever its characters."""
    text = str(path.absolute()).replace("'", "\\'")
    return f"{key}='{text}'"


def unit(output: Path, system: str, seed: int, study: dict[str, Any], handed_on: list[str], accelerator: str) -> None:
    """Train one system with one seed in all ways and test each; leaves rows.json in its folder."""
    file = rows_of(output, system, seed)
    found = list(results(file.parent, system, seed, study, handed_on, accelerator))
    write(file, [{"system": system, "seed": seed, **row} for row in found])


def results(
    folder: Path, system: str, seed: int, study: dict[str, Any], handed_on: list[str], accelerator: str
) -> Iterator[dict[str, Any]]:
    """Rows of what `unit` finds."""
    from avmae.data.degrade import Degradation, all_degradations
    from avmae.evaluation.degraded import score_degraded
    from avmae.models.weights import load_model, read_checkpoint

    chosen = study["degradations"]
    degradations = all_degradations() if chosen == "all" else [Degradation.parse(str(text)) for text in chosen]
    for training in trainings(folder, system, seed, study):
        run_dir, ckpt = folder / training.name, folder / training.name / "checkpoints/last.ckpt"
        if not (run_dir / "summary.json").is_file():
            train([*training.arguments, *handed_on, f"trainer.accelerator={accelerator}"], run_dir)
        model = load_model(ckpt)
        # Sound is read for all, for results are told apart by whether a clip has it.
        data = evaluation_data(read_checkpoint(ckpt).config, {}, ["video", "audio"])
        # From scratch and with few labels, what matters is how much is learned, clean.
        full = training.start == "pretraining" or (training.start == "pretrained" and training.labels == 1)
        trained: Any = OmegaConf.load(run_dir / ".hydra/config.yaml")
        how = precision(trained.trainer)
        for row in score_degraded(model, data, degradations if full else [], accelerator=accelerator, precision=how):
            yield {"start": training.start, "labels": training.labels, **row}


def train(arguments: list[str], run_dir: Path) -> None:
    """Run one training as a process of its own; one that was ended goes on, and one that has to end saves first.

    Raises:
        InputError: it failed; its message is that of the training.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    log = run_dir / "output.txt"
    command = [sys.executable, "-m", "avmae.train", *arguments, override("hydra.run.dir", run_dir)]
    if (checkpoint := newest_sound(run_dir)) is not None:
        command.append(override("resume", checkpoint))
    # In one piece, for others print at the same time.
    print(f"  {shlex.join(['python', *command[1:]])}\n", end="", flush=True)
    with log.open("a", encoding="utf-8") as stream:
        started.append(
            subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, preexec_fn=partial(end_with_parent, signal.SIGTERM)
            )
        )
    if code := started[-1].wait():
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
        raise InputError(f"a training of the study failed (code {code}); {log} ends with:\n  " + "\n  ".join(said))


def measure_controls(output: Path) -> dict[str, float]:
    """What the data give away to linear models, on the data set that the trainings had."""
    from avmae.evaluation.controls import controls
    from avmae.models.weights import read_checkpoint

    first = next(output.glob("*/seed*/finetune_1/checkpoints/last.ckpt"))
    once = {"segments": 1, "crops": 1}
    return controls(evaluation_data(read_checkpoint(first).config, once, ["video", "audio"]))


def plot(output: Path, rows: list[dict[str, Any]]) -> None:
    """Write accuracy and hidden-patch error of the clips with sound against severity."""
    from avmae.viewing.plots import study_figure, write_png

    for metric, start in (("top1", "pretrained"), ("hidden_mse", "pretraining")):
        chosen = [row for row in rows if (row["start"], row["labels"], row["subset"]) == (start, 1.0, "sound")]
        write_png(study_figure(chosen, metric), output / f"{metric}.png")


def summarize(rows: list[dict[str, Any]]) -> dict[tuple[str, ...], list[float]]:
    """Values over seeds by (system, start, labels, degradation, severity, subset, metric)."""
    values: dict[tuple[str, ...], list[float]] = {}
    names = ("system", "start", "labels", "degradation", "severity", "subset", "metric")
    for row in rows:
        values.setdefault(tuple(str(row[name]) for name in names), []).append(row["value"])
    return values


def report(content: dict[str, Any], summary: dict[tuple[str, ...], list[float]]) -> None:
    """Print the tables: accuracy and hidden-patch error by degradation, few labels, controls."""
    from avmae.evaluation.degraded import condition_name

    systems = content["study"]["systems"]

    def cell(*key: Any) -> str:
        values = summary.get(tuple(map(str, key)))
        if values is None:
            return "-"
        scale, digits = (100, 1) if key[-1] == "top1" else (1, 4)
        text = f"{scale * mean(values):.{digits}f}"
        return text if len(values) == 1 else f"{text} ± {scale * stdev(values):.{digits}f}"

    conditions = list(dict.fromkeys((row["degradation"], row["severity"]) for row in content["rows"]))
    for title, start, metric, subsets in (
        ("top-1 in percent, pretrained and fine-tuned", "pretrained", "top1", ("all", "sound", "silent")),
        ("squared error of hidden picture patches", "pretraining", "hidden_mse", ("sound",)),
    ):
        for subset in subsets:
            print(f"\n{title}: {subset} clips")
            body = [
                [
                    condition_name(kind, severity),
                    *(cell(s, start, 1.0, kind, severity, subset, metric) for s in systems),
                ]
                for kind, severity in conditions
            ]
            print_table(["degradation", *systems], body)
    print("\ntop-1 in percent, clean, by share of labels")
    starts = list(dict.fromkeys((r["start"], r["labels"]) for r in content["rows"] if r["metric"] == "top1"))
    body = [[f"{a} {b:g}", *(cell(s, a, b, "clean", 0.0, "all", "top1") for s in systems)] for a, b in starts]
    print_table(["start and labels", *systems], body)
    print("\nwhat linear models know, in percent")
    print_table(["control", "top1"], [[name, f"{value:.1%}"] for name, value in content["controls"].items()])


if __name__ == "__main__":
    main()
