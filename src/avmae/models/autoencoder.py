"""The masked autoencoder: encode the few visible tokens, fuse, predict the masked ones.

What is notable:
- the paper's four systems are settings of this one class: which modalities, how they are fused;
- both modalities run through the same code, a stack of frames being a grid of 3 axes and a spectrogram one of 2;
- patches are cut once and serve as input where visible and as target where masked;
- only visible tokens are embedded and encoded, only masked ones go through the head and count in the loss;
- masks are an argument, so the model is deterministic given them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Generator, Tensor, nn

from avmae.clip import ClipSpec
from avmae.models.decoder import Decoder, SharedDecoder
from avmae.models.encoder import Encoder
from avmae.models.masking import Mask, Masking, shared_phases
from avmae.models.tokens import Grid, gather_tokens, scatter_tokens


@dataclass
class Reconstruction:
    """What the autoencoder says of one batch.

    Args:
        loss: scalar float32, the weighted sum over modalities of the batch mean; an absent modality counts as 0, so
            that the mean over processes is the mean over clips.
        losses: by modality (B,) float32, the mean squared error over masked patches; 0 where the clip lacks it.
        predictions: by modality (B, M, P, C) of the masked patches, in the units of the target.
        apart: by modality (B, dim), the mean of the visible tokens before fusion.
        fused: by modality (B, dim), the mean after fusion.
        paired: (B,) bool, clips whose video and audio were both there and shown.
    """

    loss: Tensor
    losses: dict[str, Tensor]
    predictions: dict[str, Tensor]
    apart: dict[str, Tensor]
    fused: dict[str, Tensor]
    paired: Tensor


def normalize_patches(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise (B, N, P, C) over the P elements of each patch and channel.

    As VideoMAE: the variance is unbiased and the epsilon of 1e-6 is added outside the root.

    Returns:
        The normalised patches, and mean and root with epsilon, both (B, N, 1, C).
    """
    mean = patches.mean(2, keepdim=True)
    std = patches.var(2, keepdim=True, unbiased=True).sqrt() + 1e-6
    return (patches - mean) / std, mean, std


