"""A run on two nodes, one of which is cut off and comes back: does it go on, and how soon?

The nodes are two network namespaces on this machine with an address each and a virtual cable between them, and
torchrun on each. Both train; then the cable of the second is pulled, which is what the loss of a node looks like to the
first: no answer, and no end of a connection, either. The first has to notice, go on alone from the last checkpoint, and
take the second in again when it is back; the second has to end by itself. At the end both get SIGTERM, and have to save
and end. Disks are shared, as on a cluster.

Linux only, as root, with iproute2. The exit code is 0 if all of that happened.
"""

import argparse
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

NODES = {"a": "10.77.0.1", "b": "10.77.0.2"}
PATIENCE = 600.0
"""Seconds to wait for anything."""

TRAINING = """
    data=synthetic data.groups=25 data.clips_per_group=2 data.classes=4 data.val_groups=0 data.batch_size=4
    data.workers=1 clip.frames=4 clip.size=32 clip.mel_bins=32 model.video_patch=[2,8,8]
    size=tiny size.dim=48 size.depth=2 size.audio_depth=1 size.decoder_dim=24 size.decoder_depth=1
    trainer.accelerator=cpu trainer.log_every_n_steps=1 strategy=ddp trainer.clips_per_step=8
    callbacks.last.every_n_epochs=null callbacks.last.every_n_train_steps=10 callbacks.progress.seconds=2 name=two
""".split()


def ip(*arguments: str) -> None:
    """Run iproute2's command."""
    subprocess.run(["ip", *arguments], check=True)


def namespace(node: str) -> str:
    """Name of a node's namespace, and of its end of the cable."""
    return f"avmae-{node}"


def build() -> None:
    """Two namespaces, and a cable between them."""
    for node in NODES:
        ip("netns", "add", namespace(node))
    ip("link", "add", "avmae-a", "netns", "avmae-a", "type", "veth", "peer", "name", "avmae-b", "netns", "avmae-b")
    for node, address in NODES.items():
        ip("-n", namespace(node), "address", "add", f"{address}/24", "dev", namespace(node))
        # torchrun on the second waits for the first until TCP gives up, by default for 15 minutes.
        give_up = ["sysctl", "-q", "-w", "net.ipv4.tcp_retries2=5"]
        subprocess.run(["ip", "netns", "exec", namespace(node), *give_up], check=True)
        for device in ("lo", namespace(node)):
            ip("-n", namespace(node), "link", "set", device, "up")


def tear_down() -> None:
    """Remove the namespaces, and the cable with them."""
    for node in NODES:
        subprocess.run(["ip", "netns", "delete", namespace(node)], stderr=subprocess.DEVNULL, check=False)


def inside(node: str) -> list[int]:
    """Processes of a node."""
    listed = subprocess.run(["ip", "netns", "pids", namespace(node)], capture_output=True, text=True, check=True)
    return list(map(int, listed.stdout.split()))


class Node:
    """torchrun on one node, with what it prints kept in a file."""

    def __init__(self, name: str, folder: Path, timeout: float) -> None:
        self.log = folder / f"node_{name}_{time.monotonic():.0f}.txt"
        rendezvous = f"is_host={name == 'a'},last_call_timeout=3,keep_alive_interval=2,keep_alive_max_attempt=3"
        rendezvous += f",join_timeout={3 * timeout:.0f},read_timeout={timeout:.0f}"
        command = f"""
            {sys.executable} -m torch.distributed.run --nnodes=1:2 --nproc-per-node=1 --max-restarts=5
            --rdzv-id=elastic --rdzv-backend=c10d --rdzv-endpoint={NODES["a"]}:29400 --rdzv-conf={rendezvous}
            --local-addr={NODES[name]} -m avmae.train trainer.max_epochs=100000
            strategy.timeout.minutes={timeout / 60} data.root={folder}/data
        """.split()
        environment = os.environ | {"GLOO_SOCKET_IFNAME": namespace(name), "OMP_NUM_THREADS": "1"}
        # Otherwise torchrun does not tell a node that joins where the others meet (pytorch issue 135712).
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", namespace(name), *command, *TRAINING],
                cwd=folder,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    def worlds(self) -> list[int]:
        """Numbers of processes that the run was begun or gone on with, as this node printed them."""
        return [int(n) for n in re.findall(r", (\d+) process(?:es)? on ", self.log.read_text())]

    def step(self) -> int:
        """The last step that this node printed since it was begun or gone on with."""
        since = self.log.read_text().rpartition("process")[2]
        return max((int(n) for n in re.findall(r"step (\d+)/", since)), default=0)


