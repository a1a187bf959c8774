"""The parts of the recipes that only whole commands show."""

import json
from pathlib import Path

import pytest
import torch
from commands import CALLBACKS, error, run, start_train, train
from miniature_data import miniature_data
from safetensors import safe_open

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


def load(run_dir: Path) -> dict:
    return torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)


def encoder(state: dict) -> dict[str, torch.Tensor]:
    return {k: v for k, v in state["state_dict"].items() if k.startswith("network.encoder.")}


@pytest.fixture(scope="module")
def pretrained(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a pretraining with every objective on."""
    folder = tmp_path_factory.mktemp("pretrained")
    objectives = ("task.contrast=0.1", "task.hide_audio=0.2", "task.hide_video=0.2", "model.may_lack=[video,audio]")
    # All clips of a step in one batch, so that a pair has another to be told from.
    how = ("hydra.run.dir=run", "trainer.max_epochs=2", "data.batch_size=8")
    train(*how, *objectives, cwd=folder, miniature=miniature)
    return folder / "run"


def test_objectives_besides_reconstruction_are_trained_and_logged(pretrained: Path) -> None:
    summary = json.loads((pretrained / "summary.json").read_text())
    assert summary["train/loss_contrast"] > 0
    parts = sum(summary[f"train/loss_{name}"] for name in ("video", "audio"))
    # The sound's part is a mean over sounding clips, so it counts by their share of the batch in the loss.
    assert summary["train/loss"] < parts + 0.1 * summary["train/loss_contrast"] + 1e-3
    # Of the four validation clips, each once.
    assert summary["val/knn_top1"] in (0, 0.25, 0.5, 0.75, 1)
    absent = load(pretrained)["state_dict"]["network.encoder.modalities.video.absent"]
    assert absent.any(), "the token in place of hidden pictures was never trained"


def test_an_objective_that_the_system_cannot_meet_is_refused(miniature: Path, tmp_path: Path) -> None:
    for wrong, key in (
        (["model=videomae", "task.contrast=1"], "task.contrast"),
        (["model=videomae", "task.hide_audio=0.5"], "task.hide_audio"),
        (["task.hide_video=0.5"], r"model.may_lack=[video,audio]"),
        (["task.hide_audio=0.9", "task.hide_video=0.9"], "at most 1"),
        (["task=classify", "optim=finetune", "model=videomae", "task.drop_audio=0.5"], "task.drop_audio"),
    ):
        assert key in error(train(*wrong, cwd=tmp_path, miniature=miniature, ok=False))


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
    assert {(row["degradation"], row["metric"]) for row in both["degraded"]} == {("clean", "hidden_mse")}
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


def test_features_hold_every_clip_once(pretrained: Path, tmp_path: Path) -> None:
    output = tmp_path / "features.safetensors"
    printed = run("features", f"ckpt={pretrained}/checkpoints/last.ckpt", f"output={output}", cwd=tmp_path)
    with safe_open(output, "pt") as file:
        clips = json.loads(file.metadata()["clips"])
        assert {part: len(paths) for part, paths in clips.items()} == {"train": 8, "val": 4, "test": 28}
        for part, paths in clips.items():
            assert len(set(paths)) == len(paths)
            features, labels = file.get_tensor(f"{part}/features"), file.get_tensor(f"{part}/labels")
            assert features.shape == (len(paths), 2 * 48)
            assert features.isfinite().all()
            names = json.loads(file.metadata()["classes"])
            assert all(Path(p).parent.name == names[y] for p, y in zip(paths, labels.tolist(), strict=True))
    assert "k-NN from train to test" in printed


@pytest.fixture(scope="module")
def finetuned(miniature: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the full recipe's augmentations, mixing and EMA."""
    folder = tmp_path_factory.mktemp("finetuned")
    recipe = ("augment=strong", "task.mix.mixup=0.8", "task.mix.cutmix=1", "task.label_smoothing=0.1", "callbacks=ema")
    strong = (
        "task.drop_audio=0.3",
        "task.swap_audio=0.3",
        "model.drop_path=0.2",
        "task.dropout=0.5",
        "model.checkpointing=true",
        "model.may_lack=[video,audio]",
    )
    epochs = ("trainer.max_epochs=2", "callbacks.ema.decay=0.5", "trainer.accumulate_grad_batches=2")
    ckpt = f"ckpt={pretrained}/checkpoints/last.ckpt"
    setup = ("hydra.run.dir=run", "task=classify", "optim=finetune", "optim.clip_norm=1", ckpt)
    train(*setup, *recipe, *strong, *epochs, cwd=folder, miniature=miniature)
    return folder / "run"


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


def test_last_is_the_last_and_best_the_best(miniature: Path, tmp_path: Path) -> None:
    """Also where the score does not rise any more: with a rate of next to nothing the first epoch stays the best."""
    arguments = ("task=classify", "optim=finetune", "optim.base_lr=1e-12", "trainer.max_epochs=3")
    printed = train("hydra.run.dir=run", *arguments, cwd=tmp_path, miniature=miniature)
    steps = {
        name: torch.load(tmp_path / f"run/checkpoints/{name}.ckpt", weights_only=True)["global_step"]
        for name in ("last", "best")
    }
    assert steps == {"last": 6, "best": 2}
    assert "testing " in printed
    assert "best.ckpt" in printed


def test_the_full_recipe_trains_and_keeps_the_averaged_weights_as_the_model(finetuned: Path) -> None:
    state = load(finetuned)
    averaged, current = state["state_dict"], state["current_model_state"]
    assert any(not torch.equal(averaged[name], current[name]) for name in averaged)
    assert int(state["averaging_state"]["n_averaged"]) > 0
    assert {"test/top1", "test/top5"} <= json.loads((finetuned / "summary.json").read_text()).keys()


@pytest.mark.parametrize(("groups", "name"), [(1, "best"), (0, "last")])
def test_averaged_weights_are_what_is_tested(groups: int, name: str, miniature: Path, tmp_path: Path) -> None:
    seen = "+callbacks.seen={_target_:seen.Tested,file:tested.pt}"
    averaged = ("callbacks=ema", "callbacks.ema.decay=0.5", "optim=finetune", "optim.base_lr=0.1", seen)
    arguments = ("name=run", "task=classify", "trainer.max_epochs=2", f"data.val_groups={groups}", *averaged)
    # The second time there is nothing left to train.
    for resume in ("null", "last"):
        output = tmp_path / "printed.txt"
        how = {"cwd": tmp_path, "miniature": miniature, "output": output, "env": CALLBACKS}
        assert start_train(*arguments, f"resume={resume}", **how).wait(120) == 0, output.read_text()
        assert "Warning" not in output.read_text()
        (file,) = (tmp_path / "logs/run").glob(f"*/checkpoints/{name}.ckpt")
        saved, tested = torch.load(file, weights_only=True), torch.load(tmp_path / "tested.pt", weights_only=True)
        assert all(torch.equal(value, tested[key]) for key, value in saved["state_dict"].items())
        assert not all(torch.equal(value, tested[key]) for key, value in saved["current_model_state"].items())


@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_a_probe_leaves_the_encoder_as_it_was(pool: str, pretrained: Path, miniature: Path, tmp_path: Path) -> None:
    ckpt = f"ckpt={pretrained}/checkpoints/last.ckpt"
    setup = ("task=probe", f"task.pool={pool}", "optim=finetune", "trainer.max_epochs=1")
    train("hydra.run.dir=run", *setup, "model.may_lack=[video,audio]", ckpt, cwd=tmp_path, miniature=miniature)
    state, before = load(tmp_path / "run"), encoder(load(pretrained))
    assert encoder(state).keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in encoder(state).items())
    # It starts at zero.
    assert state["state_dict"]["network.heads.audio.weight"].any(), "the head was not trained"
    assert 0 <= evaluate(tmp_path / "run/checkpoints/last.ckpt")["top1"] <= 1


