"""The processes of a run know each other, and none outlives the others."""

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from commands import Process, error
from run_files import load
from running import LONG, Start, descendants, gone, trained, wait_for

from avmae.runs.folder import LAST


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_processes_that_torchrun_or_slurm_starts_are_told_what_the_first_decides(launcher: str, tmp_path: Path) -> None:
    script = "from avmae.runs.launch import on_first_process as f; import os; print(f(os.getpid)); f(lambda: 1 / 0)"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = ("RANK", "WORLD_SIZE") if launcher == "torchrun" else ("SLURM_PROCID", "SLURM_NTASKS")
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "SLURM_JOB_ID": "17", "SLURM_NTASKS_PER_NODE": "2"}
    environments = [address | {names[0]: str(n), names[1]: "2"} for n in range(2)]
    outputs = [tmp_path / "first.txt", tmp_path / "second.txt"]
    processes = [
        Process("-c", script, cwd=tmp_path, output=output, env=env)
        for output, env in zip(outputs, environments, strict=True)
    ]
    assert [process.wait(120) for process in processes] == [1, 1]
    first, told = (output.read_text() for output in outputs)
    assert told == f"{processes[0].pid}\n", "one says what is wrong"
    assert told in first
    assert "ZeroDivisionError" in first


def test_a_training_process_that_dies_ends_all_and_is_named(start: Start, miniature: Path, tmp_path: Path) -> None:
    output = tmp_path / "printed.txt"
    arguments = (*LONG, "strategy=ddp", "trainer.devices=2", "data.workers=1", "trainer.log_every_n_steps=1")
    process = start(*arguments, miniature=miniature)
    wait_for(trained(tmp_path / "logs/run", 5), process, output)
    family = descendants(process.pid)
    # Each of the two has a reading process, and they are started in turn.
    _, second = sorted({psutil.Process(pid).ppid() for pid in family} - {process.pid})
    os.kill(second, signal.SIGKILL)
    assert process.wait(120) == 1, output.read_text()
    assert "process 1 of 2 failed: SIGKILL" in error(output.read_text())
    assert gone(family)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder with a short name, for those of sockets may not be long."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_two_processes_save_by_the_clock_and_at_ctrl_c_and_leave_nothing(
    start: Start, miniature: Path, tmp_path: Path, temporary: Path
) -> None:
    output = tmp_path / "printed.txt"
    arguments = (*LONG, "strategy=ddp", "trainer.devices=2", "data.workers=1", "callbacks.last.every_n_epochs=1000")
    often = "callbacks.in_time.minutes=0.01"
    process = start(*arguments, often, miniature=miniature, env={"TMPDIR": str(temporary)})
    wait_for(lambda: list((tmp_path / "logs/run").glob(f"*/checkpoints/{LAST}")), process, output)
    family = descendants(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(120) == 128 + signal.SIGINT, output.read_text()
    assert gone(family)
    assert not list(temporary.iterdir())
    (folder,) = (tmp_path / "logs/run").glob("[0-9]*")
    step = load(folder / "checkpoints" / LAST)["global_step"]
    assert f"SIGINT: step {step} is saved" in output.read_text()
