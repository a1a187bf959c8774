import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from avmae.clip import ClipSpec
from avmae.data.datamodule import UCF101DataModule
from avmae.data.degrade import SEVERITIES, Degradation, all_degradations, degrade_sound, degrade_video
from avmae.errors import InputError

SEEDS = torch.tensor([3, 4])


@pytest.fixture
def video() -> Tensor:
    """Two clips of six pictures of 56 px, full of detail."""
    return torch.rand(2, 3, 6, 56, 56, generator=torch.Generator().manual_seed(0))


def error(video: Tensor, kind: str, severity: float) -> float:
    return float((degrade_video(video, Degradation(kind, severity), SEEDS) - video).square().mean())


@pytest.mark.parametrize("kind", ["lowres", "blur", "motion", "jpeg", "drop"])
def test_each_severity_is_worse_than_the_one_before(kind: str, video: Tensor) -> None:
    smooth = torch.nn.functional.avg_pool3d(video, (1, 5, 5), 1, (0, 2, 2))
    errors = [error(smooth, kind, severity) for severity in SEVERITIES[kind]]
    assert errors[0] > 0
    assert errors == sorted(errors)


@pytest.mark.parametrize("degradation", all_degradations(), ids=str)
def test_one_modality_is_degraded_alike_each_time_and_the_other_left(degradation: Degradation, video: Tensor) -> None:
    waveform = torch.randn(2, 1000, generator=torch.Generator().manual_seed(1))
    has_audio, label = torch.tensor([True, True]), torch.tensor([0, 1])
    pictures = degrade_video(video, degradation, SEEDS)
    sound, sounding = degrade_sound(waveform, has_audio, label, degradation, SEEDS)
    assert pictures.shape == video.shape
    assert_close(degrade_video(video, degradation, SEEDS), pictures, rtol=0, atol=0)
    assert_close(degrade_sound(waveform, has_audio, label, degradation, SEEDS), (sound, sounding), rtol=0, atol=0)
    same_video, same_audio = (
        torch.equal(pictures, video),
        torch.equal(sound, waveform) and torch.equal(sounding, has_audio),
    )
    assert (same_video, same_audio) in {(True, False), (False, True)}


def test_low_resolution_leaves_no_detail_below_its_blocks(video: Tensor) -> None:
    checkers = 0.2 * (1 - 2 * ((torch.arange(56)[:, None] + torch.arange(56)) % 2))
    lowres = Degradation("lowres", 8)
    assert_close(degrade_video(video + checkers, lowres, SEEDS), degrade_video(video, lowres, SEEDS))
    assert_close(degrade_video(torch.full_like(video, 0.3), lowres, SEEDS), torch.full_like(video, 0.3))


@pytest.mark.parametrize(("kind", "severity"), [("blur", 8), ("motion", 16)])
def test_a_point_is_spread_as_far_as_stated(kind: str, severity: float) -> None:
    size = 112
    video = torch.zeros(1, 3, 1, size, size)
    video[..., 56, 56] = 1
    spread = degrade_video(video, Degradation(kind, severity), SEEDS[:1])[0, 0, 0]
    assert float(spread.sum()) == pytest.approx(1, abs=1e-3)
    y, x = torch.meshgrid(torch.arange(size) - 56.0, torch.arange(size) - 56.0, indexing="ij")
    variance = float((spread * (x**2 + y**2)).sum())
    pixels = severity * size / 224
    # Of a Gaussian on two axes, and of a uniform line in steps of at most a pixel.
    assert math.sqrt(variance) == pytest.approx(
        pixels * math.sqrt(2) if kind == "blur" else pixels / math.sqrt(12), rel=0.15
    )


def test_lost_pictures_show_the_one_before(video: Tensor) -> None:
    degraded = degrade_video(video, Degradation("drop", 0.5), SEEDS)
    for clip, original in zip(degraded, video, strict=True):
        shown = [next(t for t in range(6) if torch.equal(clip[:, time], original[:, t])) for time in range(6)]
        assert shown[0] == 0
        assert shown == sorted(shown)
        assert all(t in (shown[t], t) for t in shown)
        assert sum(source != time for time, source in enumerate(shown)) == 2  # half of the five that can be lost


@pytest.mark.parametrize("ratio", [20, 0, -10])
def test_noise_has_the_stated_power(ratio: float) -> None:
    waveform = torch.stack([torch.sin(torch.arange(20_000) / 9), 0.01 * torch.sin(torch.arange(20_000) / 5)])
    sound, has_audio = degrade_sound(
        waveform, torch.tensor([True, True]), torch.tensor([0, 1]), Degradation("noise", ratio), SEEDS
    )
    noise = sound - waveform
    measured = 10 * torch.log10(waveform.square().mean(1) / noise.square().mean(1))
    assert_close(measured, torch.full((2,), float(ratio)), atol=0.2, rtol=0)
    assert has_audio.all()


def test_swapped_sound_is_that_of_another_class() -> None:
    waveform = torch.arange(5.0)[:, None].expand(5, 10)
    has_audio = torch.tensor([True, True, False, True, True])
    label = torch.tensor([0, 0, 1, 2, 0])
    sound, sounding = degrade_sound(waveform, has_audio, label, Degradation("swap"), torch.arange(5))
    assert sound[:, 0].tolist()[:2] == [3, 3]  # not their neighbour of the same class, nor the silent clip
    assert sound[3, 0] == 4
    assert sound[4, 0] == 3
    assert sounding.tolist() == has_audio.tolist()
    _, alone = degrade_sound(waveform[:2], has_audio[:2], label[:2], Degradation("swap"), torch.arange(2))
    assert not alone.any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fog:3", "'fog' does not exist; there are lowres, blur"),
        ("blur:thick", "must be a number"),
        ("blur", "out of range; the study takes blur:2"),
        ("jpeg:101", "out of range"),
        ("drop:1", "out of range"),
        ("silence:3", "out of range; the study takes silence"),
    ],
)
def test_what_is_no_degradation_is_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Degradation.parse(text)


@pytest.mark.parametrize("degradation", all_degradations(), ids=str)
def test_names_are_read_back(degradation: Degradation) -> None:
    assert Degradation.parse(str(degradation)) == degradation


def test_every_model_is_tested_on_the_same_degraded_clips_whatever_its_seed(miniature: Path) -> None:
    modules = [UCF101DataModule(str(miniature), clip=ClipSpec(), seed=seed, workers=0) for seed in (0, 1)]
    # What is drawn for a clip, and whose sound it gets, follows from its place.
    first, second = (module.part_loader("test", mixed=True).dataset.entries for module in modules)
    assert first == second
    assert first != modules[0].splits.test


def test_a_batch_of_many_segments_is_not_of_few_clips(miniature: Path) -> None:
    module = UCF101DataModule(str(miniature), clip=ClipSpec(), segments=5, batch_size=7, workers=0)
    # Otherwise there would be no other clip whose sound could be taken.
    batches = list(module.part_loader("test", mixed=True).batch_sampler)
    assert all(len({request.index for request in batch}) == 7 for batch in batches)
