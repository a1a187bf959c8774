"""Sound that is taken away or exchanged in training."""

import torch

from avmae.clip import ClipSpec
from avmae.data.datamodule import Batch
from avmae.models.build import ModelSpec, SizeSpec, build_classifier
from avmae.training.classification import Classification
from avmae.training.optim import OptimSpec


def test_sound_is_dropped_below_one_share_and_exchanged_below_the_next() -> None:
    clip = ClipSpec(frames=2, size=32, mel_bins=32)
    size = SizeSpec("tiny", dim=16, depth=1, heads=1, audio_depth=1, decoder_dim=16, decoder_depth=1, decoder_heads=1)
    network = build_classifier(clip, ModelSpec("avmae"), size, classes=3)
    task = Classification(network, OptimSpec(base_lr=1.0), {}, drop_audio=0.3, swap_audio=0.3)
    label, has_audio = torch.tensor([0, 0, 1, 2, 1]), torch.tensor([True, True, True, False, True])
    audio = torch.arange(5.0).view(5, 1, 1, 1).expand(-1, 1, 2, 2)
    batch = Batch(
        video=torch.zeros(5, 3, 2, 32, 32),
        audio=audio,
        has_audio=has_audio,
        label=label,
        clip_id=torch.arange(5),
        view=torch.zeros(5, dtype=torch.long),
        windows=5,
        unreadable=[],
    )
    changed = task.change_sound(batch, torch.tensor([0.1, 0.5, 0.9, 0.5, 0.5]))
    # Clip 1 hears clip 2, the next of another class; clip 4 passes over clip 3, which is silent, to clip 0.
    assert changed["has_audio"].tolist() == [False, True, True, False, True]
    assert changed["audio"][:, 0, 0, 0][[1, 2, 4]].tolist() == [2, 2, 0]
    assert changed["video"] is batch["video"]
    assert batch["has_audio"].tolist() == has_audio.tolist()

    # Where all that sounds is of one class, there is nothing to exchange.
    alone = task.change_sound({**batch, "label": torch.zeros(5, dtype=torch.long)}, torch.full((5,), 0.5))
    assert not alone["has_audio"].any()
