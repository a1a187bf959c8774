"""The forward pass, its targets, and the tokens of whole clips."""

import pytest
import torch
from decoders import autoencoder, disturbed, every_hearing_system, every_system, replaced
from systems import CLIP, HEARING, SIZE, batch, draw, without_gradient

from avmae.errors import InputError
from avmae.models.autoencoder import normalize_patches
from avmae.models.masking import Mask


class TestForward:
    @every_system
    def test_predicts_every_hidden_patch_and_weighs_the_losses(self, system: str) -> None:
        model = autoencoder(system, loss_weights={"video": 2.0, "audio": 0.5})
        masks = draw(model)
        result = model(batch(), masks)
        for name, decoder in model.decoders.items():
            grid = decoder.grid
            rows, hidden = masks[name].masked.shape
            assert rows == 2 * grid.stack
            assert result.predictions[name].shape == (rows, hidden, grid.patch_dim // grid.channels, grid.channels)
            assert result.losses[name].shape == (rows,)
        expected = 2.0 * result.losses["video"].mean()
        if "audio" in result.losses:
            expected = expected + 0.5 * result.losses["audio"].mean()
        torch.testing.assert_close(result.loss, expected)

    @every_system
    @pytest.mark.parametrize("has_audio", [(True, True), (True, False), (False, False)], ids=str)
    def test_every_parameter_has_a_gradient_whatever_the_sound(self, system: str, has_audio: tuple[bool, bool]) -> None:
        model = autoencoder(system)
        model(batch(has_audio), draw(model)).loss.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []

    @every_system
    def test_every_parameter_learns(self, system: str) -> None:
        model = disturbed(system)
        model(batch(), draw(model)).loss.backward()
        assert without_gradient(model) == []

    @every_system
    def test_hidden_patches_cannot_be_seen_and_visible_ones_are(self, system: str) -> None:
        model, clips = disturbed(system).eval(), batch((True, True))
        masks = draw(model)
        predictions = model(clips, masks).predictions
        unseen = model(replaced(model, clips, masks, "masked"), masks).predictions
        seen = model(replaced(model, clips, masks, "visible"), masks).predictions
        for name, prediction in predictions.items():
            assert torch.equal(unseen[name], prediction)
            assert ((seen[name] - prediction).abs().amax(-1) > 0).all()

    @every_system
    def test_predictions_do_not_depend_on_the_order_of_a_mask(self, system: str) -> None:
        model, clips = disturbed(system).eval(), batch()
        masks = draw(model)
        turned = {name: Mask(mask.visible.flip(1), mask.masked.flip(1)) for name, mask in masks.items()}
        result, other = model(clips, masks), model(clips, turned)
        for name, prediction in result.predictions.items():
            torch.testing.assert_close(other.predictions[name].flip(1), prediction, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(other.loss, result.loss)

    @every_system
    def test_the_loss_is_the_mean_over_halves_of_the_batch(self, system: str) -> None:
        model, clips = disturbed(system).eval(), batch((True, True, False, True))
        masks = draw(model, clips=4)
        halves = []
        for n in range(2):
            part = {key: value[2 * n : 2 * n + 2] for key, value in clips.items()}
            halves.append(
                model(part, {name: Mask(*(x.chunk(2)[n] for x in mask)) for name, mask in masks.items()}).loss
            )
        torch.testing.assert_close(torch.stack(halves).mean(), model(clips, masks).loss)

    @every_system
    def test_processes_draw_the_masks_of_one(self, system: str) -> None:
        model = autoencoder(system)
        single = draw(model, clips=4)
        shared = [model.draw_masks(2, torch.Generator().manual_seed(0), rank, 2) for rank in range(2)]
        for name, mask in single.items():
            assert torch.equal(torch.cat([masks[name].masked for masks in shared]), mask.masked)

    def test_a_pair_is_seen_and_heard(self) -> None:
        model, clips = autoencoder("avmae", may_lack=("video", "audio")), batch((True, True, True, False))
        masks = draw(model, clips=4)
        shown = {name: torch.arange(4) != n for n, name in enumerate(("audio", "video"))}
        assert model(clips, masks).paired.tolist() == [True, True, True, False]
        assert model(clips, masks, shown).paired.tolist() == [False, False, True, False]

    def test_checkpointing_recomputes_and_changes_nothing(self) -> None:
        gradients, calls = [], []
        for checkpointing in (False, True):
            # Drop path: what is recomputed must draw the same random numbers again.
            model = disturbed("avmae", checkpointing=checkpointing, drop_path=0.5).train()
            count: list[int] = []
            model.encoder.modalities["video"].blocks[0].register_forward_pre_hook(lambda *_, c=count: c.append(1))
            torch.manual_seed(1)
            model(batch(), draw(model)).loss.backward()
            gradients.append({name: p.grad for name, p in model.named_parameters()})
            calls.append(len(count))
        assert calls == [1, 2]
        torch.testing.assert_close(gradients[1], gradients[0])

    @every_system
    def test_a_clip_of_another_shape_is_refused(self, system: str) -> None:
        model, clips = autoencoder(system), batch()
        with pytest.raises(InputError, match=r"video has shape \(2, 3, 3, 32, 32\)"):
            model(clips | {"video": clips["video"][:, :, 1:]}, draw(model))


class TestTarget:
    def test_patches_are_normalised_as_in_videomae(self) -> None:
        patches = torch.randn(2, 3, 8, 3) * 5 + 2
        patches[0, 0] = 0.25
        normalized, mean, std = normalize_patches(patches)
        for b, n, c in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(3)):
            values = patches[b, n, :, c]
            root = torch.var(values, correction=1) ** 0.5 + 1e-6
            torch.testing.assert_close(normalized[b, n, :, c], (values - values.mean()) / root)
        torch.testing.assert_close(normalized * std + mean, patches)
        assert torch.equal(normalized[0, 0], torch.zeros(8, 3))

    @pytest.mark.parametrize("normalize_target", [True, False])
    def test_the_loss_is_the_mean_squared_error_of_the_hidden_patches(self, normalize_target: bool) -> None:
        model, clips = disturbed("avmae", normalize_target=normalize_target).eval(), batch((True, True))
        masks = draw(model)
        result = model(clips, masks)
        for name, patches in model.encoder.patchify(clips).items():
            for b in range(2):
                target = patches[b, masks[name].masked[b]]
                if normalize_target:
                    target = (target - target.mean(1, keepdim=True)) / target.std(1, keepdim=True)
                error = torch.nn.functional.mse_loss(result.predictions[name][b], target)
                torch.testing.assert_close(result.losses[name][b], error, rtol=1e-4, atol=1e-4)


def test_imagemae_sees_each_frame_on_its_own() -> None:
    model, clips = disturbed("imagemae").eval(), batch()
    masks = draw(model)
    changed = clips["video"].clone()
    changed[1, :, 3] += torch.randn(3, CLIP.size, CLIP.size)
    first, second = (model(clips | {"video": video}, masks).predictions["video"] for video in (clips["video"], changed))
    differs = (first != second).flatten(1).any(1).reshape(2, CLIP.frames)
    assert differs.tolist() == [[False] * 4, [False, False, False, True]]


class TestEncode:
    @every_system
    def test_gives_the_tokens_of_whole_clips_pictures_first(self, system: str) -> None:
        model, clips = disturbed(system).eval(), batch((True, True))
        tokens = model.encode(**clips)
        grids = [modality.grid for modality in model.encoder.modalities.values()]
        assert tokens.shape == (2, sum(grid.tokens * grid.stack for grid in grids), SIZE.dim)
        torch.testing.assert_close(model.encode(**{key: value[1:] for key, value in clips.items()}), tokens[1:])
        if system in HEARING:
            audio = grids[1].tokens
            encoded = model.encoder(model.encoder.patchify(clips), {"audio": clips["has_audio"]})
            assert torch.equal(tokens[:, :-audio], encoded["video"])
            assert torch.equal(tokens[:, -audio:], encoded["audio"])

    @every_hearing_system
    def test_what_is_not_said_of_sound_follows_from_what_is_given(self, system: str) -> None:
        model, clips = disturbed(system).eval(), batch((True, True))
        video, audio = clips["video"], clips["audio"]
        heard = model.encode(video, audio)
        assert torch.equal(heard, model.encode(video, audio, torch.tensor([True, True])))
        silent = model.encode(video)
        assert torch.equal(silent, model.encode(video, audio, torch.tensor([False, False])))
        assert not torch.allclose(heard, silent, atol=1e-4)
