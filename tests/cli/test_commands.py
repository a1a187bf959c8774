"""What commands do with settings that are no numbers, places that cannot be written, pipes nobody reads, and Ctrl-C."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import ENVIRONMENT, error, run, train
from run_files import load
from safetensors.torch import load_file

from avmae.cli.config import CONF, check_writable
from avmae.cli.help import page
from avmae.errors import InputError
from avmae.evaluation.data import evaluation_data
from avmae.models.weights import write_safetensors

CLASSIFY = ("task=classify", "optim=finetune", "trainer.max_epochs=1", "data.segments=1", "data.crops=1")


@pytest.fixture(scope="module")
def trained(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a classifier that was trained on `real`, a relative path."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "real").symlink_to(miniature)
    arguments = (*CLASSIFY, "data=ucf101", "data.root=real", "data.fold=2", "data.val_groups=1", "hydra.run.dir=run")
    train(*arguments, cwd=folder)
    return folder / "run"


@pytest.fixture
def videos(miniature: Path, tmp_path: Path) -> Path:
    """A folder of the miniature's classes in three parts, with one test clip."""
    root = tmp_path / "videos"
    for place in (miniature / "UCF-101").iterdir():
        for part, groups in (("train", ("01", "02", "03")), ("test", ("04",) if place.name == "BounceBell" else ())):
            (root / part / place.name).mkdir(parents=True)
            for group in groups:
                (file,) = place.glob(f"*_g{group}_*")
                shutil.copy(file, root / part / place.name)
    return root


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("data.batch_size=abc", "data.batch_size must be a number, not 'abc'"),
        ("data.batch_size=2.5", "whole number"),
        ("trainer.max_steps=abc", "trainer.max_steps must be a number"),
        ("trainer.clips_per_step=abc", "trainer.clips_per_step=abc"),
        ("callbacks.unreadable.max_share=abc", "callbacks.unreadable.max_share must be a number"),
        ("size.dim=48.5", "size.dim must be a whole number"),
        ("seed=x", "seed must be a number"),
        ("seed=null", "seed=None must be a whole number"),
    ],
)
def test_a_setting_that_is_no_number_is_named(setting: str, named: str, miniature: Path, tmp_path: Path) -> None:
    assert named in error(train(setting, cwd=tmp_path, miniature=miniature, ok=False))


def test_other_commands_name_them_too(miniature: Path, tmp_path: Path) -> None:
    data = ("data=ucf101", f"data.root={miniature}")
    for command, setting in (("prepare", "processes=x"), ("stats", "limit=x"), ("study", "jobs=x")):
        assert setting.split("=")[0] in error(run(command, *data, setting, cwd=tmp_path, ok=False))


def test_places_that_cannot_be_written_are_named_before_the_work(
    trained: Path, miniature: Path, tmp_path: Path
) -> None:
    # A file in place of a folder, for root may write anywhere else.
    (tmp_path / "file").touch()
    assert "logs=" in error(train("logs=file", cwd=tmp_path, miniature=miniature, ok=False))
    assert "logs=" in error(train("-m", "logs=file", "seed=0,1", cwd=tmp_path, miniature=miniature, ok=False))
    (tmp_path / "folder.safetensors").mkdir()
    for command, output in (("features", "folder.safetensors"), ("evaluate", "file/results.json")):
        arguments = (f"ckpt={trained}/checkpoints/last.ckpt", f"output={output}")
        printed = run(command, *arguments, cwd=tmp_path, ok=False)
        assert f"output={output} cannot be written" in error(printed)
        assert "test clips" not in printed
        assert "Embedding" not in printed


def test_asking_whether_a_file_can_be_written_leaves_things_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "new/results.json"
    check_writable(file)
    assert not list(file.parent.iterdir())
    file.write_text("kept")
    check_writable(file)
    assert file.read_text() == "kept"
    with pytest.raises(InputError, match="cannot be written"):
        check_writable(file / "below.json")


