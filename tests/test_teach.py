"""Teachers say what they find in the very views that their student gets, which is trained on what they said."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from conftest import make_tiny_config, random_model
from datasets import Dataset, Features, Value
from helpers import ROOT, another_process, contents, few_synthetic_sounds, save_checkpoint, write_sound
from safetensors.torch import load_file
from torch.nn import functional as F

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification, AudioError
from modeling_ast.commands import teach as command
from modeling_ast.commands import train
from modeling_ast.commands.command_options import CommandError
from modeling_ast.data.decoding import BAD_CLIPS_NAME, BadClips
from modeling_ast.data.labels import DataError
from modeling_ast.data.parts import Part, claimed_part
from modeling_ast.data.recipes import RecipeError
from modeling_ast.data.synthetic import CLASSES
from modeling_ast.loading import ModelError
from modeling_ast.training import stages, targets, teaching
from modeling_ast.training.arguments import parse_arguments
from modeling_ast.training.distillation import find_targets
from modeling_ast.training.same_run import describe_rows
from modeling_ast.training.targets import TargetsFolder, best, spread_rest
from modeling_ast.training.teachers import Teachers
from modeling_ast.training.trainer import ASTTrainer

few_sounds = few_synthetic_sounds(train=2, validation=1, test=1)  # 20 train, in batches of 8: 24 draws an epoch

# All that makes a view.
RECIPE = """
model_name_or_path: tiny224
hidden_size: 32
num_hidden_layers: 1
num_attention_heads: 2
intermediate_size: 64
max_length: 64
num_mel_bins: 32
dataset_name: synthetic
mixup_probability: 0.5
random_crop: true
freq_mask_bins: 8
time_mask_frames: 16
max_noise: 0.1
roll_frames: 5
do_train: true
num_train_epochs: 2
global_batch_size: 8
learning_rate: 1e-3
use_cpu: true
dataloader_pin_memory: false
disable_tqdm: true
save_strategy: "no"
seed: 3
"""
DRAWS = 24


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, one_thread) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def save_teacher(folder: Path, labels=tuple(CLASSES), problem_type="single_label_classification", **options) -> Path:
    """A random model; options of the network, and of the extractor mean, std and padding."""
    of_extractor = {name: options.pop(name) for name in ("mean", "std", "padding", "sampling_rate") if name in options}
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: index for index, name in enumerate(labels)}}
    model = random_model(make_tiny_config(**options, **names, problem_type=problem_type))
    return save_checkpoint(folder, model, **of_extractor)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """Of the student's filter bank, with statistics and an order of labels of its own."""
    folder = tmp_path_factory.mktemp("teachers") / "ast"
    return save_teacher(folder, list(CLASSES)[::-1], time_stride=6, mean=-7.0, std=5.0)


def teach(recipe: Path, output: Path, *teachers, keys=(), epochs=2, **options) -> list[dict]:
    """Run the command.

    Returns:
        What the teachers got and said, a batch each.
    """
    seen, call = [], Teachers.__call__

    def note(self, view):
        said = call(self, view)
        seen.append({**view, "said": said})
        return said

    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    argv = [recipe, "--teachers", *teachers, "--output", output, "--epochs", epochs, *words, *keys]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teachers, "__call__", note)
        command.main(list(map(str, argv)))
    return seen


def student(recipe: Path, output: Path, *keys) -> ASTTrainer:
    arguments = parse_arguments([str(recipe), *map(str, keys), f"--output_dir={output}"])
    targets = find_targets(arguments)
    splits = stages.read_data(arguments, targets)
    model, extractor = stages.build(arguments, splits, targets)
    of_training = stages.prepare_clips(arguments, splits, extractor)
    thresholds = np.full(len(splits.label_names), 0.5)
    return stages.make_trainer(arguments, splits, model, extractor, thresholds, targets, **of_training)


def trainer_arguments(recipe: Path, *keys: str):
    return parse_arguments([str(recipe), *keys, "--output_dir=x"])


def batches(trainer: ASTTrainer, num_epochs: int) -> Iterator[dict[str, torch.Tensor]]:
    loader = trainer.get_train_dataloader()
    for epoch in range(num_epochs):
        trainer.train_sampler.set_epoch(epoch)
        yield from loader


def joined(batches: list[dict], name: str) -> torch.Tensor:
    return torch.cat([batch[name].cpu() for batch in batches])


@pytest.fixture(scope="module")
def taught(recipe, teacher, few_sounds, tmp_path_factory) -> tuple[Path, list[dict]]:
    """Targets of two epochs, and what the teacher got and said."""
    folder = tmp_path_factory.mktemp("taught") / "targets"
    return folder, teach(recipe, folder, teacher, top_k=4)


@pytest.mark.parametrize(
    "keys", [(), pytest.param(("--dataloader_num_workers=2",), marks=pytest.mark.slow)], ids=["alone", "workers"]
)
def test_a_student_gets_the_views_of_its_teacher_bit_for_bit_and_again_after_its_last_epoch(
    recipe, taught, tmp_path, keys
):
    folder, seen = taught
    trainer = student(recipe, tmp_path, f"--teacher_targets={folder}", "--num_train_epochs=3", *keys)
    got = list(batches(trainer, 3))
    views = joined(got, "input_values")
    assert len(views) == 3 * DRAWS and not torch.equal(views[:DRAWS], views[DRAWS : 2 * DRAWS])
    assert torch.equal(views[: 2 * DRAWS], joined(seen, "input_values"))
    assert torch.equal(views[2 * DRAWS :], views[:DRAWS])
    torch.testing.assert_close(joined(got, "labels")[2 * DRAWS :], joined(got, "labels")[:DRAWS])


VIEWS = {
    "pairs": ("--mixup_partner=batch", "--mixup_alpha=0.8", "--gain_db=6", "--class_balanced_sampling=true"),
    "passes": (
        "--samples_per_epoch=16",
        "--padding=longest",
        "--num_time_masks=2",
        "--waveform_transform=views:louder",
    ),
}


