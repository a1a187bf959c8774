"""Scores of checkpoints, one or several."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from commands import run, train
from miniature_data import miniature_data

from avmae.clip import ClipSpec
from avmae.data.decode.window import probe
from avmae.data.sources.ucf101 import read_ucf101
from avmae.errors import InputError
from avmae.evaluate import evaluate
from avmae.evaluation.batches import Inference
from avmae.evaluation.data import evaluation_data
from avmae.evaluation.degraded import measure
from avmae.evaluation.embedding import embed
from avmae.evaluation.results import result_files, result_tables, write_results
from avmae.models.build import MaskSpec, ModelSpec, SizeSpec, build_autoencoder
from avmae.models.weights import load_model


def test_a_pretraining_is_evaluated_by_retrieval(pretrained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ckpt = pretrained / "checkpoints/last.ckpt"
    results = evaluate(ckpt)
    # Half of the 28 test clips of the miniature have sound; 14 are too few for r10 to be less than r5.
    assert results["clips"] == 14
    for way in ("video_to_audio", "audio_to_video"):
        found = [14 * results[f"{way}/r{k}"] for k in (1, 5, 10)]
        assert found == pytest.approx(sorted(map(round, found)), abs=1e-4), "whole clips, and more among more"
    (title, *_) = next(result_tables([results]))
    assert "retrieval among 14 test clips with audio" in title
    assert capfd.readouterr() == ("", ""), "nothing is printed that was not asked for"
    # In one pass with what it makes of degraded clips, and told how far it is.
    both = evaluate(ckpt, degrade="clean", progress=True)
    assert {name: both[name] for name in results} == results
    assert {(row["degradation"], row["metric"]) for row in both["degraded"]} == {
        ("clean", "hidden_mse"),
        ("clean", "moving_mse"),
    }
    assert "28 test clips, 5 x 3 views each (segments x crops)" in capfd.readouterr().out


def test_without_sound_there_is_nothing_to_retrieve(pretrained: Path, miniature: Path, tmp_path: Path) -> None:
    silent = [entry for entry in read_ucf101(miniature).test if not probe(entry.path).has_audio]
    (tmp_path / "test.csv").write_text("".join(f"{entry.path} {entry.label}\n" for entry in silent))
    data = ("data._target_=avmae.data.datamodule.CSVDataModule", f"data.test={tmp_path}/test.csv")
    ckpt = f"ckpt={pretrained}/checkpoints/last.ckpt"
    printed = run("evaluate", ckpt, *data, "data.segments=1", f"output={tmp_path}/r.json", cwd=tmp_path)
    assert "14 test clips, 1 x 3 views each (segments x crops)" in printed
    assert "retrieval among 0 test clips with audio" in printed
    assert json.loads((tmp_path / "r.json").read_text())["clips"] == 0
    assert "NaN" not in (tmp_path / "r.json").read_text()


def test_views_are_the_checkpoints_and_otherwise_the_papers(miniature: Path) -> None:
    foreign = {"clip": {}, "seed": 0}
    csv = {"_target_": "avmae.data.datamodule.CSVDataModule", "train": "gone.csv", "only": ["gone"]}
    reading = {"segments": 2, "crops": 1, "batch_size": 3, "workers": 0}
    ucf101 = {"_target_": "avmae.data.datamodule.UCF101DataModule", "root": str(miniature)}
    for settings, given, expected in (
        (foreign, {"_target_": None, "root": str(miniature)}, (5, 3, 8, 2)),
        (foreign, {**ucf101, "crops": 1}, (5, 1, 8, 2)),
        (foreign | {"data": csv | reading}, ucf101, (2, 1, 3, 0)),
        (foreign | {"data": csv | reading}, {**ucf101, "segments": 4}, (4, 1, 3, 0)),
    ):
        how = evaluation_data(settings, given, ["video"]).loading
        assert (how.segments, how.crops, how.batch_size, how.workers) == expected


def test_checkpoints_of_different_kinds_share_a_table(tmp_path: Path) -> None:
    scores = {"a": {"video_to_audio/r1": 0.5}, "b": {"top1": 0.25, "top5": 0.5}, "c": {"top1": 0.75}}
    for ckpts, means in ((["a", "b"], {}), (["b", "c"], {"top1": 0.5})):
        results = [{"ckpt": ckpt, **scores[ckpt]} for ckpt in ckpts]
        write_results(results, *result_files(ckpts, f"{tmp_path}/results.json"))
        assert json.loads((tmp_path / "results.json").read_text()) == means | {"runs": results}
        *_, (_, header, rows) = result_tables(results)
        assert rows[-1] == ["mean", *("50.0%" if name in means else "" for name in header[1:])]
    *_, (_, header, rows) = result_tables([{"ckpt": ckpt, **scores[ckpt]} for ckpt in "ab"])
    assert header == ["checkpoint", "video_to_audio/r1", "top1", "top5"]
    assert rows == [["a", "50.0%", "", ""], ["b", "", "25.0%", "50.0%"], ["mean", "", "", ""]]


def test_each_run_gets_its_own_results_and_the_folder_above_the_mean(tmp_path: Path) -> None:
    runs = [tmp_path / "logs" / name for name in "abc"]
    for run_dir in runs:
        (run_dir / "checkpoints").mkdir(parents=True)
    ckpts = [f"{run_dir}/checkpoints/last.ckpt" for run_dir in runs]
    other = tmp_path / "exported"
    other.mkdir()
    for given in (ckpts[:1], ckpts, [str(other)], [str(other / "foreign.pth")]):
        write_results([{"ckpt": ckpt, "top1": float("/b/" in ckpt)} for ckpt in given], *result_files(given, None))
    found = {str(f.parent.relative_to(tmp_path)): json.loads(f.read_text()) for f in tmp_path.rglob("results.json")}
    assert {name: content["top1"] for name, content in found.items()} == {
        "logs/a": 0,
        "logs/b": 1,
        "logs/c": 0,
        "logs": pytest.approx(1 / 3),
        "exported": 0,
    }


def test_a_list_for_a_test_needs_neither_the_others_nor_all_classes(miniature: Path, tmp_path: Path) -> None:
    clips = sorted((miniature / "UCF-101").rglob("*.avi"))
    (tmp_path / "train.csv").write_text("".join(f"{clip} {number % 4}\n" for number, clip in enumerate(clips[:8])))
    (tmp_path / "test.csv").write_text("".join(f"{clip} {number % 2}\n" for number, clip in enumerate(clips[8:14])))
    lists = ("data=csv", f"data.train={tmp_path}/train.csv", "task=classify", "trainer.max_epochs=1")
    train("hydra.run.dir=run", *lists, cwd=tmp_path)
    (tmp_path / "train.csv").unlink()
    content = evaluate(tmp_path / "run/checkpoints/last.ckpt", {"test": f"{tmp_path}/test.csv"})
    assert (content["clips"], len(content["classes"])) == (6, 4)


def test_frozen_features_are_probed_from_training_clips(pretrained: Path, miniature: Path) -> None:
    ckpt = pretrained / "checkpoints/last.ckpt"
    results = evaluate(ckpt, {"segments": 1, "crops": 1}, probe=True)
    kinds, names = ("knn", "linear"), ("video", "audio", "both")
    expected = {f"{s}{k}/{n}/top1" for s in ("", "sound/", "silent/") for k in kinds for n in names}
    assert {name for name in results if name.endswith("top1")} == expected
    # Half of the clips have audio; of the others' audio there is nothing to know, and one class of four is a quarter.
    for kind, name in itertools.product(kinds, names):
        halves = results[f"sound/{kind}/{name}/top1"], results[f"silent/{kind}/{name}/top1"]
        assert results[f"{kind}/{name}/top1"] == pytest.approx(sum(halves) / 2)
    assert results["silent/knn/audio/top1"] == results["silent/linear/audio/top1"] == 0.5
    model = load_model(ckpt)
    data = miniature_data(miniature, model.clip, val_groups=1, workers=0)
    with torch.inference_mode():
        parts = [embed(model, data, part, Inference("cpu")).fused for part in ("train", "test")]
    near = torch.nn.functional.cosine_similarity(parts[1][:, None], parts[0][None], dim=2)
    votes = torch.zeros(28, 4)
    for weight, entry in zip((near / 0.07).exp().T, data.splits.train, strict=True):
        votes[:, entry.label] += weight
    hits = votes.argmax(1) == torch.tensor([entry.label for entry in data.splits.test])
    assert results["knn/both/top1"] == pytest.approx(hits.float().mean().item())


def test_results_add_up_and_several_checkpoints_end_with_their_mean(finetuned: Path, tmp_path: Path) -> None:
    ckpts = [finetuned / f"checkpoints/{name}.ckpt" for name in ("last", "best")]
    output = tmp_path / "results.json"
    degrade = "degrade=[blur:16,silence]"
    printed = run("evaluate", f"ckpt=[{ckpts[0]},{ckpts[1]}]", f"output={output}", degrade, cwd=tmp_path)
    content = json.loads(output.read_text())
    for result in content["runs"]:
        confusion = torch.tensor(result["confusion"])
        assert confusion.sum(1).tolist() == [c["clips"] for c in result["per_class"].values()] == [7] * 4
        assert confusion.trace() / confusion.sum() == pytest.approx(result["top1"])
        # In the miniature a class sounds as a whole or not at all.
        assert result["sound_classes/top1"] == pytest.approx(result["sound/top1"])
        assert result["silent_classes/top1"] == pytest.approx(result["silent/top1"])
        degraded = {(r["degradation"], r["subset"]): r["value"] for r in result["degraded"] if r["metric"] == "top1"}
        assert degraded["clean", "all"] == pytest.approx(result["top1"])
        assert degraded["clean", "sound"] == pytest.approx(result["sound/top1"])
        assert degraded["silence", "silent"] == degraded["clean", "silent"]
        assert ("blur", "all") in degraded
    assert content["top1"] == pytest.approx(sum(r["top1"] for r in content["runs"]) / 2)
    assert "mean" in printed


def test_embeddings_and_degraded_tests_heed_the_precision(miniature: Path) -> None:
    torch.manual_seed(0)
    clip, size = ClipSpec(frames=4, size=32, mel_bins=32), SizeSpec("test", 48, 2, 2, 1, 24, 1, 2)
    data = miniature_data(miniature, clip, workers=0)
    pretrained = build_autoencoder(clip, ModelSpec("avmae"), size, MaskSpec()).eval()

    def found(precision: str) -> tuple[torch.Tensor, list[float]]:
        (errors,) = measure(pretrained, data, [None], Inference("cpu", precision))
        fused = embed(pretrained, data, "test", Inference("cpu", precision)).fused
        return fused, list(errors.values())

    (full, errors), (rounded, rounded_errors) = found("32-true"), found("bf16-mixed")
    assert not torch.equal(full, rounded)
    assert errors != rounded_errors
    torch.testing.assert_close(rounded, full, atol=0.05, rtol=0.05)
    assert rounded_errors == pytest.approx(errors, rel=0.05)
    with pytest.raises(InputError, match="precision=64-true"):
        found("64-true")
