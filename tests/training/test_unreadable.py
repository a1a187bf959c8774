"""Clips that cannot be read stop all processes or none."""

import shutil
import socket
from pathlib import Path

import pytest
from commands import error, start_train

from avmae.data.sampling import TrainSampler
from avmae.data.sources.ucf101 import read_ucf101


def torchruns(rank: int, port: int) -> dict[str, str]:
    """What torchrun tells one of two processes, which here nobody ends when the other fails."""
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    values |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "unreadable"}
    return {name: str(value) for name, value in values.items()}


@pytest.mark.parametrize(("share", "code"), [(0.2, 0), (0.1, 1)])
def test_two_processes_count_together_and_stop_together(
    share: float, code: int, miniature: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(miniature, tmp_path / "data"))
    clips = read_ucf101(root, val_groups=1).train
    # Of the second process's four clips; the first reads all of its own.
    ((request, _), _) = TrainSampler(len(clips), 2, seed=0, rank=1, world=2)
    broken = Path(clips[request.index].path)
    broken.write_bytes(b"not a video")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    how = ("strategy=ddp", "trainer.devices=2", "data.batch_size=2", "trainer.max_epochs=1", "hydra.run.dir=run")
    outputs = [tmp_path / f"printed{rank}.txt" for rank in (0, 1)]
    processes = [
        start_train(
            *how,
            f"callbacks.unreadable.max_share={share}",
            cwd=tmp_path,
            miniature=root,
            output=output,
            env=torchruns(rank, port),
        )
        for rank, output in enumerate(outputs)
    ]
    codes = [process.wait(200) for process in processes]
    printed = [output.read_text() for output in outputs]
    assert codes == [code, code], printed
    for text in printed if code else printed[:1]:
        assert "training: 1 of 8 windows cannot be read" in (error(text) if code else text)
        assert str(broken) in text
