"""Two actors that move now and then, each with its voice: only the moments at which it is heard tell who moves when.

Moves come at irregular times, so none can be foretold from the ones before, and either actor may be next. A voice
sounds at the moment its owner begins to move: what is masked in the frames can be known from the audio of that moment,
and from nothing else. A class is a move, and whether the left actor has the low voice (`Own`) or the high one
(`Crossed`): neither video nor audio alone tells the latter, for it lies in which voice coincides with which actor. A
quarter of all clips, of any class, has no audio track.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from avmae.data.embedded.miniature import (
    FPS,
    HEIGHT,
    SAMPLE_RATE,
    WIDTH,
    ClipPlace,
    Doubles,
    Floats,
    draw_setting,
    encode,
    film,
    record,
    write_miniature,
)
from avmae.data.embedded.synthetic import AUDIO_LEAD, SHAPES, Pose, Shape, draw_object

KIND = "duets"
FORMAT = 1
MOVE_SECONDS = 0.32
"""Of a move, about two frames of a clip at stride 4."""
PAUSES = (0.35, 0.8)
"""Seconds from one move to the next, drawn evenly."""
SILENT_SHARE = 0.25

MOVES: dict[str, Callable[[Doubles], Pose]] = {
    "Hop": lambda bump: Pose(up=0.3 * bump),
    "Lunge": lambda bump: Pose(right=0.25 * bump),
    "Swell": lambda bump: Pose(scale=1 + 0.6 * bump),
    "Duck": lambda bump: Pose(up=-0.25 * bump, scale=1 - 0.4 * bump),
}
"""From how far a move has gone, 0 at rest and 1 at its height, to the pose of the left actor; the right one's is
mirrored."""
BINDINGS = ("Own", "Crossed")


class Actor(NamedTuple):
    """What is the same in all clips of a group."""

    colours: Floats
    shape: Shape


def write_duets(
    root: str | Path,
    *,
    groups: int = 50,
    clips_per_group: int = 6,
    classes: int = len(MOVES) * len(BINDINGS),
    seconds: float = 2.4,
    seed: int = 0,
    workers: int = 2,
) -> None:
    """Write the data set, unless `root` already holds it; arguments and errors are those of `write_synthetic`."""
    names = sorted(f"{move}{binding}" for move in list(MOVES)[: (classes + 1) // 2] for binding in BINDINGS)[:classes]
    parameters = {
        "groups": groups,
        "clips_per_group": clips_per_group,
        "classes": classes,
        "seconds": float(seconds),
        "seed": seed,
        "format": FORMAT,
    }

    def jobs(places: list[ClipPlace]) -> list[Callable[[], None]]:
        return [partial(_write_clip, place, names[place.label], seconds, seed) for place in places]

    most = len(MOVES) * len(BINDINGS)
    write_miniature(root, KIND, parameters, {name: name for name in names}, most, jobs, workers)


def _write_clip(place: ClipPlace, name: str, seconds: float, seed: int) -> None:
    scene = np.random.default_rng([seed, place.label, place.group])
    rng = np.random.default_rng([seed, place.label, place.group, place.clip])
    colours, background = draw_setting(scene)
    actors = [Actor(colours[::step], SHAPES[scene.integers(len(SHAPES))]) for step in (1, -1)]
    pitches = scene.uniform(300, 420), scene.uniform(900, 1260)
    duration = seconds * rng.uniform(0.8, 1.2)
    # Of both actors in turn: the moves that began before the clip, and those after its end, are heard and seen, too.
    begins = np.cumsum(rng.uniform(*PAUSES, int(duration / PAUSES[0]) + 3)) - PAUSES[1] - MOVE_SECONDS
    movers = rng.integers(2, size=begins.size)
    frames = round(duration * FPS)
    move = MOVES[next(move for move in MOVES if name.startswith(move))]
    layers = []
    for number, actor in enumerate(actors):
        since = np.arange(frames)[:, None] / FPS - begins[movers == number]
        bump = np.where((since > 0) & (since < MOVE_SECONDS), np.sin(np.pi * since / MOVE_SECONDS), 0).sum(1)
        pose, side = move(bump), 2 * number - 1
        layers.append(
            draw_object(
                actor.shape,
                actor.colours,
                x=(WIDTH / HEIGHT / 2 + side * (rng.uniform(0.28, 0.36) - pose.right)) * HEIGHT * np.ones(frames),
                y=(rng.uniform(0.46, 0.54) - pose.up) * HEIGHT * np.ones(frames),
                radius=rng.uniform(0.11, 0.15) * HEIGHT * pose.scale * np.ones(frames),
                turn=np.full(frames, rng.uniform(0, 2 * np.pi)),
                opacity=np.ones(frames),
            )
        )
    audio = None
    if rng.uniform() >= SILENT_SHARE:
        voices = pitches if name.endswith(BINDINGS[0]) else pitches[::-1]
        audio = record(_strikes(begins, [voices[mover] for mover in movers], frames, rng), rng)
    encode(place.path, film(background, layers, frames, rng), audio)


def _strikes(begins: Doubles, pitches: list[float], frames: int, rng: np.random.Generator) -> Doubles:
    """A note of each pitch from each moment on, (samples,), at a mean power of about 1."""
    seconds = np.arange(frames * SAMPLE_RATE // FPS) / SAMPLE_RATE - AUDIO_LEAD
    voice = np.zeros(seconds.size)
    for begin, pitch in zip(begins, pitches, strict=True):
        since = np.maximum(seconds - begin, 0)
        level = (seconds > begin) * np.exp(-since / 0.1) * 10 ** (rng.uniform(-2, 2) / 20)
        voice += level * (np.sin(2 * np.pi * pitch * since) + 0.4 * np.sin(4 * np.pi * pitch * since))
    return voice / np.sqrt(np.mean(np.square(voice)))
