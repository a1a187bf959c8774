import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from commands import CALLBACKS, error, python, run, start_train, tiny_arguments, train
from once import once
from run_files import assert_same_weights, logged, metrics, weights
from torch import nn

from avmae.models.weights import load_model, read_checkpoint
from avmae.runs.folder import damage, settle_run
from avmae.training.strategies import FSDP2Strategy


class Decoder(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), value))
        self.register_buffer("positions", torch.ones(2))


def test_shards_without_the_decoders_positions_leave_the_computed_ones(tmp_path: Path) -> None:
    """As versions wrote them that did not keep these tables."""
    strategy, saved = FSDP2Strategy(), nn.ModuleDict({"decoder": Decoder(3.0)})
    strategy._model = model = nn.ModuleDict({"decoder": Decoder(0.0)})
    writer = dcp.HuggingFaceStorageWriter(str(tmp_path / "shards-1"), save_distributed=True)
    dcp.save({"model.decoder.weight": saved["decoder"].weight.data}, storage_writer=writer, no_dist=True)
    torch.save({"shards": "shards-1", "param_groups": [], "epoch": 4}, tmp_path / "meta.pt")
    assert strategy.load_checkpoint(tmp_path)["epoch"] == 4
    assert torch.equal(model["decoder"].weight, saved["decoder"].weight)
    assert torch.equal(model["decoder"].positions, torch.ones(2))


# 8 clips and 2 steps an epoch, whatever the number of processes; with the decoder that has most parts.
RUN = (
    *("trainer.max_epochs=2", "trainer.log_every_n_steps=1", "optim.warmup=0", "trainer.clips_per_step=4"),
    *("model.decoder=aligned", "model.positions=clock"),
)


KEEP = (
    "+callbacks.all={_target_:lightning.pytorch.callbacks.ModelCheckpoint,dirpath:run/checkpoints,save_top_k:-1,"
    "mode:max,filename:'epoch{epoch}',auto_insert_metric_name:false,save_on_train_epoch_end:true}"
)
"""The checkpoint of each epoch, besides last.ckpt."""


@pytest.fixture(scope="module")
def alone(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process."""
    make = partial(train, *RUN, "hydra.run.dir=run", miniature=miniature)
    return once(tmp_path_factory, "alone", lambda folder: make(cwd=folder)) / "run"


@pytest.fixture(scope="module")
def sharded(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, each of which writes the part it has."""
    two = ("strategy=fsdp", "strategy.sharded=true", "trainer.devices=2", "data.batch_size=2")
    make = partial(train, *RUN, KEEP, *two, "hydra.run.dir=run", miniature=miniature)
    return once(tmp_path_factory, "sharded", lambda folder: make(cwd=folder)) / "run"


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
    where = ("--rdzv-id=elastic", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")
    launcher = ("-m", "torch.distributed.run", f"--nproc-per-node={processes}", *where)
    return python(*launcher, "-m", "avmae.train", *tiny_arguments(overrides, miniature), cwd=cwd)


def test_torchruns_run_goes_on_with_another_number_of_processes_and_in_bf16(
    alone: Path, miniature: Path, tmp_path: Path
) -> None:
    how = (*RUN, "strategy=ddp", "trainer.precision=bf16-mixed", "name=run")
    torchrun(2, *how, "data.batch_size=2", "trainer.max_epochs=1", cwd=tmp_path, miniature=miniature)
    folder = tmp_path / "logs/run/elastic"
    assert len(logged(folder, "train/grad_norm")) == 2
    printed = torchrun(1, *how, "data.batch_size=2", cwd=tmp_path, miniature=miniature)
    assert "1 process " in printed
    assert [path.name for path in folder.parent.iterdir() if not path.is_symlink()] == ["elastic"], (
        "a restart goes on in the same folder"
    )
    # Of a step, whether two processes or two batches share its clips; the learning rates are too small to matter.
    assert logged(folder, "train/grad_norm") == pytest.approx(logged(alone, "train/grad_norm"), rel=1e-2)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_equal_one_of_twice_the_batch(strategy: str, miniature: Path, tmp_path: Path) -> None:
    # SGD-like comparison needs no Adam: its first steps turn rounding errors of near-zero gradients into full steps.
    common = ("trainer.max_steps=2", "trainer.log_every_n_steps=1", "optim.warmup=0", "task.contrast=0.5")
    train("hydra.run.dir=one", "data.batch_size=4", *common, cwd=tmp_path, miniature=miniature)
    two = (f"strategy={strategy}", "trainer.devices=2", "data.batch_size=2", "hydra.run.dir=two")
    train(*two, *common, cwd=tmp_path, miniature=miniature)
    for name in ("train/loss", "train/grad_norm"):
        one, both = ([float(r[name]) for r in metrics(tmp_path / f) if r.get(name)] for f in ("one", "two"))
        assert both == pytest.approx(one, rel=1e-5)
    lr = float(metrics(tmp_path / "one")[0]["train/lr"])
    expected = weights(tmp_path / "one/checkpoints/last.ckpt")
    for name, value in weights(tmp_path / "two/checkpoints/last.ckpt").items():
        torch.testing.assert_close(value, expected[name], atol=lr * 1e-2, rtol=1e-4, msg=name)
