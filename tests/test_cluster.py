"""Strategies, launchers and sweepers do what one process does, wherever they do it."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import CALLBACKS, ENVIRONMENT, error, run, start_train, tiny_arguments, train

from avmae.data.sampling import TrainSampler
from avmae.errors import InputError
from avmae.models.weights import load_model, read_checkpoint
from avmae.runs.folder import damage, settle_run
from avmae.training.hardware import accumulation

# 8 clips and 2 steps an epoch, whatever the number of processes.
RUN = ("trainer.max_epochs=2", "trainer.log_every_n_steps=1", "optim.warmup=0", "trainer.clips_per_step=4")
KEEP = (
    "+callbacks.all={_target_:lightning.pytorch.callbacks.ModelCheckpoint,dirpath:run/checkpoints,save_top_k:-1,"
    "mode:max,filename:'epoch{epoch}',auto_insert_metric_name:false,save_on_train_epoch_end:true}"
)
"""The checkpoint of each epoch, besides last.ckpt."""


def logged(run_dir: Path, name: str) -> list[float]:
    with (run_dir / "metrics.csv").open() as stream:
        return [float(row[name]) for row in csv.DictReader(stream) if row.get(name)]


def assert_same_weights(one: Path, other: Path, lr: float) -> None:
    expected = read_checkpoint(one).weights
    for name, value in read_checkpoint(other).weights.items():
        # Adam's first steps turn rounding errors of gradients near zero into parts of a full step.
        torch.testing.assert_close(value, expected[name], atol=lr * 1e-2, rtol=1e-4, msg=name)


@pytest.fixture(scope="module")
def alone(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process."""
    folder = tmp_path_factory.mktemp("alone")
    train(*RUN, "hydra.run.dir=run", cwd=folder, miniature=miniature)
    return folder / "run"


