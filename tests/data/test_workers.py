"""Reading processes share the memory of the process that they are forked from."""

import gc
import sys
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from avmae.data.workers import CONTEXT, Readings, prepare_worker

OBJECTS = 300_000
"""Lists, each of 56 bytes and more."""


class Collecting(Dataset):
    """Its one item is by how many kB collecting garbage adds to what a reading process has for itself."""

    def __init__(self) -> None:
        self.readings = Readings(1, [])
        self.inherited: list[list] = [[] for _ in range(OBJECTS)]

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: int) -> int:
        before = own()
        gc.collect()
        return own() - before


def own() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages where Linux does")
def test_collecting_garbage_copies_nothing_that_is_shared() -> None:
    loader = DataLoader(
        Collecting(), batch_size=None, num_workers=1, worker_init_fn=prepare_worker, multiprocessing_context=CONTEXT
    )
    (added,) = loader
    assert added * 1024 < OBJECTS * 56 / 4
