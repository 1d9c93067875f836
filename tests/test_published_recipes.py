"""The recipes in `configs`: the published numbers, complete in themselves, and their first steps as they stand."""

import csv
import json
import re
import shlex
from pathlib import Path

import prepare_events
import pytest
import soundfile
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from modeling_ast.commands import prepare as prepare_data
from modeling_ast.commands import train as script
from modeling_ast.data import synthetic
from modeling_ast.data.labels import read_label_table, read_paper_eval_ids
from modeling_ast.data.recipes import read_recipe
from modeling_ast.data.synthetic import CLASSES, generate_clip
from modeling_ast.training.arguments import parse_arguments

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ROOT = CONFIGS.parent
PUBLISHED = ("esc50", "speech_commands_v2", "audioset_balanced", "audioset_full")
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))

# Source: the specification of the original, sections 3.1 and 3.3: its shell scripts at their head, in the order of
# PUBLISHED. What one of them does not do is None, 0 or false there.
DEIT = "facebook/deit-base-distilled-patch16-384"
SINGLE, MULTI = "single_label_classification", "multi_label_classification"
HYPER_PARAMETERS = {
    # ImageNet weights; ESC-50 from those of AudioSet.
    "model_name_or_path": ("MIT/ast-finetuned-audioset-10-10-0.4593", DEIT, DEIT, DEIT),
    "label_file": ("esc50", "speech_commands_v2", "audioset", "audioset"),
    "num_train_epochs": (25, 30, 25, 5),
    "global_batch_size": (48, 128, 12, 12),
    "per_device_eval_batch_size": (96, 256, 24, 24),
    "learning_rate": (1e-5, 2.5e-4, 5e-5, 1e-5),
    "lr_step_first_epochs": (5, 5, 10, 2),
    "lr_step_epochs": (1, 1, 5, 1),
    "lr_step_factor": (0.85, 0.85, 0.5, 0.5),
    "warmup_steps": (0, 0, 1000, 1000),
    "problem_type": (SINGLE, MULTI, MULTI, MULTI),  # cross entropy, or BCE
    "mixup_probability": (0, 0.6, 0.5, 0.5),
    "freq_mask_bins": (24, 48, 48, 48),
    "time_mask_frames": (96, 48, 192, 192),
    "max_length": (512, 128, 1024, 1024),
    "frequency_stride": (10, 10, 10, 10),
    "time_stride": (10, 10, 10, 10),
    "mean": (-6.6268077, -6.845978, -4.2677393, -4.2677393),
    "std": (5.358466, 5.5654526, 4.5689974, 4.5689974),
    "max_noise": (0, 0.1, 0, 0),
    "roll_frames": (0, 10, 0, 0),
    "class_balanced_sampling": (False, False, False, True),
    "weight_average_start": (None, None, 6, 1),
    "weight_average_end": (None, None, 25, 5),
    # Of all of them.
    "decoupled_weight_decay": (False,) * 4,
    "weight_decay": (5e-7,) * 4,
    "adam_beta1": (0.95,) * 4,
    "adam_beta2": (0.999,) * 4,
    "adam_epsilon": (1e-8,) * 4,
    "max_grad_norm": (0,) * 4,
    "gradient_accumulation_steps": (1,) * 4,
    "head_learning_rate_factor": (1,) * 4,
    "freeze_backbone": (False,) * 4,
    "random_crop": (False,) * 4,
    "mixup_alpha": (10,) * 4,
}
# Labels; a figure to expect, and that of the first epoch. Source: sections 3.5 to 3.9.
EXPECTED = {
    "esc50": (50, "95.75", "79.25"),
    "speech_commands_v2": (35, "98.1", "94.3"),
    "audioset_balanced": (527, "0.350", "0.017"),
    "audioset_full": (527, "0.459", "0.415"),
}
# Source: facebookresearch/AudioMAE, submit_ft_mask_bal.sh with a base rate of 2e-4 and masks of 0.2, and the defaults
# of main_finetune_as.py; "Masked Autoencoders that Listen" (2022).
AUDIO_MAE = {
    "learning_rate": 2e-4 * (8 * 8 * 4) / 256,  # nodes, GPUs of each, clips on each
    "global_batch_size": 8 * 8 * 4,
    "samples_per_epoch": 200_000,
    "class_balanced_sampling": True,
    "num_train_epochs": 100,
    "warmup_steps": 10 / 100,
    "layer_learning_rate_decay": 0.75,
    "drop_path_rate": 0.1,
    "weight_decay": 0.0005,
    "decoupled_weight_decay": True,
    "max_grad_norm": 0,
    "lr_scheduler_kwargs": {"min_lr": 1e-6},
    "mixup_probability": 0.5,
    "mixup_alpha": 10,
    "freq_mask_bins": 48,
    "time_mask_frames": 192,
    "patchout_rows": 8 - int(8 * (1 - 0.2)),
    "patchout_columns": 64 - int(64 * (1 - 0.2)),
    "mean": -4.2677393,
    "std": 4.5689974,
    "max_length": 1024,
    "frequency_stride": 16,
    "time_stride": 16,
    "problem_type": MULTI,
    "label_file": "audioset",
}