@pytest.mark.parametrize("keys", VIEWS.values(), ids=VIEWS)
def test_whatever_makes_a_view_makes_the_same_for_teacher_and_student(recipe, teacher, tmp_path, monkeypatch, keys):
    (tmp_path / "views.py").write_text(
        "import random\ndef louder(waveform, sampling_rate):\n    return waveform * random.random()\n"
    )
    monkeypatch.chdir(tmp_path)
    folder, own = tmp_path / "targets", (teacher, save_teacher(tmp_path / "free", padding="longest"))
    seen = teach(recipe, folder, own["--padding=longest" in keys], keys=keys)
    trainer = student(recipe, tmp_path / "run", f"--teacher_targets={folder}", *keys)
    got = list(batches(trainer, 2))
    assert len(got) == len(seen) > 2
    for view, of_teacher in zip(got, seen):
        assert torch.equal(view["input_values"], of_teacher["input_values"])
    assert not torch.equal(got[0]["input_values"], got[-1]["input_values"])


def test_without_targets_the_same_recipe_goes_on_with_new_views(recipe, taught, tmp_path):
    views = joined(list(batches(student(recipe, tmp_path), 3)), "input_values")
    assert torch.equal(views[: 2 * DRAWS], joined(taught[1], "input_values"))
    assert not torch.equal(views[2 * DRAWS :], views[:DRAWS])


def test_a_student_is_trained_on_the_best_probabilities_within_float16_and_equal_shares_of_the_rest(
    recipe, taught, tmp_path
):
    folder, seen = taught
    labels = joined(list(batches(student(recipe, tmp_path, f"--teacher_targets={folder}"), 2)), "labels")
    said = joined(seen, "said")
    values, indices = said.topk(4)
    torch.testing.assert_close(labels.gather(1, indices), values, rtol=2**-11, atol=2**-24)
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(len(labels)), rtol=0, atol=1e-6)
    others = labels.scatter(1, indices, torch.nan)
    others = others[~others.isnan()].reshape(len(labels), 6)
    assert torch.equal(others, others[:, :1].expand(-1, 6)) and (others <= values.min(dim=1).values[:, None]).all()


def test_a_teacher_gets_the_students_spectrogram_as_it_would_have_normalised_it(taught, teacher):
    """And its labels are brought into the data's order."""
    (view, *_), extractor = taught[1], ASTFeatureExtractor.from_pretrained(teacher)
    spectrogram = view["input_values"] * 2 * 4.5689974 - 4.2677393  # of the student's statistics, AudioSet's
    model = ASTForAudioClassification.from_pretrained(teacher)
    with torch.no_grad():
        logits = model(extractor.normalize(spectrogram)).logits
    torch.testing.assert_close(view["said"], logits.softmax(dim=1).flip(1), rtol=1e-3, atol=1e-5)


# Files


@pytest.fixture
def small_files(monkeypatch):
    """Three files an epoch, of an update each."""
    monkeypatch.setattr(targets, "_POSITIONS_IN_FILE", 8)


def assert_same_targets(folder: Path, other: Path) -> None:
    """Of the same views by the same teachers, within what float16 rounds: they may have been computed elsewhere."""
    found, wanted = (TargetsFolder.load(each) for each in (folder, other))
    sizes = {"positions_per_file": None}  # however they are divided into files
    assert found.description | sizes == wanted.description | sizes
    positions = range(wanted.num_epochs * DRAWS)
    probabilities = (each.probabilities(positions, multi_label=False) for each in (found, wanted))
    torch.testing.assert_close(*probabilities, atol=2**-10, rtol=0)


def test_what_is_done_is_not_done_again_and_more_epochs_are_added(recipe, taught, teacher, tmp_path, small_files):
    folder = tmp_path / "targets"
    assert len(joined(teach(recipe, folder, teacher, epochs=1, top_k=4), "said")) == DRAWS
    whole = contents(folder)
    assert sorted(whole) == [*(f"epoch-00000-0000{number}.npy" for number in range(3)), "teaching.json"]
    (folder / "epoch-00000-00001.npy").unlink()
    (folder / ".1.0.unfinished.npy").write_bytes(b"of a process that was killed")
    assert len(joined(teach(recipe, folder, teacher, epochs=1, top_k=4), "said")) == 8
    again, redone = contents(folder), "epoch-00000-00001.npy"
    assert again.keys() == whole.keys() and all(again[name] == whole[name] for name in whole if name != redone)
    assert len(joined(teach(recipe, folder, teacher, epochs=2, top_k=4), "said")) == DRAWS
    assert teach(recipe, folder, teacher, epochs=1, top_k=4) == []
    assert_same_targets(folder, taught[0])


def test_parts_together_are_the_whole_and_a_student_waits_for_them(recipe, teacher, tmp_path, small_files, capsys):
    folder, whole = tmp_path / "parts", tmp_path / "whole"
    teach(recipe, whole, teacher)
    teach(recipe, folder, teacher, part="2/2")
    assert "Part 2/2 is done; 3 file(s) of other parts or epochs are not there yet." in capsys.readouterr().out
    with pytest.raises(RecipeError, match="lacks 3 of 6 files of targets, such as epoch-00000-00000.npy"):
        student(recipe, tmp_path, f"--teacher_targets={folder}")
    teach(recipe, folder, teacher, part="1/2")
    assert contents(folder).keys() == contents(whole).keys()
    assert_same_targets(folder, whole)
    assert f"--teacher_targets {folder}" in capsys.readouterr().out


