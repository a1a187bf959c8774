"""The four systems at a size of milliseconds, and batches for them."""

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from avmae.clip import ClipSpec
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.build import MaskSpec, ModelSpec, SizeSpec, build_autoencoder, build_classifier
from avmae.models.classifier import Classifier
from avmae.models.masking import Mask

CLIP = ClipSpec(frames=4, size=32, mel_bins=32)
SIZE = SizeSpec("mini", dim=24, depth=2, heads=2, audio_depth=1, decoder_dim=16, decoder_depth=1, decoder_heads=2)
MASK = MaskSpec(ratio=0.75, audio_ratio=0.5)
SYSTEMS = {
    "imagemae": ModelSpec("imagemae", ("video",), "none", video_patch=(1, 8, 8), frames_apart=True),
    "videomae": ModelSpec("videomae", ("video",), "none", video_patch=(2, 8, 8)),
    "avmae_concat": ModelSpec("avmae_concat", fusion="concat", video_patch=(2, 8, 8)),
    "avmae": ModelSpec("avmae", fusion="cross_attention", video_patch=(2, 8, 8)),
}
HEARING = ["avmae_concat", "avmae"]


def autoencoder(system: str, seed: int = 0, **changes: object) -> MaskedAutoencoder:
    torch.manual_seed(seed)
    return build_autoencoder(CLIP, dataclasses.replace(SYSTEMS[system], **changes), SIZE, MASK)


def classifier(system: str, seed: int = 0, classes: int = 5, dropout: float = 0.0, **changes: object) -> Classifier:
    torch.manual_seed(seed)
    return build_classifier(CLIP, dataclasses.replace(SYSTEMS[system], **changes), SIZE, classes, dropout)


def batch(has_audio: Iterable[bool] = (True, False), seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sound = torch.tensor(list(has_audio))
    video = torch.randn(len(sound), 3, CLIP.frames, CLIP.size, CLIP.size, generator=generator)
    audio = torch.randn(len(sound), 1, CLIP.spectrogram_frames, CLIP.mel_bins, generator=generator)
    return {"video": video, "audio": audio, "has_audio": sound}


def other_sound(clips: dict[str, Tensor]) -> dict[str, Tensor]:
    """Another sound in every clip."""
    return clips | {"audio": 1 - 2 * clips["audio"]}


def other_silence(clips: dict[str, Tensor]) -> dict[str, Tensor]:
    """Something else in the sound of those clips that have none."""
    sounding = clips["has_audio"][:, None, None, None]
    return clips | {"audio": torch.where(sounding, clips["audio"], 1 - 2 * clips["audio"])}


def draw(model: MaskedAutoencoder, clips: int = 2, seed: int = 0) -> dict[str, Mask]:
    return model.draw_masks(clips, torch.Generator().manual_seed(seed))


def disturb(module: nn.Module, seed: int = 0) -> None:
    """Move every parameter from where it was initialised: gates open, and no two weights are alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def copied(module: nn.Module) -> dict[str, Tensor]:
    """Its weights as they are now."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def without_gradient(module: nn.Module) -> list[str]:
    """Parameters that the last backward pass did not reach, or reached with zeros alone."""
    return [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
