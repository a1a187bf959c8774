"""Lists as people have them."""

import json
from pathlib import Path

import pytest
from media_files import H264, audio_delay, read_numbers, write_audio, write_media
from miniature_data import csv_data

from avmae.clip import ClipSpec
from avmae.data.dataset import ClipDataset
from avmae.data.sampling import Request
from avmae.data.sources.csv import read_csv
from avmae.data.splits import Splits, few_labels, keep_classes
from avmae.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.mp4", "with space.mp4", "with, comma.mp4", "a.wav"):
        (tmp_path / name).touch()
    return tmp_path


def read(folder: Path, text: str, name: str = "list.csv", **how) -> Splits:
    (folder / name).write_text(text)
    return read_csv(train=folder / name, **how)


NAMED = {
    "spaces": "a.mp4 ride a bike\nwith space.mp4 archery\nwith, comma.mp4 archery",
    "commas": "a.mp4,ride a bike\nwith space.mp4 , archery\nwith, comma.mp4,archery\n",
    "tabs": "a.mp4\tride a bike\n\nwith space.mp4\tarchery\nwith, comma.mp4\tarchery",
    "quotes": '"a.mp4" "ride a bike"\n"with space.mp4",archery\n"with, comma.mp4","archery"',
    "comma header": 'label,path\nride a bike,a.mp4\narchery,with space.mp4\n"archery","with, comma.mp4"\n',
    "tab header": "Video\tid\tClass\na.mp4\tx\tride a bike\nwith space.mp4\t\tarchery\nwith, comma.mp4\t1\tarchery\n",
    "semicolon header": "path;label\na.mp4;ride a bike\nwith space.mp4;archery\nwith, comma.mp4;archery\n",
    "space header": 'path label\na.mp4 "ride a bike"\n"with space.mp4" archery\n"with, comma.mp4" archery\n',
}


@pytest.mark.parametrize("kind", NAMED)
def test_classes_by_name_are_in_alphabetical_order(kind: str, folder: Path) -> None:
    splits = read(folder, NAMED[kind])
    assert splits.classes == ["archery", "ride a bike"]
    expected = [("a.mp4", 1), ("with space.mp4", 0), ("with, comma.mp4", 0)]
    assert [(entry.path.name, entry.label) for entry in splits.train] == expected


def test_what_excel_writes_is_read_and_what_a_header_lacks_is_named(folder: Path) -> None:
    assert len(read(folder, "\ufeffpath,label\na.mp4,1\n").train) == 1
    for text, said in {
        "path,label,start,end\na.mp4,0,1,x": r"list\.csv:2: end 'x' is no number of seconds",
        "path,start,end\n\na.mp4,3,2": r"list\.csv:3: from 3 to 2 s is no part of a file",
        "path,start\na.mp4,-1": r"list\.csv:2: from -1 to inf s",
        "path,label\nwith, comma.mp4,0": r"list\.csv:2: has 3 cells, the header 2; quote what holds ','",
        "path,label\n,0": r"list\.csv:2: has no path",
        "path,video\na.mp4,a.mp4": r"list\.csv: two columns of its header",
        "path,audio\na.mp4,b.wav": r"list\.csv:2: .*b\.wav does not exist",
        'path,label\na.mp4,"0': r"list\.csv:2: .*check its quotes",
    }.items():
        with pytest.raises(InputError, match=said):
            read(folder, text)


def test_parts_of_files_and_audio_of_its_own(folder: Path) -> None:
    text = "path,label,start,end,audio\na.mp4,0,1.5,4,\na.mp4,1,,2,a.wav\na.mp4,0,4,,\n"
    splits = read(folder, text)
    assert [entry.between for entry in splits.train] == [(1.5, 4.0), (0.0, 2.0), (4.0, float("inf"))]
    assert [entry.audio and entry.audio.name for entry in splits.train] == [None, "a.wav", None]
    assert splits.notes == (), "parts of a file that overlap within a list are clips of their own"
    (folder / "test.csv").write_text("path,label,start,end\na.mp4,0,10,11\n")
    with pytest.raises(InputError, match=r"1 of the clips of data\.train=.* are in data\.test=.*: .*a\.mp4#t=4; take"):
        read(folder, text, test=folder / "test.csv")
    (folder / "test.csv").write_text("path,label,start,end\na.mp4,0,4,5\n")
    (note,) = read(folder, text.replace("0,4,,", "0,5,,"), test=folder / "test.csv").notes
    assert note == "1 files have clips in data.train and in data.test, which may show one scene"