def test_a_second_process_for_the_same_part_is_refused(recipe, teacher, tmp_path):
    folder = tmp_path / "targets"
    with another_process(claimed_part, folder, Part(1, 2), DataError("")):
        with pytest.raises(DataError, match="Another run is writing to .*targets at this moment.*another --output"):
            teach(recipe, folder, teacher, part="1/2")
        with pytest.raises(DataError, match="Another run is writing"):  # of another division
            teach(recipe, folder, teacher)
        teach(recipe, folder, teacher, part="2/2")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["--freq_mask_bins=4"], "freq_mask_bins: 8 taught, 4 in this recipe"),
        (["--freq_mask_bins=0"], "freq_mask_bins: 8 taught, nothing in this recipe"),
        (["--seed=4"], "seed: 3 taught, 4 in this recipe; data_seed: 3 taught, 4 in this recipe"),
        (
            ["--global_batch_size=4"],
            "global_batch_size: 8 taught, 4 .*; draws_per_epoch: 24 taught, 20 in this recipe",
        ),
        (["--max_train_samples=19"], "train: 20 clips .* taught, 19 clips .* in this recipe"),
        (["--max_length=48"], "max_length: 64 taught, 48"),
        (["--samples_per_epoch=24"], "samples_per_epoch: nothing taught, 24 in this recipe"),
    ],
)
def test_other_views_or_clips_than_those_that_were_taught_are_refused_with_the_difference(
    recipe, taught, tmp_path, keys, words
):
    with pytest.raises(RecipeError, match=f"was taught with other views of other clips: .*{words}"):
        student(recipe, tmp_path, f"--teacher_targets={taught[0]}", *keys)


def test_targets_of_another_problem_type_are_refused_on_sounds_without_labels(recipe, tmp_path):
    kind, several = "--problem_type=single_label_classification", "--problem_type=multi_label_classification"
    folder, own = tmp_path / "targets", ["--unlabelled=true"]
    teach(recipe, folder, save_teacher(tmp_path / "ast", problem_type=several.split("=")[1]), keys=[*own, several])
    assert student(recipe, tmp_path / "run", f"--teacher_targets={folder}", *own, several)
    with pytest.raises(RecipeError, match="problem_type: multi_label_classification taught, single_label"):
        student(recipe, tmp_path / "run", f"--teacher_targets={folder}", *own, kind)


def test_sounds_without_names_are_told_apart_by_their_beginnings(tmp_path):
    def rows(seed):
        sounds = [np.random.default_rng([seed, number]).bytes(2000) for number in range(4)]
        audio = [{"path": None, "bytes": sound} for sound in sounds]
        return Dataset.from_dict(
            {"audio": audio}, Features({"audio": {"path": Value("string"), "bytes": Value("binary")}})
        )

    assert describe_rows(rows(0)) == describe_rows(rows(0)) != describe_rows(rows(1))


def test_clips_that_could_not_be_taught_are_named_to_the_student(recipe, taught, tmp_path, caplog):
    folder = Path(shutil.copytree(taught[0], tmp_path / "targets"))
    student(recipe, tmp_path / "run", f"--teacher_targets={folder}")
    assert "stood in their place" not in caplog.text
    BadClips(folder / BAD_CLIPS_NAME, 3).add({"path": "a/b.wav", "bytes": None}, AudioError("a/b.wav: broken."))
    student(recipe, tmp_path / "run", f"--teacher_targets={folder}")
    assert (
        "1 clip(s) could not be decoded when they were taught, and others stood in their place: a/b.wav."
        in caplog.text
    )


def test_what_makes_no_view_is_free(recipe, taught, tmp_path):
    keys = [
        "--learning_rate=1",
        "--mean=-5",
        "--time_stride=16",
        "--gradient_accumulation_steps=2",
        "--warmup_steps=1",
    ]
    trainer = student(recipe, tmp_path, f"--teacher_targets={taught[0]}", *keys)
    views = joined(list(batches(trainer, 1)), "input_values")
    expected = joined(taught[1], "input_values")[:DRAWS]
    torch.testing.assert_close(views, expected + (5 - 4.2677393) / 2 / 4.5689974, rtol=0, atol=1e-4)


def test_other_teachers_in_the_same_folder_are_refused(recipe, taught, tmp_path, teacher):
    other = save_teacher(tmp_path / "other")
    with pytest.raises(DataError, match=r"other targets: teachers: 1 \(.*ast \(.*was taught before, .*other \("):
        teach(recipe, taught[0], other, top_k=4)
    with pytest.raises(DataError, match="top_k: 4 was taught before, 3 is given. Choose another --output"):
        teach(recipe, taught[0], teacher, top_k=3)


@pytest.mark.parametrize("content", [None, "", "1", "{}", '{"views": {"global_batch_size": 1}}'])
def test_a_folder_that_holds_no_targets_is_refused(recipe, tmp_path, content):
    if content is not None:
        (tmp_path / "teaching.json").write_text(content)
    words = "Expected teacher_targets to be a folder that modeling-ast teach has made"
    with pytest.raises(RecipeError, match=words) as refusal:
        student(recipe, tmp_path / "run", f"--teacher_targets={tmp_path}")
    assert refusal.value.of_all_processes  # also where the folder is missing on one machine alone
    if content is not None:
        with pytest.raises(DataError, match="expected the description of targets"):
            TargetsFolder.load_description(tmp_path / "teaching.json")


@pytest.mark.parametrize("length", [-1, 0])
def test_a_damaged_file_of_targets_is_named(taught, tmp_path, length):
    folder = Path(shutil.copytree(taught[0], tmp_path / "targets"))
    file = folder / "epoch-00001-00000.npy"
    file.write_bytes(file.read_bytes()[:length])
    targets = TargetsFolder.load(folder)
    assert len(targets.read([DRAWS - 1])) == 1
    with pytest.raises(DataError, match="epoch-00001-00000.npy cannot be read .*: remove it, and let modeling-ast"):
        targets.read([DRAWS])


# What a student is trained on


def test_labels_can_be_mixed_in_as_mixup_has_mixed_them(recipe, taught, tmp_path):
    def labels(*keys):
        return joined(list(batches(student(recipe, tmp_path, *keys), 1)), "labels")

    taught_by = f"--teacher_targets={taught[0]}"
    expected = 0.25 * labels() + 0.75 * labels(taught_by)
    torch.testing.assert_close(labels(taught_by, "--hard_label_weight=0.25"), expected)


