import os
from pathlib import Path

import pytest
import torch

from avmae.data.embedded.synthetic import write_synthetic

# W&B and Hydra must behave alike on every machine that runs the tests.
os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", HYDRA_FULL_ERROR="0")

TINY = [
    "clip.frames=4",
    "clip.size=32",
    "clip.mel_bins=32",
    "model.video_patch=[2,8,8]",
    "size=tiny",
    "size.dim=48",
    "size.depth=2",
    "size.audio_depth=1",
    "size.decoder_dim=24",
    "size.decoder_depth=1",
    "data.batch_size=4",
    "data.workers=0",
    "trainer.accelerator=cpu",
    "callbacks.reconstructions.clips=0",
]
"""Overrides that make any experiment a matter of seconds."""


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature UCF101: 4 classes (2 with sound), 10 groups of 1 clip, so 12 train and 28 test clips in split 1."""
    root = tmp_path_factory.mktemp("ucf") / "miniature"
    write_synthetic(root, groups=10, clips_per_group=1, classes=4, seconds=1.5, workers=1)
    return root


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU with CUDA, and torch finds none: make test-gpu"))
