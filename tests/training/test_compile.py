"""One compilation a run: whatever is hidden, heard or dropped, the shapes stay."""

import copy
import dataclasses
import os
import shutil

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch._inductor.utils import run_and_get_code

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


@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler: g++, or what CXX names"
)
def test_inductor_compiles_once_cuts_patches_once_and_computes_as_without_it() -> None:
    torch._dynamo.reset()
    counters.clear()
    eager = build_autoencoder(CLIP, SYSTEMS["videomae"], dataclasses.replace(SIZE, depth=1), MaskSpec())
    compiled = copy.deepcopy(eager)
    compiled.compile()

    def step(network: torch.nn.Module, number: int) -> torch.Tensor:
        network.zero_grad()
        loss = network(batch(number), eager.draw_masks(2, torch.Generator().manual_seed(number))).loss
        loss.backward()
        return loss.detach()

    # Its pool of compiling processes would outlast the test.
    with inductor.patch(compile_threads=1, fx_graph_cache=False):
        _, code = run_and_get_code(step, compiled, 0)
    for number in (1, 2):
        torch.testing.assert_close(step(compiled, number), step(eager, number), rtol=1e-5, atol=0)
        for (name, expected), found in zip(eager.named_parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert (counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())) == (1, 0)
    # Where a masked token lies in the frames takes divisions, which would be made for every number that is read.
    assert not any("div_floor_integer(static_cast<int64_t>(tmp" in kernel for kernel in code)