def parse(name: str, *argv) -> dict:
    blocks = parse_arguments([str(CONFIGS / f"{name}.yaml"), *map(str, argv)])
    return {key: value for block in blocks for key, value in vars(block).items()}


def header(name: str) -> str:
    """The comment at the top."""
    text, _, _ = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").partition("\n\n")
    assert all(line.startswith("#") for line in text.splitlines())
    return text


def commands(name: str) -> list[list[str]]:
    """The command lines of the header, a list of words each."""
    text = header(name).replace("\\\n#", " ")
    lines = (line.removeprefix("#").strip() for line in text.splitlines())
    return [
        shlex.split(line, comments=True)
        for line in lines
        if re.match(r"(python|modeling-ast|accelerate launch) ", line)
    ]


# What stands in them


@pytest.mark.parametrize("name", PUBLISHED)
def test_hyper_parameters_are_the_published_ones(name):
    values = parse(name)
    expected = {key: row[PUBLISHED.index(name)] for key, row in HYPER_PARAMETERS.items()}
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_is_complete_in_itself(name):
    """What makes the result stands there, and does not wait for a default to change."""
    written = {word.split("=")[0].removeprefix("--") for word in read_recipe(CONFIGS / f"{name}.yaml")}
    off = (None, 0, False)
    kept = {"gradient_accumulation_steps", "head_learning_rate_factor", "mixup_alpha"}  # 1, 1 and 10 everywhere
    needed = {key for key, row in HYPER_PARAMETERS.items() if row[PUBLISHED.index(name)] not in off} - kept
    needed |= {"decoupled_weight_decay", "max_grad_norm", "lr_scheduler_type", "dataset_name", "output_dir", "seed"}
    assert needed <= written


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipe_says_what_to_expect(name):
    num_labels, result, first_epoch = EXPECTED[name]
    text = header(name)
    assert len(read_label_table(parse(name)["label_file"])) == num_labels
    assert re.search(rf"^# Expected: .*{re.escape(result)}", text, re.MULTILINE)
    assert re.search(rf"First epoch: {re.escape(first_epoch)}", text)
    assert "YuanGongND/ast, egs/" in text and "Not verified here" in text


def test_fine_tuning_of_2025_is_the_published_one():
    """A decibel of gain has the deviation of theirs, which is drawn from another distribution."""
    values = parse("audioset_full_2025", "--use_cpu=true")
    assert {key: values[key] for key in AUDIO_MAE} == AUDIO_MAE
    written = {word.split("=")[0].removeprefix("--") for word in read_recipe(CONFIGS / "audioset_full_2025.yaml")}
    assert AUDIO_MAE.keys() - {"decoupled_weight_decay"} <= written
    with torch.random.fork_rng():
        theirs = 20 * (0.5 + torch.distributions.Beta(10.0, 10.0).sample((100_000,))).log10()
    assert values["gain_db"] / 3**0.5 == pytest.approx(theirs.std().item(), rel=0.05)
    text = header("audioset_full_2025")
    assert all(words in text for words in ("mAP 0.473", "Not verified here", "CC BY-NC", "Cost: 337"))


