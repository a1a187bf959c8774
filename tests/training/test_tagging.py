"""Clips with many labels, trained on, scored, predicted and drawn by class."""

import csv
import json
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from commands import TINY, error, run
from sklearn.metrics import average_precision_score, roc_auc_score

from avmae.data.degrade import next_audible
from avmae.errors import InputError
from avmae.evaluate import evaluate
from avmae.evaluation.batches import Inference
from avmae.evaluation.data import evaluation_data
from avmae.evaluation.results import result_tables
from avmae.evaluation.scores import TagScores
from avmae.models.weights import load_with_config
from avmae.predict import predict
from avmae.train import train
from avmae.training.mixing import MixSpec, mix


def test_scores_are_sklearns_over_the_means_of_views() -> None:
    rng = np.random.default_rng(0)
    clips, classes = 20, 5
    labels = rng.integers(2, size=(clips, classes))
    labels[:, 3], labels[:, 4] = 0, 1
    logits = rng.normal(size=(2, clips, classes)).astype(np.float32)
    scores = TagScores(clips, classes)
    for view in logits:
        for part in np.array_split(rng.permutation(clips), 3):
            audible = torch.from_numpy(part % 2 == 0)
            batch = {"clip_id": torch.from_numpy(part), "label": torch.from_numpy(labels[part]), "has_audio": audible}
            scores.update(torch.from_numpy(view[part]), batch)
    unscored = {
        "clip_id": torch.tensor([-1]),
        "label": torch.ones(1, classes).long(),
        "has_audio": torch.tensor([True]),
    }
    scores.update(torch.full((1, classes), 9.0), unscored)
    found, mean = scores.compute(), (1 / (1 + np.exp(-logits))).mean(0)
    for prefix, rows in (("", slice(None)), ("sound/", slice(0, None, 2)), ("silent/", slice(1, None, 2))):
        kept = [0, 1, 2]
        precision = [average_precision_score(labels[rows, c], mean[rows, c]) for c in kept]
        auc = np.mean([roc_auc_score(labels[rows, c], mean[rows, c]) for c in kept])
        # The class that no clip has counts for nothing; of the one that all have the precision is 1.
        assert float(found[f"{prefix}mAP"]) == pytest.approx(np.mean([*precision, 1.0]), abs=1e-6)
        assert float(found[f"{prefix}AUC"]) == pytest.approx(auc, abs=1e-6)
        assert float(found[f"{prefix}d_prime"]) == pytest.approx(math.sqrt(2) * NormalDist().inv_cdf(auc), abs=1e-4)
    assert (found["clips"], found["unscored"]) == (clips, 0)
    np.testing.assert_array_equal(found["by_class"][:, 2], labels.sum(0))


def test_one_label_each_is_scored_as_a_set_of_one_and_a_perfect_ranking_has_no_d_prime() -> None:
    scores, audible = TagScores(4, 2), torch.zeros(4, dtype=torch.bool)
    label = torch.tensor([0, 1, 0, 1])
    scores.update(torch.eye(2)[label], {"clip_id": torch.arange(4), "label": label, "has_audio": audible})
    found = scores.compute()
    assert (float(found["mAP"]), float(found["AUC"]), "d_prime" in found) == (1.0, 1.0, False)


def test_sets_of_labels_are_mixed_by_share_and_swapped_audio_shares_no_class() -> None:
    label = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    batch = {"video": torch.rand(3, 3, 2, 8, 8), "audio": torch.rand(3, 1, 4, 4), "label": label}
    batch["has_audio"] = torch.ones(3, dtype=torch.bool)
    for spec in (MixSpec(mixup=0.8), MixSpec(cutmix=1.0)):
        mixed, target = mix(batch, 3, spec, np.random.default_rng(1), 1.0)
        share = float(target[0, 0])
        assert 0 < share < 1
        torch.testing.assert_close(target, share * label.float() + (1 - share) * label.flip(0).float())
        assert mixed["label"] is label
    other, found = next_audible(batch["has_audio"], label)
    assert (other.tolist()[:2], found.tolist()) == ([2, 2], [True, True, True])
    assert next_audible(batch["has_audio"][:2], label[:2])[1].tolist() == [False, False]


