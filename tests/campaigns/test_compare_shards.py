"""The comparison of packed shards finds the same clips in every way, and notices where they are others."""

import compare_shards
import pytest
import soundfile
import torch

from modeling_ast.data.synthetic import CLASSES, generate_clip

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


def test_the_same_clips_are_read_in_every_way(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)  # of a server of its own
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 5)  # which it sets itself
    generator = torch.Generator().manual_seed(0)
    for number in range(30):
        path = tmp_path / "data" / ("train", "validation", "test")[number % 3] / CLASSES[number % 2] / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, generate_clip(CLASSES[number % 2], generator).numpy(), 16000)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"dataset_name: {tmp_path / 'data'}\n")
    rows = compare_shards.main([str(recipe), str(tmp_path / "out"), "--formats", "original", "flac", "opus"])
    assert len(rows) == 3 * 8 and len({row["way"] for row in rows}) == 8
    for row in rows:
        assert row["clips"] == {"train": 10, "validation": 10, "test": 10} and row["labels"] == 30
        assert row["waveforms"] == (0 if row["format"] == "opus" else 30)
    assert capsys.readouterr().out.count("as long, ") == 3
