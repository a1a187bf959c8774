"""Reading processes share the memory of the process that they are forked from."""

import errno
import gc
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import Process, error
from running import LONG, Start, descendants, gone, trained, wait_for
from torch.utils.data import DataLoader, Dataset

from avmae.data.workers import CONTEXT, Readings, prepare_worker
from avmae.runs.folder import LAST

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


@pytest.fixture
def clip(miniature: Path, tmp_path: Path) -> Path:
    """A training clip of a copy of the miniature."""
    root = Path(shutil.copytree(miniature, tmp_path / "data"))
    return sorted((root / "UCF-101").glob("*/*_g08_*.avi"))[0]


@contextmanager
def block(clip: Path, process: Process, output: Path) -> Iterator[None]:
    """Let reading a clip hang, as of a file on a dead server, once the reading process has come to it."""
    fifo = clip.with_suffix(".fifo")
    os.mkfifo(fifo)
    fifo.replace(clip)
    while True:
        assert process.poll() is None, output.read_text()
        try:
            # Only where a process has the other end.
            writer = os.open(clip, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            time.sleep(0.005)
    try:
        yield
    finally:
        os.close(writer)


@pytest.mark.parametrize("fate", ["hangs", "dies"])
def test_a_reading_process_that_fails_ends_the_run_with_its_clip(
    start: Start, fate: str, clip: Path, tmp_path: Path
) -> None:
    output, root = tmp_path / "printed.txt", clip.parents[2]
    timeout = "data.timeout=3" if fate == "hangs" else "data.timeout=100"
    arguments = (*LONG, "data.workers=1", "trainer.log_every_n_steps=1", timeout)
    process = start(*arguments, miniature=root)
    wait_for(trained(tmp_path / "logs/run", 3), process, output)
    (reader,) = descendants(process.pid)
    with block(clip, process, output):
        if fate == "dies":
            os.kill(reader, signal.SIGKILL)
        assert process.wait(120) == 1, output.read_text()
        if sys.platform == "linux":
            assert gone([reader]), "there the kernel ends it, hanging as it is"
    message = error(output.read_text())
    assert f"reading process 0 of 1 (pid {reader}), reading {clip} for" in message
    assert ("no batch came for 3 s (data.timeout)" if fate == "hangs" else "ended by SIGKILL") in message
    assert gone([reader])
    assert len(list((tmp_path / "logs/run").glob(f"2*/checkpoints/{LAST}"))) == 1, "from which it can go on"
