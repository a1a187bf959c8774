"""The controls' numbers, on clips of which it is known what gives them away."""

from types import SimpleNamespace

import pytest
import torch

from avmae.evaluation.controls import audio_features, controls, video_features
from avmae.evaluation.probes import linear_hits


def test_a_linear_model_tells_sides_and_takes_the_commonest_class_where_it_sees_nothing() -> None:
    sides = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1])
    test = torch.tensor([[-3.0], [3.0], [0.5], [-0.5]]), torch.tensor([0, 1, 0, 1])
    assert linear_hits(sides, test, classes=2).float().mean() == 0.5
    nothing = torch.zeros(4, 1), torch.tensor([2, 2, 0, 2])
    assert linear_hits(nothing, (torch.zeros(4, 1), torch.tensor([2, 0, 2, 2])), classes=3).float().mean() == 0.75


def clips(part: str) -> dict:
    """Four of each of four classes: 0 and 1 have sound and differ by its loudness, 0 and 2 flicker, 1 and 3 do not.

    A seventeenth clip is there only to fill the batch, and says the contrary of all.
    """
    generator = torch.Generator().manual_seed(len(part))
    label = torch.arange(17) % 4
    flicker = (label % 2 == 0).float()
    flicker[16] = 0
    video = torch.rand(17, 1, 1, 8, 8, generator=generator).expand(-1, 3, 8, -1, -1).clone()
    video[:, :, ::2] += flicker[:, None, None, None, None]
    loud = torch.where(label == 0, 3.0, -3.0)
    audio = loud[:, None, None, None] + 0.1 * torch.randn(17, 1, 64, 4, generator=generator)
    clip_id = torch.where(torch.arange(17) < 16, torch.arange(17), -1)
    return {
        "video": video,
        "audio": audio,
        "has_audio": label < 2,
        "label": label,
        "clip_id": clip_id,
        "unreadable": [],
    }


def test_controls_find_what_gives_classes_away() -> None:
    class Transform:
        def to(self, device):
            return lambda sample: sample

    # Clips of a store are no files.
    splits = SimpleNamespace(train=[SimpleNamespace(path=1)], test=[SimpleNamespace(path=1)])
    module = SimpleNamespace(
        classes=list("abcd"),
        splits=splits,
        transform=Transform(),
        part_loader=lambda part, partners: [clips(part)],
        transfer_batch_to_device=lambda sample, device, number: sample,
    )
    found = controls(module)
    assert found == pytest.approx(
        {
            "chance": 0.25,
            # One of two classes with sound, one of two without.
            "has_sound": 0.5,
            # Pictures leave a pair each, one of which sounds.
            "pictures": 0.5,
            "pictures/sound": 1.0,
            "pictures/silent": 1.0,
            # Sound tells the two that have it, and of the others one.
            "sound": 0.75,
            "sound/sound": 1.0,
            "sound/silent": 0.5,
        }
    )


def test_features_are_what_they_are_called() -> None:
    video = torch.zeros(1, 3, 4, 16, 16)
    video[:, :, 1::2, :2, :2] = 1.0
    features = video_features({"video": video})[0]
    # The first of 8x8 cells goes from 0 to 1 and back: deviation of 0, 1, 0, 1, and a change of 1 each time.
    assert features[0] == pytest.approx((1 / 3) ** 0.5)
    assert features[64] == 1
    assert features[1:64].abs().sum() == features[65:128].abs().sum() == 0
    # Three changes of 1 / 64 of the picture: no rhythm but the mean.
    torch.testing.assert_close(features[128:], torch.tensor([3 / 64, 0.0]), atol=1e-6, rtol=0)
    audio = torch.tensor([1.0, 3.0] * 40).view(1, 1, 80, 1).expand(2, -1, -1, 3)
    heard, silent = audio_features({"audio": audio, "has_audio": torch.tensor([True, False])})
    torch.testing.assert_close(heard[:3], torch.full((3,), 2.0))
    torch.testing.assert_close(heard[3:6], torch.full((3,), (80 / 79) ** 0.5))
    assert not silent.any()
