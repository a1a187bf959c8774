"""The classes of a video by ONNX Runtime: `python examples/onnx_predict.py DIR VIDEO`.

DIR is what `python -m avmae.export format=onnx` wrote. Needs onnxruntime, av and numpy, and neither torch nor avmae.
"""

import json
import sys
from pathlib import Path

import av
import numpy as np
import onnxruntime


def read_window(video: str, clip: dict) -> tuple[np.ndarray, np.ndarray, bool]:
    """The window in the middle: frames (T, S, S, 3) uint8, samples float32, and whether there is audio."""
    with av.open(video) as container:
        decoded = list(container.decode(video=0))
    times = np.array([frame.time for frame in decoded]) - decoded[0].time
    step = times[-1] / max(1, len(times) - 1)
    seconds, duration = clip["frames"] * clip["stride"] / clip["fps"], times[-1] + step
    start = max(0.0, duration - seconds) / 2
    wanted = (start + np.arange(clip["frames"]) * clip["stride"] / clip["fps"]) % duration
    shown = np.searchsorted(times, wanted + 1e-3, side="right") - 1
    frames = np.stack([cut_square(decoded[index], clip["size"]) for index in shown])

    rate, samples = clip["sample_rate"], round(seconds * clip["sample_rate"])
    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
    heard = np.zeros(round((times[-1] + step) * rate), np.float32)
    with av.open(video) as container:
        has_audio = bool(container.streams.audio)
        for frame in container.decode(audio=0) if has_audio else ():
            for part in resampler.resample(frame):
                at = round((part.time - decoded[0].time) * rate)
                piece = part.to_ndarray()[0][max(0, -at) :][: max(0, len(heard) - at)]
                heard[max(0, at) : max(0, at) + len(piece)] = piece
    first = round(start * rate)
    return frames, np.resize(heard[first : first + samples], samples), has_audio


def cut_square(frame: av.VideoFrame, size: int) -> np.ndarray:
    """The frame with its short side at this size, and of it the square in the middle."""
    scale = size / min(frame.width, frame.height)
    width, height = round(frame.width * scale), round(frame.height * scale)
    rgb = frame.reformat(width, height, "rgb24", interpolation="AREA").to_ndarray()
    left, top = (width - size) // 2, (height - size) // 2
    return rgb[top : top + size, left : left + size]


def main(folder: str, video: str) -> None:
    """Print the five most probable classes."""
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))["avmae"]
    session = onnxruntime.InferenceSession(Path(folder, "classifier.onnx"))
    frames, waveform, has_audio = read_window(video, config["clip"])
    window = {"frames": frames[None], "waveform": waveform[None], "has_audio": np.array([has_audio])}
    (probabilities,) = session.run(None, {given.name: window[given.name] for given in session.get_inputs()})
    for label in probabilities[0].argsort()[::-1][:5]:
        print(f"{probabilities[0][label]:6.1%}  {config['class_names'][label]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
