"""Clips to vectors, nothing masked: what features, k-NN and retrieval are made of."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from avmae.data.datamodule import Batch, ClipDataModule
from avmae.errors import InputError
from avmae.evaluation.batches import Inference
from avmae.evaluation.probes import knn_votes, linear_hits
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.classifier import Classifier
from avmae.models.weights import write_safetensors


@dataclass(frozen=True)
class Embeddings:
    """Of N clips, on the CPU.

    Args:
        fused: (N, modalities x dim) float32, the mean token of each modality after fusion, one behind the other.
        apart: by modality (N, dim) float32, the mean token before fusion.
        has_audio: (N,) bool, whether any window had audio.
        scored: (N,) bool, False for clips that could not be read.
    """

    fused: Tensor
    apart: dict[str, Tensor]
    has_audio: Tensor
    scored: Tensor


class Embedder:
    """Averages the embeddings of each clip's views."""

    def __init__(self, clips: int) -> None:
        self.clips = clips
        self.sums: dict[str, Tensor] = {}

    def update(self, model: MaskedAutoencoder | Classifier, batch: Batch) -> None:
        """Take a batch; views with ``clip_id`` -1 are left out."""
        encoder, has_audio, scored = model.encoder, batch["has_audio"], batch["clip_id"] >= 0
        apart = encoder.encode_apart(encoder.patchify(batch), {"audio": has_audio})
        found = encoder.pool(apart, len(scored))
        found["fused"] = torch.cat(list(encoder.pool(encoder.fusion(apart), len(scored)).values()), 1)
        found |= {"has_audio": has_audio[:, None], "views": torch.ones_like(scored)[:, None]}
        for name, value in found.items():
            total = self.sums.setdefault(name, value.new_zeros(self.clips, value.shape[1], dtype=torch.float32))
            total.index_add_(0, batch["clip_id"].clamp(min=0), value.float() * scored[:, None])

    def compute(self) -> Embeddings:
        views = self.sums["views"].clamp(min=1)
        means = {name: (total / views).cpu() for name, total in self.sums.items()}
        has_audio, scored = (means.pop(name)[:, 0] > 0 for name in ("has_audio", "views"))
        return Embeddings(means.pop("fused"), means, has_audio, scored)


@torch.inference_mode()
def embed(
    model: MaskedAutoencoder | Classifier, datamodule: ClipDataModule, part: str, inference: Inference
) -> Embeddings:
    """Embed the clips of one part, averaged over the data module's segments x crops.

    Raises:
        InputError: too many clips cannot be read, of which some are named.
    """
    model.encoder.to(inference.device)
    embedder = Embedder(len(getattr(datamodule.splits, part)))
    for _, batch in inference.batches(datamodule, part):
        with inference.autocast(model.encoder.dim):
            embedder.update(model, batch)
    return embedder.compute()


@dataclass(frozen=True)
class Features:
    """Embeddings of the parts of a data set, without the clips that cannot be read.

    Args:
        tensors: `PART/features` (N, D) float32, see `Embeddings.fused`, and `PART/labels` (N,) int64, or with
            many labels (N, classes), for those of the parts train, val and test that have clips.
        clips: by part, their files, as `ClipEntry` names them.
        classes: names.
    """

    tensors: dict[str, Tensor]
    clips: dict[str, list[str]]
    classes: list[str]

    def save(self, file: Path, ckpt: str) -> None:
        """Write the tensors as safetensors; the rest, and where they come from, as JSON in the metadata."""
        metadata = {"clips": json.dumps(self.clips), "classes": json.dumps(self.classes), "ckpt": ckpt}
        write_safetensors(self.tensors, file, metadata)

    def knn_top1(self, neighbours: int = 20, temperature: float = 0.07) -> float | None:
        """Share of test clips whose class their nearest training clips vote for; None if that cannot be said."""
        if not (self.clips.get("train") and self.clips.get("test")) or self.tensors["train/labels"].ndim > 1:
            return None
        bank, labels = F.normalize(self.tensors["train/features"], dim=1), self.tensors["train/labels"]
        votes = knn_votes(self.tensors["test/features"], bank, labels, len(self.classes), neighbours, temperature)
        return float((votes.argmax(1) == self.tensors["test/labels"]).float().mean())


def frozen_probes(
    model: MaskedAutoencoder | Classifier, datamodule: ClipDataModule, inference: Inference
) -> dict[str, float]:
    """What frozen features know of the classes: test accuracies as shares of 1.

    `knn/NAME/top1` by votes of training clips (`knn_votes`), `linear/NAME/top1` of a linear model (`linear_hits`), of
    `video` and `audio` before fusion and of `both` after it; of clips with and without audio with the prefix `sound/`
    or `silent/`.

    Raises:
        InputError: there are no training or no test clips, or too many cannot be read, or clips have many labels.
    """
    datamodule.require_test()
    if datamodule.splits.many_labels:
        raise InputError("probe=true tells which class a clip is of, and the clips of this data set have many labels")
    features, labels, audible = {}, {}, {}
    for part in ("train", "test"):
        found = embed(model, datamodule, part, inference)
        kept = found.scored
        features[part] = {name: x[kept] for name, x in {**found.apart, "both": found.fused}.items()}
        labels[part] = datamodule.splits.targets(part)[kept]
        audible[part] = found.has_audio[kept]
    accuracies = {}
    subsets = {"": torch.ones_like(audible["test"]), "sound/": audible["test"], "silent/": ~audible["test"]}
    for name, test in features["test"].items():
        train, classes = features["train"][name], len(datamodule.classes)
        votes = knn_votes(test, F.normalize(train, dim=1), labels["train"], classes)
        hits = {"knn": votes.argmax(1) == labels["test"]}
        hits["linear"] = linear_hits((train, labels["train"]), (test, labels["test"]), classes)
        for kind, hit in hits.items():
            for prefix, rows in subsets.items():
                if rows.any():
                    accuracies[f"{prefix}{kind}/{name}/top1"] = float(hit[rows].float().mean())
    return accuracies


def embed_parts(model: MaskedAutoencoder | Classifier, datamodule: ClipDataModule, inference: Inference) -> Features:
    """Embed the clips of all parts; see `embed`."""
    tensors, clips = {}, {}
    for part in ("train", "val", "test"):
        if entries := getattr(datamodule.splits, part):
            found = embed(model, datamodule, part, inference)
            tensors[f"{part}/features"] = found.fused[found.scored]
            tensors[f"{part}/labels"] = datamodule.splits.targets(part)[found.scored]
            clips[part] = [str(e) for e, kept in zip(entries, found.scored.tolist(), strict=True) if kept]
    return Features(tensors, clips, list(datamodule.classes))
