"""`python -m avmae.reconstruct ckpt=PATH input=FILE output=DIR`: see what a pretrained model makes of a video."""

import json
from pathlib import Path
from typing import Any

from avmae.command import command, print_table, spec
from avmae.errors import InputError

COLUMNS = 8


@command("reconstruct")
def main(config: dict[str, Any]) -> None:
    """Hide most of one window, reconstruct it, and write a video, a contact sheet and figures."""
    import numpy as np
    import torch

    from avmae.clip import ClipSpec
    from avmae.data.media import read_window, write_video
    from avmae.data.read import window_batch
    from avmae.figures import ROW, Row, contact_sheet, pixels, side_by_side, spectrogram_picture
    from avmae.models.autoencoder import MaskedAutoencoder
    from avmae.models.build import MaskSpec, build_maskings
    from avmae.models.tokens import gather_tokens, scatter_tokens
    from avmae.models.weights import load_model, read_checkpoint

    settings = read_checkpoint(config["ckpt"]).config
    model = load_model(config["ckpt"])
    if not isinstance(model, MaskedAutoencoder):
        raise InputError(
            f"{config['ckpt']} is a classifier, which has no decoder; give the checkpoint it was fine-tuned from"
        )
    clip = spec(ClipSpec, "clip", settings["clip"])
    mask = settings["mask"] | {key: value for key, value in config["mask"].items() if value is not None}
    model.maskings = build_maskings(model.encoder, spec(MaskSpec, "mask", mask))
    window = read_window(config["input"], clip, config["position"], clip.canvas)
    output = Path(config["output"])
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output={output} cannot be written: {error.strerror}") from error
    batch = window_batch(window, clip)
    masks = model.draw_masks(1, torch.Generator().manual_seed(config["seed"]))
    patches = model.encoder.patchify(batch)
    with torch.inference_mode():
        result = model(batch, masks)
        views = {"true": model.reconstruct(batch, masks, "true")}
        if model.normalize_target:
            views["visible"] = model.reconstruct(batch, masks, "visible")

    masked, metrics = {}, {}
    for name, decoder in model.decoders.items():
        grid, hidden = decoder.grid, masks[name].hidden
        seen = gather_tokens(patches[name], masks[name].visible)
        nothing = torch.full_like(gather_tokens(patches[name], hidden), float("nan"))
        masked[name] = grid.unpatchify(scatter_tokens([(seen, masks[name].visible), (nothing, hidden)]))
        heard = name == "video" or window.has_audio
        metrics[f"{name}/masked_mse"] = result.losses[name].mean().item() if heard else None
        for view, arrays in views.items():
            squared = (
                gather_tokens(grid.patchify(arrays[name]), hidden) - gather_tokens(patches[name], hidden)
            ).square()
            if name == "video":
                # In pixels of [0, 1]: the normalisation's deviation differs by channel.
                squared = squared * torch.tensor(clip.pixel_std).square()
                suffix = f"_{view}_statistics" if model.normalize_target else ""
                metrics[f"video/psnr_hidden{suffix}"] = -10 * squared.mean().log10().item()

    def picture(array: Any) -> Any:
        return pixels(array["video"][0].numpy(), clip.pixel_mean, clip.pixel_std)

    labels = {"true": "reconstructed", "visible": "reconstructed"}
    if model.normalize_target:
        labels = {"true": "with true patch statistics", "visible": "from visible patches alone"}
    ratio = masks["video"].hidden.shape[1] / patches["video"].shape[1]
    videos = {"original": picture(batch), f"masked, {ratio:.0%} hidden": picture(masked)}
    videos |= {labels[view]: picture(arrays) for view, arrays in views.items()}
    columns = np.unique(np.linspace(0, clip.frames - 1, COLUMNS).round().astype(int))
    rows = [Row(label, list(frames[columns])) for label, frames in videos.items()]
    if "audio" in views["true"] and window.has_audio:
        original = batch["audio"][0, 0].numpy()
        low, high = np.quantile(original, 0.02), np.quantile(original, 0.998)
        sounds = {"sound": original, "masked": masked["audio"][0, 0].numpy()}
        sounds |= {labels[view]: arrays["audio"][0, 0].numpy() for view, arrays in views.items()}
        height = max(ROW, clip.size)
        pictures = [spectrogram_picture(sound, low, high, height) for sound in sounds.values()]
        rows.append(Row("sound, in the order above", pictures))
    note = "true patch statistics: each hidden patch's own mean and deviation are given, as in the papers' figures"
    title = f"{Path(config['input']).name}  ({settings['model']['name']} {settings['size']['name']})"
    contact_sheet(title, rows, note if model.normalize_target else "").save(output / "reconstruction.png")
    write_video(
        output / "reconstruction.mp4",
        side_by_side(videos),
        clip.fps / clip.stride,
        window.waveform if window.has_audio else None,
        clip.sample_rate,
    )
    (output / "metrics.json").write_text(json.dumps({"input": str(config["input"]), "mask": mask, **metrics}, indent=2))
    print_table(["metric", "value"], [[k, "-" if v is None else f"{v:.4g}"] for k, v in metrics.items()])
    print(f"wrote {output}: reconstruction.mp4, reconstruction.png, metrics.json")


if __name__ == "__main__":
    main()
