"""RandAugment against timm's policy on Pillow's images, operation by operation and in distribution."""

import random
from collections import defaultdict

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from torch import Tensor

from avmae.clip import ClipSpec
from avmae.data.augment import AugmentSpec, center_boxes, cut_boxes
from avmae.data.datamodule import BatchTransform
from avmae.data.dataset import collate, make_sample
from avmae.data.decode.window import Window
from avmae.data.rand_augment import (
    ARGUMENTS,
    Operation,
    apply_operations,
    draw_operations,
    rand_augment,
)

VIDEOMAE = "rand-m7-n4-mstd0.5-inc1"
STRONG = AugmentSpec(rand_operations=4)
HEIGHT, WIDTH = 30, 40


@pytest.fixture
def frames() -> Tensor:
    """(2, 2, H, W, 3): one view of noise and one of smooth gradients of little contrast, no two frames alike."""
    noise = torch.randint(0, 256, (2, HEIGHT, WIDTH, 3), generator=torch.Generator().manual_seed(0))
    y, x = torch.meshgrid(torch.linspace(0, 6, HEIGHT), torch.linspace(0, 8, WIDTH), indexing="ij")
    smooth = torch.stack(
        [torch.stack([(x + t + c).sin() * 40 + (y * c).cos() * 30 + 110 for c in range(3)], -1) for t in range(2)]
    )
    return torch.stack([noise, smooth.long()]).to(torch.uint8)


def reference(frame: Tensor, operation: Operation) -> np.ndarray:
    arguments = () if auto_augment.LEVEL_TO_ARG[operation.name] is None else (operation.argument,)
    # VideoMAE passes no mean, so that it fills with grey, and train_interpolation=bicubic.
    how = {"resample": Image.Resampling.BICUBIC, "fillcolor": (128, 128, 128)}
    return np.asarray(auto_augment.NAME_TO_OP[operation.name](Image.fromarray(frame.numpy()), *arguments, **how))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_operation_is_pillows_within_rounding(name: str, frames: Tensor) -> None:
    for level, sign in ((0.05, 1), (0.62, 1), (0.7, -1), (0.85, 1), (1.0, -1)):
        operation = Operation(name, ARGUMENTS[name](level, sign))
        found = apply_operations(frames, [WIDTH] * 2, [[operation]] * 2).numpy().astype(int)
        expected = np.stack([[reference(frame, operation) for frame in view] for view in frames])
        assert np.abs(found - expected).max() <= 1
        # Pillow's tables are of doubles cut off, so whole numbers may fall by one.
        assert (found != expected).mean() < (0.05 if name == "AutoContrast" else 0.005)


def test_flat_frames_have_no_contrast_to_stretch() -> None:
    flat = torch.full((1, 2, 4, 6, 3), 77, dtype=torch.uint8)
    for name in ("AutoContrast", "Equalize"):
        assert torch.equal(apply_operations(flat, [6], [[Operation(name)]]), flat)


def test_operations_follow_each_other(frames: Tensor) -> None:
    chain = [Operation("SolarizeAdd", 77), Operation("Rotate", 12.0), Operation("Invert"), Operation("ShearX", -0.2)]
    found = apply_operations(frames, [WIDTH] * 2, [chain, []])
    expected = frames[0, 1]
    for operation in chain:
        expected = torch.from_numpy(reference(expected, operation).copy())
    assert (found[0, 1].int() - expected.int()).abs().max() <= 2
    assert torch.equal(found[1], frames[1])


def drawn_by_timm(calls: int) -> dict[str, list[float]]:
    """Arguments by operation that timm's policy applies."""
    found = defaultdict(list)
    # As VideoMAE sets it up; the string's mstd adds magnitude_std.
    policy = auto_augment.rand_augment_transform(VIDEOMAE, {"interpolation": Image.Resampling.BICUBIC})
    for op in policy.ops:
        op.aug_fn = lambda image, *arguments, name=op.name, **_: found[name].append((*arguments, 0.0)[0]) or image
    random.seed(0)
    np.random.seed(0)
    for _ in range(calls):
        policy(Image.new("RGB", (1, 1)))
    return found


