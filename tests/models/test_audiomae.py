"""Audio encoders that start from AudioMAE."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from systems import CLIP, MASK, SIZE, SYSTEMS, autoencoder, copied
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from vits import vit

from avmae.errors import InputError
from avmae.models.build import build_autoencoder
from avmae.models.start import start_from

AUDIOMAE: dict[str, Any] = {"filter_bank": "kaldi", "mel_mean": -4.2677393, "mel_std": 2 * 4.5689974}


def spectrogram_vit(frames: int = 96) -> VisionTransformer:
    return vit(img_size=(frames, 128), patch_size=16, in_chans=1, depth=SIZE.audio_depth)


class TestAudioMAE:
    def test_an_audiomae_fills_the_sound_encoder_and_nothing_else(self, tmp_path: Path) -> None:
        clip = dataclasses.replace(CLIP, mel_bins=128, **AUDIOMAE)
        theirs, network = spectrogram_vit(), build_autoencoder(clip, SYSTEMS["avmae"], SIZE, MASK).eval()
        torch.save({"model": theirs.state_dict()}, tmp_path / "pretrained.pth")
        before = copied(network)
        match = start_from(network, tmp_path / "pretrained.pth")
        assert "(AudioMAE)" in match.title
        assert not any("spectrograms" in note for note in match.notes)
        ours, audio = network.encoder.modalities["audio"], torch.randn(2, 1, clip.spectrogram_frames, 128)
        tokens = ours.embed(ours.grid.patchify(audio).flatten(2))
        with torch.no_grad():
            # timm's embedding wants the length it was built for; what is beyond ours is cut off again.
            longer = nn.functional.pad(audio, (0, 0, 0, 96 - CLIP.spectrogram_frames))
            torch.testing.assert_close(tokens, theirs.patch_embed(longer)[:, : ours.grid.tokens])
            torch.testing.assert_close(ours.blocks(tokens), theirs.blocks(tokens), rtol=1e-4, atol=1e-4)
        assert torch.equal(ours.positions, theirs.pos_embed[0, 1 : 1 + ours.grid.tokens])
        for name, value in network.state_dict().items():
            if not name.startswith("encoder.modalities.audio."):
                assert torch.equal(value, before[name]), name

    def test_its_normalisation_becomes_part_of_the_embedding_and_another_filter_bank_is_said(
        self, tmp_path: Path
    ) -> None:
        clip = dataclasses.replace(CLIP, mel_bins=128, mel_mean=-6.0, mel_std=4.0)
        theirs, network = spectrogram_vit(frames=64), build_autoencoder(clip, SYSTEMS["avmae"], SIZE, MASK)
        torch.save(theirs.state_dict(), tmp_path / "pretrained.pth")
        notes = start_from(network, tmp_path / "pretrained.pth").notes
        ours, level = network.encoder.modalities["audio"], 4 * torch.randn(2, 1, 64, 128) - 5
        with torch.no_grad():
            tokens = ours.embed(ours.grid.patchify((level + 6) / 4).flatten(2))
            expected = theirs.patch_embed((level - AUDIOMAE["mel_mean"]) / AUDIOMAE["mel_std"])
        torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)
        said = "the audio encoder was trained on other spectrograms, with clip.filter_bank=kaldi: choose the same here"
        assert said in notes

    def test_a_shorter_table_is_stretched(self, tmp_path: Path) -> None:
        theirs, network = spectrogram_vit(frames=32), autoencoder("avmae")
        with torch.no_grad():
            theirs.pos_embed[0, 1:] = torch.tensor([-1.0, 1.0]).repeat_interleave(8)[:, None]
        torch.save(theirs.state_dict(), tmp_path / "pretrained.pth")
        start_from(network, tmp_path / "pretrained.pth")
        table = network.encoder.modalities["audio"].positions.unflatten(0, (4, 2))
        assert (table.diff(dim=0) > 0).all()
        torch.testing.assert_close(table[:, 0], table[:, 1])

    def test_bands_keep_their_order_among_fewer_mel_bins(self, tmp_path: Path) -> None:
        theirs, network = spectrogram_vit(), autoencoder("avmae")
        with torch.no_grad():
            theirs.pos_embed[0, 1:] = torch.linspace(-1, 1, 8).repeat(6)[:, None]
        torch.save(theirs.state_dict(), tmp_path / "pretrained.pth")
        start_from(network, tmp_path / "pretrained.pth")
        table = network.encoder.modalities["audio"].positions.unflatten(0, (4, 2))
        assert (table.diff(dim=1) > 0.5).all()
        torch.testing.assert_close(table, table[:1].expand(4, -1, -1))

    def test_a_model_that_does_not_hear_refuses_it(self, tmp_path: Path) -> None:
        torch.save(spectrogram_vit().state_dict(), tmp_path / "pretrained.pth")
        network = autoencoder("videomae")
        before = copied(network)
        message = r"pretrained\.pth \(AudioMAE\) holds encoder\.modalities\.audio, which this model does not have"
        with pytest.raises(InputError, match=message):
            start_from(network, tmp_path / "pretrained.pth")
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
