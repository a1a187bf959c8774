"""A packed copy holds what the source held, and is read by any number of processes and workers alike."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import error, run, train

from avmae.clip import ClipSpec
from avmae.data.dataset import AugmentSpec, ClipDataset, collate
from avmae.data.decode.window import read_window
from avmae.data.manifest import read_manifest
from avmae.data.sampling import TrainSampler
from avmae.data.sources.shards import read_packed
from avmae.data.sources.ucf101 import read_ucf101

CLIP = ClipSpec(frames=8, size=32, mel_bins=32)


@pytest.fixture(scope="module")
def packed(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    printed = run(
        "prepare", "data=ucf101", f"data.root={miniature}", f"pack={folder}/p", f"output={folder}/m", cwd=folder
    )
    assert "40 clips" in printed
    assert "Lossy" in printed
    return folder / "p"


def seen_by(rank: int, root: Path, queue: multiprocessing.Queue) -> None:
    """One of two training processes, with two workers: the clips it sees in two epochs."""
    splits = read_packed(str(root), fold=2, val_groups=0)
    dataset = ClipDataset(splits.train, CLIP, True, AugmentSpec())
    epochs = []
    for epoch in range(2):
        sampler = TrainSampler(len(dataset), 3, 0, rank, 2, epoch)
        loader = torch.utils.data.DataLoader(dataset, batch_sampler=sampler, num_workers=2, collate_fn=collate)
        epochs.append([batch["clip_id"].tolist() for batch in loader])
    queue.put((rank, epochs))


class TestShards:
    def test_the_table_has_the_official_folds(self, packed: Path, miniature: Path) -> None:
        for fold, val_groups in ((1, 1), (2, 0)):
            ours, theirs = read_packed(str(packed), fold, val_groups), read_ucf101(miniature, fold, val_groups)
            assert ours.classes == theirs.classes
            for part in ("train", "val", "test"):
                expected = [(str(e.path.relative_to(miniature)), e.label, e.group) for e in getattr(theirs, part)]
                assert sorted((e.path.name, e.label, e.group) for e in getattr(ours, part)) == sorted(expected)

    def test_a_copy_of_some_classes_has_their_clips_and_names(
        self, packed: Path, miniature: Path, tmp_path: Path
    ) -> None:
        names, manifest = read_ucf101(miniature).classes[1::2], packed.parent / "m"
        only = ("data=ucf101", f"data.root={miniature}", f"data.only=[{','.join(names)}]", f"output={manifest}")
        run("prepare", *only, f"pack={tmp_path}/p", cwd=tmp_path)
        for fold in (1, 2, 3):
            found = read_packed(str(tmp_path / "p"), fold, val_groups=0)
            assert found.classes == names
            labels = {e.path.name: e.label for e in (*found.train, *found.test)}
            assert len(labels) == 20
            assert all(Path(name).parent.name == names[label] for name, label in labels.items())
        assert len(read_manifest(manifest)) == 40, "the manifest keeps what the copy leaves out"

    def test_a_clip_stays_in_every_list_that_has_it(self, miniature: Path, tmp_path: Path) -> None:
        first, second, third = (entry.path.relative_to(miniature) for entry in read_ucf101(miniature).train[:3])
        lists = {"train": [(first, 0)], "val": [(second, 0), (third, 1)], "test": [(second, 0), (third, 0)]}
        for part, rows in lists.items():
            (tmp_path / part).write_text("".join(f"{path} {label}\n" for path, label in rows))
        given = (f"data.{part}={tmp_path}/{part}" for part in lists)
        settings = ("data=csv", f"data.root={miniature}", *given, f"output={tmp_path}/m", f"pack={tmp_path}/p")
        run("prepare", *settings, cwd=tmp_path)
        splits = read_packed(str(tmp_path / "p"))
        for part, rows in lists.items():
            assert sorted((e.path.name, e.label) for e in getattr(splits, part)) == sorted((str(p), n) for p, n in rows)
        # As copies were written before.
        table = json.loads((tmp_path / "p/clips.json").read_text())
        for row in table["clips"]:
            row["parts"] = {"0": row["parts"]["0"][-1]}
        (tmp_path / "p/clips.json").write_text(json.dumps(table))
        splits = read_packed(str(tmp_path / "p"))
        assert [len(part) for part in (splits.train, splits.val, splits.test)] == [1, 1, 2]

    def test_a_clip_is_the_one_it_is_called(self, packed: Path, miniature: Path) -> None:
        for entry in read_packed(str(packed), 1, 0).test[::5]:
            one, other = (read_window(s, CLIP, 0.5, CLIP.canvas) for s in (entry.path, miniature / entry.path.name))
            assert np.abs(one.frames.astype(int) - other.frames).mean() < 6
            assert one.has_audio == other.has_audio

    def test_two_processes_with_two_workers_see_every_clip_once_an_epoch(self, packed: Path) -> None:
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        processes = [context.Process(target=seen_by, args=(rank, packed, queue)) for rank in range(2)]
        for process in processes:
            process.start()
        found = dict(queue.get(timeout=120) for _ in processes)
        for process in processes:
            process.join()
        clips = len(read_packed(str(packed), 2, 0).train)
        orders = []
        for epoch in range(2):
            batches = [*found[0][epoch], *found[1][epoch]]
            seen = sorted(clip for batch in batches for clip in batch)
            assert len(seen) == len(set(seen)) == clips // 6 * 6
            orders.append(batches)
        assert orders[0] != orders[1]

    def test_training_from_shards_is_training(self, packed: Path, tmp_path: Path) -> None:
        data = ("data=shards", f"data.root={packed}", "data.fold=2", "data.val_groups=1", "data.workers=1")
        printed = train("trainer.max_epochs=1", "hydra.run.dir=run", *data, cwd=tmp_path)
        assert "skipped: " not in printed
        assert (tmp_path / "run/checkpoints/last.ckpt").is_file()

    def test_what_is_no_packed_data_set_is_named(self, packed: Path, miniature: Path, tmp_path: Path) -> None:
        said = error(train("data=shards", f"data.root={tmp_path}", cwd=tmp_path, ok=False))
        assert "is no packed data set" in said
        said = error(train("data=shards", f"data.root={packed}", "data.fold=7", cwd=tmp_path, ok=False))
        assert "folds 1, 2, 3" in said
        command = ("data=ucf101", f"data.root={miniature}", f"pack={packed}", f"output={tmp_path}/m")
        assert "is not empty" in error(run("prepare", *command, cwd=tmp_path, ok=False))
        assert json.loads((packed / "clips.json").read_text())["clips"]
