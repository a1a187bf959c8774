"""What a step reports: sums over batches and processes, read one step late, by one all-reduce."""

import json
from pathlib import Path

import pytest
import torch
from commands import CALLBACKS, start_train

from avmae.training.report import StepReport


def test_sums_and_means_are_over_the_batches_of_a_step_and_the_next_starts_from_nothing() -> None:
    report = StepReport()
    for total, clips in ((3.0, 2), (5.0, torch.tensor(3.0))):
        report.average("loss", torch.tensor(total), clips)
        report.count("wishes", torch.tensor([True, False]))
    sums, means = report.reduce(world_size=1)
    assert {name: value.tolist() for name, value in sums.items()} == {"wishes": [2, 0]}
    assert {name: value.item() for name, value in means.items()} == {"loss": pytest.approx(8 / 5)}
    report.count("wishes", torch.tensor([False, True]))
    sums, means = report.reduce(world_size=1)
    assert sums["wishes"].tolist() == [0, 1]
    assert means == {}


def test_the_mean_of_nothing_is_zero_and_no_gradient_is_kept() -> None:
    report = StepReport()
    report.average("loss_audio", torch.zeros((), requires_grad=True), 0)
    _, means = report.reduce(world_size=1)
    assert means["loss_audio"].item() == 0
    assert not means["loss_audio"].requires_grad


def test_processes_add_up_in_one_all_reduce(monkeypatch: pytest.MonkeyPatch) -> None:
    other, calls = torch.tensor([10.0, 4.0, 1.0, 0.0, 1.0]), []

    def all_reduce(flat: torch.Tensor) -> None:
        calls.append(flat.clone())
        flat += other

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    report = StepReport()
    report.average("loss", torch.tensor(2.0), 2)
    report.count("wishes", torch.tensor([False, True, False]))
    sums, means = report.reduce(world_size=2)
    assert [flat.tolist() for flat in calls] == [[2, 2, 0, 1, 0]]
    assert means["loss"].item() == pytest.approx(12 / 6)
    assert sums["wishes"].tolist() == [1, 1, 1]


def test_what_is_handed_over_is_read_one_step_late() -> None:
    report = StepReport()
    assert report.before == report.latest() == {}
    report.hand_over({"skipped": torch.tensor(True), "wishes": torch.tensor([0, 2])})
    assert report.before == {}
    assert report.latest() == {"skipped": 1, "wishes": [0, 2]}
    report.hand_over({"skipped": torch.tensor(False), "wishes": torch.tensor([0, 0])})
    assert report.before == {"skipped": 1, "wishes": [0, 2]}
    report.take()
    assert report.before == {"skipped": 0, "wishes": [0, 0]}
    assert report.latest() == {}


def test_a_step_of_two_processes_takes_one_all_reduce_and_no_barrier(miniature: Path, tmp_path: Path) -> None:
    arguments = ("hydra.run.dir=run", "trainer.max_epochs=1", "trainer.log_every_n_steps=1", "data.val_groups=0")
    step = ("data.batch_size=1", "trainer.accumulate_grad_batches=2", "strategy=ddp", "trainer.devices=2")
    output = tmp_path / "printed.txt"
    counted = "+callbacks.counted._target_=collectives.Counted"
    process = start_train(*arguments, *step, counted, cwd=tmp_path, miniature=miniature, output=output, env=CALLBACKS)
    assert process.wait(200) == 0, output.read_text()
    _, first, second, _ = json.loads((tmp_path / "run/collectives.json").read_text())
    # Unreadable clips are counted after the first, second, fourth, eighth... batch.
    assert sorted(set(first + second)) == ["all_gather_object", "all_reduce"]
    assert (first.count("all_reduce"), second.count("all_reduce")) == (1, 1)
    assert second.count("all_gather_object") == 1
