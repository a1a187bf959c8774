"""Speed and memory of a pretraining step of each system, against VideoMAE of Hugging Face's transformers.

A step is forward, backward, fused AdamW and zeroing the gradients, on inputs built beforehand. All systems of one size,
mask ratio and batch take turns in one process, so that other load on the machine affects all alike; medians are
compared. A matrix product takes its turn too: the share of its rate that a step reaches shows what is left to gain.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from avmae.clip import ClipSpec
from avmae.models.build import MaskSpec, ModelSpec, SizeSpec, build_autoencoder
from avmae.viewing.plots import Point, dependence_figure, write_png

try:
    from transformers import VideoMAEConfig, VideoMAEForPreTraining
except ImportError:
    sys.exit("This compares with Hugging Face's transformers, which is not installed: pip install 'avmae[dev]'")

CONF = Path(__file__).parents[1] / "conf"
HF = "hf_videomae"
WARMUP = 2


class Case(NamedTuple):
    """One row of the table, without its results."""

    system: str
    size: str
    mask_ratio: float
    decoder_ratio: float
    batch: int
    device: str
    precision: str
    compile: bool


def settings(group: str, name: str) -> dict[str, Any]:
    """Read conf/GROUP/NAME.yaml, on top of the files in its defaults list."""
    own: Any = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    return {key: value for base in own.pop("defaults", []) for key, value in settings(group, base).items()} | own


def build_loss(case: Case) -> tuple[torch.nn.Module, Callable[[], Tensor]]:
    """The network of a case, and its loss on random inputs."""
    torch.manual_seed(0)
    clip, size = ClipSpec(), SizeSpec(**settings("size", case.size))
    model = ModelSpec(**settings("model", "videomae" if case.system == HF else case.system))
    # Transformers decodes all masked tokens.
    mask = MaskSpec(ratio=case.mask_ratio, decoder_ratio=0.0 if case.system == HF else case.decoder_ratio)
    ours = build_autoencoder(clip, model, size, mask).to(case.device)
    batch = {
        "video": torch.randn(case.batch, 3, clip.frames, clip.size, clip.size, device=case.device),
        "audio": torch.randn(case.batch, 1, clip.spectrogram_frames, clip.mel_bins, device=case.device),
        "has_audio": torch.ones(case.batch, dtype=torch.bool, device=case.device),
    }
    masks = ours.draw_masks(case.batch, torch.Generator(case.device))
    if case.system != HF:
        return ours, lambda: ours(batch, masks).loss

    # Without mean pooling it has the norm between encoder and decoder, as ours and the published models.
    config = VideoMAEConfig(
        image_size=clip.size,
        patch_size=model.video_patch[1],
        num_frames=clip.frames,
        tubelet_size=model.video_patch[0],
        hidden_size=size.dim,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.dim,
        use_mean_pooling=False,
        decoder_hidden_size=size.decoder_dim,
        decoder_num_hidden_layers=size.decoder_depth,
        decoder_num_attention_heads=size.decoder_heads,
        decoder_intermediate_size=4 * size.decoder_dim,
        norm_pix_loss=True,
        attn_implementation="sdpa",
    )
    theirs = VideoMAEForPreTraining(config).to(case.device).train()
    video = batch["video"].transpose(1, 2).contiguous()
    masked = torch.cat(masks["video"], 1).argsort(1) >= masks["video"].visible.shape[1]
    return theirs, lambda: theirs(video, masked).loss


def build_step(case: Case) -> Callable[[], None]:
    """One training step of a case, as a function."""
    network, loss = build_loss(case)
    if case.compile:
        network.compile()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.05, betas=(0.9, 0.95), fused=True)

    def step() -> None:
        with torch.autocast(case.device, torch.bfloat16, enabled=case.precision == "bf16"):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def peak_memory_mb(case: Case) -> float:
    """Peak memory of building the model and a few steps; to be called in a process of its own."""
    before = getrusage(RUSAGE_SELF).ru_maxrss
    step = build_step(case)
    for _ in range(WARMUP + 1):
        step()
    if case.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return (getrusage(RUSAGE_SELF).ru_maxrss - before) / (2**20 if sys.platform == "darwin" else 2**10)


def gflop_per_clip(case: Case) -> float:
    """Arithmetic of forward and backward for one clip."""
    _, loss = build_loss(case._replace(batch=1))
    # Fused attention kernels differ in what they recompute, and not all are counted; plain products always are.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss().backward()
    return counter.get_total_flops() / 1e9


def alternate(runs: list[Callable[[], object]], rounds: int, device: str) -> list[float]:
    """Median seconds of each; every round runs each once, and the first rounds are not counted."""

    def seconds(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    taken = [[seconds(run) for run in runs] for _ in range(WARMUP + rounds)]
    return [statistics.median(column) for column in zip(*taken[WARMUP:], strict=True)]


def measure(cases: list[Case], memory: list[float], rounds: int) -> list[dict[str, Any]]:
    """Rows of one size, mask ratio and batch, HF's first; `memory` is their peak memory."""
    work = [gflop_per_clip(case) for case in cases]
    device, dtype = cases[0].device, torch.bfloat16 if cases[0].precision == "bf16" else torch.float32
    side = 8192 if device == "cuda" else 2048
    left, right = torch.randn(2, side, side, device=device).to(dtype)
    *steps, multiplication = alternate([*(build_step(case) for case in cases), lambda: left @ right], rounds, device)
    matrix_rate = 2 * side**3 / 1e9 / multiplication
    speed = [case.batch / seconds for case, seconds in zip(cases, steps, strict=True)]
    return [
        {
            **case._asdict(),
            "clips_per_s": round(clips, 4),
            "ratio_to_hf": round(clips / speed[0], 3),
            "gflop_per_clip": round(gflop, 1),
            "share_of_matrix_rate": round(clips * gflop / matrix_rate, 3),
            "peak_memory_mb": round(peak, 1),
            "ratio_of_memory_to_hf": round(peak / memory[0], 3),
        }
        for case, clips, gflop, peak in zip(cases, speed, work, memory, strict=True)
    ]


