"""Test a model at a size or length that it was not trained at, with its fixed positions made in three ways.

Renumbered: the table that a new model computes for the other grid. Interpolated: the table of the training grid,
interpolated as `start_from` does, for a shorter clip its beginning. Stretched: the same, but for a shorter clip all of
it. Prints the mean squared error of masked patches, in plain pixels, on clips that were not trained on.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from avmae import read_clip
from avmae.clip import ClipSpec
from avmae.data.embedded.synthetic import write_synthetic
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.build import MaskSpec, ModelSpec, SizeSpec, build_autoencoder
from avmae.models.fit import interpolated_positions
from avmae.models.tokens import resample_positions
from avmae.training.optim import OptimSpec, build_optimizer, warmup_cosine

TRAINED = ClipSpec(frames=8, size=64, mel_bins=32)
TESTED = {
    "as trained": TRAINED,
    "48 px": dataclasses.replace(TRAINED, size=48),
    "80 px": dataclasses.replace(TRAINED, size=80),
    "96 px": dataclasses.replace(TRAINED, size=96),
    "4 frames": dataclasses.replace(TRAINED, frames=4),
    "4 frames, stride 8": dataclasses.replace(TRAINED, frames=4, stride=8),
    "12 frames": dataclasses.replace(TRAINED, frames=12),
}
SIZE = SizeSpec("mini", dim=64, depth=4, heads=4, audio_depth=1, decoder_dim=64, decoder_depth=1, decoder_heads=4)
BATCH = 16
WAYS = ("renumbered", "interpolated", "stretched")


def build(clip: ClipSpec, kind: str) -> MaskedAutoencoder:
    model = ModelSpec("videomae", ("video",), "none", positions=kind, video_patch=(2, 8, 8), normalize_target=False)
    return build_autoencoder(clip, model, SIZE, MaskSpec())


def train(kind: str, videos: Tensor, steps: int, seed: int) -> MaskedAutoencoder:
    torch.manual_seed(seed)
    network, spec = build(TRAINED, kind), OptimSpec(base_lr=0.1, kind="muon", warmup=0.05)
    optimizer = build_optimizer(network, spec, BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(spec, steps))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        video = videos[torch.randint(len(videos), (BATCH,), generator=generator)]
        flipped = torch.rand(BATCH, generator=generator) < 0.5
        video = torch.where(flipped[:, None, None, None, None], video.flip(-1), video)
        loss(network, video, generator).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return network.eval()


def loss(network: MaskedAutoencoder, video: Tensor, generator: torch.Generator) -> Tensor:
    batch = {"video": video, "has_audio": torch.zeros(len(video), dtype=torch.bool)}
    return network(batch, network.draw_masks(len(video), generator)).loss


@torch.no_grad()
def test(trained: MaskedAutoencoder, clip: ClipSpec, kind: str, way: str, videos: Tensor) -> float:
    network, state = build(clip, kind).eval(), trained.state_dict()
    weights = {name: value for name, value in state.items() if not name.endswith(".positions")}
    old, new = (n.encoder.modalities["video"].grid for n in (trained, network))
    if way == "interpolated":
        weights |= interpolated_positions(state, kind, {"video": old}, network)
    elif way == "stretched":
        tables = state.keys() - weights.keys()
        weights |= {name: resample_positions(state[name], old.size, new.size) for name in tables}
    network.load_state_dict(weights, strict=False)
    generator = torch.Generator().manual_seed(0)
    return float(torch.stack([loss(network, part, generator) for part in videos.split(BATCH)]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", default="flat", choices=["flat", "axes"])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_synthetic(folder, groups=10, clips_per_group=2)
        files = sorted(Path(folder).glob("UCF-101/*/*.avi"))
        tested, trained = files[::4], [file for number, file in enumerate(files) if number % 4]
        videos = torch.cat([read_clip(file, TRAINED, position)["video"] for file in trained for position in (0, 1)])
        tests = {n: torch.cat([read_clip(file, clip)["video"] for file in tested]) for n, clip in TESTED.items()}
    print(f"{'seed, tested at':24}" + "".join(f"{way:>14}" for way in WAYS))
    found: dict[str, list[list[float]]] = {name: [] for name in TESTED}
    for seed in range(arguments.seeds):
        model = train(arguments.positions, videos, arguments.steps, seed)
        for name, clip in TESTED.items():
            found[name].append([test(model, clip, arguments.positions, way, tests[name]) for way in WAYS])
            print(f"{seed}, {name:21}" + "".join(f"{value:14.3f}" for value in found[name][-1]), flush=True)
    for name, rows in found.items():
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        print(f"mean, {name:18}" + "".join(f"{value:14.3f}" for value in means))


if __name__ == "__main__":
    main()