@pytest.mark.slow
def test_labels_that_are_indices_can_be_mixed_in_too(recipe, teacher, tmp_path):
    keys = ["--mixup_probability=0"]
    teach(recipe, tmp_path / "targets", teacher, epochs=1, keys=keys)
    keys.append(f"--teacher_targets={tmp_path / 'targets'}")
    (soft, hard) = (
        joined(list(batches(student(recipe, tmp_path, *keys, f"--hard_label_weight={weight}"), 1)), "labels")
        for weight in (0, 0.5)
    )
    assert (hard.argmax(1) == (2 * hard - soft).argmax(1)).all()
    torch.testing.assert_close(2 * hard - soft, F.one_hot((2 * hard - soft).argmax(1), 10).float())


def test_the_rest_of_several_labels_is_less_than_the_least_that_is_known():
    values, labels = torch.tensor([[0.9, 0.6], [0.5, 0.02]]), torch.tensor([[2, 0], [1, 3]])
    expected = torch.tensor([[0.6, 0.3, 0.9, 0.3], [0.01, 0.5, 0.01, 0.02]])
    torch.testing.assert_close(spread_rest(values, labels, 4, multi_label=True), expected)
    values = torch.tensor([[0.7, 0.2]])
    torch.testing.assert_close(
        spread_rest(values, labels[:1], 4, multi_label=False), torch.tensor([[0.2, 0.05, 0.7, 0.05]])
    )


def test_the_best_of_all_labels_are_all():
    probabilities = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    rows = best(probabilities, 20)
    assert (
        rows["probability"].dtype == np.float16 and rows["label"].dtype == np.int16 and rows["label"].shape == (3, 5)
    )
    known = torch.from_numpy(rows["probability"].astype(np.float32)), torch.from_numpy(rows["label"].astype(np.int64))
    torch.testing.assert_close(spread_rest(*known, 5, multi_label=True), probabilities, rtol=2**-11, atol=0)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["--hard_label_weight=0.5"], "hard_label_weight has no effect without teacher_targets"),
        (["--teacher_targets=x", "--hard_label_weight=1"], r"Expected hard_label_weight in \[0, 1\), got 1"),
        (["--teacher_targets=x", "--label_smoothing_factor=0.1"], "label_smoothing_factor has no place"),
        (["--teacher_targets=x", "--auto_find_batch_size=true", "--global_batch_size=null"], "auto_find_batch_size"),
        (["--teacher_targets=x", "--streaming=true", "--max_steps=3"], "teacher_targets are for the clips of a table"),
    ],
)
def test_keys_without_effect_or_place_are_refused(tmp_path, recipe, keys, words):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("global_batch_size: 8", "per_device_train_batch_size: 8"))
    with pytest.raises(RecipeError, match=words):
        parse_arguments([str(path), *[key for key in keys if "null" not in key]])


