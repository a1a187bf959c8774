from pathlib import Path

import pytest
from miniature_data import miniature_data
from systems import CLIP, autoencoder

from avmae.data.degrade import Degradation
from avmae.evaluation.batches import Inference
from avmae.evaluation.degraded import degraded_rows, measure

CONDITIONS = [None, Degradation("swap"), Degradation("noise", 0), Degradation("drop", 0.5)]


@pytest.mark.parametrize("system", ["imagemae", "avmae"])
def test_errors_do_not_change_with_the_batches(system: str, miniature: Path) -> None:
    model, rows = autoencoder(system).eval(), []
    for batch_size in (3, 28):
        module = miniature_data(miniature, CLIP, batch_size=batch_size, workers=0)
        found = measure(model, module, CONDITIONS, Inference("cpu", "32-true"))
        rows.append(degraded_rows(CONDITIONS, found))
    assert len(rows[0]) == 4 * 3
    for one, other in zip(*rows, strict=True):
        assert one == other | {"value": pytest.approx(other["value"], rel=1e-5)}


def test_clips_without_another_sound_are_told(miniature: Path, capsys: pytest.CaptureFixture) -> None:
    module = miniature_data(miniature, CLIP, batch_size=28, workers=0)
    sounding = next(iter(module.part_loader("test")))["has_audio"]
    label = module.splits.test[int(sounding.int().argmax())].label
    alone = miniature_data(miniature, CLIP, batch_size=5, workers=0, only=[module.classes[label]])
    measure(autoencoder("avmae").eval(), alone, CONDITIONS[:2], Inference("cpu", "32-true"))
    assert "7 clips with audio were tested in silence for swap" in capsys.readouterr().err