class MaskedAutoencoder(nn.Module):
    """Encoder, a decoder for each modality, and their masks.

    Args:
        encoder: shared with the classifier.
        decoders: by modality.
        maskings: a `Masking` by modality.
        normalize_target: predict patches normalised by their own mean and variance (MAE section 4, VideoMAE).
        loss_weights: by modality.
        shared: decodes all modalities together; None where each has blocks of its own.
    """

    clip: ClipSpec
    """What windows it takes, set by `avmae.models.build`."""

    def __init__(
        self,
        encoder: Encoder,
        decoders: Mapping[str, Decoder],
        maskings: dict[str, Masking],
        normalize_target: bool = True,
        loss_weights: Mapping[str, float] | None = None,
        shared: SharedDecoder | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoders = cast(dict[str, Decoder], nn.ModuleDict(decoders))
        self.shared_decoder = shared
        self.maskings = maskings
        self.normalize_target = normalize_target
        self.loss_weights = {name: (loss_weights or {}).get(name, 1.0) for name in decoders}
        self.apply(_initialize)
        for decoder in decoders.values():
            nn.init.trunc_normal_(decoder.mask_token, std=0.02)

    def draw_masks(self, clips: int, generator: Generator, rank: int = 0, world: int = 1) -> dict[str, Mask]:
        """Draw every modality's masks for ``clips`` clips of this process; see `Masking`."""
        phases = shared_phases(self.maskings.values(), clips, generator, rank, world)
        return {
            name: masking(clips * self.decoders[name].grid.stack, generator, rank, world, phases)
            for name, masking in self.maskings.items()
        }

    def forward(
        self, batch: Mapping[str, Any], masks: Mapping[str, Mask], shown: Mapping[str, Tensor] | None = None
    ) -> Reconstruction:
        """Reconstruct the masked patches.

        Args:
            batch: video (B, 3, T, H, W), audio (B, 1, L, F), has_audio (B,) bool; what a system does not use may lack.
            masks: by modality.
            shown: by modality (B,) bool; elsewhere all of its patches are kept from the encoder and the masked ones
                of the mask have to be predicted from the other modality (inpainting).
        """
        # A view by strides makes inductor write the patches once; it would cut them anew wherever a number is read.
        patches = {name: x.as_strided(x.shape, x.stride()) for name, x in self.encoder.patchify(batch).items()}
        shown = shown or {}
        present = {**shown, "audio": batch["has_audio"] & shown.get("audio", batch["has_audio"])}
        apart = self.encoder.encode_apart(patches, present, {name: mask.visible for name, mask in masks.items()})
        tokens = self.encoder.fusion(apart)
        if self.shared_decoder is None:
            predictions = {name: decoder(tokens[name], masks[name]) for name, decoder in self.decoders.items()}
        else:
            predictions = self.shared_decoder(self.decoders, tokens, masks)

        losses = {}
        for name, prediction in predictions.items():
            target = gather_tokens(patches[name], masks[name].masked)
            if self.normalize_target:
                target, _, _ = normalize_patches(target)
            error = (prediction.float() - target).square().mean((1, 2, 3))
            losses[name] = torch.where(batch["has_audio"], error, 0.0) if name == "audio" else error
        loss = torch.stack([self.loss_weights[name] * error.mean() for name, error in losses.items()]).sum()
        clips = batch["has_audio"].shape[0]
        pooled, fused = self.encoder.pool(apart, clips), self.encoder.pool(tokens, clips)
        return Reconstruction(loss, losses, predictions, pooled, fused, torch.stack(list(present.values())).all(0))

    @torch.no_grad()
    def fill(
        self,
        batch: Mapping[str, Any],
        masks: Mapping[str, Mask],
        predictions: Mapping[str, Tensor],
        statistics: Literal["true", "visible"] = "true",
    ) -> dict[str, Tensor]:
        """The whole clip, visible patches as they are and masked ones as predicted, by modality (B, C, *shape).

        A model trained on normalised targets predicts each patch up to its mean and standard deviation. `true` takes
        these from the masked patches themselves, as the papers' figures do; `visible` estimates them from the visible
        patches around, so nothing masked is used.

        Args:
            batch: what `forward` took.
            masks: by modality.
            predictions: of `forward`.
            statistics: where mean and standard deviation come from; of no meaning for models trained on plain targets.
        """
        patches = self.encoder.patchify(batch)
        whole = {}
        for name, prediction in predictions.items():
            mask = masks[name]
            visible, masked = gather_tokens(patches[name], mask.visible), gather_tokens(patches[name], mask.masked)
            filled = prediction.float()
            if self.normalize_target:
                _, mean, std = normalize_patches(masked if statistics == "true" else visible)
                if statistics == "visible":
                    mean, std = (_spread(x, mask, self.decoders[name].grid) for x in (mean, std))
                filled = filled * std + mean
            tokens = scatter_tokens([(visible, mask.visible), (filled, mask.masked)])
            whole[name] = self.decoders[name].grid.unpatchify(tokens)
        return whole

    def encode(self, video: Tensor, audio: Tensor | None = None, has_audio: Tensor | None = None) -> Tensor:
        """Fused tokens of whole clips; see `encode`."""
        return encode(self.encoder, video, audio, has_audio)


def encode(encoder: Encoder, video: Tensor, audio: Tensor | None, has_audio: Tensor | None) -> Tensor:
    """Fused tokens of whole clips, nothing masked.

    Args:
        encoder: of an autoencoder or classifier.
        video: (B, 3, T, H, W) float32, normalised.
        audio: (B, 1, L, F) float32 log-mel; None for silent clips.
        has_audio: (B,) bool; None where ``audio`` tells.

    Returns:
        (B, tokens of all modalities, dim), video tokens first.
    """
    clips = video.shape[0]
    if has_audio is None:
        has_audio = torch.full((clips,), audio is not None, device=video.device)
    if audio is None and "audio" in encoder.modalities:
        grid = encoder.modalities["audio"].grid
        audio = video.new_zeros(clips, grid.channels, *grid.shape)
    batch = {"video": video} if audio is None else {"video": video, "audio": audio}
    tokens = encoder(encoder.patchify(batch), {"audio": has_audio})
    return torch.cat([x.reshape(clips, -1, encoder.dim) for x in tokens.values()], 1)


def _spread(values: Tensor, mask: Mask, grid: Grid) -> Tensor:
    """Estimate the masked tokens' values (B, M, 1, C) from the visible ones' (B, V, 1, C); near ones count more."""
    places = torch.cartesian_prod(*(torch.arange(n, device=values.device, dtype=torch.float32) for n in grid.size))
    places = places.reshape(grid.tokens, -1)
    weights = (-2 * torch.cdist(places[mask.masked], places[mask.visible])).softmax(-1)
    return torch.einsum("bmv,bvpc->bmpc", weights, values)


def _initialize(module: nn.Module) -> None:
    """Xavier-uniform projections and zero biases, as VideoMAE and MAE."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
