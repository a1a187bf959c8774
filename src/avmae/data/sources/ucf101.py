"""UCF101 as it is distributed: `UCF-101/<Class>/v_<Class>_gGG_cCC.avi` and the lists in `ucfTrainTestlist/`."""

import re
from pathlib import Path

from avmae.data.splits import ClipEntry, Splits, hold_out, some
from avmae.errors import InputError

VIDEOS, LISTS = "UCF-101", "ucfTrainTestlist"

CLASSES_WITH_SOUND = frozenset(
    """
    ApplyEyeMakeup ApplyLipstick Archery BabyCrawling BalanceBeam BandMarching BasketballDunk BlowDryHair BlowingCandles
    BodyWeightSquats Bowling BoxingPunchingBag BoxingSpeedBag BrushingTeeth CliffDiving CricketBowling CricketShot
    CuttingInKitchen FieldHockeyPenalty FloorGymnastics FrisbeeCatch FrontCrawl Haircut HammerThrow Hammering
    HandstandPushups HandstandWalking HeadMassage IceDancing Knitting LongJump MoppingFloor ParallelBars PlayingCello
    PlayingDaf PlayingDhol PlayingFlute PlayingSitar Rafting ShavingBeard Shotput SkyDiving SoccerPenalty StillRings
    SumoWrestling Surfing TableTennisShot Typing UnevenBars WallPushups WritingOnBoard
    """.split()
)
"""The 51 of UCF101's 101 classes whose clips have audio, by AVCA-GZSL's lists of files; the other 50 are silent."""


def read_ucf101(root: str | Path, fold: int = 1, val_groups: int = 2) -> Splits:
    """Read the official train and test lists of one fold.

    Validation takes whole groups off the train list (the highest-numbered ones), because clips of a group show the same
    scene: a random validation set would leak.

    The folder `HandstandPushups` holds files named `v_HandStandPushups_*`, and some copies spell the folder like the
    files, so names are matched without regard to case.

    Args:
        root: folder that holds `UCF-101` and `ucfTrainTestlist`.
        fold: 1, 2 or 3.
        val_groups: how many of the fold's train groups validate; 0 trains on the whole list, as published results do.

    Raises:
        InputError: a folder, list or listed file is missing, a line is malformed, or no group is left for training.
    """
    root = Path(root).expanduser()
    if fold not in (1, 2, 3):
        raise InputError(f"data.fold must be 1, 2 or 3, not {fold}")
    for folder in (root, root / VIDEOS, root / LISTS):
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; data.root must hold {VIDEOS}/ and the official {LISTS}/")
    files = [file for file in sorted((root / VIDEOS).glob("*/*")) if file.is_file()]
    if not files:
        raise InputError(f"{root / VIDEOS} holds no clips; unpack UCF101.rar there so that it has a folder per class")
    # Where a copy spells a folder another way than the lists do, the file's own class still tells.
    places = {file.name.casefold(): file for file in files}
    places |= {f"{file.parent.name}/{file.name}".casefold(): file for file in files}
    classes = _read_classes(root / LISTS / "classInd.txt")
    train, test = (_read_list(root / LISTS / f"{part}list0{fold}.txt", places, classes) for part in ("train", "test"))
    train, val = hold_out(train, val_groups, fold)
    return Splits(train, val, test, classes, root=root)


def _lines(file: Path) -> list[str]:
    if not file.is_file():
        raise InputError(f"{file} is missing; put UCF101's official lists (UCF101TrainTestSplits) in {file.parent}")
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _read_classes(file: Path) -> list[str]:
    lines = _lines(file)
    for number, line in enumerate(lines, start=1):
        if not re.fullmatch(rf"{number}\s+\S+", line):
            raise InputError(f"{file}:{number}: expected '{number} ClassName', found '{line}'")
    return [line.split()[1] for line in lines]


def _read_list(file: Path, places: dict[str, Path], classes: list[str]) -> list[ClipEntry]:
    labels = {name.casefold(): label for label, name in enumerate(classes)}
    entries, missing = [], []
    for number, line in enumerate(_lines(file), start=1):
        name, _, stated = line.partition(" ")
        match = re.fullmatch(r"(?P<folder>[^/]+)/(?P<file>v_.+_(?P<group>g\d+)_c\d+\.\w+)", name)
        if not match or (label := labels.get(match["folder"].casefold())) is None:
            raise InputError(f"{file}:{number}: expected 'Class/v_Class_gGG_cCC.avi' of a known class, found '{line}'")
        if stated and stated != str(label + 1):
            raise InputError(f"{file}:{number}: label {stated} is not {label + 1}, as classInd.txt has it")
        path = places.get(name.casefold()) or places.get(match["file"].casefold())
        if path is None:
            missing.append(name)
        else:
            entries.append(ClipEntry(path, label, match["group"]))
    if missing:
        raise InputError(f"{VIDEOS}/ lacks {some(missing)} of {file}; restore them or take them off the list")
    return entries
