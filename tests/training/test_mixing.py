from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from avmae.errors import InputError
from avmae.training import classification
from avmae.training.classification import Classification
from avmae.training.mixing import MixSpec, _box, mix
from avmae.training.optim import OptimSpec

MEL_STD = 4.0
CLASSES = 5


def batch(has_audio: list[bool]) -> dict:
    generator = torch.Generator().manual_seed(0)
    clips = len(has_audio)
    return {
        "video": torch.rand(clips, 3, 2, 16, 16, generator=generator),
        "audio": torch.randn(clips, 1, 8, 4, generator=generator),
        "has_audio": torch.tensor(has_audio),
        "label": torch.arange(clips),
        "clip_id": torch.arange(clips),
    }


def draw(spec: MixSpec, has_audio: list[bool], seed: int = 0) -> tuple[dict, torch.Tensor]:
    return mix(batch(has_audio), CLASSES, spec, np.random.default_rng(seed), MEL_STD)


def test_without_mixing_the_target_is_the_label() -> None:
    clips = batch([True, False])
    mixed, target = mix(clips, CLASSES, MixSpec(), np.random.default_rng(0), MEL_STD)
    assert mixed is clips
    assert target.tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]


@pytest.mark.parametrize("spec", [MixSpec(mixup=0.8), MixSpec(cutmix=1.0), MixSpec(mixup=0.8, cutmix=1.0)])
@pytest.mark.parametrize("seed", range(4))
def test_the_target_holds_each_clip_by_its_share(spec: MixSpec, seed: int) -> None:
    _, target = draw(spec, [True] * 4, seed)
    share = target[0, 0]
    assert 0 <= share <= 1
    assert_close(target.sum(1), torch.ones(4))
    for clip in range(4):
        assert_close(target[clip, clip], share)
        assert_close(target[clip, 3 - clip], 1 - share)


def test_mixup_averages_pictures_and_the_power_of_sounds() -> None:
    clips = batch([True, True])
    mixed, target = draw(MixSpec(mixup=0.8), [True, True])
    share = target[0, 0]
    assert_close(mixed["video"][0], share * clips["video"][0] + (1 - share) * clips["video"][1])
    power = (clips["audio"] * MEL_STD).exp()
    assert_close((mixed["audio"][0] * MEL_STD).exp(), share * power[0] + (1 - share) * power[1])


def test_cutmix_takes_the_same_box_of_all_pictures_and_counts_its_area() -> None:
    clips = batch([True, True])
    mixed, target = draw(MixSpec(cutmix=1.0), [True, True], seed=3)
    from_other = (mixed["video"][0] == clips["video"][1]).all(0)
    from_own = (mixed["video"][0] == clips["video"][0]).all(0)
    assert (from_other ^ from_own).all()
    assert torch.equal(from_other[0], from_other[1])
    rows, columns = from_other[0].any(1).sum(), from_other[0].any(0).sum()
    assert from_other[0].sum() == rows * columns > 0
    assert_close(target[0, 1], from_other[0].float().mean())


@pytest.mark.parametrize("share", [0.02, 0.3, 0.55, 0.81, 0.99])
def test_the_box_is_videomaes(share: float) -> None:
    """And timm's of that time; today's is a row and a column larger where their number is odd."""
    height, width = 224, 168
    for place in (0.0, 0.3, 0.6, 0.99):
        rng = SimpleNamespace(integers=lambda high, at=place: int(at * high))
        box, found = _box(torch.Size((17, 3, 2, height, width)), share, rng)
        rows, columns = int(height * (1 - share) ** 0.5) // 2, int(width * (1 - share) ** 0.5) // 2
        y, x = int(place * height), int(place * width)
        assert box == (max(0, y - rows), min(height, y + rows), max(0, x - columns), min(width, x + columns))
        top, bottom, left, right = box
        assert found == 1 - (bottom - top) * (right - left) / (height * width)


def test_each_process_draws_its_own_share(monkeypatch: pytest.MonkeyPatch) -> None:
    def share(rank: int, step: int) -> float:
        network = nn.Module()
        network.forward = lambda batch: torch.zeros(2, CLASSES, requires_grad=True)
        network.encoder, network.classes, network.many_labels = SimpleNamespace(modalities={}), CLASSES, False
        network.clip = SimpleNamespace(mel_std=MEL_STD)
        task, targets = Classification(network, OptimSpec(base_lr=1.0), {}, mixing=MixSpec(mixup=0.8)), []
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=step))
        task.trainer = SimpleNamespace(world_size=2, global_rank=rank, fit_loop=loop)
        mixed = lambda *arguments: targets.append(mix(*arguments)) or targets[-1]  # noqa: E731
        monkeypatch.setattr(classification, "mix", mixed)
        task.training_step(batch([True, True]), 0)
        return float(targets[0][1][0, 0])

    assert share(0, 5) == share(0, 5)
    assert len({share(0, 5), share(1, 5), share(0, 6), share(1, 6)}) == 4


def test_silence_adds_nothing_and_is_no_sound_of_its_own() -> None:
    clips = batch([True, False, False, False])
    mixed, target = draw(MixSpec(mixup=0.8), [True, False, False, False])
    share = float(target[0, 0])
    assert mixed["has_audio"].tolist() == [True, False, False, True]
    assert_close(mixed["audio"][0], clips["audio"][0] + np.log(share) / MEL_STD)
    assert_close(mixed["audio"][3], clips["audio"][0] + np.log(1 - share) / MEL_STD)
    assert torch.equal(mixed["audio"][1:3], clips["audio"][1:3])


def test_both_kinds_are_drawn() -> None:
    def is_cut(seed: int) -> bool:
        clips = batch([True, True])["video"]
        mixed = draw(MixSpec(mixup=0.8, cutmix=1.0), [True, True], seed)[0]["video"]
        return bool(((mixed[0] == clips[0]) | (mixed[0] == clips[1])).all())

    assert {is_cut(seed) for seed in range(12)} == {True, False}


def test_values_out_of_range_are_refused() -> None:
    for wrong in ({"mixup": -1.0}, {"cutmix": -0.1}, {"switch": 2.0}):
        with pytest.raises(InputError, match=r"task\.mix"):
            MixSpec(**wrong)
