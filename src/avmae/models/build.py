"""Plain settings to models: the four systems and five sizes are values of these."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, cast

from torch import nn

from avmae.clip import HOP_SECONDS, ClipSpec
from avmae.errors import InputError
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.classifier import Classifier
from avmae.models.decoder import CrossBlock, CrossBlocks, Decoder, Moment, SharedDecoder
from avmae.models.encoder import Encoder, ModalityEncoder, Transformer
from avmae.models.fusion import ConcatFusion, JointCrossAttention, NoFusion
from avmae.models.masking import Masking
from avmae.models.tokens import Grid


@dataclass(frozen=True)
class ModelSpec:
    """A system: what it takes in and how it fuses.

    Args:
        name: of the system.
        modalities: `video`, and `audio` for systems that take audio.
        fusion: `none`, `concat` or `cross_attention`.
        fusion_depth: layers of cross-attention.
        decoder: what masked tokens attend to: `self`, the tokens of their own modality, as VideoMAE's weights need it;
            `joint`, all tokens of all modalities; `cross`, the visible tokens of all modalities; or `aligned`, as
            `cross`, starting from what the other modality shows at their moment.
        positions: `flat`, as VideoMAE's weights need it, `axes` or `clock`; see `grid_positions`.
        video_patch: frames, height, width of a tubelet.
        audio_patch: spectrogram frames and mel bins of a patch.
        frames_apart: encode each frame on its own (ImageMAE); the tubelet is then one frame long,
            whatever `video_patch` says, so that all systems can share a recipe.
        may_lack: modalities in whose place a learned token can stand: `audio` for silent clips, `video` for inpainting.
        drop_path: rate of the last block.
        checkpointing: recompute activations in the backward pass.
        normalize_target: see `MaskedAutoencoder`.
        loss_weights: by modality, 1 by default.
        norm_eps: of all norms but the fusion's and the last; official VideoMAE has 1e-6, transformers' states its own.
        last_norm_eps: of the norm before the classifier's or a decoder's head; 1e-5 in transformers' VideoMAE.

    Raises:
        InputError: the settings contradict each other.
    """

    name: str
    modalities: tuple[str, ...] = ("video", "audio")
    fusion: str = "cross_attention"
    fusion_depth: int = 1
    decoder: str = "self"
    positions: str = "flat"
    video_patch: tuple[int, ...] = (2, 16, 16)
    audio_patch: tuple[int, ...] = (16, 16)
    frames_apart: bool = False
    may_lack: tuple[str, ...] = ("audio",)
    drop_path: float = 0.0
    checkpointing: bool = False
    normalize_target: bool = True
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    norm_eps: float = 1e-6
    last_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("modalities", "video_patch", "audio_patch", "may_lack"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.modalities not in (("video",), ("video", "audio")):
            raise InputError(f"model.modalities must be [video] or [video, audio], not {list(self.modalities)}")
        if self.fusion not in ("none", "concat", "cross_attention"):
            raise InputError(f"model.fusion={self.fusion} is unknown; choose from none, concat, cross_attention")
        if self.decoder not in ("self", "joint", "cross", "aligned"):
            raise InputError(f"model.decoder={self.decoder} is unknown; choose self, joint, cross or aligned")
        if self.positions not in ("flat", "axes", "clock"):
            raise InputError(f"model.positions={self.positions} is unknown; choose flat, axes or clock")
        if "audio" not in self.may_lack or not {"audio", "video"} >= set(self.may_lack):
            raise InputError(f"model.may_lack must be [audio] or [video, audio], not {list(self.may_lack)}")
        if (self.fusion == "none") != (len(self.modalities) == 1):
            raise InputError("model.fusion is none for systems of video alone, and only for them")
        if self.frames_apart and len(self.modalities) > 1:
            raise InputError("model.frames_apart is for systems of video alone")
        if self.frames_apart:
            object.__setattr__(self, "video_patch", (1, *self.video_patch[1:]))


@dataclass(frozen=True)
class SizeSpec:
    """Width and depth. The decoders of small to huge are official VideoMAE's.

    Args:
        name: tiny, small, base, large or huge.
        dim: of the encoder's tokens.
        depth: blocks of the video encoder.
        heads: of each.
        audio_depth: blocks of the audio encoder.
        decoder_dim: of the decoders' tokens.
        decoder_depth: blocks of each decoder.
        decoder_heads: of each.

    Raises:
        InputError: heads do not divide the width.
    """

    name: str
    dim: int
    depth: int
    heads: int
    audio_depth: int
    decoder_dim: int
    decoder_depth: int
    decoder_heads: int

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.decoder_dim % self.decoder_heads:
            raise InputError("size.dim must be a multiple of size.heads, size.decoder_dim of size.decoder_heads")


@dataclass(frozen=True)
class MaskSpec:
    """What is masked in pretraining.

    Args:
        video: strategy for video: tube, random, frame or span; or shares of the clips, as {tube: 0.5, span: 0.5}.
        ratio: share of video places masked.
        audio: strategy for audio: random, time, frequency or span; or shares of the clips.
        audio_ratio: share of audio places masked.
        decoder_ratio: share of the masked video tokens that training does not decode; see `Masking`.
    """

    video: str | Mapping[str, float] = "tube"
    ratio: float = 0.75
    audio: str | Mapping[str, float] = "random"
    audio_ratio: float = 0.75
    decoder_ratio: float = 0.0


def _grids(clip: ClipSpec, model: ModelSpec) -> dict[str, Grid]:
    stack = clip.frames if model.frames_apart else 1
    frames = (clip.frames // stack, clip.size, clip.size)
    grids = {"video": Grid("video", 3, frames, model.video_patch, stack, clip.seconds / stack)}
    if "audio" in model.modalities:
        shape = (clip.spectrogram_frames, clip.mel_bins)
        grids["audio"] = Grid("audio", 1, shape, model.audio_patch, seconds=clip.spectrogram_frames * HOP_SECONDS)
    return grids


def _encoder(clip: ClipSpec, model: ModelSpec, size: SizeSpec) -> Encoder:
    modalities = {
        name: ModalityEncoder(
            grid,
            size.dim,
            size.audio_depth if name == "audio" else size.depth,
            size.heads,
            drop_path=model.drop_path,
            may_be_absent=name in model.may_lack and len(model.modalities) > 1,
            checkpointing=model.checkpointing,
            positions=model.positions,
            norm_eps=model.norm_eps,
        )
        for name, grid in _grids(clip, model).items()
    }
    names = list(modalities)
    fusion: nn.Module = NoFusion()
    if model.fusion == "concat":
        fusion = ConcatFusion(names, size.dim)
    elif model.fusion == "cross_attention":
        fusion = nn.Sequential(*(JointCrossAttention(names, size.dim, size.heads) for _ in range(model.fusion_depth)))
    return Encoder(modalities, fusion, size.dim)


def build_autoencoder(clip: ClipSpec, model: ModelSpec, size: SizeSpec, mask: MaskSpec) -> MaskedAutoencoder:
    """The model of pretraining, freshly initialised from torch's global random state."""
    encoder = _encoder(clip, model, size)
    block_sizes = (size.decoder_dim, size.decoder_depth, size.decoder_heads)
    shared = None
    if model.decoder == "joint":
        shared = SharedDecoder(Transformer(*block_sizes, norm_eps=model.norm_eps))
    elif model.decoder in ("cross", "aligned"):
        blocks = (CrossBlock(size.decoder_dim, size.decoder_heads, model.norm_eps) for _ in range(size.decoder_depth))
        grids = {name: modality.grid for name, modality in encoder.modalities.items()}
        pairs = permutations(grids, 2) if model.decoder == "aligned" else ()
        moments = {name: Moment(grids[name], grids[other], size.decoder_dim) for name, other in pairs}
        shared = SharedDecoder(CrossBlocks(blocks), moments)
    decoders = {
        name: Decoder(
            modality.grid,
            size.dim,
            size.decoder_dim,
            None if shared else Transformer(*block_sizes, norm_eps=model.norm_eps),
            model.positions,
            model.norm_eps,
            model.last_norm_eps,
        )
        for name, modality in encoder.modalities.items()
    }
    maskings = build_maskings(encoder, mask)
    network = MaskedAutoencoder(encoder, decoders, maskings, model.normalize_target, model.loss_weights, shared)
    network.clip = clip
    return network