@pytest.mark.parametrize("name", RECIPES)
def test_header_tells_task_result_and_command(name):
    text = header(name)
    assert len(text.splitlines()[0]) > 30 and re.search(r"^# Expected: ", text, re.MULTILINE)
    assert name == "demo" or "Source" in text
    assert any(f"configs/{name}.yaml" in command for command in commands(name))
    words = [word for command in commands(name) for word in command]
    named = [word for word in words if word.startswith(("scripts/", "configs/", "tests/"))]
    assert [word for word in named if not (ROOT / word).is_file()] == []


# Their first steps


TINY = ["--model_name_or_path=tiny224", "--hidden_size=48", "--num_hidden_layers=1", "--num_attention_heads=3"]
TINY += ["--intermediate_size=96", "--dataloader_num_workers=0", "--use_cpu=true", "--disable_tqdm=true"]


def write_clip(path: Path, number: int, seconds: int) -> None:
    """The sound of a number."""
    generator = torch.Generator().manual_seed(number)
    clip = torch.cat([generate_clip(CLASSES[number % len(CLASSES)], generator) for _ in range(seconds)])
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, clip.numpy(), 16000)


def make_esc(folder: Path, kinds: list[str]) -> None:
    """ESC-50's layout: two folds, of the same sounds."""
    rows = []
    for fold in (1, 2):
        for number, kind in enumerate(kinds):
            rows.append([f"{fold}-{number}-A-{number}.wav", fold, number, kind])
            write_clip(folder / "audio" / rows[-1][0], number, 5)
    (folder / "meta").mkdir()
    with open(folder / "meta" / "esc50.csv", "w", newline="") as file:
        csv.writer(file).writerows([["filename", "fold", "target", "category"], *rows])


def make_speech_commands(folder: Path, words: list[str]) -> None:
    """Speech Commands' layout, with the same sounds in each split."""
    for name, split in (("validation_list.txt", 1), ("testing_list.txt", 2)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(f"{word}/{split}.wav\n" for word in words))
    for number, word in enumerate(words):
        for split in range(3):
            write_clip(folder / word / f"{split}.wav", number, 1)