@pytest.fixture(scope="module")
def tagged(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lists of the miniature's clips, each with its class, every third one with another, and some with none."""
    folder = tmp_path_factory.mktemp("tagged")
    for part, name in (("train", "trainlist01.txt"), ("test", "testlist01.txt")):
        lines = (miniature / "ucfTrainTestlist" / name).read_text().splitlines()
        files = [f"UCF-101/{line.split()[0]}" for line in lines]
        tags = [[Path(file).parent.name] * (n % 7 != 6) + ["third"] * (n % 3 == 0) for n, file in enumerate(files)]
        rows = [["path", "labels"], *([file, "|".join(own)] for file, own in zip(files, tags, strict=True))]
        with (folder / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def run_dir(tagged: Path, miniature: Path) -> Path:
    """Of a fine-tuning with mixing, drawn by class, with the test clips for validation, too."""
    data = ("data=csv", f"data.root={miniature}", *(f"data.{part}={tagged}/{part}.csv" for part in ("train", "test")))
    how = (f"data.val={tagged}/test.csv", "data.segments=2", "data.crops=1", "trainer.max_epochs=2")
    # Every clip keeps its audio, and the augmentation is light: a matter of seconds.
    light = ("task.drop_audio=0", "augment=crop", "data.workers=0")
    found = train("experiment=tag", *data, *TINY, *how, *light, f"run_dir={tagged}/run")
    for name in ("val/mAP", "val/AUC", "test/mAP", "test/AUC", "test/d_prime", "test/sound/mAP"):
        assert math.isfinite(found.metrics[name])
    assert 0 < found.metrics["train/loss"] < 1
    return found.run_dir


def test_a_real_run_is_trained_scored_and_shown(run_dir: Path, miniature: Path, tmp_path: Path) -> None:
    ckpt = run_dir / "checkpoints/best.ckpt"
    results = evaluate(ckpt, {"workers": 0}, degrade=["silence"])
    network, settings = load_with_config(ckpt)
    assert network.many_labels
    data = evaluation_data(settings, {"workers": 0}, ["video", "audio"], ckpt, test_only=True)
    labels, scores = data.splits.targets("test").numpy(), np.zeros((28, 5))
    with torch.inference_mode():
        for _, batch in Inference("cpu").batches(data, "test"):
            for clip, logits in zip(batch["clip_id"].tolist(), network(batch), strict=True):
                scores[clip] += logits.sigmoid().double().numpy() * (clip >= 0) / 2
    by_hand = [average_precision_score(labels[:, c], scores[:, c]) for c in range(5)]
    assert results["mAP"] == pytest.approx(np.mean(by_hand), abs=1e-4)
    assert results["AUC"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-4)
    assert [row["AP"] for row in results["per_class"].values()] == pytest.approx(by_hand, abs=1e-4)
    assert [row["clips"] for row in results["per_class"].values()] == labels.sum(0).tolist()
    assert results["mAP"] == json.loads((run_dir / "summary.json").read_text())["test/mAP"]
    degraded = {(row["degradation"], row["subset"]): row["value"] for row in results["degraded"]}
    assert degraded["clean", "all"] == results["mAP"]
    assert ("silence", "silent") in degraded
    json.dumps(results, allow_nan=False)
    (_, header, rows), *_ = result_tables([{"ckpt": "x", **results}])
    assert (header, len(rows)) == (["class", "AP", "AUC", "clips"], 5)
    assert (run_dir / "per_class.csv").read_text().splitlines()[0] == "class,AP,AUC,clips"
    said = predict(ckpt, next((miniature / "UCF-101").glob("*/*.avi")), top=5, segments=1, crops=1)
    assert sum(row["score"] for row in said.classes) != pytest.approx(1, abs=1e-3)
    assert {row["class"] for row in said.classes} == set(results["classes"])


def test_what_does_not_go_together_is_refused(run_dir: Path, tagged: Path, miniature: Path, tmp_path: Path) -> None:
    data = ("data=csv", f"data.root={miniature}", f"data.train={tagged}/train.csv")
    said = error(run("train", *data, *TINY, "task=classify", cwd=tmp_path, ok=False))
    assert "task=classify gives each clip one class" in said
    (tmp_path / "few.csv").write_text((tagged / "test.csv").read_text().replace("third", "fourth"))
    with pytest.raises(InputError, match="'fourth' is none of the 5 classes"):
        evaluate(run_dir / "checkpoints/best.ckpt", {"test": str(tmp_path / "few.csv")})
    with pytest.raises(InputError, match="probe=true"):
        evaluate(run_dir / "checkpoints/best.ckpt", probe=True)
