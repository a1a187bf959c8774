"""One compilation a run: whatever is hidden, heard or dropped, the shapes stay."""

import pytest
import torch
from torch._dynamo.utils import counters

from avmae.clip import ClipSpec
from avmae.models.build import MaskSpec, ModelSpec, SizeSpec, build_autoencoder, build_classifier

CLIP = ClipSpec(frames=4, size=32, mel_bins=32)
SIZE = SizeSpec("tiny", dim=16, depth=2, heads=2, audio_depth=1, decoder_dim=16, decoder_depth=1, decoder_heads=2)
SYSTEMS = {
    "imagemae": ModelSpec("imagemae", modalities=("video",), fusion="none", frames_apart=True),
    "videomae": ModelSpec("videomae", modalities=("video",), fusion="none"),
    "avmae_concat": ModelSpec("avmae_concat", fusion="concat"),
    "avmae": ModelSpec("avmae"),
}


def batch(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {
        "video": torch.randn(2, 3, CLIP.frames, CLIP.size, CLIP.size),
        "audio": torch.randn(2, 1, CLIP.spectrogram_frames, CLIP.mel_bins),
        "has_audio": torch.tensor([True, bool(seed % 2)]),
    }


@pytest.mark.parametrize("system", SYSTEMS)
def test_other_masks_and_silent_clips_compile_nothing_new(system: str) -> None:
    autoencoder = build_autoencoder(CLIP, SYSTEMS[system], SIZE, MaskSpec())
    classifier = build_classifier(CLIP, SYSTEMS[system], SIZE, classes=3)
    graphs = []
    for network in (autoencoder, classifier):
        torch._dynamo.reset()
        counters.clear()
        network.compile(backend="eager")
        for step in range(4):
            if network is autoencoder:
                masks = network.draw_masks(2, torch.Generator().manual_seed(step))
                network(batch(step), masks).loss.backward()
            else:
                network(batch(step)).sum().backward()
            graphs.append((counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())))
    assert graphs == [(1, 0)] * 8
