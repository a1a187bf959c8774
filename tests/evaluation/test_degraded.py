from pathlib import Path

import pytest
import torch
from miniature_data import miniature_data
from systems import CLIP, autoencoder, batch

from avmae.data.degrade import Degradation
from avmae.evaluation.batches import Inference
from avmae.evaluation.degraded import degraded_rows, draw_by_view, masked_errors, measure, moves
from avmae.evaluation.scores import ClipMeans
from avmae.models.tokens import gather_tokens

CONDITIONS = [None, Degradation("swap"), Degradation("scene"), Degradation("shift", 0.1), Degradation("drop", 0.5)]


@pytest.mark.parametrize("system", ["imagemae", "avmae"])
def test_errors_do_not_change_with_the_batches(system: str, miniature: Path) -> None:
    model, rows = autoencoder(system).eval(), []
    for batch_size in (3, 28):
        module = miniature_data(miniature, CLIP, batch_size=batch_size, workers=0)
        found = measure(model, module, CONDITIONS, Inference("cpu", "32-true"))
        rows.append(degraded_rows(CONDITIONS, found))
    metrics = ("hidden_mse", "moving_mse")
    assert len(rows[0]) == len(CONDITIONS) * len(metrics) * 3
    for one, other in zip(*rows, strict=True):
        assert one == other | {"value": pytest.approx(other["value"], rel=1e-5)}


def test_clips_without_another_sound_are_told(miniature: Path, capsys: pytest.CaptureFixture) -> None:
    module = miniature_data(miniature, CLIP, batch_size=28, workers=0)
    sounding = next(iter(module.part_loader("test")))["has_audio"]
    label = module.splits.test[int(sounding.int().argmax())].label
    alone = miniature_data(miniature, CLIP, batch_size=5, workers=0, only=[module.classes[label]])
    measure(autoencoder("avmae").eval(), alone, CONDITIONS[:2], Inference("cpu", "32-true"))
    assert "7 clips with audio were tested in silence for swap" in capsys.readouterr().err


@pytest.mark.parametrize("system", ["imagemae", "videomae"])
def test_what_moves_is_told_from_what_stands_still(system: str) -> None:
    model = autoencoder(system)
    video = torch.full((2, 3, CLIP.frames, CLIP.size, CLIP.size), 0.5)
    # In the second clip a bright square crosses the upper left patch in one frame.
    video[1, :, 2, 1:7, 1:7] = 1.0
    mean, std = (torch.tensor(x).view(3, 1, 1, 1) for x in (CLIP.pixel_mean, CLIP.pixel_std))
    patches = model.encoder.patchify({"video": (video - mean) / std})["video"]
    found = moves(model, patches, 2).reshape(2, -1, 16)
    time = 2 // model.encoder.modalities["video"].grid.patch[0]
    assert found.nonzero().tolist() == [[1, time, 0]]


def test_errors_of_what_moves_are_of_masked_patches_that_move() -> None:
    model, clips = autoencoder("videomae", normalize_target=False).eval(), batch((True, True))
    clips |= {"clip_id": torch.tensor([0, 1]), "view": torch.tensor([0, 0])}
    clips["video"][1] = 0
    errors = masked_errors(model, clips, clips)
    masked = draw_by_view(model, clips)["video"].masked
    target = gather_tokens(model.encoder.patchify(clips)["video"], masked)
    prediction = model(clips, draw_by_view(model, clips)).predictions["video"]
    expected = (prediction - target).square().mean((2, 3)).double()
    torch.testing.assert_close(errors["hidden_mse"], expected.mean(1))
    # Noise moves everywhere.
    torch.testing.assert_close(errors["moving_mse"][0], expected[0].mean())
    assert errors["moving_mse"][1].isnan()
    means = ClipMeans()
    means.update(errors, clips)
    assert means.compute()["moving_mse"] == pytest.approx(float(expected[0].mean()))
