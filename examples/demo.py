"""What `make demo` runs: everything from files to a report, with avmae's commands alone.

On the embedded miniature data set: pretrain `avmae`, fine-tune it, evaluate it, reconstruct a test clip, report.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

LOGS = Path("logs/demo")
DATA = Path(".cache/synthetic")


def run(command: str, *overrides: str) -> float:
    """Run one command of avmae and return the seconds it took."""
    print(f"\n$ python -m avmae.{command} {' '.join(overrides)}", flush=True)
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", f"avmae.{command}", *overrides], check=True)
    return time.monotonic() - start


def main() -> None:
    """Run everything and print a summary."""
    shutil.rmtree(LOGS, ignore_errors=True)
    pretrained, finetuned = LOGS / "pretrain", LOGS / "finetune"
    data = f"data.root={DATA}"
    seconds = {
        "pretrain": run("train", "experiment=demo_pretrain", data, f"hydra.run.dir={pretrained}"),
        "fine-tune": run(
            "train",
            "experiment=demo_finetune",
            data,
            f"ckpt={pretrained}/checkpoints/last.ckpt",
            f"hydra.run.dir={finetuned}",
        ),
        "evaluate": run("evaluate", f"ckpt={finetuned}/checkpoints/best.ckpt"),
    }
    clip = sorted((DATA / "UCF-101").glob("*/*_g03_c01.avi"))[0]
    reconstruction = pretrained / "reconstruction"
    seconds["reconstruct"] = run(
        "reconstruct", f"ckpt={pretrained}/checkpoints/last.ckpt", f"input={clip}", f"output={reconstruction}"
    )
    run("predict", f"ckpt={finetuned}/checkpoints/best.ckpt", f"input={clip}")
    seconds["report"] = run("report", f"input=[{pretrained},{finetuned}]", f"output={LOGS}/report.html")

    results = json.loads((finetuned / "results.json").read_text())
    (figures,) = json.loads((reconstruction / "metrics.json").read_text())["systems"].values()
    loss = json.loads((pretrained / "summary.json").read_text())
    classes = len(results["per_class"])
    rows = [
        ("test clips, from groups not trained on", f"{results['clips']}"),
        ("top-1 accuracy", f"{results['top1']:.1%}"),
        ("top-5 accuracy", f"{results['top5']:.1%}"),
        ("top-1, clips with audio", f"{results['sound/top1']:.1%}"),
        ("top-1, silent clips", f"{results['silent/top1']:.1%}"),
        ("chance", f"{1 / classes:.1%}"),
        ("validation error of masked patches, video", f"{loss['val/loss_video']:.3f}"),
        ("validation error of masked patches, audio", f"{loss['val/loss_audio']:.3f}"),
        ("PSNR of masked pixels in the reconstruction below", f"{figures['video/psnr_hidden']:.1f} dB"),
        *((f"time to {name}", f"{value:.0f} s") for name, value in seconds.items()),
        ("total time", f"{sum(seconds.values()):.0f} s"),
    ]
    width = max(len(name) for name, _ in rows)
    print("\n" + "\n".join(f"{name:<{width}}  {value:>15}" for name, value in rows))
    print(f"\nreconstruction: {reconstruction}/reconstruction.png and reconstruction.mp4 (with audio)")
    print(f"everything on one page: {LOGS}/report.html")


if __name__ == "__main__":
    main()
