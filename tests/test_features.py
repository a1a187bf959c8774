import json
from pathlib import Path

from commands import run
from safetensors import safe_open


def test_features_hold_every_clip_once(pretrained: Path, tmp_path: Path) -> None:
    output = tmp_path / "features.safetensors"
    printed = run("features", f"ckpt={pretrained}/checkpoints/last.ckpt", f"output={output}", cwd=tmp_path)
    with safe_open(output, "pt") as file:
        clips = json.loads(file.metadata()["clips"])
        assert {part: len(paths) for part, paths in clips.items()} == {"train": 8, "val": 4, "test": 28}
        for part, paths in clips.items():
            assert len(set(paths)) == len(paths)
            features, labels = file.get_tensor(f"{part}/features"), file.get_tensor(f"{part}/labels")
            assert features.shape == (len(paths), 2 * 48)
            assert features.isfinite().all()
            names = json.loads(file.metadata()["classes"])
            assert all(Path(p).parent.name == names[y] for p, y in zip(paths, labels.tolist(), strict=True))
    assert "k-NN from train to test" in printed
