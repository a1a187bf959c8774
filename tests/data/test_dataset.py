from pathlib import Path

import numpy as np

from avmae.clip import ClipSpec
from avmae.data.augment import AugmentSpec
from avmae.data.dataset import ClipDataset
from avmae.data.embedded.miniature import encode
from avmae.data.sampling import Request
from avmae.data.splits import ClipEntry


def test_a_window_counts_as_unreadable_once_however_many_clips_are_tried_for_it(tmp_path: Path) -> None:
    entries = [ClipEntry(tmp_path / f"{number}.avi", 0) for number in range(4)]
    encode(tmp_path / "0.avi", np.zeros((8, 240, 320, 3), np.uint8), None)
    dataset = ClipDataset(entries, ClipSpec(frames=2, size=32), False, AugmentSpec())
    for seed in range(5):
        sample = dataset[Request(1, (seed,))]
        assert sample["clip_id"] == 0
        assert [line.split(":")[0] for line in sample["unreadable"]] == [str(tmp_path / "1.avi")]