def test_lists_without_labels_are_for_pretraining(folder: Path) -> None:
    for text in ("a.mp4\nwith space.mp4\n", "path,start\na.mp4,1\nwith space.mp4,\n"):
        splits = read(folder, text, classes=5)
        assert (splits.classes, [entry.label for entry in splits.train]) == (["unlabelled"], [0, 0])


def test_the_lists_of_cav_mae(folder: Path) -> None:
    classes = 'index,mid,display_name\n1,/m/b,"Male speech, man speaking"\n0,/m/a,Speech\n2,/m/c,Music\n'
    (folder / "class_labels_indices.csv").write_text(classes)
    items = [
        {"video_id": "x", "video_path": "a.mp4", "wav": "a.wav", "labels": "/m/c,/m/b"},
        {"wav": "with space.mp4", "labels": "/m/a"},
        {"wav": "with, comma.mp4", "labels": []},
    ]
    how = {"name": "list.json", "classes": str(folder / "class_labels_indices.csv")}
    splits = read(folder, json.dumps({"data": items}), **how)
    assert splits.classes == ["Speech", "Male speech, man speaking", "Music"]
    assert splits.many_labels
    assert [entry.label for entry in splits.train] == [(1, 2), (0,), ()]
    assert [entry.audio and entry.audio.name for entry in splits.train] == ["a.wav", None, None]
    assert splits.targets("train").tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 0]]
    one = read(folder, json.dumps({"data": items[1:2]}), **how)
    assert (one.many_labels, one.train[0].label) == (False, 0), "one label each is a class each"
    for item, said in (({"wav": "a.mp4", "labels": "/m/d"}, "'/m/d' is none of the 3"), ({}, "neither video_path nor")):
        with pytest.raises(InputError, match=rf"list\.json: data\[1\].*{said}"):
            read(folder, json.dumps({"data": [items[0], item]}), **how)
    (folder / "frames").mkdir()
    with pytest.raises(InputError, match=r"data\[0\]: .*frames is a folder; name the video's file"):
        read(folder, json.dumps({"data": [{"video_path": "frames", "labels": "/m/a"}]}), **how)
    with pytest.raises(InputError, match=r'list\.json is no {"data"'):
        read(folder, "[]", **how)


def test_many_labels_in_a_table_and_of_some_classes(folder: Path) -> None:
    (folder / "names.txt").write_text("drum, kit\nsinging\nflute\n")
    text = 'path,labels\na.mp4,"flute; drum, kit"\nwith space.mp4,singing|flute\n"with, comma.mp4",\n'
    splits = read(folder, text, classes=str(folder / "names.txt"))
    assert [entry.label for entry in splits.train] == [(0, 2), (1, 2), ()]
    kept = keep_classes(splits, ["singing", "drum, kit"])
    assert [entry.label for entry in kept.train] == [(0,), (1,)]
    assert len(few_labels(splits, 0.5, seed=0).train) == 3
    (folder / "names.txt").write_text("flute\nflute\n")
    with pytest.raises(InputError, match=r"names\.txt: classes must have names of their own"):
        read(folder, text, classes=str(folder / "names.txt"))
    with pytest.raises(InputError, match=r"data\.classes=.*gone is missing"):
        read(folder, text, classes=str(folder / "gone"))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("sound", ["a.wav", "a.mp3", "a.m4a"])
def test_audio_of_a_file_of_its_own_is_that_of_the_frames_seconds(sound: str, cached: bool, tmp_path: Path) -> None:
    write_media(tmp_path / "a.mp4", frames=150, start=2.0, **(H264 | {"audio": None}))
    codec = {"a.wav": "pcm_s16le", "a.mp3": "libmp3lame", "a.m4a": "aac"}[sound]
    write_audio(tmp_path / sound, codec, 6.0)
    (tmp_path / "list").write_text(f"path,start,end,audio\na.mp4,1,5,{sound}\na.mp4,0,1,a.mp4\n")
    clip = ClipSpec(frames=8, size=64)
    data = csv_data(tmp_path / "list", cache=str(tmp_path / "decoded") if cached else None)
    dataset = ClipDataset(data.splits.train, clip, segments=3, cache=tmp_path / "decoded" if cached else None)
    for segment in range(3):
        sample = dataset[Request(0, segment=segment)]
        start = read_numbers(sample["frames"].numpy())[0] / 25
        assert start == pytest.approx(1 + segment * 1.36, abs=0.041)
        assert sample["has_audio"]
        assert abs(audio_delay(sample["waveform"].numpy(), clip.sample_rate, 1 + segment * 1.36)) <= 0.02
    (said,) = dataset[Request(1)]["unreadable"]
    assert "has no audio that can be decoded" in said
    assert not ClipDataset(data.splits.train, clip, audio=False)[Request(1)]["unreadable"]
