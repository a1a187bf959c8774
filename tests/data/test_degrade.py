import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from miniature_data import miniature_data
from torch import Tensor
from torch.testing import assert_close

from avmae.clip import ClipSpec
from avmae.data.datamodule import ClipDataModule
from avmae.data.degrade import SEVERITIES, Degradation, all_degradations, degrade_audio, degrade_video
from avmae.errors import InputError

SEEDS = torch.tensor([3, 4])


@pytest.fixture
def video() -> Tensor:
    """Two clips of six frames of 56 px, full of detail."""
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
    waveform = torch.randn(2, 10_000, generator=torch.Generator().manual_seed(1))
    has_audio, other = torch.tensor([True, True]), (waveform.flip(0), torch.tensor([True, True]))
    frames = degrade_video(video, degradation, SEEDS)
    heard, audible = degrade_audio(waveform, has_audio, degradation, SEEDS, 16_000, other)
    assert frames.shape == video.shape
    assert_close(degrade_video(video, degradation, SEEDS), frames, rtol=0, atol=0)
    assert_close(
        degrade_audio(waveform, has_audio, degradation, SEEDS, 16_000, other), (heard, audible), rtol=0, atol=0
    )
    same_video, same_audio = (
        torch.equal(frames, video),
        torch.equal(heard, waveform) and torch.equal(audible, has_audio),
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


def test_lost_frames_show_the_one_before(video: Tensor) -> None:
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
    heard, has_audio = degrade_audio(waveform, torch.tensor([True, True]), Degradation("noise", ratio), SEEDS, 16_000)
    noise = heard - waveform
    measured = 10 * torch.log10(waveform.square().mean(1) / noise.square().mean(1))
    assert_close(measured, torch.full((2,), float(ratio)), atol=0.2, rtol=0)
    assert has_audio.all()


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


def swapped(module: ClipDataModule, rank: int = 0, world: int = 1, kind: str = "swap") -> dict[tuple[int, int], Tensor]:
    """By clip and view, the audio of another clip; zeros where the clip falls silent."""
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    found = {}
    for sample in module.part_loader("test", [kind]):
        own, other = (sample["waveform"], sample["has_audio"]), sample["others"][kind]
        heard, has_audio = degrade_audio(*own, Degradation(kind), SEEDS, 16_000, other)
        assert not (has_audio & ~sample["has_audio"]).any()
        keys = zip(sample["clip_id"].tolist(), sample["view"].tolist(), strict=True)
        found |= {key: wave * has for key, wave, has in zip(keys, heard, has_audio, strict=True) if key[0] >= 0}
    return found


def test_swapped_audio_is_another_class_s_whatever_the_batches_processes_and_segments(miniature: Path) -> None:
    def module(**settings: int) -> ClipDataModule:
        return miniature_data(miniature, ClipSpec(frames=4), **settings)

    first = swapped(module(batch_size=28, workers=0))
    cut = [swapped(module(batch_size=3, workers=1, seed=1), rank, 2) for rank in range(2)]
    assert all(torch.equal(heard, first[key]) for part in cut for key, heard in part.items())
    assert cut[0].keys() | cut[1].keys() == first.keys()
    segments = swapped(module(batch_size=5, workers=0, segments=3))
    assert all(torch.equal(heard, segments[clip, 1]) for (clip, _), heard in first.items())

    plain = module(batch_size=28, workers=0)
    batch = next(iter(plain.part_loader("test")))
    entries, donors = plain.splits.test, set()
    for clip in range(len(entries)):
        heard = first[clip, 0]
        assert bool(heard.any()) == bool(batch["has_audio"][clip])
        if heard.any():
            (donor,) = [n for n in range(len(entries)) if torch.equal(batch["waveform"][n], heard)]
            assert entries[donor].label != entries[clip].label
            donors.add(donor)
    assert len(donors) > 4


def test_without_a_clip_of_another_class_that_sounds_a_clip_falls_silent(miniature: Path) -> None:
    module = miniature_data(miniature, ClipSpec(frames=4), batch_size=28, workers=0)
    audible = next(iter(module.part_loader("test")))["has_audio"]
    entries = module.splits.test
    one = next(e.label for e, has_audio in zip(entries, audible, strict=True) if has_audio)
    kept = [e for e, has_audio in zip(entries, audible, strict=True) if e.label == one or not has_audio]
    module.splits = replace(module.splits, test=kept)
    assert not any(heard.any() for heard in swapped(module).values())


def test_audio_of_the_same_scene_is_another_clip_s_of_the_class_and_group(miniature: Path) -> None:
    module = miniature_data(miniature, ClipSpec(frames=4), batch_size=28, workers=0)
    assert not any(heard.any() for heard in swapped(module, kind="scene").values()), "each group has one clip"
    # Of two groups one.
    merged = [replace(entry, group=str(int(entry.group.strip("g")) // 2)) for entry in module.splits.test]
    module.splits = replace(module.splits, test=merged)
    batch = next(iter(module.part_loader("test")))
    for (clip, _), heard in swapped(module, kind="scene").items():
        mates = [n for n, e in enumerate(merged) if (e.label, e.group) == (merged[clip].label, merged[clip].group)]
        mates.remove(clip)
        assert bool(heard.any()) == (bool(batch["has_audio"][clip]) and len(mates) > 0)
        if heard.any():
            assert any(torch.equal(batch["waveform"][mate], heard) for mate in mates)


def test_shifted_audio_is_late_by_that_many_seconds() -> None:
    own = torch.arange(2 * 32.0).view(2, 32)
    has_audio = torch.tensor([True, False])
    late, still = degrade_audio(own, has_audio, Degradation("shift", 0.25), SEEDS, 16)
    assert torch.equal(late[:, 4:], own[:, :-4])
    assert torch.equal(late[:, :4], own[:, -4:])
    assert torch.equal(still, has_audio)
