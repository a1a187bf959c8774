import json
from pathlib import Path

from commands import error, run, train


def test_systems_are_compared_under_one_mask_on_every_video_of_a_folder(
    miniature: Path, pretrained: Path, tmp_path: Path
) -> None:
    # What training does not decode, to be faster, is reconstructed nevertheless.
    alone = ("hydra.run.dir=alone", "model=videomae", "trainer.max_epochs=1", "mask.decoder_ratio=0.5")
    train(*alone, cwd=tmp_path, miniature=miniature)
    videos = tmp_path / "videos"
    for name in ("BounceBell", "CartwheelSpins"):
        (videos / name).mkdir(parents=True)
        source = min((miniature / "UCF-101" / name).glob("*.avi"))
        (videos / name / "clip.avi").write_bytes(source.read_bytes())
    (videos / "broken.avi").write_text("no video")
    ckpts = f"[{tmp_path}/alone/checkpoints/last.ckpt,{pretrained}/checkpoints/last.ckpt]"
    common = (f"ckpt={ckpts}", "mask.ratio=0.5")
    printed = run("reconstruct", *common, f"input={videos}", f"output={tmp_path}/out", cwd=tmp_path)
    assert "skipped: " in printed
    assert "broken.avi" in printed
    sounding = json.loads((tmp_path / "out/BounceBell/clip/metrics.json").read_text())["systems"]
    assert list(sounding) == ["videomae", "avmae"]
    for figures in sounding.values():
        # Patches' true mean and deviation can only help.
        assert figures["video/psnr_hidden_true_statistics"] > figures["video/psnr_hidden_visible_statistics"]
        assert figures["video/ssim_hidden_true_statistics"] != figures["video/ssim_hidden_visible_statistics"]
    silent = json.loads((tmp_path / "out/CartwheelSpins/clip/metrics.json").read_text())["systems"]
    assert silent["avmae"]["audio/masked_mse"] is None
    wavs = sorted(path.name for path in (tmp_path / "out/BounceBell/clip").glob("*.wav"))
    assert wavs == ["avmae_from_visible_patches_alone.wav", "avmae_with_true_patch_statistics.wav", "original.wav"]
    assert not list((tmp_path / "out/CartwheelSpins/clip").glob("*.wav"))

    train("hydra.run.dir=longer", "clip.stride=2", "trainer.max_epochs=1", cwd=tmp_path, miniature=miniature)
    ckpts = f"[{tmp_path}/alone/checkpoints/last.ckpt,{tmp_path}/longer/checkpoints/last.ckpt]"
    said = error(run("reconstruct", f"ckpt={ckpts}", f"input={videos}", "output=x", cwd=tmp_path, ok=False))
    assert "clip.stride=2" in said