@pytest.mark.parametrize("flags", [["avmae.train", "-h"], ["avmae.train", "--cfg", "job"], ["avmae"]])
def test_output_that_nobody_reads_to_its_end_ends_quietly(flags: list[str], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", *flags]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, "")


def test_a_command_that_works_ends_quietly_too(trained: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [sys.executable, "-m", "avmae.evaluate", f"ckpt={trained}/checkpoints/last.ckpt", "output=x.json"]
    done = subprocess.run(arguments, cwd=tmp_path, env=ENVIRONMENT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 128 + signal.SIGPIPE
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_ctrl_c_while_data_are_written_leaves_nothing_and_says_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "avmae.prepare", "data=synthetic", "data.root=data"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, start_new_session=True, **pipes) as process:
        while not list(tmp_path.glob(".data.*/UCF-101/*/*.avi")):
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        printed, _ = process.communicate(timeout=120)
    assert (process.returncode, printed) == (130, "interrupted\n")
    assert not list(tmp_path.iterdir())


def test_a_start_that_is_interrupted_has_no_traceback(tmp_path: Path) -> None:
    # As if Ctrl-C came while the first library is imported.
    (tmp_path / "hydra.py").write_text("raise KeyboardInterrupt\n")
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "avmae.train"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "interrupted\n")


def test_checkpoints_find_their_data_from_any_folder(trained: Path, tmp_path: Path) -> None:
    ckpt = trained / "checkpoints/last.ckpt"
    content = load(ckpt)
    assert content["config"]["data"]["root"] == str(trained.parent / "real")
    # Those of before have the path as it was typed.
    content["config"]["data"]["root"] = "real"
    old = Path(shutil.copytree(trained, tmp_path / "old")) / "checkpoints/last.ckpt"
    torch.save(content, old)
    said = error(run("evaluate", f"ckpt={old}", cwd=tmp_path, ok=False))
    assert f"data.root=real is not there; training was started in {trained.parent}" in said
    assert f"give data.root={trained.parent / 'real'}" in said


def test_evaluate_and_features_take_other_kinds_of_data(trained: Path, videos: Path, tmp_path: Path) -> None:
    ckpt, data = f"ckpt={trained}/checkpoints/last.ckpt", ("data=folder", f"data.root={videos}")
    printed = run("evaluate", ckpt, *data, "output=new/results.json", cwd=tmp_path)
    assert "1 test clips, 1 x 1 views" in printed, "views are as in training"
    results = json.loads((tmp_path / "new/results.json").read_text())
    assert (results["clips"], results["confusion"][0].count(1)) == (1, 1)
    run("features", ckpt, *data, "output=features.safetensors", cwd=tmp_path)
    assert len(load_file(tmp_path / "features.safetensors")["train/features"]) == 12
    assert "data.root must be given" in error(run("evaluate", ckpt, "data=folder", cwd=tmp_path, ok=False))


def test_files_of_weights_have_the_rights_of_new_files_and_are_whole_or_not_there(tmp_path: Path) -> None:
    file, before = tmp_path / "model.safetensors", os.umask(0o027)
    try:
        write_safetensors({"weight": torch.ones(2)}, file, {"format": "pt"})
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o640
    with pytest.raises(ValueError, match="Tensor"):
        write_safetensors({"weight": "not a tensor"}, file, {})
    assert torch.equal(load_file(file)["weight"], torch.ones(2))
    assert list(tmp_path.iterdir()) == [file]


def test_the_same_kind_of_data_keeps_the_checkpoints_fold(trained: Path, miniature: Path, tmp_path: Path) -> None:
    def tested(*overrides: str) -> set[str]:
        arguments = (f"ckpt={trained}/checkpoints/last.ckpt", "data=ucf101", f"data.root={miniature}", *overrides)
        return set(run("evaluate", *arguments, "output=x.json", cwd=tmp_path).splitlines())

    # Of ten groups, fold 1 tests seven and fold 2 three.
    assert "12 test clips, 1 x 1 views each (segments x crops)" in tested()
    assert "28 test clips, 1 x 2 views each (segments x crops)" in tested("data.fold=1", "data.crops=2")


def test_help_shows_the_settings_of_the_chosen_kind() -> None:
    assert "data.val_share" in page(CONF, "evaluate", ["data=folder"])
    assert "data.fold" not in page(CONF, "evaluate", ["data=folder"])
    assert "checkpoint*" in page(CONF, "features", [])
    assert "checkpoint," not in page(CONF, "train", [])


def test_a_checkpoint_without_data_says_what_to_give() -> None:
    with pytest.raises(InputError, match=r"names no data; give data\.root=DIR"):
        evaluation_data({"clip": {}, "seed": 0}, {"root": None}, ["video"])


def test_one_test_clip_is_trained_tested_and_summed_up(videos: Path, tmp_path: Path) -> None:
    train(*CLASSIFY, "data=folder", f"data.root={videos}", "hydra.run.dir=run", cwd=tmp_path)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["test/top1"] in (0.0, 1.0)
    assert (tmp_path / "run/confusion.png").is_file()
