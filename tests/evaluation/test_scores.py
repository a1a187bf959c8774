import pytest
import torch

from avmae.evaluation.probes import effective_rank
from avmae.evaluation.scores import ClipScores, confusion, per_class


def batch(clip_id: list[int], label: list[int], has_audio: list[bool] | None = None) -> dict:
    sounding = has_audio or [False] * len(clip_id)
    return {"clip_id": torch.tensor(clip_id), "label": torch.tensor(label), "has_audio": torch.tensor(sounding)}


def test_views_are_averaged_as_probabilities_and_order_does_not_matter() -> None:
    # Clip 0: one very sure wrong view is outvoted by two right ones, as probabilities but not as logits.
    logits = torch.tensor([[0.0, 50.0], [3.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    rows = torch.tensor([2, 0, 3, 1])
    scores = ClipScores(clips=2, classes=2)
    clips, labels = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 0, 1])
    for part in (rows[:2], rows[2:]):
        scores.update(logits[part], batch(clips[part].tolist(), labels[part].tolist()))
    result = scores.compute()
    assert result["predictions"].tolist() == [0, 1]
    assert result["top1"] == 1.0
    assert (result["clips"], result["unscored"]) == (2, 0)


def test_unscored_views_change_nothing() -> None:
    scores = ClipScores(clips=3, classes=3)
    scores.update(torch.eye(3)[:2], batch([0, 1], [0, 2], [False, True]))
    before = scores.compute()
    scores.update(10 * torch.eye(3), batch([-1, -1, -1], [2, 2, 2], [True, True, True]))
    after = scores.compute()
    assert after["unscored"] == before["unscored"] == 1
    assert after["predictions"].tolist() == before["predictions"].tolist() == [0, 1, -1]
    assert after["top1"] == before["top1"] == 0.5
    assert after["sound/top1"] == before["sound/top1"] == 0.0
    assert after["silent/top1"] == before["silent/top1"] == 1.0


def test_top5_counts_and_subsets_that_are_empty_are_left_out() -> None:
    scores = ClipScores(clips=2, classes=7)
    logits = torch.arange(7.0).repeat(2, 1)
    scores.update(logits, batch([0, 1], [2, 1]))
    result = scores.compute()
    assert result["top1"] == 0.0
    assert result["top5"] == pytest.approx(0.5)
    assert "sound/top1" not in result


@pytest.mark.parametrize("clips", [0, 1, 3])
@pytest.mark.parametrize("classes", [1, 2, 7])
def test_sets_of_any_size_are_scored(clips: int, classes: int) -> None:
    scores = ClipScores(clips, classes)
    labels = [classes - 1] * clips
    if clips:
        # Right, but for the last clip where there is another class.
        logits = torch.nn.functional.one_hot(torch.tensor([*labels[1:], 0]), classes).float()
        scores.update(logits, batch(list(range(clips)), labels))
    result = scores.compute()
    right = clips if classes == 1 else max(0, clips - 1)
    assert result.get("top1") == (pytest.approx(right / clips) if clips else None)
    counts = confusion(result["predictions"], labels, classes)
    assert counts.shape == (classes, classes)
    assert (int(counts.sum()), int(counts.diagonal().sum())) == (clips, right)
    found = per_class(counts, [f"class {number}" for number in range(classes)])
    assert [line["clips"] for line in found.values()] == ([clips] if clips else [])


def test_a_test_without_a_readable_clip_has_no_accuracy() -> None:
    scores = ClipScores(clips=2, classes=3)
    scores.update(torch.zeros(2, 3), batch([-1, -1], [0, 1]))
    result = scores.compute()
    assert (result["clips"], result["unscored"], result["predictions"].tolist()) == (0, 2, [-1, -1])
    assert "top1" not in result
    assert not confusion(result["predictions"], [0, 1], 3).any()


def test_the_effective_rank_counts_directions_by_how_much_they_are_used() -> None:
    generator = torch.Generator().manual_seed(0)
    spread, one = torch.randn(4096, 16, generator=generator), torch.randn(1, 16, generator=generator)
    assert effective_rank(spread) == pytest.approx(16, rel=0.01)
    assert effective_rank(spread * torch.tensor([1.0] * 4 + [0.0] * 12)) == pytest.approx(4, rel=0.01)
    assert effective_rank(one.expand(50, -1)) == pytest.approx(1, rel=0.01)
