"""A miniature UCF101, drawn rather than downloaded, with actions that sound; see docs/embedded.md."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from avmae.data.decode.frames import Frames
from avmae.data.embedded.miniature import (
    FPS,
    HEIGHT,
    MARGIN,
    SAMPLE_RATE,
    WIDTH,
    ClipPlace,
    Doubles,
    Floats,
    Layer,
    draw_setting,
    encode,
    film,
    record,
    write_miniature,
)

FORMAT = 2

AUDIO_LEAD = 1 / FPS - 1105 / SAMPLE_RATE
"""By how much the audio is delayed before encoding, in seconds.

AVI keeps no timestamps: after decoding, video with B-frames comes one frame late and MP3 audio comes late by LAME's
1,105 samples. Equal delays keep both in step.
"""


class Pose(NamedTuple):
    """Where an object is relative to its place of rest, in frame heights and radians: one value per frame, or one."""

    right: Doubles = np.zeros(1)
    up: Doubles = np.zeros(1)
    turn: Doubles = np.zeros(1)
    scale: Doubles = np.ones(1)
    opacity: Doubles = np.ones(1)


def _bounce(cycles: Doubles) -> Pose:
    phase = cycles % 1
    return Pose(up=-0.25 + 2 * phase * (1 - phase))


def _swing(cycles: Doubles) -> Pose:
    angle = 0.9 * np.abs(np.sin(np.pi * cycles))
    return Pose(right=0.6 * np.sin(angle) - 0.23, up=-0.25 + 0.6 * (1 - np.cos(angle)))


def _rise(cycles: Doubles) -> Pose:
    phase = cycles % 1
    return Pose(up=0.5 * phase - 0.25, opacity=np.clip(10 * np.minimum(phase, 1 - phase), 0, 1))


@dataclass(frozen=True)
class Action:
    """A class: its motion goes from time in cycles, whose impacts are at whole ones, to the pose.

    Of voices, "bell" and "drum" are struck, a "whistle" sounds all the time, None is silent. Files spell the name
    otherwise than folder and lists where `file_name` says so.
    """

    name: str
    motion: Callable[[Doubles], Pose]
    voice: str | None = None
    file_name: str | None = None


ACTIONS = (
    Action("BounceBell", _bounce, "bell"),
    # As UCF101's HandstandPushups, whose files are v_HandStandPushups_*: joining names instead of reading lists fails.
    Action("CartwheelSpins", lambda cycles: Pose(turn=2 * np.pi * cycles), file_name="CartWheelSpins"),
    Action("BounceDrum", _bounce, "drum"),
    Action("SideSlide", lambda cycles: Pose(right=0.33 * np.sin(2 * np.pi * cycles))),
    Action("SwingBell", _swing, "bell"),
    Action("GrowShrink", lambda cycles: Pose(scale=1 + 0.4 * np.sin(2 * np.pi * cycles))),
    Action("SwingDrum", _swing, "drum"),
    Action("CircleOrbit", lambda cycles: Pose(0.24 * np.cos(2 * np.pi * cycles), 0.24 * np.sin(2 * np.pi * cycles))),
    Action("RiseWhistle", _rise, "whistle"),
    Action("FadeBlink", lambda cycles: Pose(opacity=0.5 + 0.5 * np.cos(2 * np.pi * cycles))),
    Action("SinkWhistle", lambda cycles: _rise(-cycles), "whistle"),
    Action("FigureEight", lambda cycles: Pose(0.3 * np.sin(2 * np.pi * cycles), 0.24 * np.sin(4 * np.pi * cycles))),
)


class Shape(NamedTuple):
    """An outline in polar form, of about the same area for every shape, and the harmonics of its timbre."""

    outline: Callable[[Doubles], Doubles]
    harmonics: tuple[float, float, float, float, float]


def _polygon(angle: Doubles, corners: int, radius: float) -> Doubles:
    half = np.pi / corners
    return radius * np.cos(half) / np.cos(angle % (2 * half) - half)


SHAPES = (
    Shape(np.ones_like, (1.0, 0.15, 0.05, 0.02, 0.01)),
    Shape(partial(_polygon, corners=4, radius=1.25), (1.0, 0.05, 0.5, 0.05, 0.25)),
    Shape(partial(_polygon, corners=3, radius=1.5), (1.0, 0.6, 0.4, 0.3, 0.2)),
    Shape(lambda angle: 1 + 0.25 * np.cos(5 * angle), (0.5, 1.0, 0.3, 0.6, 0.2)),
)


def write_synthetic(
    root: str | Path,
    *,
    groups: int = 25,
    clips_per_group: int = 4,
    classes: int = len(ACTIONS),
    seconds: float = 2.4,
    seed: int = 0,
    workers: int = 2,
) -> None:
    """Write the data set, unless `root` already holds it; for `workers`, and what is raised, see `write_miniature`.

    Clips of a group share a scene. The first half of the classes, rounded up, has audio. Lengths are spread by 20 %
    around those seconds.
    """
    half = (classes + 1) // 2
    chosen = [action for action in ACTIONS if action.voice][:half]
    chosen += [action for action in ACTIONS if not action.voice][: classes - half]
    chosen.sort(key=lambda action: action.name)

    def jobs(places: list[ClipPlace]) -> list[Callable[[], None]]:
        # By number, for lambdas cannot be pickled.
        return [partial(_write_clip, place, ACTIONS.index(chosen[place.label]), seconds, seed) for place in places]

    parameters = {"groups": groups, "clips_per_group": clips_per_group, "classes": classes, "seconds": float(seconds)}
    parameters |= {"seed": seed, "format": FORMAT}
    names = {action.name: action.file_name or action.name for action in chosen}
    write_miniature(root, "synthetic", parameters, names, len(ACTIONS), jobs, workers)


class Course(NamedTuple):
    """When, where and how large an action happens in one clip; lengths in frame heights."""

    period: float
    start: float
    mirror: float
    x: float
    y: float
    diameter: float
    angle: float

    def cycles(self, seconds: Doubles) -> Doubles:
        """Turn seconds into periods of the motion."""
        return seconds / self.period + self.start


def _write_clip(place: ClipPlace, index: int, seconds: float, seed: int) -> None:
    action = ACTIONS[index]
    # What the clips of a group share.
    rng = np.random.default_rng([seed, index, place.group])
    colours, background = draw_setting(rng)
    shape, middle_pitch = SHAPES[rng.integers(len(SHAPES))], 500 * 2 ** rng.uniform(0, 1)
    rng = np.random.default_rng([seed, index, place.group, place.clip])
    course = Course(
        period=rng.uniform(0.65, 0.95),
        start=rng.uniform(),
        mirror=rng.choice([-1.0, 1.0]),
        x=WIDTH / HEIGHT / 2 + rng.uniform(-0.08, 0.08),
        y=0.5 + rng.uniform(-0.04, 0.04),
        diameter=rng.uniform(0.26, 0.38),
        angle=rng.uniform(0, 2 * np.pi),
    )
    frames = round(seconds * rng.uniform(0.8, 1.2) * FPS)
    video = _render(action, shape, colours, background, course, frames, rng)
    encode(place.path, video, _synthesise(action, shape, middle_pitch, course, frames, rng) if action.voice else None)


def _render(
    action: Action,
    shape: Shape,
    colours: Floats,
    background: Floats,
    course: Course,
    frames: int,
    rng: np.random.Generator,
) -> Frames:
    """Draw so many frames, (frames, HEIGHT, WIDTH, 3)."""
    seconds = np.arange(frames) / FPS
    pose = Pose(*(np.broadcast_to(value, frames) for value in action.motion(course.cycles(seconds))))
    actor = draw_object(
        shape,
        colours,
        x=(course.x + course.mirror * pose.right) * HEIGHT,
        y=(1 - course.y - pose.up) * HEIGHT,
        radius=course.diameter / 2 * HEIGHT * pose.scale,
        turn=course.angle + course.mirror * pose.turn,
        opacity=pose.opacity,
    )
    drift = rng.uniform(-0.1, 0.1, (2, 1)) * seconds + rng.uniform(0.1, 0.9, (2, 1))
    bystander = draw_object(
        SHAPES[0],
        rng.uniform(0, 255, (2, 3)).astype(np.float32),
        x=drift[0] * WIDTH,
        y=drift[1] * HEIGHT,
        radius=np.full(frames, rng.uniform(0.03, 0.06) * HEIGHT),
        turn=np.zeros(frames),
        opacity=np.full(frames, float(rng.integers(2))),
    )
    return film(background, [bystander, actor], frames, rng)


def draw_object(
    shape: Shape, colours: Floats, *, x: Doubles, y: Doubles, radius: Doubles, turn: Doubles, opacity: Doubles
) -> Layer:
    """Draw an object, by one value per frame."""
    reach = int(np.ceil(radius.max() * 1.5)) + 1
    offsets = np.arange(-reach, reach + 1, dtype=np.float64)
    across = offsets[None, None, :] - (x % 1)[:, None, None]
    down = offsets[None, :, None] - (y % 1)[:, None, None]
    distance, angle = np.hypot(across, down), np.arctan2(down, across) - turn[:, None, None]
    cover = np.clip(shape.outline(angle) * radius[:, None, None] - distance + 0.5, 0, 1) * opacity[:, None, None]
    half = np.clip(0.5 + distance * np.sin(angle), 0, 1).astype(np.float32)[..., None]
    top, left = (np.floor(place).astype(int) - reach + MARGIN for place in (y, x))
    colour = colours[0] * half + colours[1] * (1 - half)
    return list(zip(top, left, cover.astype(np.float32)[..., None], colour, strict=True))


def _synthesise(
    action: Action, shape: Shape, middle_pitch: float, course: Course, frames: int, rng: np.random.Generator
) -> Floats:
    """Make the audio, (samples,), of so many frames; the pitch is that of an object at half their height, in Hz."""
    seconds = np.arange(frames * SAMPLE_RATE // FPS) / SAMPLE_RATE - AUDIO_LEAD
    pose = action.motion(course.cycles(seconds) if action.voice == "whistle" else np.zeros(1))
    pitch = middle_pitch * 4 ** (course.y + pose.up - 0.5)
    if action.voice == "whistle":
        levels = np.array(shape.harmonics)
        phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
        tone = sum(level * np.sin(k * phase) for k, level in enumerate(levels, start=1))
        voice = tone * pose.opacity / np.sqrt(np.sum(levels**2) / 2)
    else:
        voice = _strike(shape, pitch, course, action.voice == "bell", seconds, rng)
    return record(voice * (course.diameter / 0.32) ** 1.5, rng)


def _strike(
    shape: Shape, pitch: Doubles, course: Course, bell: bool, seconds: Doubles, rng: np.random.Generator
) -> Doubles:
    """Sound at every whole cycle and die away, at a mean power of about 1."""
    ratios = (1.0, 2.0, 2.76, 4.07, 5.4) if bell else (0.25, 0.4, 0.53, 0.58, 0.66)
    decay = 0.3 if bell else 0.08
    time = np.arange(int(6 * decay * SAMPLE_RATE)) / SAMPLE_RATE
    strike = 0.5 * rng.standard_normal(time.size) * np.exp(-time / 0.006)
    for frequency, level in zip(ratios * pitch, shape.harmonics, strict=True):
        strike += level * np.sin(2 * np.pi * frequency * time) * np.exp(-time / decay)
    strike /= np.sqrt(np.sum(strike**2) / (course.period * SAMPLE_RATE))

    # What was struck before the clip begins still rings in it.
    before = strike.size
    voice = np.zeros(before + seconds.size + strike.size)
    first, last = course.cycles(seconds[[0, -1]] + (-before / SAMPLE_RATE, 0))
    for cycle in range(int(np.ceil(first)), int(last) + 1):
        at = round(((cycle - course.start) * course.period - seconds[0]) * SAMPLE_RATE) + before
        voice[at : at + strike.size] += strike * 10 ** (rng.uniform(-2, 2) / 20)
    return voice[before : before + seconds.size]
