"""Commands read their checkpoint's file once: it may be gigabytes on a slow disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from files import save
from media_files import write_media
from systems import autoencoder, classifier

from avmae.errors import InputError
from avmae.evaluate import evaluate
from avmae.export import export
from avmae.features import features
from avmae.predict import predict
from avmae.reconstruct import reconstruct


def refused(command: Callable[..., Any], ckpt: Path, root: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        command(ckpt, {"root": root})


COMMANDS: dict[str, Callable[[Path, Path], Any]] = {
    # These two have read it when they look for clips.
    "evaluate": lambda ckpt, folder: refused(evaluate, ckpt, folder / "gone"),
    "features": lambda ckpt, folder: refused(features, ckpt, folder / "gone"),
    "export": lambda ckpt, folder: export(ckpt, folder / "out"),
    "predict": lambda ckpt, folder: predict(ckpt, folder / "clip.mp4", segments=1, crops=1),
    "reconstruct": lambda ckpt, folder: reconstruct(ckpt, folder / "clip.mp4", folder / "out"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_reads_its_checkpoint_once(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = classifier("avmae") if command == "predict" else autoencoder("avmae")
    ckpt, read, load = save(tmp_path / "last.ckpt", network.eval()), list[Path](), torch.load
    write_media(tmp_path / "clip.mp4", frames=50)

    def noted(path: Path, **how: Any) -> Any:
        read.append(path)
        return load(path, **how)

    monkeypatch.setattr(torch, "load", noted)
    COMMANDS[command](ckpt, tmp_path)
    assert read == [ckpt]
