"""`python -m avmae.stats data=ucf101 data.root=DIR`: by what pixels and spectrograms should be normalised."""

import dataclasses
from typing import Any

from avmae.cli.command import command
from avmae.cli.config import construct, spec
from avmae.errors import InputError


@command("stats")
def main(config: dict[str, Any]) -> None:
    """Print means and deviations over one window each of training clips; see `python -m avmae.stats --help`."""
    import numpy as np
    import torch
    from rich.console import Console
    from rich.progress import track

    from avmae.clip import ClipSpec
    from avmae.data.spectrogram import LogMel

    clip = spec(ClipSpec, "clip", config["clip"])
    datamodule = construct("data", config["data"], clip=clip, seed=config["seed"])
    entries = datamodule.splits.train
    if not entries:
        raise InputError("the data set has no training clips; set data.train")
    limit = min(config["limit"] or len(entries), len(entries))
    chosen = np.random.default_rng(config["seed"]).permutation(len(entries))[:limit]
    datamodule.splits = dataclasses.replace(datamodule.splits, train=[entries[i] for i in sorted(chosen)])
    # Clip by clip, for frames of different widths are padded in a batch.
    datamodule.batch_size = datamodule.segments = datamodule.crops = 1
    mel = LogMel(dataclasses.replace(clip, mel_mean=0.0, mel_std=1.0))
    # Sums of values, of their squares, and how many: in float64, of differences of means of many numbers.
    pixels, sounds = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    failed = set()
    for sample in track(datamodule.part_loader("train"), "Reading", console=Console(stderr=True)):
        kept = sample["clip_id"] >= 0
        failed.update(sample["unreadable"])
        values = sample["frames"][kept].double().div(255).flatten(0, 3)
        pixels += torch.stack([values.sum(0), values.square().sum(0), torch.full((3,), float(len(values)))])
        heard = kept & sample["has_audio"]
        if not heard.any():
            continue
        levels = mel(sample["waveform"][heard]).double().flatten()
        sounds += torch.stack([levels.sum(), levels.square().sum(), torch.tensor(float(len(levels)))])
    if not pixels[2, 0]:
        raise InputError(f"none of {limit} training clips can be read: {sorted(failed)[0]}")
    mean, mel_mean = pixels[0] / pixels[2], sounds[0] / sounds[2]
    std, mel_std = (pixels[1] / pixels[2] - mean**2).sqrt(), (sounds[1] / sounds[2] - mel_mean**2).sqrt()
    print(f"# over {limit - len(failed)} training clips")
    print(f"pixel_mean: [{', '.join(f'{x:.3f}' for x in mean)}]")
    print(f"pixel_std: [{', '.join(f'{x:.3f}' for x in std)}]")
    if sounds[2]:
        print(f"mel_mean: {mel_mean:.2f}\nmel_std: {mel_std:.2f}")
    else:
        print("# none of them has sound")


if __name__ == "__main__":
    main()
