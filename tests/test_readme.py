"""What the README tells people to do works, in the order in which it stands there."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from conftest import make_tiny_config, random_model
from transformers import pipeline

from modeling_ast import ASTFeatureExtractor
from modeling_ast.data.synthetic import CLASSES, SAMPLING_RATE, generate_clip

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def folder_of_a_reader(tmp_path, monkeypatch):
    """A folder as the quickstart leaves it, with a tiny model, and a clip of the reader's own."""
    config = make_tiny_config(id2label=dict(enumerate(CLASSES)), max_length=96, num_mel_bins=128, time_stride=16)
    random_model(config).save_pretrained(tmp_path / "outputs" / "demo")
    ASTFeatureExtractor(max_length=96).save_pretrained(tmp_path / "outputs" / "demo")
    clip = generate_clip("bell", torch.Generator().manual_seed(0))
    soundfile.write(tmp_path / "clip.wav", clip.numpy(), SAMPLING_RATE)
    monkeypatch.chdir(tmp_path)


def test_the_python_of_the_readme_runs(folder_of_a_reader, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert any(name in printed for name in CLASSES)
    assert names["model"].config.max_length == 48


def test_every_file_that_the_readme_names_is_there():
    named = set(re.findall(r"\b(?:scripts|configs|modeling_ast)/[\w./-]+\.\w+", README))
    assert {"scripts/quickstart.sh", "scripts/test.sh", "configs/demo.yaml"} <= named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_test_that_the_readme_names_is_there():
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", README)
    assert named
    for path, function in named:
        assert re.search(rf"^def {function}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), function


@pytest.mark.slow
def test_the_guide_to_own_data_runs(tmp_path, monkeypatch, capsys):
    """Its recipe and every command in it, on two kinds of sounds, with a model of one layer and fewer epochs."""
    guide = README[README.index("## Train on your own sounds") : README.index("## What it survives")]
    (recipe,) = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    commands = [line for block in re.findall(r"```bash\n(.*?)```", guide, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 5
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for folder, count in (("my_sounds", 20), ("my_new_sounds", 4)):
        for kind in ("siren", "noise"):
            (tmp_path / folder / kind).mkdir(parents=True)
            for number in range(count):
                sound = generate_clip(kind, generator).numpy()
                soundfile.write(tmp_path / folder / kind / f"{number}.wav", sound, SAMPLING_RATE)
    network = "hidden_size: 24\nnum_hidden_layers: 1\nnum_attention_heads: 3\nintermediate_size: 24\nuse_cpu: true\n"
    recipe = re.sub(r"model_name_or_path: \S+", "model_name_or_path: tiny224", recipe) + network
    recipe = recipe.replace("num_train_epochs: 10", "num_train_epochs: 2").replace("1e-5 ", "1e-3 ")
    (tmp_path / "my.yaml").write_text(recipe)
    for command in commands:
        words = command.removeprefix("python ").removeprefix("accelerate launch ").split()
        script = importlib.import_module(Path(words[0]).stem)
        result = script.main(words[1:])
        if script.__name__ == "compute_fbank_stats":
            assert re.search(r"^mean: -?\d", capsys.readouterr().out, re.MULTILINE)
        if script.__name__ == "check_data":
            assert result < 2, capsys.readouterr().out
        if "--dry_run" in words:
            assert result["dry_run_hours"] > 0 and not Path("outputs").exists()
        if words[0].endswith("run_audio_classification.py") and "--dry_run" not in words:
            assert result["validation_accuracy"] > 0
    assert result["clips"] == {"all": 8} and result["metrics"]["accuracy"] > 0
    classifier = pipeline("audio-classification", model="outputs/my_model")
    assert {tag["label"] for tag in classifier(generate_clip("siren", generator).numpy())} == {"siren", "noise"}


@pytest.mark.slow
def test_the_training_command_of_the_readme_runs(tmp_path):
    (command,) = re.findall(r"^accelerate launch (scripts/\S+ .* outputs/short)$", README, re.MULTILINE)
    arguments = command.replace("outputs/short", str(tmp_path / "short")).split()
    subprocess.run([sys.executable, "-m", "accelerate.commands.launch", *arguments], check=True, cwd=ROOT)
    assert (tmp_path / "short" / "model.safetensors").is_file()
