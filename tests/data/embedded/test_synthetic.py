import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from embedded import decode_audio, decode_frames, files_below, leave_one_out_accuracy, read_list

from avmae.data.embedded.synthetic import write_synthetic
from avmae.errors import InputError

GROUPS, CLIPS, CLASSES = 16, 1, 12
SMALL = {"groups": 8, "clips_per_group": 1, "classes": 2, "seconds": 0.5, "workers": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "synthetic"
    write_synthetic(root, groups=GROUPS, clips_per_group=CLIPS, classes=CLASSES)
    return root


def group_of(path: str) -> tuple[str, int]:
    return path.split("/")[0], int(path.rsplit("_g", 1)[1][:2])


def clips_of(root: Path, *names: str) -> list[Path]:
    return [path for name in names for path in sorted((root / "UCF-101" / name).glob("*.avi"))]


def object_depth(frames: np.ndarray) -> np.ndarray:
    """Row of the moving object's centre, per frame."""
    difference = np.abs(frames - np.median(frames, axis=0))
    weight = np.where(difference > 30, difference, 0).sum(axis=2) + 1e-9
    return (weight * np.arange(weight.shape[1])).sum(axis=1) / weight.sum(axis=1)


def test_class_index_counts_from_one_in_alphabetical_order(root: Path) -> None:
    index = read_list(root, "classInd.txt")
    names = [name for _, name in index]
    assert [number for number, _ in index] == [str(n) for n in range(1, CLASSES + 1)]
    assert names == sorted(names)
    assert set(names) == {path.name for path in (root / "UCF-101").iterdir()}


@pytest.mark.parametrize(("split", "tested"), [(1, range(1, 8)), (2, range(8, 15)), (3, range(15, 22))])
def test_each_split_names_every_file_once_and_tests_the_official_groups(root: Path, split: int, tested: range) -> None:
    train = read_list(root, f"trainlist{split:02}.txt")
    test = read_list(root, f"testlist{split:02}.txt")
    labels = {name: number for number, name in read_list(root, "classInd.txt")}
    assert all(label == labels[path.split("/")[0]] for path, label in train)
    paths = [path for path, _ in train] + [path for (path,) in test]
    assert sorted(paths) == sorted(
        path.relative_to(root / "UCF-101").as_posix() for path in (root / "UCF-101").rglob("*.avi")
    )
    assert {group_of(path)[1] for (path,) in test} == set(tested) & set(range(1, GROUPS + 1))
    assert not {group_of(path) for path, _ in train} & {group_of(path) for (path,) in test}


def test_one_folder_spells_its_files_differently(root: Path) -> None:
    differing = {
        path.parent.name
        for path in (root / "UCF-101").rglob("*.avi")
        if not path.name.startswith(f"v_{path.parent.name}_g")
    }
    assert differing == {"CartwheelSpins"}
    assert all(path.name.startswith("v_CartWheelSpins_g") for path in clips_of(root, "CartwheelSpins"))


def test_codecs_are_those_of_ucf101_and_half_of_the_classes_have_no_audio_track(root: Path) -> None:
    with_sound = set()
    for folder in (root / "UCF-101").iterdir():
        tracks = set()
        for path in clips_of(root, folder.name):
            with av.open(str(path)) as container:
                video = container.streams.video[0]
                assert (container.format.name, video.codec_context.name, video.average_rate) == ("avi", "mpeg4", 25)
                assert (video.width, video.height) == (160, 120)
                tracks.add(tuple(stream.codec_context.name for stream in container.streams.audio))
        assert len(tracks) == 1
        assert tracks <= {(), ("mp3float",)}
        if tracks != {()}:
            with_sound.add(folder.name)
    assert len(with_sound) == CLASSES // 2


def test_the_size_of_a_file_tells_its_length_alone(root: Path) -> None:
    for path in clips_of(root, *(folder.name for folder in (root / "UCF-101").iterdir())):
        assert path.stat().st_size == 2_000 * len(decode_frames(path)[0]), path.name


def test_frames_come_with_b_frames_and_a_long_group_of_frames(root: Path) -> None:
    with av.open(str(clips_of(root, "SideSlide")[0])) as container:
        kinds = [PictureType(frame.pict_type).name for frame in container.decode(video=0)]
    assert "B" in kinds
    assert kinds.count("I") < len(kinds) / 10


def test_fewer_classes_keep_half_of_them_silent_and_the_misspelt_one(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "data", **SMALL)
    assert [name for _, name in read_list(tmp_path / "data", "classInd.txt")] == ["BounceBell", "CartwheelSpins"]


def test_bytes_depend_on_the_seed_and_not_on_the_number_of_workers(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "one", **SMALL)
    write_synthetic(tmp_path / "two", **SMALL | {"workers": 2})
    write_synthetic(tmp_path / "other", **SMALL, seed=1)
    one, two, other = (files_below(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one if name.endswith(".avi"))
    assert len({content for name, content in one.items() if name.endswith(".avi")}) == 16


def test_a_complete_copy_is_left_alone_and_other_parameters_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    write_synthetic(root, **SMALL)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    write_synthetic(root, **SMALL)
    with pytest.raises(InputError, match=r"data holds .* other parameters.*'seed': 0.*'seed': 5.*delete"):
        write_synthetic(root, **SMALL, seed=5)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize("name", ["thesis.txt", "synthetic.json"])
def test_foreign_content_is_refused_and_kept(tmp_path: Path, name: str) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / name).write_text("years of work")
    with pytest.raises(InputError, match=r"data.*new folder"):
        write_synthetic(root, **SMALL)
    assert files_below(tmp_path) == {f"data/{name}": b"years of work"}


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/data: cannot write"):
        write_synthetic(tmp_path / "file" / "data", **SMALL)


@pytest.mark.parametrize("wrong", [{"groups": 7}, {"classes": 13}, {"seconds": 0.0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} must be between"):
        write_synthetic(tmp_path / "data", **SMALL | wrong)


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("avmae.data.embedded.synthetic.encode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / "data", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_writers_that_start_together_all_end_with_the_complete_copy(tmp_path: Path) -> None:
    root = tmp_path / "data"
    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(write_synthetic, root, **SMALL) for _ in range(3)]:
            future.result()
    assert list(tmp_path.iterdir()) == [root]
    assert len(list(root.rglob("*.avi"))) == 16
    assert json.loads((root / "synthetic.json").read_text())["groups"] == 8


def test_impacts_audio_when_the_object_is_lowest(root: Path) -> None:
    offsets = []
    for path in clips_of(root, "BounceDrum"):
        times, frames = decode_frames(path)
        depth = object_depth(frames)
        floor = depth.min() + 0.8 * np.ptp(depth)
        lowest = [
            times[i] for i in range(2, len(depth) - 2) if depth[i] > floor and depth[i] == depth[i - 2 : i + 3].max()
        ]
        audio_times, audio = decode_audio(path)
        energy = np.convolve(audio**2, np.ones(441), "same")
        for time in lowest:
            near = (audio_times > time - 0.3) & (audio_times < time + 0.3)
            onset = np.diff(energy[near][::44])
            offsets.append(audio_times[near][::44][np.argmax(onset)] - time)
    assert len(offsets) > 2 * GROUPS
    assert np.quantile(np.abs(offsets), 0.9) < 0.06
    assert abs(np.median(offsets)) < 0.01


@pytest.mark.parametrize(("name", "sign"), [("RiseWhistle", 1), ("SinkWhistle", -1)])
def test_pitch_follows_height(root: Path, name: str, sign: int) -> None:
    correlations, directions = [], []
    for path in clips_of(root, name):
        times, frames = decode_frames(path)
        height = -object_depth(frames)
        audio_times, audio = decode_audio(path)
        pitch = []
        for time in times[2:-2]:
            start = np.searchsorted(audio_times, time) - 1024
            spectrum = np.abs(np.fft.rfft(audio[start : start + 2048] * np.hanning(2048)))
            spectrum[:10] = 0
            pitch.append(np.log(np.argmax(spectrum)))
        correlations.append(np.corrcoef(pitch, height[2:-2])[0, 1])
        directions.append(np.median(np.diff(height)) * sign > 0)
    assert np.median(correlations) > 0.8
    assert np.mean(directions) > 0.9


def test_clips_of_a_group_share_their_scene(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "data", **SMALL | {"clips_per_group": 2, "seconds": 1.0})
    clips = clips_of(tmp_path / "data", "BounceBell", "CartwheelSpins")
    scenes = np.stack([np.median(decode_frames(path, "rgb24")[1], axis=0).ravel() for path in clips])
    scenes /= np.linalg.norm(scenes, axis=1, keepdims=True)
    distance = np.linalg.norm(scenes[:, None] - scenes[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    nearest = distance.argmin(axis=1)
    assert np.mean(nearest // 2 == np.arange(len(clips)) // 2) > 0.5


def test_duration_and_loudness_do_not_tell_the_action(root: Path) -> None:
    features: dict[bool, list[list[float]]] = {True: [], False: []}
    labels: dict[bool, list[str]] = {True: [], False: []}
    for path in clips_of(root, *(name for _, name in read_list(root, "classInd.txt"))):
        with av.open(str(path)) as container:
            audible = bool(container.streams.audio)
            frames = sum(1 for _ in container.decode(video=0))
        loudness = [10 * np.log10(np.mean(decode_audio(path)[1] ** 2))] if audible else []
        features[audible].append([float(frames), *loudness])
        labels[audible].append(path.parent.name)
    for audible in (True, False):
        assert np.ptp(np.array(features[audible]), axis=0).min() > 5
        accuracy = leave_one_out_accuracy(np.array(features[audible]), np.array(labels[audible]))
        assert accuracy < 2 / (CLASSES / 2)
