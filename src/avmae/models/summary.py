"""How large a network is, and how much arithmetic a clip costs."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.classifier import Classifier
from avmae.models.masking import Mask


@dataclass(frozen=True)
class Part:
    """One part of a network.

    Args:
        name: of the part.
        parameters: numbers in it.
        trained: those of them that training changes.
        tokens: of a clip that go through it.
    """

    name: str
    parameters: int
    trained: int
    tokens: int


def parts(network: MaskedAutoencoder | Classifier) -> list[Part]:
    """What a network consists of; every parameter is counted in one part."""
    modalities = network.encoder.modalities
    tokens = {name: encoder.grid.tokens for name, encoder in modalities.items()}
    if isinstance(network, MaskedAutoencoder):
        masks = _draw(network)
        tokens = {name: mask.visible.shape[1] for name, mask in masks.items()}
    found = [_part(f"{n} encoder", encoder, tokens[n] * encoder.grid.stack) for n, encoder in modalities.items()]
    found.append(_part("fusion", network.encoder.fusion, sum(part.tokens for part in found)))
    if isinstance(network, MaskedAutoencoder):
        for name, decoder in network.decoders.items():
            decoded = tokens[name] + masks[name].masked.shape[1]
            found.append(_part(f"{name} decoder", decoder, decoded * decoder.grid.stack))
        if network.shared_decoder is not None:
            found.append(
                _part("shared decoder", network.shared_decoder, sum(part.tokens for part in found[-len(masks) :]))
            )
    else:
        found.append(_part("head", nn.ModuleList([network.poolings, network.norms, network.heads]), found[-1].tokens))
    return [part for part in found if part.parameters]


def _draw(network: MaskedAutoencoder) -> dict[str, Mask]:
    return network.draw_masks(1, torch.Generator().manual_seed(0))


def _part(name: str, module: nn.Module, tokens: int) -> Part:
    counts = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return Part(name, sum(n for n, _ in counts), sum(n for n, trained in counts if trained), tokens)


def step_flop(network: MaskedAutoencoder | Classifier) -> int:
    """Floating-point operations of forward and backward for one clip with audio, counted without computing.

    Matrix products and convolutions alone count, a multiplication and an addition as two; what activation checkpointing
    computes again does not count.
    """
    clip = network.clip

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device="meta")

    batch = {
        "video": empty(1, 3, clip.frames, clip.size, clip.size),
        "audio": empty(1, 1, clip.spectrogram_frames, clip.mel_bins),
        "has_audio": empty(1, dtype=torch.bool),
    }
    arguments: tuple = (batch,)
    if isinstance(network, MaskedAutoencoder):
        masks = {name: Mask(*(index.to("meta") for index in mask)) for name, mask in _draw(network).items()}
        arguments = (batch, masks)
    weights = {name: p.detach().to("meta").requires_grad_(p.requires_grad) for name, p in network.named_parameters()}
    weights |= {name: buffer.to("meta") for name, buffer in network.named_buffers()}
    # Fused attention is counted on some devices only; plain products always are.
    stance = torch.compiler.set_stance("force_eager")
    modes = [(module, module.training) for module in network.modules()]
    # Checkpointing would compute again with the real weights.
    network.eval()
    with stance, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = functional_call(network, weights, arguments)
        (output if isinstance(output, Tensor) else output.loss).sum().backward()
    for module, training in modes:
        module.training = training
    return counter.get_total_flops()
