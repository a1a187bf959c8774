"""`python -m avmae.reconstruct ckpt=PATH input=FILE output=DIR`: see what pretrained models make of videos."""

import json
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avmae.command import command, print_table, spec
from avmae.errors import InputError, MediaError
from avmae.terminal import printable

COLUMNS = 8


@command("reconstruct")
def main(config: dict[str, Any]) -> None:
    """Hide most of one window of each video, reconstruct it, and write videos, contact sheets and figures."""
    from avmae.data.folder import SUFFIXES

    systems = load_systems(config)
    source, output = Path(config["input"]).expanduser(), Path(config["output"]).expanduser()
    files = [source]
    if source.is_dir():
        files = sorted(file for file in source.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise InputError(f"input={source} holds no videos ({', '.join(sorted(SUFFIXES))})")
    rows, failed = [], []
    for file in files:
        folder = output / file.relative_to(source).with_suffix("") if source.is_dir() else output
        try:
            metrics = reconstruct(file, systems, folder, config)
        except MediaError as error:
            if not source.is_dir():
                raise
            failed.append(str(error))
            continue
        rows += [{"file": file.name, "system": label, **found} for label, found in metrics.items()]
    if not rows:
        raise MediaError(f"none of the {len(files)} videos can be read, the first: {failed[0]}")
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[f"{v:.4g}" if isinstance(v := row.get(name), float) else v or "-" for name in names] for row in rows]
    print_table(names, cells)
    print(*(printable(f"skipped: {line}") for line in failed), sep="\n", end="\n" if failed else "")
    print(f"wrote {output}: reconstruction.mp4, reconstruction.png, metrics.json; sounds as WAV where there are any")


@dataclass(frozen=True)
class System:
    """A pretrained model and how it is named in pictures and tables."""

    label: str
    model: Any
    settings: dict[str, Any]


def load_systems(config: dict[str, Any]) -> list[System]:
    """Load the checkpoints, with the masks that are asked for.

    Raises:
        InputError: one has no decoder, or takes another window than the first.
    """
    from avmae.clip import ClipSpec
    from avmae.inference import load_autoencoder
    from avmae.models.build import MaskSpec, build_maskings

    systems: list[System] = []
    for path in config["ckpt"] if isinstance(config["ckpt"], list) else [config["ckpt"]]:
        model, settings = load_autoencoder(path)
        first = systems[0].model.clip if systems else model.clip
        for key in ClipSpec.__dataclass_fields__:
            if getattr(model.clip, key) != getattr(first, key):
                raise InputError(
                    f"{path} was trained with clip.{key}={getattr(model.clip, key)}, the first checkpoint with "
                    f"{getattr(first, key)}; they can only be compared on the same window"
                )
        # The first one's mask for all: differences should come from the systems.
        mask = (systems[0].settings if systems else settings)["mask"]
        mask = mask | {key: value for key, value in config["mask"].items() if value is not None}
        model.maskings = build_maskings(model.encoder, spec(MaskSpec, "mask", mask))
        label = settings["model"]["name"]
        if any(system.label == label for system in systems):
            label = f"{label} ({Path(path).parent.parent.name})"
        systems.append(System(label, model, settings | {"mask": mask}))
    return systems


def reconstruct(file: Path, systems: list[System], output: Path, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Reconstruct one window by every system and write what came out; returns figures by system.

    Hidden patches alone are measured: `masked_mse` in the units of the target, PSNR in dB and SSIM of pictures in
    [0, 1].
    """
    import numpy as np

    from avmae.data.media import read_window, write_video
    from avmae.data.read import window_batch
    from avmae.data.spectrogram import LogMel
    from avmae.figures import (
        ROW,
        Row,
        contact_sheet,
        error_picture,
        pixels,
        side_by_side,
        spectrogram_picture,
    )
    from avmae.inference import VIEWS, picture_figures, reconstruct_window

    clip = systems[0].model.clip
    window = read_window(file, clip, config["position"], clip.canvas)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output={output} cannot be written: {error.strerror}") from error
    batch = window_batch(window, clip)
    original = pixels(batch["video"][0].numpy(), clip.pixel_mean, clip.pixel_std)
    videos, errors, metrics = {"original": original}, {}, {}
    sounds = {"original": batch["audio"]} if window.has_audio else {}
    normalised = any(system.model.normalize_target for system in systems)

    for system in systems:
        model, found = system.model, {}
        result = reconstruct_window(model, batch, config["seed"])
        masked, hidden = result.masked, result.masked["video"].isnan()
        for name, loss in result.losses.items():
            found[f"{name}/masked_mse"] = loss if name == "video" or window.has_audio else None
        if "audio" in masked and window.has_audio:
            sounds.setdefault("masked", masked["audio"])
        share = f"masked, {float(hidden.float().mean()):.0%} hidden"
        videos.setdefault(share, pixels(masked["video"][0].numpy(), clip.pixel_mean, clip.pixel_std))
        for view, whole in result.whole.items():
            note = f", {VIEWS[view]}" if model.normalize_target else ""
            label = f"{system.label}{note}" if len(systems) > 1 else VIEWS[view] if note else "reconstructed"
            videos[label] = pixels(whole["video"][0].numpy(), clip.pixel_mean, clip.pixel_std)
            errors[label] = error_picture(videos[label], original)
            suffix = f"_{view}_statistics" if model.normalize_target else ""
            for name, value in picture_figures(videos[label], original, hidden[0]).items():
                found[f"video/{name}{suffix}"] = value
            if "audio" in whole and window.has_audio:
                sounds[label] = whole["audio"]
        metrics[system.label] = found

    columns = np.unique(np.linspace(0, clip.frames - 1, COLUMNS).round().astype(int))
    rows = []
    for label, frames in videos.items():
        rows.append(Row(label, list(frames[columns])))
        if label in errors:
            rows.append(Row("error, brightest at 50%", list(errors[label][columns])))
    if len(sounds) > 1:
        low, high = (np.quantile(batch["audio"].numpy(), q) for q in (0.02, 0.998))
        shown = [spectrogram_picture(s[0, 0].numpy(), low, high, max(ROW, clip.size)) for s in sounds.values()]
        rows.append(Row("sound, in the order above", shown))
    note = "true patch statistics: each hidden patch's own mean and deviation are given, as in the papers' figures"
    names = ", ".join(f"{system.label} {system.settings['size']['name']}" for system in systems)
    contact_sheet(f"{file.name}  ({names})", rows, note if normalised else "").save(output / "reconstruction.png")
    waveform = window.waveform if window.has_audio else None
    write_video(output / "reconstruction.mp4", side_by_side(videos), clip.fps / clip.stride, waveform, clip.sample_rate)
    for label, sound in sounds.items():
        if label != "masked":
            # The original goes through the same way back, so that what one hears differ by is the model's.
            write_wave(
                output / f"{label.replace(', ', '_').replace(' ', '_')}.wav", LogMel(clip).invert(sound)[0], clip
            )
    content = {"input": str(file), "mask": systems[0].settings["mask"], "seed": config["seed"], "systems": metrics}
    (output / "metrics.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    return metrics


def write_wave(path: Path, waveform: Any, clip: Any) -> None:
    """Write (samples,) float in [-1, 1] as 16-bit WAV."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, clip.sample_rate, 0, "NONE", ""))
        file.writeframes((waveform.clamp(-1, 1) * 32767).short().numpy().tobytes())


if __name__ == "__main__":
    main()
