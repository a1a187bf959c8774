"""Numbers that are watched: votes of neighbours, speed by a clock of the test's own, what the bar shows."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from avmae.evaluation.probes import knn_votes
from avmae.training import progress, throughput
from avmae.training.knn import OnlineKNN
from avmae.training.progress import Progress, figures
from avmae.training.throughput import Throughput

FEATURES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]])
LABELS = torch.tensor([0, 1, 2, 0])


class Clock:
    """Stands in for the module `time`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.monotonic = self.perf_counter = lambda: self.now
        for module in (progress, throughput):
            monkeypatch.setattr(module, "time", self)


class Logged(dict[str, float]):
    """Stands in for a task, of which only logging is asked."""

    def log(self, name: str, value: float | Tensor) -> None:
        self[name] = float(value)

    log_dict = dict.update


def test_neighbours_vote_by_their_similarity() -> None:
    # Twice as long, for length does not count.
    queries = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    votes = knn_votes(queries, FEATURES, LABELS, classes=4, k=2, t=0.5)
    expected = [[math.exp(1 / 0.5), 0, math.exp(0.6 / 0.5), 0], [0, math.exp(1 / 0.5), math.exp(0.8 / 0.5), 0]]
    torch.testing.assert_close(votes, torch.tensor(expected))


def test_several_neighbours_of_a_class_add_up_and_those_without_a_label_have_no_vote() -> None:
    labels = torch.tensor([-1, 1, 1, 0])
    # More neighbours are asked for than there are.
    (votes,) = knn_votes(torch.tensor([[1.0, 0.0]]), FEATURES, labels, classes=2, k=20, t=1.0)
    torch.testing.assert_close(votes, torch.tensor([math.exp(-1), math.exp(0) + math.exp(0.6)]))


def test_votes_do_not_depend_on_how_many_ask() -> None:
    queries = torch.randn(1030, 2, generator=torch.Generator().manual_seed(0))
    votes = knn_votes(queries, FEATURES, LABELS, classes=3, k=2)
    for row in (0, 1023, 1024, 1029):
        torch.testing.assert_close(votes[row], knn_votes(queries[row : row + 1], FEATURES, LABELS, classes=3, k=2)[0])


def seen(knn: OnlineKNN, features: list[list[float]], labels: list[int]) -> None:
    knn.on_train_batch_end(None, None, {"features": torch.tensor(features)}, {"label": torch.tensor(labels)}, 0)


def validated(knn: OnlineKNN, features: list[list[float]], labels: list[int], clips: list[int]) -> float | None:
    trainer, logged = SimpleNamespace(datamodule=SimpleNamespace(classes=["a", "b", "c"])), Logged()
    batch = {"label": torch.tensor(labels), "clip_id": torch.tensor(clips)}
    knn.on_validation_batch_end(trainer, logged, {"features": torch.tensor(features)}, batch, 0)
    knn.on_validation_epoch_end(trainer, logged)
    return logged.get("val/knn_top1")


def test_online_knn_scores_validation_clips_by_the_last_training_clips() -> None:
    knn = OnlineKNN(bank=3, neighbours=1)
    assert validated(knn, [[1.0, 0.0]], [0], [0]) is None, "nothing was trained on yet"
    seen(knn, [[2.0, 0.0], [0.0, 3.0]], [0, 1])
    queries = [[1.0, 0.1], [0.1, 1.0], [1.0, 0.0], [1.0, 0.0]]
    # The third is of another class; the fourth, which only fills the batch, does not count.
    assert validated(knn, queries, [0, 1, 2, 2], [0, 1, 2, -1]) == pytest.approx(2 / 3)
    # The first clip makes room: what was of class 0 is nearest to a clip of class 2 now.
    seen(knn, [[-1.0, 0.0], [0.9, 0.1]], [1, 2])
    assert validated(knn, queries, [0, 1, 2, 2], [0, 1, 2, -1]) == pytest.approx(2 / 3)
    assert validated(knn, queries[:1], [2], [0]) == 1.0
    assert validated(knn, queries[:1], [0], [0]) == 0.0


def test_online_knn_forgets_no_clip_in_a_checkpoint_and_takes_none_that_is_not_finite() -> None:
    knn, resumed = OnlineKNN(bank=2, neighbours=1), OnlineKNN(bank=2, neighbours=1)
    seen(knn, [[1.0, 0.0], [float("nan"), 1.0]], [0, 1])
    resumed.load_state_dict(knn.state_dict())
    assert validated(resumed, [[0.1, 1.0]], [0], [0]) == 1.0, "the other clip has no vote"
    seen(resumed, [[0.0, 1.0]], [2])
    assert validated(resumed, [[0.1, 1.0]], [2], [0]) == 1.0, "the oldest makes room, which is the first"


def trainer(**values: Any) -> SimpleNamespace:
    base = {"world_size": 2, "accumulate_grad_batches": 2, "log_every_n_steps": 2, "is_last_batch": False}
    base |= {"state": SimpleNamespace(fn="fit"), "sanity_checking": False, "global_step": 0}
    return SimpleNamespace(**base | values)