def build_maskings(encoder: Encoder, mask: MaskSpec) -> dict[str, Masking]:
    """How each modality of an encoder is masked; in the encoder's mode, for only training leaves tokens undecoded."""
    maskings = nn.ModuleDict()
    for name, modality in encoder.modalities.items():
        size = modality.grid.size
        if name == "video":
            maskings[name] = Masking(name, mask.video, mask.ratio, size, mask.decoder_ratio)
        else:
            # Where the video's span ends.
            times = encoder.modalities["video"].grid.size[0]
            begin = int(mask.ratio * times + 1e-9) / times
            maskings[name] = Masking(name, mask.audio, mask.audio_ratio, size, begin=begin)
    return cast(dict[str, Masking], maskings.train(encoder.training))


def build_classifier(
    clip: ClipSpec,
    model: ModelSpec,
    size: SizeSpec,
    classes: int,
    dropout: float = 0.0,
    pool: str = "mean",
    frozen: bool = False,
    many_labels: bool = False,
) -> Classifier:
    """The model of fine-tuning and probing, freshly initialised from torch's global random state."""
    if pool not in ("mean", "attention"):
        raise InputError(f"task.pool={pool} is unknown; choose mean or attention")
    encoder = _encoder(clip, model, size)
    network = Classifier(encoder, classes, dropout, pool, size.heads, frozen, model.last_norm_eps)
    network.clip, network.many_labels = clip, many_labels
    return network


def grids_from_config(config: Mapping[str, Any]) -> tuple[ClipSpec, dict[str, Grid]]:
    """The windows that the model of a checkpoint's config takes, and how it cuts each modality.

    Raises:
        InputError: a key is missing or unknown.
    """
    try:
        clip, model = ClipSpec(**config["clip"]), ModelSpec(**config["model"])
    except (KeyError, TypeError) as error:
        raise InputError(f"the config does not describe a model of this version: {error}") from error
    return clip, _grids(clip, model)


def build_from_config(config: Mapping[str, Any]) -> MaskedAutoencoder | Classifier:
    """The model that a checkpoint's config (plain data: clip, model, size, and mask or classes) describes.

    Raises:
        InputError: a key is missing or unknown.
    """
    try:
        clip, model, size = ClipSpec(**config["clip"]), ModelSpec(**config["model"]), SizeSpec(**config["size"])
        if config["task"] == "pretrain":
            return build_autoencoder(clip, model, size, MaskSpec(**config["mask"]))
        head = {"pool": config.get("pool", "mean"), "many_labels": config["task"] == "tag"}
        return build_classifier(clip, model, size, config["classes"], config["dropout"], **head)
    except (KeyError, TypeError) as error:
        raise InputError(f"the config does not describe a model of this version: {error}") from error
