"""Train for a while and watch the whole run: memory, file handles, threads and speed must stay as they were.

All processes of the run count, the reading ones too. Memory is the sum of proportional shares (PSS): a page that
several processes share counts once. Pages of files are left out: other programs on the machine that have the same
libraries mapped take shares of them. Speed is clips per second of processor time. Other work on the machine makes that
second worth less (caches, memory bandwidth, clock rate), by a quarter and more, so it is weighted by what a fixed piece
of work takes at the same time. After a warm-up, by the clock and by clips, the first and the last third are compared:
by their medians, and handles by their minima, for those of batches on their way from reader to trainer come and go.
Linux only.

The exit code is 0 if all is flat, 1 if not.
"""

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

TICKS = os.sysconf("SC_CLK_TCK")
LIMITS = {"memory_mb": 0.03, "handles": 0.03, "threads": 0.0, "clips_per_cpu_second": 0.10}
"""Change from the first to the last third that still counts as flat, as a share; of speed, only loss counts."""

WARM_UP_CLIPS = 10_000
"""Until then the readers' heaps grow by free blocks, for videos' buffers are of many sizes; what is in use does not."""

TRAINING = """
    data=synthetic data.groups=25 data.clips_per_group=2 data.classes=4 data.val_groups=2 data.batch_size=8
    clip.frames=8 clip.size=64 clip.mel_bins=64 model.video_patch=[2,16,16]
    size=tiny size.dim=96 size.depth=2 size.audio_depth=2 size.decoder_dim=48 size.decoder_depth=1
    trainer.accelerator=cpu trainer.max_epochs=1000000 trainer.log_every_n_steps=5
    callbacks.progress.seconds=60 hydra.run.dir=run
""".split()


@dataclass(frozen=True)
class Sample:
    """All processes of the run at one moment.

    Args:
        seconds: since the start.
        processes: how many there are.
        memory_mb: sum of proportional shares, but for pages of files.
        resident_mb: sum of resident sizes, which counts shared pages again for each process.
        handles: open files, sockets and pipes.
        threads: of all processes.
        cpu_seconds: processor time used so far, by processes that ended, too.
        piece_seconds: processor time of a fixed piece of work.
        clips: trained on so far.
    """

    seconds: float
    processes: int
    memory_mb: float
    resident_mb: float
    handles: int
    threads: int
    cpu_seconds: float
    piece_seconds: float
    clips: int


class Piece:
    """A piece of work that depends on caches and memory as training does."""

    def __init__(self) -> None:
        self.next = list(range(1_000_000))
        random.Random(0).shuffle(self.next)
        self.block = bytes(16 << 20)

    def seconds(self) -> float:
        """Processor time that it takes now."""
        start, place = time.thread_time(), 0
        for _ in range(300_000):
            place = self.next[place]
        for _ in range(3):
            bytearray(self.block)
        return time.thread_time() - start


