"""Draw `docs/degradations.png`: one clip of the embedded data set under each degradation of the study."""

import sys
from pathlib import Path

import torch

from avmae import read_clip
from avmae.clip import ClipSpec
from avmae.data.degrade import OF_VIDEO, SEVERITIES, Degradation, degrade_video
from avmae.viewing.images import contact_sheet


def main(file: str, output: str) -> None:
    """Write a row for each kind, the mildest severity first."""
    clip = ClipSpec(frames=8, size=224)
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (clip.pixel_mean, clip.pixel_std))
    video = (read_clip(file, clip)["video"] * std + mean).clamp(0, 1)
    rows = []
    for kind in OF_VIDEO:
        degraded = [degrade_video(video, Degradation(kind, s), torch.tensor([0])) for s in SEVERITIES[kind]]
        frames = [(v[0, :, 5].permute(1, 2, 0) * 255).round().byte().numpy() for v in (video, *degraded)]
        rows.append((f"{kind}: none, {', '.join(f'{s:g}' for s in SEVERITIES[kind])}", frames))
    contact_sheet(Path(file).name, rows).quantize(192).save(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
