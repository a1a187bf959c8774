import pytest
import systems
import torch
from systems import (
    CLIP,
    HEARING,
    SIZE,
    SYSTEMS,
    batch,
    disturb,
    draw,
    other_silence,
    other_sound,
    without_gradient,
)
from torch import Tensor
from transformers import VideoMAEForPreTraining
from videomae import fill, foreign, to_ours

from avmae.errors import InputError
from avmae.models.autoencoder import MaskedAutoencoder, normalize_patches
from avmae.models.masking import Mask
from avmae.models.tokens import gather_tokens, scatter_tokens

OVER_BOTH = ["avmae_concat cross", "avmae joint", "avmae cross", "avmae aligned"]
"""Systems whose decoder sees both modalities."""
OTHER_DECODERS = ["imagemae cross", "videomae joint", "videomae cross", *OVER_BOTH]
every_system = pytest.mark.parametrize("system", [*SYSTEMS, *OTHER_DECODERS])
every_hearing_system = pytest.mark.parametrize("system", [*HEARING, *OVER_BOTH])


def autoencoder(system: str, seed: int = 0, **changes: object) -> MaskedAutoencoder:
    """A system with VideoMAE's decoder, or another."""
    name, _, decoder = system.partition(" ")
    return systems.autoencoder(name, seed, decoder=decoder or "self", **changes)


def disturbed(system: str, **changes: object) -> MaskedAutoencoder:
    model = autoencoder(system, **changes)
    disturb(model)
    return model


def replaced(
    model: MaskedAutoencoder, clips: dict[str, Tensor], masks: dict[str, Mask], part: str
) -> dict[str, Tensor]:
    """The clips with other content in all visible, or all hidden, patches."""
    result = dict(clips)
    for name, patches in model.encoder.patchify(clips).items():
        own = {key: gather_tokens(patches, index) for key, index in masks[name]._asdict().items()}
        own[part] = torch.randn(own[part].shape, generator=torch.Generator().manual_seed(9)) * 3 + 1
        tokens = scatter_tokens([(own[key], index) for key, index in masks[name]._asdict().items()])
        result[name] = model.decoders[name].grid.unpatchify(tokens)
    return result


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


@every_hearing_system
class TestSilentClips:
    def test_what_lies_in_their_sound_changes_nothing(self, system: str) -> None:
        clips, results = batch((True, False, False)), []
        for same in (clips, other_silence(clips)):
            model = disturbed(system)
            result = model(same, draw(model, clips=3))
            result.loss.backward()
            results.append((result, {name: p.grad for name, p in model.named_parameters()}))
        (first, gradients), (second, other_gradients) = results
        assert torch.equal(first.losses["audio"], second.losses["audio"])
        assert all(torch.equal(first.predictions[name], second.predictions[name]) for name in first.predictions)
        assert all(torch.equal(other_gradients[name], gradient) for name, gradient in gradients.items())

    def test_not_even_numbers_that_are_none(self, system: str) -> None:
        model, clips = disturbed(system).eval(), batch((True, False))
        masks = draw(model)
        broken = clips["audio"].clone()
        broken[1] = float("nan")
        result, other = model(clips, masks), model(clips | {"audio": broken}, masks)
        assert torch.equal(other.loss, result.loss)
        assert all(torch.equal(other.predictions[name], x) for name, x in result.predictions.items())

    def test_their_sound_is_no_target(self, system: str) -> None:
        model = disturbed(system).eval()
        losses = model(batch((True, False, True)), draw(model, clips=3)).losses["audio"]
        assert (losses > 0).tolist() == [True, False, True]

    def test_sound_is_heard_where_it_is(self, system: str) -> None:
        model, clips = disturbed(system).eval(), batch((True, False))
        masks = draw(model)
        first, second = (model(same, masks).predictions["video"] for same in (clips, other_sound(clips)))
        assert not torch.allclose(first[0], second[0], atol=1e-4)
        assert torch.equal(first[1], second[1])

    def test_no_sound_differs_from_a_sound_of_zeros(self, system: str) -> None:
        model, clips = disturbed(system).eval(), batch((True,))
        clips["audio"].zero_()
        silent = clips | {"has_audio": torch.tensor([False])}
        masks = draw(model, clips=1)
        first, second = (model(same, masks).predictions["video"] for same in (clips, silent))
        assert not torch.allclose(first, second, atol=1e-4)