def tree(root: int) -> list[int]:
    """A process and all it has started, directly or not."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def watch(root: int, run: Path, batch: int, start: float, piece: Piece) -> Sample:
    """Add up what the processes use now."""
    memory = resident = handles = threads = count = 0
    cpu = 0.0
    for process in tree(root):
        folder = Path("/proc", str(process))
        try:
            lines = dict(line.split()[:2] for line in (folder / "smaps_rollup").read_text().splitlines()[1:])
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            handles += len(list((folder / "fd").iterdir()))
        except OSError:
            # It has just ended.
            continue
        memory += int(lines["Pss_Anon:"]) + int(lines["Pss_Shmem:"])
        resident += int(lines["Rss:"])
        threads += int(fields[17])
        cpu += sum(map(int, fields[11:15])) / TICKS
        count += 1
    seconds, clips = time.monotonic() - start, steps(run) * batch
    return Sample(seconds, count, memory / 1e3, resident / 1e3, handles, threads, cpu, piece.seconds(), clips)


def steps(run: Path) -> int:
    """Training steps that the run has logged."""
    file = run / "metrics.csv"
    if not file.is_file():
        return 0
    with file.open(newline="") as stream:
        return max((int(row["step"]) + 1 for row in csv.DictReader(stream) if row.get("train/loss")), default=0)


def thirds(samples: list[Sample], name: str) -> tuple[float, float]:
    """The first and the last third: medians, of handles minima, of speed the mean rate at the median worth of time."""
    length = len(samples) // 3
    ends = samples[:length], samples[-length:]
    if name == "clips_per_cpu_second":
        usual = median(sample.piece_seconds for sample in samples)
        first, last = ((end[-1].clips - end[0].clips) / work(end) / usual for end in ends)
    else:
        typical = min if name == "handles" else median
        first, last = (float(typical(getattr(sample, name) for sample in end)) for end in ends)
    return first, last


def work(samples: list[Sample]) -> float:
    """What was done between the first and the last look, in pieces of work."""
    spans = pairwise(samples)
    return sum(2 * (b.cpu_seconds - a.cpu_seconds) / (a.piece_seconds + b.piece_seconds) for a, b in spans)


def verdict(samples: list[Sample]) -> dict[str, dict[str, float | bool]]:
    """What each quantity did from the first to the last third, and whether that is flat."""
    results: dict[str, dict[str, float | bool]] = {}
    for name, limit in LIMITS.items():
        first, last = thirds(samples, name)
        change = last / first - 1
        worse = -change if name == "clips_per_cpu_second" else change
        results[name] = {"first": first, "last": last, "change": change, "flat": worse <= limit}
    return results


def main() -> None:
    """Read the options, train and watch, print the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--warm-up", type=float, default=0.2, help="share of the time before anything is compared")
    parser.add_argument("--every", type=float, default=5, help="seconds between two looks")
    parser.add_argument("--workers", type=int, default=4, help="reading processes; validation has as many again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("overrides", nargs="*", help="settings of avmae.train, such as clip.size=112")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        hours, seconds = divmod(round(60 * asked.minutes), 3600)
        limit = f"+trainer.max_time='{hours // 24:02}:{hours % 24:02}:{seconds // 60:02}:{seconds % 60:02}'"
        arguments = [*TRAINING, f"data.workers={asked.workers}", limit, *asked.overrides]
        batch = next(int(a.split("=")[1]) for a in reversed(arguments) if a.startswith("data.batch_size="))
        start, samples, run, piece = time.monotonic(), list[Sample](), Path(folder, "run"), Piece()
        process = subprocess.Popen([sys.executable, "-m", "avmae.train", *arguments], cwd=folder)
        try:
            while process.poll() is None:
                time.sleep(asked.every)
                samples.append(watch(process.pid, run, batch, start, piece))
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        raise SystemExit(f"the training ended with code {process.returncode}")
    # The last looks may have met a run that was ending.
    trained = [s for s in samples if s.clips and s.processes >= median(s.processes for s in samples)]
    settled = [s for s in trained if s.seconds >= asked.warm_up * 60 * asked.minutes and s.clips >= WARM_UP_CLIPS]
    if len(settled) < 6:
        raise SystemExit(f"only {len(settled)} looks after the warm-up; give more --minutes, or a smaller --every")
    results = verdict(settled)
    times = f"{settled[0].seconds:.0f} to {settled[-1].seconds:.0f} s"
    print(f"{times}, {settled[-1].processes} processes, {len(settled)} looks: first third, last third, change")
    for name, row in results.items():
        print(
            f"{name:<22}{row['first']:>10.1f}{row['last']:>10.1f}{row['change']:>+9.2%}  "
            f"{'flat' if row['flat'] else 'NOT FLAT'}"
        )
    flat = all(row["flat"] for row in results.values())
    print("flat" if flat else "not flat")
    if asked.json:
        report = {"flat": flat, "results": results, "samples": [asdict(sample) for sample in samples]}
        asked.json.write_text(json.dumps(report, indent=1) + "\n")
    raise SystemExit(not flat)


if __name__ == "__main__":
    main()