@pytest.mark.parametrize("recipe", ["experiment=probe_ucf101", "experiment=finetune_ucf101_k400", "task=probe"])
def test_what_starts_from_weights_does_not_start_from_nothing(recipe: str, miniature: Path, tmp_path: Path) -> None:
    said = error(run("train", recipe, "data=ucf101", f"data.root={miniature}", cwd=tmp_path, ok=False))
    assert "ckpt must be given: add ckpt=VALUE" in said
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_layer_decay_is_of_what_was_loaded_and_a_resumed_run_knows_it(miniature: Path, tmp_path: Path) -> None:
    how = {"cwd": tmp_path, "miniature": miniature}
    train("hydra.run.dir=pictures", "model=videomae", "trainer.max_epochs=1", **how)
    finetune = ("name=run", "task=classify", "optim=finetune")
    ckpt = f"ckpt={tmp_path}/pictures/checkpoints/last.ckpt"
    assert "layer decay 0.7 of what was loaded" in train(*finetune, ckpt, "trainer.max_epochs=1", **how)
    (file,) = tmp_path.glob("logs/run/*/checkpoints/last.ckpt")
    before = torch.load(file, weights_only=True)
    assert {name for name in before["loaded"] if name.startswith("encoder.modalities.video.blocks")}
    assert not {name for name in before["loaded"] if "audio" in name}
    # The weights that it began with may be gone by now.
    (tmp_path / "pictures/checkpoints/last.ckpt").unlink()
    for epochs, again in ((2, ()), (3, (ckpt,))):
        train(*finetune, *again, f"trainer.max_epochs={epochs}", "resume=last", **how)
        after = torch.load(file, weights_only=True)
        assert (after["epoch"], after["loaded"]) == (epochs - 1, before["loaded"])
        first, now = (state["optimizer_states"][0]["param_groups"] for state in (before, after))
        assert [(g["params"], g["initial_lr"]) for g in now] == [(g["params"], g["initial_lr"]) for g in first]
    assert len({group["initial_lr"] for group in now}) == 4, "the full rate, two blocks and the embedding"


