"""What the report shows of a run's files, also where they are broken."""

import base64
import json
import re
from pathlib import Path

import pytest
from pages import report, results, write_metrics, write_reconstruction, write_run

from avmae.errors import InputError
from avmae.runs.history import read_run


def test_classes_are_sorted_by_accuracy_and_say_what_they_are_taken_for(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", task={"name": "classify"})
    (folder / "results.json").write_text(json.dumps(results(["A", "B", "C"], [[1, 3, 0], [0, 4, 0], [1, 1, 2]])))
    page = report(folder)
    bars = re.findall(r'title="(\w), (\d) clips">.*?width:([\d.]+)%.*?<em>(.*?)</em>', page.html)
    assert bars == [("B", "4", "100.0", ""), ("C", "4", "50.0", "1 as B"), ("A", "4", "25.0", "3 as B")]
    assert "58.3%" in page.texts, "top-1 of all"
    assert "Confusion matrix" in page.text


def test_folds_are_added_up_and_averaged(tmp_path: Path) -> None:
    folds = [results(["A", "B"], [[4, 0], [k, 4 - k]], f"fold{k}.ckpt") for k in (0, 2, 4)]
    (tmp_path / "results.json").write_text(json.dumps({"top1": 0.75, "runs": folds}))
    page = report(tmp_path)
    assert "75.0% ± 25.0%" in page.texts
    assert {"fold0.ckpt", "fold2.ckpt", "fold4.ckpt"} <= set(page.texts)
    assert re.findall(r'title="(\w), 12 clips">.*?width:([\d.]+)%', page.html) == [("A", "100.0"), ("B", "50.0")]


def test_half_written_metrics_show_what_is_whole(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "summary.json").unlink()
    file = folder / "metrics.csv"
    rows = file.read_text().splitlines()
    file.write_text("\n".join([*rows, "3,39,nan,,,", "garbage", "3,49,1.5,,0.1234"]))
    found = read_run(folder)
    assert found.curves["train/loss"] == [(9, 2.5), (19, 1.5), (29, 0.5)]
    notes = "\n".join(found.notes)
    for part in ("train/loss is not finite at step 39", "1 line of metrics.csv", "has not ended", "at step 29"):
        assert part in notes
    assert "has not ended" in report(folder).text


@pytest.mark.parametrize("content", [None, "", "epoch,step,train/loss\n", "epoch,step,tra", "\x00\xff\n"])
def test_a_run_without_metrics_still_shows_what_was_run(content: str | None, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ["seed=7"])
    (folder / "summary.json").unlink()
    (folder / "metrics.csv").unlink()
    if content is not None:
        (folder / "metrics.csv").write_text(content, encoding="latin1")
    page = report(folder)
    assert "no curves" in page.text
    assert "python -m avmae.train seed=7" in page.text
    assert "<svg" not in page.html


def test_broken_files_become_notes(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "results.json").write_text('{"top1": 0.')
    (folder / ".hydra/config.yaml").write_text("a: [")
    (folder / "summary.json").write_text("[]")
    text = report(folder).text
    for name in ("results.json cannot be read", ".hydra/config.yaml cannot be read", "summary.json holds no mapping"):
        assert name in text
    odd = write_run(tmp_path / "odd")
    (odd / "results.json").write_text(json.dumps(results(["A"], [[1]]) | {"confusion": [[1, 2], [3]]}))
    assert "results.json is not what avmae.evaluate writes" in report(odd).text


def test_reconstructions_are_embedded_up_to_a_size_and_a_number(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_reconstruction(folder / "a")
    write_reconstruction(folder / "b", size=3_000_000)
    write_reconstruction(tmp_path / "elsewhere/c")
    page = report(folder, reconstructions=str(tmp_path / "elsewhere"), embed_mb=2)
    videos = [attrs["src"] for tag, attrs in page.elements if tag == "video"]
    assert [base64.b64decode(str(src).removeprefix("data:video/mp4;base64,")) for src in videos] == [b"video" * 200] * 2
    assert len([tag for tag, _ in page.elements if tag == "img"]) == 3
    assert re.search(r"b/reconstruction.mp4 has 3.0 MB and was left out; embed_mb=4", page.text)
    assert {"21.50", "mask: ratio 0.9", "clip.avi"} <= set(page.texts)
    assert "1 more are not shown; clips=2" in report(folder, clips=1).text


def test_of_a_pretrainings_reconstructions_the_last_epochs_are_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for epoch in ("0000", "9999", "10000"):
        write_reconstruction(folder / f"reconstructions/epoch_{epoch}/clip")
    write_reconstruction(folder / "reconstructions/asked_for")
    page = report(folder)
    names = re.findall(r'class="reconstruction">\s*<h4>(.*?) <small>', page.html)
    assert sorted(names) == ["clip.avi", "clip.avi, epoch 10000"]


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for folder, message in (("empty", "holds no run"), ("file", "is not a folder"), ("none", "is not a folder")):
        with pytest.raises(InputError, match=message):
            report(tmp_path / folder)
    good = write_run(tmp_path / "run")
    for wrong, message in ({"reconstructions": str(tmp_path / "empty")}, "reconstructions="), ({"clips": -1}, "clips"):
        with pytest.raises(InputError, match=message):
            report(good, **wrong)


def test_long_runs_are_averaged_to_what_can_be_seen(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_metrics(folder, [{"epoch": 0, "step": step, "train/loss": step % 2} for step in range(20_000)])
    page = report(folder)
    assert "means over up to 50 logged values" in page.text
    assert len(page.html) < 60_000
