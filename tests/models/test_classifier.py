import pytest
import torch
from systems import HEARING, SYSTEMS, batch, classifier, disturb, other_silence, other_sound, without_gradient
from torch.nn.functional import cross_entropy
from transformers import VideoMAEForVideoClassification
from videomae import fill, foreign, to_ours

from avmae.models.classifier import Classifier

every_system = pytest.mark.parametrize("system", SYSTEMS)
every_hearing_system = pytest.mark.parametrize("system", HEARING)


def disturbed(system: str, **changes: object) -> Classifier:
    model = classifier(system, **changes)
    disturb(model)
    return model


@every_system
class TestEverySystem:
    @pytest.mark.parametrize("has_audio", [(True, True), (True, False), (False, False)], ids=str)
    def test_every_parameter_has_a_gradient_whatever_the_sound(self, system: str, has_audio: tuple[bool, bool]) -> None:
        model = classifier(system)
        cross_entropy(model(batch(has_audio)), torch.tensor([0, 4])).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []

    def test_what_stands_for_missing_pictures_has_a_gradient_where_none_are_missing(self, system: str) -> None:
        model = classifier(system, may_lack=("video", "audio"))
        cross_entropy(model(batch()), torch.tensor([0, 4])).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []

    def test_every_parameter_learns(self, system: str) -> None:
        model = disturbed(system)
        cross_entropy(model(batch()), torch.tensor([0, 4])).backward()
        assert without_gradient(model) == []

    def test_scores_each_clip_by_itself(self, system: str) -> None:
        model, clips = disturbed(system, classes=7).eval(), batch((True, False, True))
        logits = model(clips)
        assert logits.shape == (3, 7)
        for n in range(3):
            alone = model({key: value[n : n + 1] for key, value in clips.items()})
            torch.testing.assert_close(alone[0], logits[n], rtol=1e-4, atol=1e-4)

    def test_every_frame_counts(self, system: str) -> None:
        model, clips = disturbed(system).eval(), batch()
        logits = model(clips)
        for frame in range(clips["video"].shape[2]):
            video = clips["video"].clone()
            video[:, :, frame] = video[:, :, frame].flip(-1)
            assert ((model(clips | {"video": video}) - logits).abs().amax(1) > 1e-5).all()

    def test_starts_without_an_opinion(self, system: str) -> None:
        assert classifier(system).eval()(batch()).abs().max() < 0.01

    def test_dropout_and_drop_path_are_for_training_alone(self, system: str) -> None:
        model, clips = disturbed(system, dropout=0.5, drop_path=0.5), batch()
        plain = disturbed(system).eval()
        assert torch.equal(model.eval()(clips), plain(clips))
        model.train()
        assert not torch.equal(model(clips), model(clips))

    @pytest.mark.parametrize("rate", ["dropout", "drop_path"])
    def test_each_of_them_reaches_the_model(self, system: str, rate: str) -> None:
        # Of 8 clips, for with 2 the same may be dropped twice.
        model, clips = disturbed(system, **{rate: 0.5}).train(), batch((True, False) * 4)
        assert not torch.equal(model(clips), model(clips))


@every_hearing_system
class TestSound:
    def test_what_lies_in_the_sound_of_silent_clips_changes_nothing(self, system: str) -> None:
        model, clips = disturbed(system).eval(), batch((True, False, False))
        assert torch.equal(model(other_silence(clips)), model(clips))

    def test_sound_counts_where_it_is(self, system: str) -> None:
        model, clips = disturbed(system).eval(), batch((True, False))
        differs = (model(other_sound(clips)) - model(clips)).abs().amax(1) > 1e-4
        assert differs.tolist() == [True, False]

    def test_equals_pictures_alone_at_step_0(self, system: str) -> None:
        pictures = disturbed("videomae").eval()
        model = classifier(system, seed=5).eval()
        assert model.load_state_dict(pictures.state_dict(), strict=False).unexpected_keys == []
        clips = batch()
        expected = pictures({key: value for key, value in clips.items() if key != "audio"})
        assert torch.equal(model(clips), expected)
        assert torch.equal(model(other_sound(clips)), expected)


def test_equals_videomae_of_transformers() -> None:
    theirs = foreign(VideoMAEForVideoClassification)
    model = classifier("videomae").eval()
    fill(model, to_ours(theirs.state_dict()))
    clips = batch()
    with torch.no_grad():
        expected = theirs(clips["video"].transpose(1, 2)).logits
        torch.testing.assert_close(model(clips), expected, rtol=1e-4, atol=1e-4)


def test_encodes_like_the_autoencoder() -> None:
    model, clips = disturbed("avmae").eval(), batch()
    encoded = model.encoder(model.encoder.patchify(clips), {"audio": clips["has_audio"]})
    assert torch.equal(model.encode(**clips), torch.cat([encoded["video"], encoded["audio"]], 1))