def test_a_checkpoint_that_does_not_say_what_was_loaded_goes_on(miniature: Path, tmp_path: Path) -> None:
    how = {"cwd": tmp_path, "miniature": miniature}
    train("name=run", "trainer.max_epochs=1", **how)
    (file,) = tmp_path.glob("logs/run/*/checkpoints/last.ckpt")
    older = torch.load(file, weights_only=True)
    del older["loaded"]
    torch.save(older, file)
    train("name=run", "trainer.max_epochs=2", "resume=last", **how)
    assert torch.load(file, weights_only=True)["epoch"] == 1


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


def test_systems_are_compared_under_one_mask_on_every_video_of_a_folder(
    miniature: Path, pretrained: Path, tmp_path: Path
) -> None:
    # What training does not decode, to be faster, is reconstructed nevertheless.
    alone = ("hydra.run.dir=alone", "model=videomae", "trainer.max_epochs=1", "mask.decoder_ratio=0.5")
    train(*alone, cwd=tmp_path, miniature=miniature)
    videos = tmp_path / "videos"
    for name in ("BounceBell", "CartwheelSpins"):
        (videos / name).mkdir(parents=True)
        source = min((miniature / "UCF-101" / name).glob("*.avi"))
        (videos / name / "clip.avi").write_bytes(source.read_bytes())
    (videos / "broken.avi").write_text("no video")
    ckpts = f"[{tmp_path}/alone/checkpoints/last.ckpt,{pretrained}/checkpoints/last.ckpt]"
    common = (f"ckpt={ckpts}", "mask.ratio=0.5")
    printed = run("reconstruct", *common, f"input={videos}", f"output={tmp_path}/out", cwd=tmp_path)
    assert "skipped: " in printed
    assert "broken.avi" in printed
    sounding = json.loads((tmp_path / "out/BounceBell/clip/metrics.json").read_text())["systems"]
    assert list(sounding) == ["videomae", "avmae"]
    for figures in sounding.values():
        # Patches' true mean and deviation can only help.
        assert figures["video/psnr_hidden_true_statistics"] > figures["video/psnr_hidden_visible_statistics"]
        assert figures["video/ssim_hidden_true_statistics"] != figures["video/ssim_hidden_visible_statistics"]
    silent = json.loads((tmp_path / "out/CartwheelSpins/clip/metrics.json").read_text())["systems"]
    assert silent["avmae"]["audio/masked_mse"] is None
    wavs = sorted(path.name for path in (tmp_path / "out/BounceBell/clip").glob("*.wav"))
    assert wavs == ["avmae_from_visible_patches_alone.wav", "avmae_with_true_patch_statistics.wav", "original.wav"]
    assert not list((tmp_path / "out/CartwheelSpins/clip").glob("*.wav"))

    train("hydra.run.dir=longer", "clip.stride=2", "trainer.max_epochs=1", cwd=tmp_path, miniature=miniature)
    ckpts = f"[{tmp_path}/alone/checkpoints/last.ckpt,{tmp_path}/longer/checkpoints/last.ckpt]"
    said = error(run("reconstruct", f"ckpt={ckpts}", f"input={videos}", "output=x", cwd=tmp_path, ok=False))
    assert "clip.stride=2" in said
