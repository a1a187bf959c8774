"""Sweeps: jobs of one process or several, of submitit's, and a search by Optuna."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from commands import CALLBACKS, error, train
from run_files import load
from running import Start

from avmae.errors import InputError
from avmae.runs.folder import settle_run


def test_a_job_that_fails_ends_neither_the_sweep_nor_in_a_traceback(
    start: Start, miniature: Path, tmp_path: Path
) -> None:
    poison = ("+callbacks.poison._target_=poison.Poison", "+callbacks.poison.steps=[0],[99],[1]")
    arguments = ("-m", *poison, "callbacks.nonfinite.limit=1", "trainer.max_steps=4", "logger=wandb")
    process = start(*arguments, "hydra.sweep.dir=sweep", miniature=miniature, env=CALLBACKS)
    assert process.wait(240) == 1
    printed = (tmp_path / "printed.txt").read_text()
    assert "Traceback" not in printed
    assert all(f"error: job {job}: loss or gradient were not finite" in printed for job in (0, 2))
    with (tmp_path / "sweep/sweep.csv").open() as stream:
        assert [row["job"] for row in csv.DictReader(stream)] == ["1"]
    for job in ("0", "1", "2"):
        runs = (tmp_path / "sweep" / job / "wandb").glob("offline-run-*")
        assert len(list(runs)) == 1, "a job that failed is a W&B run of its own, too"


def test_optuna_searches_in_jobs_of_submitits(miniature: Path, tmp_path: Path) -> None:
    search = ("search=optuna", "cluster=local", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2")
    space = "optim.base_lr=interval(0.001, 0.01)"
    printed = train("-m", *search, space, "trainer.max_epochs=1", "name=s", cwd=tmp_path, miniature=miniature)
    (sweep,) = (tmp_path / "logs/s").iterdir()
    with (sweep / "sweep.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["job"] for row in rows] == ["0", "1"]
    assert rows[0]["optim.base_lr"] != rows[1]["optim.base_lr"]
    assert all(0.001 <= float(row["optim.base_lr"]) <= 0.01 for row in rows)
    best = min(json.loads((sweep / job / "summary.json").read_text())["val/loss"] for job in ("0", "1"))
    assert f"{best:.4g}" in [f"{float(row['val/loss']):.4g}" for row in rows]
    assert f"best_value: {best}" in (sweep / "optimization_results.yaml").read_text()
    assert "sweep.csv" in printed


@pytest.mark.parametrize("rate", [0.5, 0.0])
def test_a_trial_that_fails_ends_the_search_if_there_are_too_many(rate: float, miniature: Path, tmp_path: Path) -> None:
    search = ("search=optuna", "cluster=local", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2")
    # Of the two trials, one draws the ratio that hides everything.
    space = ("mask.ratio=choice(0.5,1.0)", "seed=0", f"hydra.sweeper.max_failure_rate={rate}")
    arguments = ("-m", *search, *space, "trainer.max_steps=1", "objective=train/loss", "hydra.sweep.dir=sweep")
    printed = train(*arguments, cwd=tmp_path, miniature=miniature, ok=rate > 0)
    assert "Traceback" not in printed
    with (tmp_path / "sweep/sweep.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert row["mask.ratio"] == "0.5"
    assert f"job {1 - int(row['job'])}: mask.ratio must lie" in printed
    assert (tmp_path / "sweep/optimization_results.yaml").exists() == (rate > 0)


def test_a_sweep_of_two_processes_keeps_its_jobs_apart_and_ends_with_a_table(miniature: Path, tmp_path: Path) -> None:
    arguments = ("mask.ratio=0.5,0.75", "strategy=ddp", "trainer.devices=2", "data.batch_size=2", "name=sweep")
    printed = train("-m", *arguments, "trainer.max_steps=1", "logger=all", cwd=tmp_path, miniature=miniature)
    sweep = next((tmp_path / "logs/sweep").iterdir())
    assert {path.name for path in sweep.iterdir()} == {"0", "1", "multirun.yaml", "sweep.csv"}
    with (sweep / "sweep.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["mask.ratio"] for row in rows] == ["0.5", "0.75"]
    assert all(float(row["train/loss"]) > 0 for row in rows)
    table = printed[printed.rindex("job") :]
    assert "0.75" in table
    for job in ("0", "1"):
        configuration = load(sweep / job / "checkpoints/last.ckpt")["config"]
        assert configuration["mask"]["ratio"] == [0.5, 0.75][int(job)]
        assert len(list((sweep / job / "wandb").glob("offline-run-*"))) == 1, (
            "one W&B run a job, whatever the processes"
        )


def test_a_sweep_resumes_job_by_job(miniature: Path, tmp_path: Path) -> None:
    arguments = ("-m", "name=run", "trainer.max_steps=2", "seed=0,1")
    train(*arguments, cwd=tmp_path, miniature=miniature)
    (sweep,) = (tmp_path / "logs/run").iterdir()
    # The second job never began.
    shutil.rmtree(sweep / "1")
    printed = train(*arguments, "trainer.max_steps=4", "resume=last", cwd=tmp_path, miniature=miniature)
    assert [path.name for path in (tmp_path / "logs/run").iterdir()] == [sweep.name]
    assert f"resuming {sweep}/0/checkpoints/last.ckpt after step 2" in printed
    assert printed.count("resuming") == 1
    assert [load(sweep / job / "checkpoints/last.ckpt")["global_step"] for job in "01"] == [4, 4]
    with pytest.raises(InputError, match="resumed with -m"):
        settle_run(str(tmp_path / "logs"), "run", "last")
    assert "no sweep" in error(
        train("-m", "name=other", "resume=last", "seed=0,1", cwd=tmp_path, miniature=miniature, ok=False)
    )
