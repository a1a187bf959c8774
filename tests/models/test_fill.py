"""Clips filled in by predictions: what the reconstructions show."""

import pytest
import torch
from decoders import autoencoder, disturbed, every_system, replaced
from systems import CLIP, batch, draw
from torch import Tensor

from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.masking import Mask
from avmae.models.tokens import gather_tokens


def reconstruct(model: MaskedAutoencoder, clips: dict[str, Tensor], masks: dict[str, Mask], statistics: str) -> dict:
    return model.fill(clips, masks, model(clips, masks).predictions, statistics)


class TestFill:
    @every_system
    @pytest.mark.parametrize("statistics", ["true", "visible"])
    @pytest.mark.parametrize("normalize_target", [True, False])
    def test_keeps_visible_patches_to_the_bit(self, system: str, statistics: str, normalize_target: bool) -> None:
        model, clips = disturbed(system, normalize_target=normalize_target).eval(), batch()
        masks = draw(model)
        whole = reconstruct(model, clips, masks, statistics)
        original = model.encoder.patchify(clips)
        assert list(whole) == list(original)
        for name, patches in model.encoder.patchify(whole).items():
            assert whole[name].shape == clips[name].shape
            visible, hidden = masks[name]
            assert torch.equal(gather_tokens(patches, visible), gather_tokens(original[name], visible))
            assert not torch.isclose(gather_tokens(patches, hidden), gather_tokens(original[name], hidden)).all()

    @every_system
    @pytest.mark.parametrize("normalize_target", [True, False])
    def test_perfect_predictions_restore_the_clip(
        self, system: str, normalize_target: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, clips = autoencoder(system, normalize_target=normalize_target), batch((True, True))
        masks = draw(model)
        for name, patches in model.encoder.patchify(clips).items():
            target = gather_tokens(patches, masks[name].masked)
            if normalize_target:
                target = (target - target.mean(2, keepdim=True)) / target.std(2, keepdim=True)
            monkeypatch.setattr(model.decoders[name], "predict", lambda _, target=target: target)
        for name, whole in reconstruct(model, clips, masks, "true").items():
            torch.testing.assert_close(whole, clips[name], rtol=0, atol=1e-4)

    @every_system
    def test_the_honest_view_uses_nothing_hidden(self, system: str) -> None:
        model, clips = disturbed(system).eval(), batch((True, True))
        masks = draw(model)
        other = replaced(model, clips, masks, "masked")
        honest, same, shown, differs = (
            reconstruct(model, content, masks, statistics)
            for statistics in ("visible", "true")
            for content in (clips, other)
        )
        for name in honest:
            assert torch.equal(honest[name], same[name])
            assert not torch.equal(shown[name], differs[name])

    def test_the_honest_view_takes_a_patchs_light_from_its_neighbours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, clips = autoencoder("videomae"), batch((False,))
        # Left half dark, right half bright; predictions say that nothing stands out.
        clips["video"] = torch.full_like(clips["video"], -1)
        clips["video"][..., CLIP.size // 2 :] = 1
        monkeypatch.setattr(
            model.decoders["video"], "forward", lambda _, mask: torch.zeros(1, mask.masked.shape[1], 128, 3)
        )
        # Tokens are 2 x 4 x 4; of each row the first and the last can be seen.
        tokens = torch.arange(32).reshape(2, 4, 4)
        mask = Mask(tokens[..., [0, 3]].reshape(1, -1), tokens[..., [1, 2]].reshape(1, -1))
        whole = reconstruct(model, clips, {"video": mask}, "visible")["video"]
        assert (whole[..., : CLIP.size // 2] < -0.4).all()
        assert (whole[..., CLIP.size // 2 :] > 0.4).all()