def make_mixed_lengths(folder: Path) -> None:
    """The manifest that configs/README.md makes, of short and long clips that are the same in each split."""
    rows = [["audio", "label", "split"]]
    for number, kind in enumerate(CLASSES):
        write_clip(folder / "data" / f"{kind}.wav", number, 1 + 4 * (number % 2))
        rows += [[f"{kind}.wav", kind, split] for split in ("train", "validation", "testing")]
    with open(folder / "data" / "mixed_lengths.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)


def make_audioset(folder: Path, json_name: str) -> None:
    """A data file of the original, Google's segments of evaluation clips, and the same sounds for both."""
    mids = read_label_table("audioset").mids
    ids = sorted(read_paper_eval_ids())[:12]
    labels = [f"{mids[number]},{mids[526 - number]}" for number in range(12)]
    lines = ["# Segments csv", "# YTID, start_seconds, end_seconds, positive_labels"]
    for number, (name, label) in enumerate(zip(ids, labels)):
        lines.append(f'{name}, 0.000, 10.000, "{label}"')
        write_clip(folder / "eval_clips" / f"{name}.wav", number, 10)
        write_clip(folder / "train_clips" / f"Ytrain_{number:05d}.wav", number, 10)
    (folder / "eval_segments.csv").write_text("\n".join(lines) + "\n")
    data = [{"wav": f"/elsewhere/Ytrain_{number:05d}.flac", "labels": label} for number, label in enumerate(labels)]
    (folder / json_name).write_text(json.dumps({"data": data}))


def prepare(name: str, folder: Path) -> None:
    """The recipe's data, made here in the published layout, by the commands of its header."""
    if name in ("esc50", "esc50_ssast"):
        make_esc(folder / "raw", read_label_table("esc50").names[:8])
    if name in ("esc10", "esc10_events"):
        make_esc(folder / "esc10", list(CLASSES))
    if name == "speech_commands_v2":
        make_speech_commands(folder / "raw", read_label_table("speech_commands_v2").names[-8:])
    if name == "fsdd":
        make_speech_commands(folder / "data" / "fsdd", [str(digit) for digit in range(10)])
    if name == "mixed_lengths":
        make_mixed_lengths(folder)
    for command in commands(name):
        if command[1] == "tests/campaigns/prepare_events.py":
            prepare_events.main(command[2:])
        if command[:2] == ["modeling-ast", "prepare"]:
            words = [word.replace("PATH/TO/", f"{folder}/") for word in command[2:]]
            if words[0] == "audioset" and "--json" in words:
                make_audioset(folder, Path(words[words.index("--json") + 1]).name)
            if words[0] != "audioset" and "--source" not in words:  # instead of fetching it
                words += ["--source", str(folder / "raw")]
            prepare_data.main(words)


def rates(name: str, num_epochs: int, steps_per_epoch: int) -> list[float]:
    """Of the last update of each epoch, by the recipe's numbers."""
    values = parse(name)
    found = []
    for epoch in range(1, num_epochs + 1):
        after = epoch - 1 - values["lr_step_first_epochs"]
        decays = 0 if after < 0 else 1 + after // values["lr_step_epochs"]
        warmup = min(1.0, epoch * steps_per_epoch / max(values["warmup_steps"], 1))
        found.append(values["learning_rate"] * warmup * values["lr_step_factor"] ** decays)
    return found


# Into what the recipe changes after its first epochs, where that is near; an epoch is one update, in the demo three.
EPOCHS = {"esc50": 7, "speech_commands_v2": 7, "audioset_balanced": 7, "audioset_full": 4}
STEPS_PER_EPOCH = {"demo": 3, "esc10_events": 4}  # of background there are 50 clips in the fold that trains
# An epoch is an update here too; and a layer above the first one is needed by what rises with the layers.
OWN = {
    "audioset_full_2025": ["--num_hidden_layers=2", "--samples_per_epoch=12", "--global_batch_size=12"],
    "audioset_student": ["--samples_per_epoch=12", "--global_batch_size=12"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("pretrain")])  # test_pretraining
@pytest.mark.usefixtures("one_thread")
def test_first_steps(name, tmp_path, monkeypatch):
    """The commands of the header, the recipe as it stands, and other sizes and steps alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(synthetic, "CLIPS_PER_CLASS", {"train": 8, "validation": 2, "test": 2})
    prepare(name, tmp_path)
    values = parse(name, "--use_cpu=true")
    epochs, steps_per_epoch = EPOCHS.get(name, 3), STEPS_PER_EPOCH.get(name, 1)
    argv = [*TINY, *OWN.get(name, []), f"--max_steps={epochs * steps_per_epoch}"]
    results = script.main([str(CONFIGS / f"{name}.yaml"), *argv])

    folder = tmp_path / values["output_dir"]
    with open(folder / "results.csv", newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert [row["epoch"] for row in rows] == list(range(1, epochs + 1))
    if values["lr_step_factor"] is not None:
        assert [row["learning_rate"] for row in rows] == pytest.approx(rates(name, epochs, steps_per_epoch))
    assert all(torch.tensor([row["train_loss"], row["validation_loss"]]).isfinite().all() for row in rows)
    # Outside the demo the held-out sounds are those that train, so that each update, at the recipe's own rate, shows.
    losses = [row["train_loss" if name == "demo" else "validation_loss"] for row in rows]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]

    labels = read_label_table(values["label_file"]).names if values["label_file"] else None
    for part in [folder, *folder.glob("weight_average")]:
        model = AutoModelForAudioClassification.from_pretrained(part)
        extractor = AutoFeatureExtractor.from_pretrained(part)
        assert list(model.config.id2label) == list(range(model.config.num_labels))
        assert labels is None or list(model.config.id2label.values()) == labels
        for key in ("max_length", "frequency_stride", "time_stride", "problem_type"):
            assert getattr(model.config, key) == values[key]
        assert (extractor.mean, extractor.std) == (values["mean"], values["std"])
    average_start = values["weight_average_start"] or epochs + 1
    assert (folder / "weight_average").is_dir() == (average_start <= epochs)
    metric = "mAP" if name.startswith("audioset") else "accuracy"
    assert f"validation_{metric}" in results and f"cum_{metric}" in rows[0]
    assert ("test_accuracy" in results) == (name in ("speech_commands_v2", "fsdd", "demo", "mixed_lengths"))