class TestStartsFromPictures:
    @pytest.mark.parametrize("system", HEARING)
    @pytest.mark.parametrize("fusion_depth", [1, 2])
    def test_equals_videomae_at_step_0_whatever_the_sound(self, system: str, fusion_depth: int) -> None:
        pictures = disturbed("videomae").eval()
        model = autoencoder(system, seed=5, fusion_depth=fusion_depth).eval()
        assert model.load_state_dict(pictures.state_dict(), strict=False).unexpected_keys == []
        clips = batch()
        masks = draw(model)
        alone = {key: value for key, value in clips.items() if key != "audio"}
        expected = pictures(alone, {"video": masks["video"]})
        for heard in (clips, other_sound(clips)):
            result = model(heard, masks)
            assert torch.equal(result.predictions["video"], expected.predictions["video"])
            assert torch.equal(result.losses["video"], expected.losses["video"])

    def test_equals_videomae_of_transformers(self) -> None:
        theirs = foreign(VideoMAEForPreTraining)
        model = autoencoder("videomae").eval()
        fill(model, to_ours(theirs.state_dict()))
        clips = batch()
        mask = Mask(*(index.sort(1).values for index in draw(model)["video"]))
        hidden = torch.zeros(2, model.decoders["video"].grid.tokens, dtype=torch.bool).scatter(1, mask.masked, True)
        with torch.no_grad():
            expected = theirs(clips["video"].transpose(1, 2), bool_masked_pos=hidden)
            result = model(clips, {"video": mask})
        torch.testing.assert_close(result.predictions["video"].flatten(2), expected.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(result.loss, expected.loss, rtol=1e-4, atol=1e-4)


def test_imagemae_sees_each_frame_on_its_own() -> None:
    model, clips = disturbed("imagemae").eval(), batch()
    masks = draw(model)
    changed = clips["video"].clone()
    changed[1, :, 3] += torch.randn(3, CLIP.size, CLIP.size)
    first, second = (model(clips | {"video": video}, masks).predictions["video"] for video in (clips["video"], changed))
    differs = (first != second).flatten(1).any(1).reshape(2, CLIP.frames)
    assert differs.tolist() == [[False] * 4, [False, False, False, True]]


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


class TestDecodersOverBothModalities:
    @pytest.mark.parametrize("system", OVER_BOTH)
    def test_audio_reaches_masked_video_at_step_0_and_masked_audio_the_other_way(self, system: str) -> None:
        model, clips = autoencoder(system).eval(), batch((True, True))
        masks = draw(model)
        own, other = model(clips, masks), model(other_sound(clips), masks)
        assert (own.predictions["video"] - other.predictions["video"]).abs().flatten(2).amax(2).min() > 0
        seen = model(clips | {"video": -clips["video"]}, masks)
        assert (own.predictions["audio"] - seen.predictions["audio"]).abs().flatten(2).amax(2).min() > 0

    @pytest.mark.parametrize("system", OVER_BOTH)
    def test_audio_that_is_absent_is_not_seen(self, system: str) -> None:
        model, clips = disturbed(system).eval(), batch((False, False))
        masks = draw(model)
        own, other = model(clips, masks), model(clips | {"audio": clips["audio"] + 1}, masks)
        assert torch.equal(own.predictions["video"], other.predictions["video"])

    @pytest.mark.parametrize("system", ["avmae cross", "avmae aligned"])
    def test_of_masked_tokens_that_see_visible_ones_alone_a_part_can_be_decoded(self, system: str) -> None:
        model, clips = disturbed(system).eval(), batch()
        masks = draw(model)
        whole = model(clips, masks).predictions
        half = {name: mask._replace(masked=mask.masked[:, ::2]) for name, mask in masks.items()}
        for name, prediction in model(clips, half).predictions.items():
            torch.testing.assert_close(prediction, whole[name][:, ::2], rtol=1e-5, atol=1e-5)

    def test_one_modality_decoded_jointly_equals_its_own_decoder(self) -> None:
        own = disturbed("videomae").eval()
        joint = autoencoder("videomae joint", seed=1).eval()
        weights = {
            name.replace("decoders.video.blocks", "shared_decoder.blocks"): x for name, x in own.state_dict().items()
        }
        joint.load_state_dict(weights)
        clips, masks = batch(), draw(own)
        assert torch.equal(joint(clips, masks).predictions["video"], own(clips, masks).predictions["video"])
