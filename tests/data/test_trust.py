"""What comes from elsewhere cannot run code, read outside of its folder, or take over a terminal."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avmae.cli.table import print_table
from avmae.data.build import by_source
from avmae.data.manifest import read_manifest
from avmae.data.sources.csv import read_csv
from avmae.data.sources.shards import read_packed
from avmae.data.sources.ucf101 import read_ucf101
from avmae.data.splits import Splits
from avmae.errors import InputError, printable
from avmae.evaluation.data import evaluation_data, refuse_foreign_code


class TestLists:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        root = tmp_path / "root"
        root.mkdir()
        (tmp_path / "secret.mp4").write_bytes(b"secret")
        (root / "clip.mp4").write_bytes(b"clip")
        (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
        (root / "inner.mp4").symlink_to(root / "clip.mp4")
        return root

    @pytest.mark.parametrize("name", ["../secret.mp4", "sub/../../secret.mp4", "link.mp4"])
    def test_a_relative_path_does_not_leave_the_folder(self, name: str, root: Path) -> None:
        (root / "train.csv").write_text(f"clip.mp4 0\n{name} 1\n")
        with pytest.raises(InputError, match=r"train\.csv:2: .* leads out of"):
            read_csv(root / "train.csv")

    def test_absolute_paths_and_links_within_are_taken(self, root: Path) -> None:
        (root / "train.csv").write_text(f"clip.mp4 0\ninner.mp4 1\n{root.parent}/secret.mp4 1\n")
        assert len(read_csv(root / "train.csv").train) == 3

    def test_a_root_that_is_a_link(self, root: Path) -> None:
        (root.parent / "alias").symlink_to(root)
        (root.parent / "train.csv").write_text("clip.mp4 0\n")
        assert len(read_csv(root.parent / "train.csv", root=root.parent / "alias").train) == 1


@pytest.mark.parametrize("path", ["../secret.mp4", "/etc/passwd"])
def test_a_manifest_names_files_of_its_folder_alone(path: str, tmp_path: Path) -> None:
    from dataclasses import asdict

    from avmae.data.manifest import Record

    pq.write_table(pa.Table.from_pylist([asdict(Record(path, 1, 1))]), tmp_path / "manifest.parquet")
    with pytest.raises(InputError, match="leads out"):
        read_manifest(tmp_path / "manifest.parquet")


@pytest.mark.parametrize(
    ("formats", "chunk", "message"),
    [
        (["pickle"], "chunk-0-0.bin", "nor will read it"),
        (["bytes"], "../chunk-0-0.bin", "leads out of"),
        (["bytes"], "/etc/passwd", "leads out of"),
        (["bytes"], "link.bin", "leads out of"),
    ],
)
def test_a_packed_folder_cannot_ask_for_pickles_or_other_files(
    formats: list[str], chunk: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").write_bytes(b"")
    root = tmp_path / "packed"
    root.mkdir()
    (root / "link.bin").symlink_to(tmp_path / "elsewhere")
    row = {"name": "a.avi", "label": 0, "group": "", "parts": {"0": "train"}}
    (root / "clips.json").write_text(json.dumps({"classes": ["a"], "clips": [row]}))
    index = {"chunks": [{"filename": chunk}], "config": {"data_format": formats}}
    (root / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=message):
        read_packed(str(root))


@pytest.mark.parametrize(
    "data",
    [
        {"_target_": "os.system"},
        {},
        {"_target_": "avmae.data.datamodule.UCF101DataModule", "root": {"_target_": "os.getcwd"}},
        {"_target_": "avmae.data.datamodule.UCF101DataModule", "_args_": ["x"]},
        {"_target_": "avmae.data.datamodule.CSVDataModule", "classes": [{"a": {"_target_": "os.getcwd"}}]},
        {"source": "ucf101", "root": {"_target_": "os.getcwd"}},
        {"source": "csv", "_args_": ["x"]},
    ],
)
def test_a_checkpoint_cannot_name_what_is_called(data: dict) -> None:
    with pytest.raises(InputError, match="asks to call"):
        evaluation_data({"data": data, "clip": {}, "seed": 0}, {"root": None}, ["video"])


def test_a_function_that_the_user_names_is_trusted_with_plain_values_alone(miniature: Path) -> None:
    given, plain = {"source": f"{__name__}:one_clip", "root": str(miniature)}, {"source": "mine:read"}
    evaluated = evaluation_data({"data": plain, "clip": {}, "seed": 0}, given, ["video"])
    assert evaluated.listed == one_clip(str(miniature))
    with pytest.raises(InputError, match="asks to call"):
        evaluation_data({"data": plain | {"only": {"_target_": "os.getcwd"}}, "clip": {}, "seed": 0}, given, ["video"])


def one_clip(root: str) -> Splits:
    return Splits([], [], read_ucf101(root).test[:1], ["a"])


@pytest.mark.parametrize("source", ["mine:read", "os:getcwd", "avmae.data.sources.csv:read_csv"])
def test_a_checkpoint_cannot_name_a_function(source: str) -> None:
    with pytest.raises(InputError, match="asks to call"):
        evaluation_data({"data": {"source": source}, "clip": {}, "seed": 0}, {}, ["video"])


def test_a_checkpoint_of_ours_may_name_its_data() -> None:
    refuse_foreign_code({"source": "csv", "train": "a.csv", "classes": ["a", "b"]})
    refuse_foreign_code(by_source({"_target_": "avmae.data.datamodule.AVDigitsDataModule", "groups": 2}))


def test_names_cannot_command_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\x9b31m\rgood\u202etxt.exe\udc80"
    assert printable(evil) == "\\x1b[2J\\x9b31m\\rgood\\u202etxt.exe\\udc80"
    assert printable("Grüße, 動画 1.mp4\nnext") == "Grüße, 動画 1.mp4\nnext"
    print_table(["name"], [[evil + "\n"]])
    assert "\x1b" not in (shown := capsys.readouterr().out)
    assert shown.count("\n") == 3