def test_operations_and_arguments_are_distributed_as_timms() -> None:
    calls = 8000
    ours, theirs = defaultdict(list), drawn_by_timm(calls)
    counts = np.zeros(5)
    for seed in range(calls):
        operations = draw_operations(seed, STRONG)
        counts[len(operations)] += 1
        for name, argument in operations:
            ours[name].append(argument)
    # Of four, each is applied with probability 1/2.
    assert np.abs(counts / calls - np.array([1, 4, 6, 4, 1]) / 16).max() < 0.025
    assert ours.keys() == theirs.keys() == ARGUMENTS.keys()
    for name in ARGUMENTS:
        expected = calls * 4 / 2 / 15
        for values in (ours[name], theirs[name]):
            assert abs(len(values) - expected) < 5 * expected**0.5
        a, b = np.array(ours[name], float), np.array(theirs[name], float)
        points = np.unique(np.concatenate([a, b]))
        # Kolmogorov-Smirnov's distance, at a level of about 1e-6.
        distance = np.abs([(a <= point).mean() - (b <= point).mean() for point in points]).max()
        assert distance < 2.7 * (1 / len(a) + 1 / len(b)) ** 0.5, name
    assert set(ours["PosterizeIncreasing"]) <= {0, 1, 2, 3}
    assert np.median(ours["PosterizeIncreasing"]) == 2


def test_magnitudes_are_clipped() -> None:
    for magnitude, argument in ((10.0, 30.0), (0.0, 0.0)):
        spec = AugmentSpec(rand_operations=60, rand_magnitude=magnitude, rand_std=0.5)
        angles = [abs(o.argument) for seed in range(30) for o in draw_operations(seed, spec) if o.name == "Rotate"]
        assert max(angles) <= 30
        assert 0.3 < np.mean(np.isclose(angles, argument)) < 0.7


def test_a_view_depends_on_its_seed_alone(frames: Tensor) -> None:
    window, before = frames[:1], torch.get_rng_state()
    together = rand_augment(frames, [WIDTH] * 2, list(range(20)), STRONG)
    assert together.shape == (20, 2, HEIGHT, WIDTH, 3)
    assert torch.equal(torch.get_rng_state(), before)
    for seed in range(10):
        assert torch.equal(rand_augment(window, [WIDTH], [seed], STRONG)[0], together[seed])
    assert len(together[:10].flatten(1).unique(dim=0)) > 5


def test_padding_is_no_part_of_a_frame(frames: Tensor) -> None:
    padded = torch.cat([frames, frames[:, :, :, -1:].expand(-1, -1, -1, 7, -1)], 3)
    seeds = list(range(30))
    found = rand_augment(padded, [WIDTH] * 2, seeds, STRONG)
    expected = rand_augment(frames, [WIDTH] * 2, seeds, STRONG)
    assert torch.equal(found[:, :, :, :WIDTH], expected)
    assert torch.equal(found[:, :, :, WIDTH:], expected[:, :, :, -1:].expand(-1, -1, -1, 7, -1))


def test_whole_frames_are_augmented_and_then_cut() -> None:
    clip = ClipSpec(frames=2, stride=8, size=16)
    pixels = torch.randint(0, 256, (2, 20, 32, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    window = Window(pixels.numpy(), np.zeros(clip.samples, np.float32), False, 0.0, 1.6)
    boxes = [(0.0, 0.0, 0.5, 0.8), (0.9, 0.1, 0.2, 0.9)]
    seeds = [seed for seed in range(200) if len(draw_operations(seed, STRONG)) == 4][:2]
    sample = collate([make_sample(window, boxes, 0, seeds=seeds)])
    video = BatchTransform(clip, STRONG)(sample)["video"]
    augmented = rand_augment(pixels[None], [32], seeds, STRONG)
    expected = cut_boxes(augmented, torch.tensor(boxes)[:, None], torch.tensor([False] * len(boxes)), clip.size)
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (clip.pixel_mean, clip.pixel_std))
    torch.testing.assert_close(video, (expected - mean) / std)

    plain = collate([make_sample(window, center_boxes(1.6, 2), 0)])
    unchanged = BatchTransform(clip)(plain)["video"]
    torch.testing.assert_close(BatchTransform(clip, STRONG)(plain)["video"], unchanged)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_gives_what_the_cpu_gives_and_is_not_waited_for(frames: Tensor) -> None:
    seeds = list(range(40))
    expected, on_gpu = rand_augment(frames, [WIDTH] * 2, seeds, STRONG), frames.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = rand_augment(on_gpu, [WIDTH] * 2, seeds, STRONG)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ((found.cpu().int() - expected.int()).abs() > 1).float().mean() < 0.01