def wait(what: str, happened: Callable[[], bool], alive: list[Node]) -> float:
    """Wait until something happened; returns how long that took, in seconds."""
    start = time.monotonic()
    while not happened():
        for node in alive:
            if node.process.poll() is not None:
                raise SystemExit(f"waiting for: {what}; but a node ended:\n{node.log.read_text()[-3000:]}")
        if time.monotonic() - start > PATIENCE:
            raise SystemExit(f"waited in vain for: {what}\n" + "\n".join(n.log.read_text()[-3000:] for n in alive))
        time.sleep(0.2)
    taken = time.monotonic() - start
    print(f"{taken:7.1f} s  {what}", flush=True)
    return taken


def rehearse(folder: Path, timeout: float) -> dict[str, float | int]:
    """Both train, one is cut off, it comes back."""
    run = folder / "logs/two/elastic"
    a = Node("a", folder, timeout)
    b = Node("b", folder, timeout)
    both = [a, b]
    report: dict[str, float | int] = {}

    def printed(world: int) -> bool:
        # Rank 0 prints, and which node has it is torchrun's choice.
        worlds = [node.worlds() for node in both]
        return any(w and w[-1] == world for w in worlds)

    def progress() -> int:
        return max((node.step() for node in both if node.worlds()[-1:] == [2]), default=0)

    wait("two nodes train together, and have saved", lambda: progress() >= 20, both)
    cut = time.monotonic()
    report["step_when_cut"] = max(node.step() for node in both)
    ip("-n", "avmae-b", "link", "set", "avmae-b", "down")
    report["alone_after_s"] = wait(
        "cut off, the first has gone on alone", lambda: a.worlds()[-1:] == [1] and a.step() > 0, [a]
    )
    report["step_when_alone"] = a.step()
    wait("the second has ended by itself", lambda: b.process.poll() is not None, [a])
    report["second_ended_within_s"] = time.monotonic() - cut
    report["second_exit_code"] = b.process.wait()
    report["second_left_processes"] = len(inside("b"))
    ip("-n", "avmae-b", "link", "set", "avmae-b", "up")
    b = Node("b", folder, timeout)
    both[1] = b
    report["together_after_s"] = wait("the second is back, and both train", lambda: progress() > 0, both)
    for node in both:
        node.process.terminate()
    report["ended_after_s"] = wait("both have ended on SIGTERM", lambda: all(n.process.poll() for n in both), [])
    report["left_processes"] = sum(len(inside(node)) for node in NODES)
    with (run / "metrics.csv").open(newline="") as stream:
        report["last_step"] = max(int(row["step"]) for row in csv.DictReader(stream) if row.get("train/loss")) + 1
    return report


def main() -> None:
    """Read the options, build the network, rehearse, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timeout", type=float, default=20, help="seconds after which a silent process counts as lost")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="copy what the nodes printed there")
    asked = parser.parse_args()
    tear_down()
    build()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            write = [
                "from avmae.data.embedded.synthetic import write_synthetic as w; from pathlib import Path",
                f"w(Path({str(folder / 'data')!r}), groups=25, clips_per_group=2, classes=4, workers=2)",
            ]
            subprocess.run([sys.executable, "-c", "; ".join(write)], check=True)
            report = rehearse(folder, asked.timeout)
        finally:
            for node in NODES:
                for process in inside(node):
                    os.kill(process, signal.SIGKILL)
            tear_down()
            if asked.keep:
                asked.keep.mkdir(parents=True, exist_ok=True)
                for log in folder.glob("node_*.txt"):
                    shutil.copy(log, asked.keep)
    for key, value in report.items():
        print(f"{key:<24}{value:>10.4g}")
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1) + "\n")
    good = not report["left_processes"] and not report["second_left_processes"]
    good = good and report["second_exit_code"] != 0 and report["step_when_alone"] >= report["step_when_cut"] - 20
    print("survived" if good else "DID NOT SURVIVE")
    raise SystemExit(not good)


if __name__ == "__main__":
    main()
