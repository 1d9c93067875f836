"""What the READMEs tell people to do works, and what they name is there."""

import importlib
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import soundfile
import torch
from accelerate.commands.launch import launch_command_parser
from conftest import make_tiny_config, random_model
from torch.distributed.run import get_args_parser
from transformers import TrainingArguments, pipeline

from modeling_ast import ASTFeatureExtractor
from modeling_ast.commands.command_line import commands
from modeling_ast.data.synthetic import CLASSES, SAMPLING_RATE, generate_clip

ROOT = Path(__file__).resolve().parents[1]
READMES = {
    path: (ROOT / path).read_text(encoding="utf-8")
    for path in ("README.md", "configs/README.md", "scripts/README.md", "tests/campaigns/README.md")
}
README = READMES["README.md"]
RECIPES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (ROOT / "configs").rglob("*.yaml")
}
TEXTS = {**READMES, **RECIPES}
TRAINING_SCRIPT = "scripts/run_audio_classification.py"
each_text = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
each_readme = pytest.mark.parametrize("path", READMES)


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
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert any(name in printed for name in CLASSES)
    assert names["model"].config.max_length == 48 and names["logits"].shape == (2, len(CLASSES))
    assert len(names["result"]["tags"]) == 3


def test_the_readme_is_read_in_five_minutes():
    assert len(README.splitlines()) <= 250


@each_text
def test_every_file_that_is_named_is_there(text):
    named = set(re.findall(r"\b(?:scripts|configs|modeling_ast|tests)/[\w./-]+\.(?:py|sh|yaml|md)\b", text))
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_place_of_a_change_is_there():
    places = re.findall(r"`([\w/]+(?:/|\.py))`", README.partition("## Where to change what")[2])
    assert len(places) > 20
    for place in places:
        assert (ROOT / "modeling_ast" / place).exists() or (ROOT / place).exists(), place


@each_text
def test_every_test_that_is_named_is_there(text):
    for path, function in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text):
        assert re.search(rf"^def {function}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), function


def test_every_line_beside_transformers_own_names_its_test():
    section = README[README.index("## Beside Transformers' own AST") : README.index("## Published checkpoints")]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(lines) >= 20 and all(re.search(r"`tests/\w+\.py::test_\w+` \|$", line) for line in lines)


@each_readme
def test_every_link_within_the_repository_leads_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", READMES[path]):
        name, _, anchor = target.partition("#")
        file = ROOT / path if not name else (ROOT / path).parent / name
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in anchors, target


def test_the_contents_list_every_heading():
    contents = README[README.index("**Contents**") : README.index("## Install")]
    assert set(re.findall(r"\[([^]]+)\]", contents)) == set(re.findall(r"^## (.+)$", README, re.MULTILINE))


# Commands


@each_text
def test_every_command_that_is_named_is_there(text):
    assert set(re.findall(r"modeling-ast ([a-z]+)", text)) <= commands().keys()


@each_text
def test_every_option_that_is_named_is_there(text):
    """As an argument of a parser, or as a field: of the package, the laboratory, Transformers or a launcher."""
    sources = [*(ROOT / "modeling_ast").rglob("*.py"), *(ROOT / "tests" / "campaigns").glob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    options = set(re.findall(r'"--(\w+)"', code)) | set(re.findall(r"^    (\w+): ", code, re.MULTILINE))
    options |= {field.name for field in fields(TrainingArguments)} | {"help", "all"}  # scripts/test.sh --all
    for launcher in (launch_command_parser(), get_args_parser()):
        options |= {name.removeprefix("--") for action in launcher._actions for name in action.option_strings}
    options |= {"nodes", "ntasks", "array", "gpus", "wrap"}  # SLURM's own
    assert set(re.findall(r"(?<![\w-])--([a-z]\w*)", text)) <= options


def test_every_command_has_its_line():
    table = README[README.index("| command | what it does |") : README.index("## Beside Transformers' own AST")]
    names = [line.split(" | ")[0] for line in table.splitlines()]
    assert set(re.findall(r"`(\w+)`", " ".join(names))) == commands().keys()


def test_every_script_has_its_line():
    scripts = {f"scripts/{path.name}" for path in (ROOT / "scripts").iterdir() if path.suffix in (".py", ".sh")}
    assert set(re.findall(r"^\| `(scripts/\S+)` \|", READMES["scripts/README.md"], re.MULTILINE)) == scripts


# The guide


@pytest.mark.slow
def test_the_guide_to_own_data_runs(tmp_path, monkeypatch, capsys):
    """Its recipe and every command in it, on two kinds of sounds, with a model of one layer and fewer epochs."""
    guide = README[README.index("## Fine-tune") : README.index("## Resume")]
    (recipe,) = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    lines = [line for block in re.findall(r"```bash\n(.*?)```", guide, re.DOTALL) for line in block.splitlines()]
    assert len(lines) == 5
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
    for line in lines:
        words = line.split("#")[0].replace(f"accelerate launch {TRAINING_SCRIPT}", "modeling-ast train").split()
        assert words.pop(0) == "modeling-ast"
        name, *argv = words
        result = importlib.import_module(f"modeling_ast.commands.{name}").main(argv)
        if name == "statistics":
            assert re.search(r"^mean: -?\d", capsys.readouterr().out, re.MULTILINE)
        if name == "check":
            assert result < 2, capsys.readouterr().out
        if "--dry_run" in words:
            assert result["dry_run_hours"] > 0 and not Path("outputs").exists()
        if name == "train" and "--dry_run" not in words:
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