@pytest.fixture(scope="module")
def sharded(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, each of which writes the part it has."""
    folder = tmp_path_factory.mktemp("sharded")
    two = ("strategy=fsdp", "strategy.sharded=true", "trainer.devices=2", "data.batch_size=2")
    train(*RUN, KEEP, *two, "hydra.run.dir=run", cwd=folder, miniature=miniature)
    return folder / "run"


def test_accumulated_and_compiled_on_two_processes_equals_one(alone: Path, miniature: Path, tmp_path: Path) -> None:
    how = ("strategy=ddp", "trainer.devices=2", "data.batch_size=1", "trainer.compile=aot_eager")
    train(*RUN, *how, "hydra.run.dir=run", cwd=tmp_path, miniature=miniature)
    assert logged(tmp_path / "run", "train/grad_norm") == pytest.approx(logged(alone, "train/grad_norm"), rel=1e-5)
    last = "checkpoints/last.ckpt"
    assert_same_weights(alone / last, tmp_path / "run" / last, logged(alone, "train/lr")[0])


def test_a_sharded_checkpoint_is_a_whole_model(sharded: Path, alone: Path, tmp_path: Path) -> None:
    checkpoint = sharded / "checkpoints/epoch1.ckpt"
    (shards,) = checkpoint.glob("shards*")
    assert len(list(shards.iterdir())) == 2, "one file of each process"
    assert_same_weights(alone / "checkpoints/last.ckpt", checkpoint, logged(alone, "train/lr")[0])
    # A process may have no clip with sound.
    heard = [logged(run_dir, "train/loss_audio") for run_dir in (sharded, alone)]
    assert heard[0] == pytest.approx(heard[1], rel=1e-4)
    run("export", f"ckpt={checkpoint}", "output=exported", cwd=tmp_path)
    ours, theirs = load_model(checkpoint).state_dict(), load_model(tmp_path / "exported").state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_two_processes_leave_a_run_that_one_goes_on_with(sharded: Path, miniature: Path, tmp_path: Path) -> None:
    start = tmp_path / "run/checkpoints/last.ckpt"
    shutil.copytree(sharded / "checkpoints/epoch0.ckpt", start)
    how = ("strategy=fsdp", "strategy.sharded=true", f"resume={start}")
    printed = train(*RUN, "strategy=ddp", f"resume={start}", cwd=tmp_path, miniature=miniature, ok=False)
    assert "strategy=fsdp" in error(printed)
    train(*RUN, *how, cwd=tmp_path, miniature=miniature)
    assert len(list(start.glob("shards*"))) == 1, "what was replaced is gone"
    assert_same_weights(sharded / "checkpoints/epoch1.ckpt", start, logged(sharded, "train/lr")[0])


@pytest.mark.parametrize("damage", ["shards", "meta"])
def test_a_damaged_sharded_checkpoint_is_named(damage: str, sharded: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sharded / "checkpoints/epoch1.ckpt", tmp_path / "copy.ckpt"))
    if damage == "shards":
        file = next(copy.glob("shards*/*"))
        file.write_bytes(file.read_bytes()[:1000])
    else:
        rest = torch.load(copy / "meta.pt", weights_only=True)
        torch.save(rest | {"shards": "../elsewhere"}, copy / "meta.pt")
    with pytest.raises(ValueError, match=r"copy\.ckpt is a damaged checkpoint"):
        load_model(copy)


@pytest.mark.parametrize("how", ["a byte differs", "cut off", "killed while saving", "killed between two renamings"])
def test_the_sharded_checkpoint_before_is_kept_and_gone_on_with(
    how: str, sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(sharded / "checkpoints", tmp_path / "run/2026-01-01/checkpoints"))
    last, previous = folder / "last.ckpt", folder / "previous.ckpt"
    for checkpoint, epoch in ((previous, 0), (last, 1)):
        assert_same_weights(checkpoint, folder / f"epoch{epoch}.ckpt", lr=0)
    file = next(last.glob("shards*/*"))
    content = bytearray(file.read_bytes())
    if how == "a byte differs":
        content[-1] ^= 1
        file.write_bytes(content)
    elif how == "cut off":
        file.write_bytes(content[:-1])
    elif how == "killed while saving":
        half = folder / ".last.ckpt.0a1b2c3d/shards"
        half.mkdir(parents=True)
        (half / file.name).write_bytes(content[:1000])
    else:
        shutil.rmtree(previous)
        last.rename(previous)
    whole = how == "killed while saving"
    assert settle_run(str(tmp_path), "run", "last")[1] == str(last if whole else previous)
    assert ("last.ckpt is damaged" in capsys.readouterr().err) != ("killed" in how)


def test_runs_go_on_from_sharded_to_whole_checkpoints_and_back(sharded: Path, miniature: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sharded / "checkpoints", tmp_path / "run/checkpoints"))
    last, previous = folder / "last.ckpt", folder / "previous.ckpt"
    go_on = (*RUN, "strategy=fsdp", "callbacks.best.save_top_k=0", f"resume={last}")
    train(*go_on, "trainer.max_epochs=3", cwd=tmp_path, miniature=miniature)
    assert last.is_file()
    assert_same_weights(previous, folder / "epoch1.ckpt", lr=0)
    train(*go_on, "trainer.max_epochs=4", "strategy.sharded=true", cwd=tmp_path, miniature=miniature)
    assert read_checkpoint(last).path.is_dir()
    assert previous.is_file()
    (folder / ".last.ckpt.0a1b2c3d/shards").mkdir(parents=True)
    train(*go_on, "trainer.max_epochs=5", "strategy.sharded=true", cwd=tmp_path, miniature=miniature)
    assert [damage(path) for path in (last, previous)] == [None, None]
    assert all(len(list(path.glob("shards*"))) == 1 for path in (last, previous))
    assert not list(folder.glob(".*"))


def test_shards_find_room_where_the_checkpoint_before_was_and_are_refused_if_not_finite(
    miniature: Path, tmp_path: Path
) -> None:
    spoiled = (
        "+callbacks.room={_target_:poison.NoRoom,step:6,taken_by:run/checkpoints/previous.ckpt}",
        "+callbacks.weight={_target_:poison.PoisonWeight,step:8}",
        "callbacks.best.save_top_k=0",
        "trainer.max_epochs=4",
    )
    two = ("strategy=fsdp", "strategy.sharded=true", "trainer.devices=2", "data.batch_size=2", "hydra.run.dir=run")
    output = tmp_path / "printed.txt"
    process = start_train(*RUN, *two, *spoiled, cwd=tmp_path, miniature=miniature, output=output, env=CALLBACKS)
    assert process.wait(240) == 1, output.read_text()
    printed = output.read_text()
    assert "no room" in printed
    assert printed.count("cannot save") == 1
    assert "last.ckpt could not be saved" in error(printed)
    assert "is not finite" in error(printed)
    kept = [tmp_path / "run/checkpoints" / name for name in ("previous.ckpt", "last.ckpt")]
    assert [damage(path) for path in kept] == [None, None]
    assert [torch.load(path / "meta.pt", weights_only=True)["global_step"] for path in kept] == [4, 6]


def test_an_average_of_weights_that_are_sharded_is_refused(miniature: Path, tmp_path: Path) -> None:
    printed = train("callbacks=ema", "strategy=fsdp", cwd=tmp_path, miniature=miniature, ok=False)
    assert "strategy=ddp" in error(printed)


def torchrun(processes: int, *overrides: str, cwd: Path, miniature: Path) -> str:
    launcher = ["torch.distributed.run", f"--nproc-per-node={processes}", "--rdzv-id=elastic", "--rdzv-backend=c10d"]
    command = [sys.executable, "-m", *launcher, "--rdzv-endpoint=localhost:0", "-m", "avmae.train"]
    arguments = [*command, *tiny_arguments(overrides, miniature)]
    done = subprocess.run(arguments, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_torchruns_run_goes_on_with_another_number_of_processes_and_in_bf16(
    alone: Path, miniature: Path, tmp_path: Path
) -> None:
    how = (*RUN, "strategy=ddp", "trainer.precision=bf16-mixed", "name=run")
    torchrun(2, *how, "data.batch_size=2", "trainer.max_epochs=1", cwd=tmp_path, miniature=miniature)
    folder = tmp_path / "logs/run/elastic"
    assert len(logged(folder, "train/grad_norm")) == 2
    printed = torchrun(1, *how, "data.batch_size=2", cwd=tmp_path, miniature=miniature)
    assert "1 process " in printed
    assert [path.name for path in folder.parent.iterdir()] == ["elastic"], "a restart goes on in the same folder"
    # Of a step, whether two processes or two batches share its clips; the learning rates are too small to matter.
    assert logged(folder, "train/grad_norm") == pytest.approx(logged(alone, "train/grad_norm"), rel=1e-2)


@pytest.mark.parametrize(
    ("processes", "step", "steps", "left"),
    [
        pytest.param((2, 1), 1, 2, 4, id="two to one"),
        pytest.param((1, 2), 1, 3, 6, id="one to two, between two of its batches"),
        pytest.param((2, 1), 4, 1, 4, id="two to one, accumulated"),
        pytest.param((2, 1), 1, 4, 0, id="two to one, after an epoch's last step"),
    ],
)
def test_another_number_of_processes_goes_on_in_mid_epoch_and_leaves_no_clip_out(
    processes: tuple[int, int], step: int, steps: int, left: int, miniature: Path, tmp_path: Path
) -> None:
    def part(name: str, number: int, *overrides: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        seen = ("+callbacks.seen._target_=seen.Seen", f"+callbacks.seen.folder={folder}", "data.batch_size=1")
        clips = (f"trainer.clips_per_step={step}",) if step > 1 else ()
        how = ("strategy=ddp", f"trainer.devices={number}", "trainer.log_every_n_steps=1", "hydra.run.dir=run")
        where = {"cwd": tmp_path, "miniature": miniature, "output": folder / "printed.txt", "env": CALLBACKS}
        process = start_train(*seen, *clips, *how, *overrides, **where)
        assert process.wait(240) == 0, (folder / "printed.txt").read_text()

    keep = ("callbacks.last.every_n_epochs=null", f"callbacks.last.every_n_train_steps={steps}")
    part("first", processes[0], *keep, f"trainer.max_steps={steps}")
    part("second", processes[1], "trainer.max_epochs=2", "resume=run/checkpoints/last.ckpt")
    read: dict[int, list[int]] = {0: [], 1: []}
    validated = set()
    for file in (tmp_path / "second").glob("seen*.jsonl"):
        for epoch, clips in map(json.loads, file.read_text().splitlines()):
            read[epoch] += clips or []
            validated |= {epoch} if clips is None else set()
    order = {epoch: [request.index for (request,) in TrainSampler(8, 1, seed=0, epoch=epoch)] for epoch in (0, 1)}
    assert sorted(read[0]) == sorted(order[0][8 - left :])
    assert sorted(read[1]) == list(range(8))
    assert validated == ({0, 1} if left else {1})
    assert len(logged(tmp_path / "run", "train/loss")) == steps + (left + 8) // max(step, processes[1])


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


def test_an_objective_that_cannot_be_had_is_named(miniature: Path, tmp_path: Path) -> None:
    arguments = ("objective=val/loss", "data.val_groups=0", "trainer.max_steps=1")
    printed = train(*arguments, cwd=tmp_path, miniature=miniature, ok=False)
    assert "data.val_groups=2" in error(printed)


def test_a_step_of_clips_that_do_not_divide() -> None:
    trainer = {"devices": 2, "num_nodes": 3, "accumulate_grad_batches": 1, "clips_per_step": 48}
    assert accumulation(trainer, 4) == 2
    with pytest.raises(InputError, match="clips_per_step=36 is no multiple"):
        accumulation(trainer | {"clips_per_step": 36}, 4)