def main() -> None:
    """Read the options, measure shape by shape, print the table."""
    systems, sizes = (sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in ("model", "size"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", nargs="+", choices=systems, default=systems)
    parser.add_argument("--sizes", nargs="+", choices=sizes, default=["base"])
    parser.add_argument("--mask-ratio", nargs="+", type=float, default=[MaskSpec.ratio])
    parser.add_argument("--decoder-ratio", type=float, default=MaskSpec.decoder_ratio, help="of our systems")
    parser.add_argument("--batch", nargs="+", type=int, default=[2])
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each system")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--compile", action="store_true", help="torch.compile all networks, HF's as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="plot speed against the option that varies")
    asked = parser.parse_args()

    on = (asked.device, asked.precision, asked.compile)
    cases = [
        [Case(system, size, ratio, asked.decoder_ratio, batch, *on) for system in (HF, *asked.systems)]
        for size, ratio, batch in product(asked.sizes, asked.mask_ratio, asked.batch)
    ]
    # Before anything is built in this process: on Linux a child's peak starts at its parent's.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as children:
        memory = [list(children.map(peak_memory_mb, alike)) for alike in cases]
    rows: list[dict[str, Any]] = []
    for of_shape, peaks in zip(cases, memory, strict=True):
        rows += measure(of_shape, peaks, asked.steps)
        if asked.json:
            # Written now, in case a later, larger shape does not fit.
            asked.json.write_text(json.dumps(rows, indent=2) + "\n")
    widths = [max(len(str(key)), *(len(str(row[key])) for row in rows)) for key in rows[0]]
    for line in (list(rows[0]), *(list(row.values()) for row in rows)):
        print("  ".join(f"{value!s:>{width}}" for value, width in zip(line, widths, strict=True)))
    if asked.plot:
        varied = max(("mask_ratio", "batch", "size"), key=lambda name: len({row[name] for row in rows}))
        points = [Point(row["system"], row[varied], row["clips_per_s"]) for row in rows]
        write_png(dependence_figure(points, varied.replace("_", " "), "clips a second", labels=True), asked.plot)


if __name__ == "__main__":
    main()