def test_speed_counts_all_processes_and_waiting_what_lies_between_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, callback, logged, run = Clock(monkeypatch), Throughput(), Logged(), trainer()
    callback.on_train_start(run, logged)
    clock.now += 50
    # What came before the epoch is not counted.
    callback.on_train_epoch_start(run, logged)
    batch = {"label": torch.zeros(4)}

    def train(batches: range, wait: float, compute: float) -> None:
        for number in batches:
            clock.now += wait
            callback.on_train_batch_start(run, logged, batch, number)
            clock.now += compute
            run.global_step += number % 2
            callback.on_train_batch_end(run, logged, None, batch, number)

    train(range(3), wait=1, compute=3)
    assert not logged, "two batches make a step, and two steps a line"
    train(range(3, 4), wait=1, compute=3)
    assert logged == {"train/clips_per_second": 2 * 4 * 4 / 16, "train/data_wait": 0.25}
    clock.now += 1000
    callback.on_validation_end(run, logged)
    # Only what came since the last line counts, and validation is no part of it.
    train(range(4, 8), wait=2, compute=2)
    assert logged == {"train/clips_per_second": 2.0, "train/data_wait": 0.5}
    run.is_last_batch = True
    train(range(8, 9), wait=0, compute=1)
    assert logged == {"train/clips_per_second": 8.0, "train/data_wait": 0.0}


METRICS = {
    "train/loss": torch.tensor(0.123456),
    "train/clips_per_second": 12.345,
    "train/data_wait": 0.254,
    "val/loss": 1.0,
    "val/top1": 0.875,
    "train/lr": 0.1,
}


def test_figures_are_those_of_the_bar() -> None:
    shown = {"loss": "0.1235", "clips/s": "12.3", "data wait": "25%", "val/loss": "1", "val/top1": "87.5%"}
    assert figures(METRICS) == shown
    assert figures({}) == {}


def bar(run: SimpleNamespace) -> Progress:
    shown = Progress(seconds=15)
    shown.setup(run, None, "fit")
    shown.on_train_start(run, None)
    return shown


def watched(**values: Any) -> SimpleNamespace:
    base = {"estimated_stepping_batches": 10, "global_step": 0, "max_epochs": 2, "current_epoch": 0}
    base |= {"is_global_zero": True, "training": True, "sanity_checking": False, "state": SimpleNamespace(fn="fit")}
    base |= {"num_training_batches": 5, "num_val_batches": [2, 2], "fit_loop": None}
    return SimpleNamespace(**base | {"logged_metrics": {"train/loss": 0.5}} | values)


def steps(shown: Progress, clock: Clock, run: SimpleNamespace, number: int, seconds: float) -> None:
    for _ in range(number):
        clock.now += seconds
        run.global_step += 1
        run.current_epoch = (run.global_step - 1) // 5
        shown.on_train_batch_end(run, None, None, None, 0)


def test_lines_of_progress_come_every_so_many_seconds_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, run = Clock(monkeypatch), watched()
    steps(bar(run), clock, run, number=10, seconds=4)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/2  step 4/10  left 24 s  loss 0.5",
        "epoch 2/2  step 8/10  left 8 s  loss 0.5",
        "epoch 2/2  step 10/10  left 0 s  loss 0.5",
    ]


def test_what_is_left_of_a_resumed_run_follows_from_its_own_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, run = Clock(monkeypatch), watched(global_step=6, max_epochs=None, logged_metrics={})
    steps(bar(run), clock, run, number=2, seconds=20)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 2  step 7/10  left 1:00",
        "epoch 2  step 8/10  left 40 s",
    ]


def test_on_a_terminal_lightnings_bar_moves_with_our_figures_and_no_line_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    clock, run = Clock(monkeypatch), watched()
    shown = bar(run)
    run.progress_bar_callback = shown
    try:
        shown.on_train_epoch_start(run, None)
        steps(shown, clock, run, number=4, seconds=20)
        assert shown.train_progress_bar.total == 5
        assert shown.train_progress_bar.completed == 1, "by batches of the epoch"
        assert shown.get_metrics(run, None) == {"left": "2:00", "loss": "0.5"}
        run.logged_metrics = {"train/loss": 0.25}
        assert shown.get_metrics(run, None)["loss"] == "0.5", "figures are not read at every batch"
        clock.now += 1
        assert shown.get_metrics(run, None)["loss"] == "0.25"
    finally:
        shown.on_exception(run, None, KeyboardInterrupt())
    assert "step 4/10" not in capsys.readouterr().out


def test_validation_has_lines_of_its_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock, run = Clock(monkeypatch), watched()
    shown = bar(run)
    for number in range(4):
        clock.now += 10
        shown.on_validation_batch_end(run, None, None, None, number)
    assert capsys.readouterr().out.splitlines() == ["validation  3/4  left 10 s"]


def test_other_processes_print_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock, run = Clock(monkeypatch), watched(is_global_zero=False)
    steps(bar(run), clock, run, number=10, seconds=20)
    assert capsys.readouterr().out == ""
