"""Sound that is taken away or exchanged in training."""

from types import SimpleNamespace

import pytest
import torch
from systems import autoencoder, batch
from torch import Tensor

from avmae.clip import ClipSpec
from avmae.data.datamodule import Batch
from avmae.models.build import ModelSpec, SizeSpec, build_classifier
from avmae.training.classification import Classification
from avmae.training.optim import OptimSpec
from avmae.training.pretraining import ObjectiveSpec, Pretraining


def test_sound_is_dropped_below_one_share_and_exchanged_below_the_next() -> None:
    clip = ClipSpec(frames=2, size=32, mel_bins=32)
    size = SizeSpec("tiny", dim=16, depth=1, heads=1, audio_depth=1, decoder_dim=16, decoder_depth=1, decoder_heads=1)
    network = build_classifier(clip, ModelSpec("avmae"), size, classes=3)
    task = Classification(network, OptimSpec(base_lr=1.0), {}, drop_audio=0.3, swap_audio=0.3)
    label, has_audio = torch.tensor([0, 0, 1, 2, 1]), torch.tensor([True, True, True, False, True])
    audio = torch.arange(5.0).view(5, 1, 1, 1).expand(-1, 1, 2, 2)
    clips = Batch(
        video=torch.zeros(5, 3, 2, 32, 32),
        audio=audio,
        has_audio=has_audio,
        label=label,
        clip_id=torch.arange(5),
        view=torch.zeros(5, dtype=torch.long),
        windows=5,
        unreadable=[],
    )
    changed = task.change_audio(clips, torch.tensor([0.1, 0.5, 0.9, 0.5, 0.5]))
    # Clip 1 hears clip 2, the next of another class; clip 4 passes over clip 3, which is silent, to clip 0.
    assert changed["has_audio"].tolist() == [False, True, True, False, True]
    assert changed["audio"][:, 0, 0, 0][[1, 2, 4]].tolist() == [2, 2, 0]
    assert changed["video"] is clips["video"]
    assert clips["has_audio"].tolist() == has_audio.tolist()

    # Where all that sounds is of one class, there is nothing to exchange.
    alone = task.change_audio({**clips, "label": torch.zeros(5, dtype=torch.long)}, torch.full((5,), 0.5))
    assert not alone["has_audio"].any()


def pretraining(world: int = 1, rank: int = 0, **objective: float) -> Pretraining:
    network = autoencoder("avmae", may_lack=("video", "audio"))
    task = Pretraining(network, OptimSpec(base_lr=1.0), {}, objective=ObjectiveSpec(**objective))
    task.trainer = SimpleNamespace(world_size=world, global_rank=rank, accumulate_grad_batches=1, global_step=0)
    return task


def clips_of(has_audio: tuple[bool, ...]) -> dict[str, Tensor]:
    clips = len(has_audio)
    return batch(has_audio) | {"label": torch.zeros(clips, dtype=torch.long), "clip_id": torch.arange(clips)}


def test_what_is_hidden_whole_does_not_depend_on_how_a_step_is_cut() -> None:
    def shown(world: int, rank: int, part: int, parts: int) -> Tensor:
        task, found = pretraining(world, rank, hide_audio=0.5), []
        task.network.register_forward_pre_hook(lambda _, arguments: found.append(arguments[2]["audio"]))
        task.reconstruct(clips_of((True,) * 8), seed=0, part=part, parts=parts, whole=True)
        return found[0]

    batches = torch.stack([shown(1, 0, part, 3) for part in range(3)])
    assert torch.equal(batches, torch.stack([shown(3, rank, 0, 1) for rank in range(3)]))
    assert len(batches.unique(dim=0)) == 3


@pytest.mark.parametrize("hidden", ["hide_audio", "hide_video"])
def test_what_is_hidden_whole_is_not_contrasted(hidden: str) -> None:
    contrast = []
    for share in (0.0, 1.0):
        task = pretraining(contrast=1.0, **{hidden: share})
        task.training_step(clips_of((True, True, True)), 0)
        _, means = task.report.reduce(world_size=1)
        contrast.append(float(means["train/loss_contrast"]))
    assert contrast[0] > 0
    assert contrast[1] == 0


@pytest.mark.parametrize("sounding", [True, False])
def test_without_sound_there_is_no_loss_on_sound(sounding: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    task, logged = pretraining(), set()
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.add(name))
    task.setup("fit")
    task.validation_step(clips_of((False, sounding)), 0)
    task.on_validation_epoch_end()
    assert logged == {"val/loss", "val/loss_video"} | ({"val/loss_audio"} if sounding else set())
