import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from commands import Process, start_train, train
from once import once
from running import ARGUMENTS, Start

from avmae.data.embedded.synthetic import write_synthetic

# What the tests compute is so small that a second thread costs more than it brings.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature UCF101: 4 classes (2 with sound), 10 groups of 1 clip, so 12 train and 28 test clips in split 1."""
    how = {"groups": 10, "clips_per_group": 1, "classes": 4, "seconds": 1.5, "workers": 1}
    return once(tmp_path_factory, "ucf", lambda folder: write_synthetic(folder / "miniature", **how)) / "miniature"


@pytest.fixture
def copy(miniature: Path, tmp_path: Path) -> Path:
    """The miniature, to be changed."""
    return Path(shutil.copytree(miniature, tmp_path / "copy"))


@pytest.fixture(scope="session")
def pretrained(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of 2 epochs, of a step each, of a pretraining with every objective on."""
    objectives = ("task.contrast=0.1", "task.hide_audio=0.2", "task.hide_video=0.2", "model.may_lack=[video,audio]")
    # All clips of a step in one batch, so that a pair has another to be told from.
    how = ("hydra.run.dir=run", "trainer.max_epochs=2", "data.batch_size=8", "trainer.log_every_n_steps=1")
    make = partial(train, *how, *objectives, miniature=miniature)
    return once(tmp_path_factory, "pretrained", lambda folder: make(cwd=folder)) / "run"


@pytest.fixture(scope="session")
def finetuned(miniature: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the full recipe's augmentations, mixing and EMA, from the pretrained; `printed.txt` lies there."""
    recipe = ("augment=strong", "task.mix.mixup=0.8", "task.mix.cutmix=1", "task.label_smoothing=0.1", "callbacks=ema")
    strong = (
        "task.drop_audio=0.3",
        "task.swap_audio=0.3",
        "model.drop_path=0.2",
        "task.dropout=0.5",
        "model.checkpointing=true",
        "model.may_lack=[video,audio]",
    )
    epochs = ("trainer.max_epochs=2", "callbacks.ema.decay=0.5", "trainer.accumulate_grad_batches=2")
    ckpt = f"ckpt={pretrained}/checkpoints/last.ckpt"
    setup = ("hydra.run.dir=run", "task=classify", "optim=finetune", "optim.clip_norm=1", "data.segments=2", ckpt)

    def make(folder: Path) -> None:
        printed = train(*setup, *recipe, *strong, *epochs, cwd=folder, miniature=miniature)
        (folder / "run/printed.txt").write_text(printed)

    return once(tmp_path_factory, "finetuned", make) / "run"


@pytest.fixture(scope="session")
def whole(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of an uninterrupted run, in which the training process reads by itself."""
    arguments = (*ARGUMENTS, "hydra.run.dir=run", "callbacks.best.save_top_k=2")
    make = partial(train, *arguments, miniature=miniature)
    return once(tmp_path_factory, "whole", lambda folder: make(cwd=folder)) / "run"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts trainings in the test's folder, whose output goes to `printed.txt`; what a failed test leaves is ended."""
    processes: list[Process] = []

    def start(*overrides: str, **how) -> Process:
        processes.append(start_train(*overrides, cwd=tmp_path, output=tmp_path / "printed.txt", **how))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU with CUDA, and torch finds none: make test-gpu"))