def test_another_code_of_a_transform_makes_other_views(recipe, tmp_path, monkeypatch):
    """Under the same name: what it was taught with is told by the file that it is in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "views_of_mine.py").write_text("def change(waveform, rate):\n    return 2 * waveform\n")
    keys = "--waveform_transform=views_of_mine:change", "--mixup_probability=0"
    before = teaching.views_of(trainer := student(recipe, tmp_path / "out", *keys), trainer_arguments(recipe, *keys))
    assert teaching.views_of(trainer, trainer_arguments(recipe, *keys)) == before
    (tmp_path / "views_of_mine.py").write_text("def change(waveform, rate):\n    return 3 * waveform\n")
    now = teaching.views_of(trainer, trainer_arguments(recipe, *keys))
    differing = [key for key in now if now[key] != before[key]]
    assert differing == ["waveform_transform"] and now["waveform_transform"].startswith("views_of_mine:change (")
    sys.modules.pop("views_of_mine")


def test_the_precision_of_teachers_belongs_to_what_they_have_said(recipe, teacher, tmp_path):
    teach(recipe, tmp_path, teacher, epochs=1)
    assert "precision" not in TargetsFolder.load(tmp_path).description
    with pytest.raises(DataError, match="precision: nothing was taught before, bf16 is given"):
        teach(recipe, tmp_path, teacher, epochs=2, keys=["--bf16=true"])


def test_targets_are_looked_for_once_and_read_before_workers_are(recipe, tmp_path, monkeypatch, no_pictures):
    """Of thousands of files; and what standardises embeddings is known where data workers begin."""
    loads, load = [], TargetsFolder.load.__func__
    monkeypatch.setattr(TargetsFolder, "load", classmethod(lambda *args: loads.append(1) or load(*args)))
    monkeypatch.chdir(tmp_path)
    code = "import numpy as np\n\ndef embed(waveforms):\n"
    code += "    return np.stack([np.resize(each[:7], 7) for each in waveforms])\n\nembed.sampling_rate = 16000\n"
    (tmp_path / "embedder_of_mine.py").write_text(code)
    keys = ["--mixup_probability=0", "--linear_baseline=false", "--eval_strategy=no"]
    teach(recipe, tmp_path / "targets", "embedder_of_mine:embed", epochs=1, keys=keys)
    assert loads == []
    train.main([str(recipe), *keys, f"--teacher_targets={tmp_path / 'targets'}", "--output_dir=out", "--max_steps=1"])
    assert loads == [1]
    loads.clear()
    trainer = student(recipe, tmp_path / "run", *keys, f"--teacher_targets={tmp_path / 'targets'}")
    assert "embedding_statistics" in vars(trainer.train_collator.targets) and loads == [1]


def test_a_run_that_began_without_teachers_says_so(recipe, tmp_path):
    trainer = student(recipe, tmp_path)
    progress = {**trainer._progress(), "teachers": ["ast (0123)"]}
    with pytest.raises(RecipeError, match=r"began with, those of ast \(0123\), got none\."):
        trainer._restore_progress(progress)
    trainer.teachers = ["ast (0123)"]
    with pytest.raises(RecipeError, match=r"began with, none, got those of ast \(0123\)\."):
        trainer._restore_progress({**progress, "teachers": []})


# Teachers


@pytest.mark.slow
def test_several_teachers_of_other_strides_lengths_and_bins_are_averaged(recipe, teacher, tmp_path, caplog):
    """The second one computes other features, of the same waveforms, and is told not to get masks."""
    longer = save_teacher(tmp_path / "longer", time_stride=8, frequency_stride=6, max_length=96)
    wider = save_teacher(tmp_path / "wider", num_mel_bins=48, max_length=48)
    alone = [
        joined(teach(recipe, tmp_path / name, name_of), "said")
        for name, name_of in (("1", teacher), ("2", longer), ("3", wider))
    ]
    caplog.clear()
    seen = teach(recipe, tmp_path / "all", teacher, longer, wider)
    torch.testing.assert_close(joined(seen, "said"), sum(alone) / 3)
    warnings = [record.message for record in caplog.records if "gets the waveform" in record.message]
    assert len(warnings) == 1 and f"{wider} gets the waveform of each view, without what" in warnings[0]
    assert "freq_mask_bins, time_mask_frames, roll_frames, max_noise" in warnings[0]
    extractor, view = ASTFeatureExtractor.from_pretrained(wider), seen[0]
    with torch.no_grad():
        features = extractor(view["waveforms"], return_tensors="pt")
        said = ASTForAudioClassification.from_pretrained(wider)(**features).logits.softmax(dim=1)
    torch.testing.assert_close(alone[2][:8], said)


@pytest.mark.parametrize("own", ["max_length", "longest"])
def test_a_teacher_hears_a_view_of_a_length_of_its_own_without_its_padding(recipe, tmp_path, own):
    """The student's batches are padded to their longest clip; what the teacher says of a clip is what it says of it
    alone."""
    generator = torch.Generator().manual_seed(0)
    for index in range(20):
        clip = 0.1 * torch.randn(8000 + 480 * index, generator=generator)
        write_sound(tmp_path / "sounds" / "ab"[index % 2] / f"{index}.wav", clip)
    folder = save_teacher(tmp_path / "teacher", labels="ab", max_length=80, padding=own, std=5.0)
    keys = [f"--dataset_name={tmp_path / 'sounds'}", "--max_length=98", "--padding=longest", "--max_noise=0"]
    (view, *_) = teach(recipe, tmp_path / "targets", folder, epochs=1, keys=keys)
    assert view["attention_mask"].sum(1).unique().numel() > 1
    model, extractor = ASTForAudioClassification.from_pretrained(folder), ASTFeatureExtractor.from_pretrained(folder)
    for index, frames in enumerate(view["attention_mask"].sum(1).tolist()):
        raw = view["input_values"][index, :frames] * 2 * 4.5689974 - 4.2677393
        features = extractor.normalize(extractor.fit_length([raw[:80]], 80))
        with torch.no_grad():
            said = model(features).logits.softmax(dim=1)[0]
        torch.testing.assert_close(view["said"][index], said, rtol=1e-3, atol=1e-4)


def test_a_teacher_that_takes_own_lengths_gets_the_waveforms_of_views_that_are_padded(recipe, tmp_path):
    folder = save_teacher(tmp_path / "teacher", padding="longest", max_length=64)
    (view, *_) = teach(recipe, tmp_path / "targets", folder, epochs=1)
    extractor = ASTFeatureExtractor.from_pretrained(folder)
    features = extractor(view["waveforms"], return_tensors="pt")
    assert features["attention_mask"].shape[1] <= 64
    with torch.no_grad():
        said = ASTForAudioClassification.from_pretrained(folder)(**features).logits.softmax(dim=1)
    torch.testing.assert_close(view["said"], said)


FUNCTIONS = """
import numpy as np

RATES = []

def loudness(waveforms):
    RATES.append([(each.dtype, each.ndim, len(each)) for each in waveforms])
    loud = np.array([min(1.0, abs(each).mean()) for each in waveforms])
    return np.stack([loud, *[(1 - loud) / 9] * 9], axis=1)

loudness.sampling_rate = np.int64(8000)
loudness.labels = LABELS

def mute(waveforms):
    return np.zeros((len(waveforms), 3))

def wrong(waveforms):
    return loudness(waveforms) + 1

wrong.sampling_rate, wrong.labels = 16000, LABELS

def short(waveforms):
    return loudness(waveforms)[1:]

short.sampling_rate, short.labels = 16000, LABELS

def none(waveforms):
    return loudness(waveforms) * np.nan

none.sampling_rate, none.labels = 16000, LABELS

def unequal(waveforms):
    return loudness(waveforms) / 2

unequal.sampling_rate, unequal.labels = 16000, LABELS

def others(waveforms):
    return loudness(waveforms)

others.sampling_rate, others.labels = 16000, LABELS[1:] + ["other"]

def broken(waveforms):
    return waveforms[8]

broken.sampling_rate, broken.labels = 16000, LABELS

def louder(waveforms):
    for each in waveforms:
        each *= 3
    return loudness(waveforms)

louder.sampling_rate, louder.labels = 16000, LABELS

def as_it_is(waveforms):
    return loudness(waveforms)

as_it_is.sampling_rate, as_it_is.labels = 16000, LABELS

def twice(waveforms):
    return loudness(waveforms)

twice.sampling_rate, twice.labels = 16000, [*LABELS[1:], LABELS[1]]
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_teachers.py").write_text(FUNCTIONS.replace("LABELS", repr(list(CLASSES))))
    yield
    sys.modules.pop("own_teachers", None)
    sys.path[:] = [path for path in sys.path if path != str(tmp_path)]


def test_a_function_teaches_from_waveforms_at_its_rate(recipe, tmp_path, functions):
    (view, *_) = teach(recipe, tmp_path / "targets", "own_teachers:loudness", epochs=1)
    from own_teachers import RATES

    lengths = [-(-len(waveform) // 2) for waveform in view["waveforms"]]
    assert RATES[0] == [(np.float32, 1, length) for length in lengths]
    assert view["said"].sum(1).allclose(torch.ones(8)) and view["said"].shape == (8, 10)


def test_what_a_function_does_to_its_waveforms_no_other_teacher_gets(recipe, tmp_path, functions):
    keys = ["--mixup_probability=0"]
    names = "own_teachers:louder", "own_teachers:as_it_is"
    alone = [joined(teach(recipe, tmp_path / name[-3:], name, epochs=1, keys=keys), "said") for name in names]
    both = joined(teach(recipe, tmp_path / "both", *names, epochs=1, keys=keys), "said")
    assert not torch.equal(*alone)
    torch.testing.assert_close(both, sum(alone) / 2)


@pytest.mark.slow
def test_a_batch_from_a_data_worker_needs_few_open_files(recipe, tmp_path, functions):
    """A process may have 1,024, as a rule: two batches of 64 tensors of each of 8 workers."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 50, before[1]))
    try:
        keys = ["--global_batch_size=64", "--dataloader_num_workers=1"]
        (view,) = teach(recipe, tmp_path / "targets", "own_teachers:as_it_is", epochs=1, keys=keys)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(view["waveforms"]) == 64


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mute", "expected a function with an attribute sampling_rate, in Hz, got None"),
        ("wrong", "expected probabilities, got numbers outside of"),
        ("short", r"expected an array of shape \(8, 10\) for 8 waveforms, got \(7, 10\)"),
        ("none", "expected finite numbers, got NaN"),
        ("unequal", "expected probabilities that sum to 1 for one label a clip"),
        ("twice", "expected each label once in its attribute labels"),
        ("others", "Expected the labels of the data, but the model alone has other and the data alone have"),
        ("broken", r"has failed \(IndexError in .*own_teachers.py, line \d+: list index out of range\)"),
    ],
)
def test_a_function_that_cannot_teach_is_refused_in_a_sentence(recipe, tmp_path, functions, name, words):
    with pytest.raises(ModelError, match=f"own_teachers:{name}.*{words}"):
        teach(recipe, tmp_path / "targets", f"own_teachers:{name}", epochs=1)


def test_teachers_of_another_problem_or_of_other_labels_are_refused(recipe, tmp_path):
    several = save_teacher(tmp_path / "several", problem_type="multi_label_classification")
    with pytest.raises(ModelError, match="expected a teacher of single_label_classification, got multi_label"):
        teach(recipe, tmp_path / "targets", several)
    others = save_teacher(tmp_path / "others", labels=[*list(CLASSES)[1:], "other"])
    with pytest.raises(ModelError, match="others cannot be used: Expected the labels of the data"):
        teach(recipe, tmp_path / "targets", others)
    with pytest.raises(CommandError, match="Expected different teachers"):
        teach(recipe, tmp_path / "targets", others, others)
    with pytest.raises(CommandError, match="Expected a part from 1/N to N/N"):
        teach(recipe, tmp_path / "targets", others, part="3/2")
    with pytest.raises(RecipeError, match="dry_run has no effect on teach"):
        teach(recipe, tmp_path / "targets", others, keys=["--dry_run=true"])
    with pytest.raises(RecipeError, match="teacher_targets are for the clips of a table"):
        teach(
            recipe, tmp_path / "targets", others, keys=["--streaming=true", "--max_steps=3", "--mixup_partner=batch"]
        )


def test_more_labels_than_their_numbers_can_tell_are_refused(monkeypatch, recipe, teacher, tmp_path):
    monkeypatch.setattr(teaching, "MAX_LABELS", 9)
    with pytest.raises(DataError, match="Expected at most 9 labels, got 10"):
        teach(recipe, tmp_path / "targets", teacher)


def test_the_probabilities_of_several_labels_a_clip_are_taught(recipe, tmp_path):
    kind = "multi_label_classification"
    folder = save_teacher(tmp_path / "teacher", problem_type=kind)
    seen = teach(recipe, tmp_path / "targets", folder, epochs=1, top_k=10, keys=[f"--problem_type={kind}"])
    trainer = student(recipe, tmp_path, f"--problem_type={kind}", f"--teacher_targets={tmp_path / 'targets'}")
    labels = joined(list(batches(trainer, 1)), "labels")
    torch.testing.assert_close(labels, joined(seen, "said"), rtol=2**-11, atol=2**-24)
    with torch.no_grad():
        logits = ASTForAudioClassification.from_pretrained(folder)(seen[0]["input_values"]).logits
    torch.testing.assert_close(seen[0]["said"], logits.sigmoid())


# Embeddings


EMBEDDINGS = """
import numpy as np

def spectrum(waveforms):
    found = []
    for each in waveforms:
        power = abs(np.fft.rfft(each, 512))[:240].reshape(6, 40).sum(axis=1)
        # Numbers of very different scales, one of them constant.
        found.append([*np.log(power + 1e-3), 1.0, 100 * np.sqrt(power[0])])
    return np.array(found)

spectrum.sampling_rate = 16000

def huge(waveforms):
    return np.full((len(waveforms), 3), 1e5)

huge.sampling_rate = 16000

def other(waveforms, sizes=[3, 4]):
    return np.zeros((len(waveforms), sizes.pop(0)))

other.sampling_rate = 16000
"""


@pytest.fixture
def embeddings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_embeddings.py").write_text(EMBEDDINGS)
    yield
    sys.modules.pop("own_embeddings", None)
    sys.path[:] = [path for path in sys.path if path != str(tmp_path)]


@pytest.mark.parametrize("unlabelled", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_a_student_is_trained_on_standardised_embeddings(recipe, tmp_path, embeddings, unlabelled):
    keys = [f"--unlabelled={unlabelled}"]
    seen = teach(recipe, tmp_path / "targets", "own_embeddings:spectrum", keys=keys)
    trainer = student(recipe, tmp_path, *keys, f"--teacher_targets={tmp_path / 'targets'}")
    got = list(batches(trainer, 2))
    assert torch.equal(joined(got, "input_values"), joined(seen, "input_values"))
    said, labels = joined(seen, "said").half().double(), joined(got, "labels").double()
    deviation = said[:DRAWS].std(dim=0, correction=0)
    assert deviation[6] == 0 and deviation[7] > 100 * deviation[0]
    expected = (said - said[:DRAWS].mean(dim=0)) / torch.where(deviation > 0, deviation, 1)
    torch.testing.assert_close(labels, expected, rtol=1e-4, atol=1e-4)
    output = trainer.model(got[0]["input_values"].to(trainer.args.device), labels=got[0]["labels"])
    torch.testing.assert_close(output.loss, (output.logits - got[0]["labels"]).square().mean())


def test_embeddings_of_another_size_are_one_sentence(recipe, tmp_path, embeddings):
    keys = ["--unlabelled=true"]
    with pytest.raises(ModelError, match=r"own_embeddings:other: expected an array of shape \(8, 3\).*got \(8, 4\)"):
        teach(recipe, tmp_path / "targets", "own_embeddings:other", keys=keys)
    teach(recipe, tmp_path / "others", "own_embeddings:spectrum", epochs=1, keys=keys)
    targets = TargetsFolder.load(tmp_path / "others")
    with pytest.raises(DataError, match="holds embeddings of 8 numbers, and now came 9"):
        targets.write(targets.files(2)[1], np.zeros((24, 9), np.float16))


@pytest.mark.slow
def test_what_has_learnt_embeddings_is_a_model_without_labels_to_fine_tune(recipe, tmp_path, embeddings, no_pictures):
    teach(recipe, tmp_path / "targets", "own_embeddings:spectrum", epochs=1, keys=["--unlabelled=true"])
    argv = [str(recipe), "--unlabelled=true", f"--teacher_targets={tmp_path / 'targets'}", "--ema_decay=0.5"]
    argv += [f"--output_dir={tmp_path / 'run'}", "--save_strategy=steps", "--save_steps=3", "--logging_steps=1"]
    train.main([*argv, "--num_train_epochs=1"])
    folder = tmp_path / "run"
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["ASTModel"] and not {"id2label", "problem_type"} & config.keys()
    assert not (folder / "README.md").exists()
    whole = load_file(folder / "checkpoint-3" / "model.safetensors")
    prefix = "audio_spectrogram_transformer."
    body = {name.removeprefix(prefix): weight for name, weight in whole.items() if name.startswith(prefix)}
    saved = load_file(folder / "model.safetensors")
    assert saved.keys() == body.keys() and all(torch.equal(saved[name], body[name]) for name in body)
    assert whole["classifier.dense.weight"].shape == (8, 32)
    average = load_file(folder / "weight_average" / "model.safetensors")
    assert average.keys() == body.keys() and any(not torch.equal(average[name], saved[name]) for name in body)

    # The same command finds the end; a longer run goes on from the checkpoint, with its head.
    before = contents(folder)["model.safetensors"]
    assert run_noted(*argv, "--num_train_epochs=1", "--resume_from_checkpoint=true") == []
    assert contents(folder)["model.safetensors"] == before
    assert len(run_noted(*argv, "--num_train_epochs=2", "--resume_from_checkpoint=true")) == 3
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4, 5, 6]

    results = train.main([str(recipe), f"--model_name_or_path={folder}", f"--output_dir={tmp_path / 'tuned'}"])
    table = pandas.read_csv(tmp_path / "tuned" / "predictions_test.csv")
    assert results["test_accuracy"] == pytest.approx((table["truth"] == table["prediction"]).mean())
    start = student(recipe, tmp_path, f"--model_name_or_path={folder}").model
    assert start.config.problem_type == "single_label_classification" and start.num_labels == 10
    loaded = start.audio_spectrogram_transformer.state_dict()
    after = load_file(folder / "model.safetensors")
    assert all(torch.equal(loaded[name], after[name]) for name in after)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["--eval_strategy=epoch"], "holds embeddings, .* leave out eval_strategy"),
        (["--linear_baseline=true", "--hard_label_weight=0.1"], "leave out linear_baseline, hard_label_weight"),
        (["--seed=4"], "seed: 3 taught, 4 in this recipe"),
        (["--lora_rank=2", "--model_name_or_path=trained"], "leave out lora_rank"),
        (["--freeze_backbone=true"], "leave out freeze_backbone"),
    ],
)
def test_embeddings_need_no_labels_and_the_views_that_were_taught(recipe, tmp_path, embeddings, keys, words):
    teach(recipe, tmp_path / "targets", "own_embeddings:spectrum", epochs=1)
    with pytest.raises(RecipeError, match=words):
        student(recipe, tmp_path, f"--teacher_targets={tmp_path / 'targets'}", *keys)


def test_embeddings_that_cannot_be_stored_or_averaged_are_refused(recipe, teacher, tmp_path, embeddings):
    with pytest.raises(DataError, match="Expected embeddings within the range of float16"):
        teach(recipe, tmp_path / "huge", "own_embeddings:huge")
    with pytest.raises(ModelError, match="Expected teachers with labels to average, got own_embeddings:spectrum"):
        teach(recipe, tmp_path / "two", teacher, "own_embeddings:spectrum")
    with pytest.raises(CommandError, match="Expected no --top_k for embeddings"):
        teach(recipe, tmp_path / "best", "own_embeddings:spectrum", top_k=3)


# Without labels


def test_teachers_give_their_labels_to_sounds_without(recipe, teacher, tmp_path):
    keys = ["--unlabelled=true"]
    seen = teach(recipe, tmp_path / "targets", teacher, epochs=1, top_k=10, keys=keys)
    keys.append(f"--teacher_targets={tmp_path / 'targets'}")
    trainer = student(recipe, tmp_path, *keys)
    assert list(trainer.model.config.id2label.values()) == list(CLASSES)[::-1]
    labels = joined(list(batches(trainer, 1)), "labels")
    torch.testing.assert_close(labels, joined(seen, "said"), rtol=2**-11, atol=2**-24)
    with pytest.raises(RecipeError, match="hard_label_weight needs labels"):
        student(recipe, tmp_path, *keys, "--hard_label_weight=0.5")
    with pytest.raises(RecipeError, match="train: 20 clips .* taught, 20 clips .* in this recipe"):  # with labels
        student(recipe, tmp_path, *keys, "--unlabelled=false")


# Whole runs

# What a process saves of each of its updates, or batches of a teacher, in a file of its own.
NOTE = """
import os, sys, torch
from modeling_ast.training import teachers, trainer
step, call, rank, noted = trainer.ASTTrainer.training_step, teachers.Teachers.__call__, os.environ["RANK"], []

def note(inputs):
    noted.append(1)
    torch.save({name: inputs[name].cpu() for name in inputs}, f"{sys.argv[1]}/{rank}-{len(noted):03}.pt")

def training_step(self, model, inputs, *args, **kwargs):
    note(inputs)
    return step(self, model, inputs, *args, **kwargs)

def say(self, view):
    note(view)
    return call(self, view)

trainer.ASTTrainer.training_step, teachers.Teachers.__call__ = training_step, say
from modeling_ast.commands import COMMAND
COMMAND.main(sys.argv[2:])
"""


def launch_two(folder: Path, module: str, *argv) -> list[dict[str, torch.Tensor]]:
    """A command as two processes; what they noted, in the order of updates."""
    folder.mkdir()
    program = folder.with_suffix(".py")
    program.write_text(NOTE.replace("COMMAND", module))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", program, folder]
    done = subprocess.run(
        [sys.executable, *map(str, [*launcher, *argv]), "--ddp_backend=gloo"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    paths = sorted(folder.iterdir(), key=lambda path: path.stem.split("-")[::-1])
    return [torch.load(path) for path in paths]


def run_noted(*argv, dies_after: int | None = None) -> list[dict[str, torch.Tensor]]:
    """Training in this process; what each of its steps got. It may end in one, as if it were killed."""
    noted, step = [], ASTTrainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        if len(noted) == dies_after:
            raise RuntimeError("killed")
        noted.append(dict(inputs))
        return step(self, model, inputs, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(ASTTrainer, "training_step", training_step)
        if dies_after is not None:
            stack.enter_context(pytest.raises(RuntimeError, match="killed"))
        train.main(list(map(str, argv)))
    return noted


@pytest.mark.slow
def test_views_and_targets_are_the_same_on_two_processes_and_after_a_stop(recipe, teacher, tmp_path, no_pictures):
    """Four clips at a time on each of two devices, or in each of two steps: 12 batches in two epochs."""
    of_one = ["--gradient_accumulation_steps=2"]
    taught = teach(recipe, tmp_path / "by-1", teacher, keys=of_one)
    launch_two(tmp_path / "said", "teach", recipe, "--teachers", teacher, "--output", tmp_path / "by-2", "--epochs", 2)
    assert len(taught) == 12 and len(list((tmp_path / "by-1").glob("*.npy"))) == 2
    assert_same_targets(tmp_path / "by-2", tmp_path / "by-1")

    argv = [recipe, f"--teacher_targets={tmp_path / 'by-1'}", "--logging_steps=1"]
    by_two = launch_two(tmp_path / "got", "train", *argv, f"--output_dir={tmp_path / 'run-2'}")
    whole = run_noted(*argv, *of_one, f"--output_dir={tmp_path / 'run-1'}")
    argv += ["--save_strategy=steps", "--save_steps=2", f"--output_dir={tmp_path / 'run'}", *of_one]
    run_noted(*argv, dies_after=5)  # in the third update, the last one of the first epoch
    resumed = run_noted(*argv, "--resume_from_checkpoint=true")
    assert [len(each) for each in (whole, by_two, resumed)] == [12, 12, 8]
    for got in (whole, by_two, [*whole[:4], *resumed]):
        assert torch.equal(joined(got, "input_values"), joined(taught, "input_values"))
        torch.testing.assert_close(joined(got, "labels"), joined(whole, "labels"))
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("run-1", "run")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_a_run_goes_on_with_what_it_began_with(recipe, teacher, tmp_path, no_pictures):
    """Where epochs were taught meanwhile, it does without; by another teacher, it is refused."""
    folder = tmp_path / "targets"
    taught = teach(recipe, folder, teacher, epochs=1)
    argv = [recipe, f"--teacher_targets={folder}", "--save_strategy=epoch", f"--output_dir={tmp_path / 'run'}"]
    assert len(run_noted(*argv, dies_after=3)) == 3
    teach(recipe, folder, teacher, epochs=2)
    resumed = run_noted(*argv, "--resume_from_checkpoint=true")
    assert torch.equal(joined(resumed, "input_values"), joined(taught, "input_values"))
    shutil.rmtree(folder)
    teach(recipe, folder, save_teacher(tmp_path / "other"), epochs=1)
    with pytest.raises(RecipeError, match=r"began with, those of .*ast \(\w+\), got those of .*other \("):
        run_noted(*argv, "--num_train_epochs=3", "--resume_from_checkpoint=true")


@pytest.mark.slow
def test_a_student_comes_near_its_teacher(recipe, tmp_path, no_pictures):
    """Of its own labels it gets none."""
    keys = ["--max_noise=0", "--learning_rate=3e-3", "--num_train_epochs=10", "--lr_scheduler_type=constant"]
    train.main([str(recipe), *keys, "--mixup_probability=0", f"--output_dir={tmp_path / 'teacher'}"])
    teach(recipe, tmp_path / "targets", tmp_path / "teacher", epochs=4, keys=keys)
    keys += [f"--teacher_targets={tmp_path / 'targets'}", f"--output_dir={tmp_path / 'student'}"]
    train.main([str(recipe), *keys, "--logging_strategy=epoch"])
    history = json.loads((tmp_path / "student" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 10 and losses[-1] < losses[0] - 0.1
    # Of clips that neither was trained on, it says what its teacher says of each, not of all alike.
    theirs, own = (
        pandas.read_csv(tmp_path / name / "predictions_test.csv").filter(regex="^p_")
        for name in ("teacher", "student")
    )
    assert (theirs - own).abs().mean(axis=None) < (theirs - theirs.mean()).abs().mean(axis=None)
