"""The doctor finds each planted fault, names the clip and the line that mends it, and finds nothing in clean data."""

import csv
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from conftest import make_tiny_config, random_model
from helpers import end_of, write_csv, write_sound

from modeling_ast import ASTFeatureExtractor
from modeling_ast.commands.check import main
from modeling_ast.commands.command_options import CommandError
from modeling_ast.data.examination import ClipSummary
from modeling_ast.data.label_checks import check_divided_groups, check_groups, check_spelling
from modeling_ast.data.labels import SHIPPED_TABLES, DataError, read_label_table
from modeling_ast.data.recipes import RecipeError

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "modeling_ast" / "commands" / "check.py"
from modeling_ast.commands.statistics import main as compute_fbank_stats  # noqa: E402

PITCHES = {"high": 2000, "low": 200, "middle": 700}  # Hz
COUNTS = {"train": 12, "validation": 2, "test": 2}
SAMPLES = 6400  # 0.4 s, 38 frames
FRAMES = 38
RECIPE = f"""
model_name_or_path: tiny224
hidden_size: 32
num_hidden_layers: 2
num_attention_heads: 4
intermediate_size: 64
max_length: {FRAMES}
num_mel_bins: 32
do_train: true
disable_tqdm: true
"""

pytestmark = pytest.mark.usefixtures("one_thread")


def make_sound(label: str, seed: int, samples: int = SAMPLES) -> torch.Tensor:
    """A tone in noise."""
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    return 0.2 * torch.sin(2 * math.pi * PITCHES[label] * torch.arange(samples) / 16000) + 0.02 * noise


@pytest.fixture(scope="module")
def clean_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "data"
    lists = {split: [] for split in COUNTS}
    for place, label in enumerate(PITCHES):
        (folder / label).mkdir(parents=True)
        for split, count in COUNTS.items():
            for number in range(count):
                name = f"{label}/{split}_{number}.wav"
                write_sound(folder / name, make_sound(label, 1000 * place + 100 * len(split) + number))
                lists[split].append(name)
    (folder / "validation_list.txt").write_text("\n".join(lists["validation"]))
    (folder / "testing_list.txt").write_text("\n".join(lists["test"]))
    return folder


@pytest.fixture(scope="module")
def statistics(clean_folder, tmp_path_factory) -> tuple[float, float]:
    recipe = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    recipe.write_text(RECIPE)
    return compute_fbank_stats([str(recipe), f"--dataset_name={clean_folder}"])


@pytest.fixture
def data(clean_folder, tmp_path) -> Path:
    """A copy of the clean folder, to plant faults in."""
    return Path(shutil.copytree(clean_folder, tmp_path / "data"))


@pytest.fixture
def examine(statistics, tmp_path, capsys):
    """Runs the doctor on a data set; returns its exit status, its findings and what it printed."""
    (tmp_path / "recipe.yaml").write_text(f"{RECIPE}mean: {statistics[0]}\nstd: {statistics[1]}\n")

    def run(dataset: Path, *argv) -> tuple[int, list[dict], str]:
        paths = [str(tmp_path / "recipe.yaml"), f"--dataset_name={dataset}", f"--output_dir={tmp_path / 'run'}"]
        capsys.readouterr()
        status = main([*paths, "--json", str(tmp_path / "findings.json"), *map(str, argv)])
        findings = json.loads((tmp_path / "findings.json").read_text())["findings"]
        assert status == max(({"note": 0, "warning": 1, "error": 2}[found["level"]] for found in findings), default=0)
        return status, findings, capsys.readouterr().out

    return run


def only(findings: list[dict], check: str, level: str) -> dict:
    """The one finding, where nothing else may be found."""
    assert [(found["check"], found["level"]) for found in findings] == [(check, level)], findings
    return findings[0]


def one(findings: list[dict], check: str) -> dict:
    """The one finding of a check, among others."""
    (found,) = [found for found in findings if found["check"] == check]
    return found


def names(finding: dict) -> list[str]:
    return [Path(clip.split(" (")[0].split(":")[0]).name for clip in finding["clips"]]


# Clean data


def test_finds_nothing_in_clean_data(clean_folder, examine):
    status, findings, printed = examine(clean_folder)
    assert (status, findings) == (0, [])
    assert "3 labels, 36 clips for train, 6 clips for validation, 6 clips for test; listened to 48" in printed
    assert printed.endswith("Nothing found.\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "path", "columns", "notes", "warnings"),
    [
        # Recorded at 8 kHz, 0.14 to 1.3 s long: true of the data, known to the recipe, no harm. All its four speakers
        # train, and are in its lists of what is held out.
        ("fsdd.yaml", "fsdd", [], {"rates", "length"}, {"groups"}),
        # At 44.1 kHz; three recordings touch full scale a few times, two are longer than the others' 5 s.
        (
            "esc10.yaml",
            "esc10/meta/esc50.csv",
            ["--audio_column_name=filename", "--label_column_name=category", "--audio_dir=../audio"],
            {"rates", "clipping", "length"},
            set(),
        ),
    ],
)
def test_finds_no_other_fault_in_real_recordings(shared_data, tmp_path, recipe, path, columns, notes, warnings):
    argv = [str(ROOT / "configs" / recipe), f"--dataset_name={shared_data / path}", f"--output_dir={tmp_path}"]
    assert main([*argv, *columns, "--disable_tqdm=true", "--json", str(tmp_path / "findings.json")]) == bool(warnings)
    findings = json.loads((tmp_path / "findings.json").read_text())["findings"]
    found = {(found["level"], found["check"]) for found in findings}
    assert found == {("note", check) for check in notes} | {("warning", check) for check in warnings}


def test_does_not_depend_on_the_workers(data, examine):
    write_sound(data / "low" / "train_3.wav", 20 * make_sound("low", 1).clamp(-0.05, 0.05))
    (data / "high" / "train_0.wav").write_bytes(b"not a sound")
    status, findings, _ = examine(data)
    assert examine(data, "--dataloader_num_workers=2")[:2] == (status, findings) and status == 2


def test_listens_to_some_clips_if_asked(data, examine):
    for path in data.glob("*/*.wav"):
        path.write_bytes(b"not a sound")
    _, findings, printed = examine(data, "--max_clips=5")
    assert len(one(findings, "files")["clips"]) == 5 and "listened to 5" in printed


# The files


def test_lists_all_clips_that_cannot_be_used_and_goes_on(data, examine):
    (data / "high" / "train_0.wav").write_bytes(b"not a sound")
    truncated = data / "high" / "train_1.wav"
    truncated.write_bytes(truncated.read_bytes()[:5000])
    (data / "high" / "train_2.wav").write_bytes(b"")
    write_sound(data / "low" / "train_0.wav", make_sound("low", 0, 399))
    write_sound(data / "low" / "test_0.wav", make_sound("low", 0) * math.nan, subtype="FLOAT")
    write_sound(data / "low" / "train_1.wav", torch.zeros(SAMPLES))
    status, findings, printed = examine(data)
    unusable = one(findings, "files")
    expected = {"train_0.wav": 2, "train_1.wav": 1, "train_2.wav": 1, "test_0.wav": 1}
    assert {name: names(unusable).count(name) for name in names(unusable)} == expected
    assert status == 2 and unusable["level"] == "error" and "5 clips of 48" in unusable["seen"]
    for words in ("cannot be decoded", "truncated", "too short, 24.9 ms where one frame takes 25 ms", "NaN"):
        assert any(words in clip for clip in unusable["clips"]), words
        assert words in printed  # all of them, not a choice
    assert names(one(findings, "silence")) == ["train_1.wav"]  # the others are examined all the same


def test_finds_some_clips_at_a_lower_rate(data, examine):
    for number in (0, 1):
        write_sound(data / "low" / f"train_{number}.wav", make_sound("low", 10 + number)[::2].clone(), 8000)
    _, findings, printed = examine(data)
    found = only(findings, "rates", "warning")
    assert names(found) == ["train_0.wav", "train_1.wav"] and "8000 Hz (2 clips), 16000 Hz (46 clips)" in found["seen"]
    assert "nothing above 4000 Hz" in found["seen"] and found["mend"].startswith("sampling_rate: 8000")
    assert "low/train_0.wav (8000 Hz)" in printed and "  > sampling_rate: 8000" in printed
    assert f"File names start at {data}" in printed


def test_notes_one_rate_for_all_that_is_not_the_models(data, examine):
    for path in data.glob("*/*.wav"):
        sound = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        write_sound(path, sound.repeat_interleave(2), 32000)
    assert "resampled to 16000 Hz" in one(examine(data)[1], "rates")["seen"]
    found = one(examine(data, "--sampling_rate=44100")[1], "rates")
    assert found["level"] == "note" and found["mend"].startswith("sampling_rate: 32000")


def test_finds_channels_that_cancel_each_other(data, examine):
    sound = make_sound("low", 10)
    write_sound(data / "low" / "train_0.wav", torch.stack([sound, sound], dim=1))
    assert "47 with 1 channel(s), 1 with 2" in only(examine(data)[1], "channels", "note")["seen"]
    write_sound(data / "low" / "train_1.wav", torch.stack([sound, -sound], dim=1))
    status, findings, _ = examine(data)
    cancelled, note = [found for found in findings if found["check"] == "channels"]
    assert names(cancelled) == ["train_1.wav"] and "cancel" in cancelled["seen"] and cancelled["level"] == "warning"
    assert "2 with 2" in note["seen"] and "silence" not in {found["check"] for found in findings}


def test_finds_clipping(data, examine):
    write_sound(data / "middle" / "train_4.wav", (20 * make_sound("middle", 10)).clamp(-1, 1))
    found = only(examine(data)[1], "clipping", "warning")
    assert names(found) == ["train_4.wav"] and "lower level" in found["mend"]
    sound = make_sound("middle", 10)
    sound[:20] = 1.0
    write_sound(data / "middle" / "train_4.wav", sound)
    assert names(only(examine(data)[1], "clipping", "note")) == ["train_4.wav"]


def test_clipping_of_one_channel_is_found(data, examine):
    sound = make_sound("low", 10)
    write_sound(data / "low" / "train_0.wav", torch.stack([(20 * sound).clamp(-1, 1), torch.zeros(SAMPLES)], dim=1))
    assert names(one(examine(data)[1], "clipping")) == ["train_0.wav"]


def test_finds_silence(data, examine):
    for name in ("train_1", "train_2"):  # equal, and no duplicates for that
        write_sound(data / "high" / f"{name}.wav", torch.zeros(SAMPLES))
    write_sound(data / "low" / "test_1.wav", 1e-4 * make_sound("low", 10), subtype="FLOAT")
    write_sound(data / "low" / "train_1.wav", torch.full((SAMPLES,), 0.01))
    _, findings, _ = examine(data)
    found = one(findings, "silence")
    assert found["level"] == "warning" and "duplicates" not in {found["check"] for found in findings}
    assert names(found) == ["train_1.wav", "train_2.wav", "train_1.wav", "test_1.wav"]
    assert (
        "4 clips of 48" in found["seen"] and "digital silence" in found["clips"][0] and "-97 dB" in found["clips"][3]
    )


def test_notes_an_offset(data, examine):
    write_sound(data / "high" / "train_1.wav", make_sound("high", 10) - 0.1)
    assert one(examine(data)[1], "offset")["clips"] == [f"{data / 'high' / 'train_1.wav'} (-0.100)"]


# Length, statistics, masks


def test_finds_audio_that_is_cut_off(data, examine):
    found = one(examine(data, "--max_length=24")[1], "length")
    assert (found["level"], found["mend"]) == ("warning", f"max_length: {FRAMES}")
    assert "more than a tenth: 48 clips of 48" in found["seen"] and "36.8% of all audio" in found["seen"]
    assert one(examine(data, "--max_length=24", "--random_crop=true")[1], "length")["level"] == "note"


def test_notes_one_long_clip(data, examine):
    write_sound(data / "high" / "train_1.wav", make_sound("high", 10, 9600))
    found = only(examine(data)[1], "length", "note")
    assert found["clips"] == [f"{data / 'high' / 'train_1.wav'} (58 frames)"]


def test_finds_padding_that_can_be_saved(data, examine):
    found = one(examine(data, "--max_length=128")[1], "length")
    assert (found["level"], found["mend"]) == ("warning", f"max_length: {FRAMES}")
    assert "70% of the features are padding" in found["seen"]
    assert one(examine(data, "--max_length=44")[1], "length")["level"] == "note"


def test_finds_statistics_of_other_data_and_gives_the_lines(data, examine, statistics, tmp_path):
    status, findings, printed = examine(data, "--mean=-4.2677393", "--std=4.5689974")
    found = only(findings, "statistics", "warning")
    assert found["mend"] == f"mean: {statistics[0]:.3f}\nstd: {statistics[1]:.3f}" and status == 1
    assert f"  > mean: {statistics[0]:.3f}\n  > std: {statistics[1]:.3f}\n" in printed
    assert examine(data, *(f"--{line.replace(': ', '=')}" for line in found["mend"].splitlines()))[1] == []
    slightly = f"--mean={statistics[0] + 0.15 * statistics[1]}"
    assert only(examine(data, slightly)[1], "statistics", "note")["mend"] == found["mend"]


def test_statistics_that_count_the_padding_are_the_originals(data, examine, statistics):
    share, (mean, std) = FRAMES / 128, statistics
    padded = f"--mean={mean * share}", f"--std={math.sqrt((std**2 + mean**2) * share - (mean * share) ** 2)}"
    found = one(examine(data, "--max_length=128", *padded)[1], "statistics")
    assert found["level"] == "note" and "counts the padding too" in found["seen"]


@pytest.mark.parametrize(
    ("options", "level", "mend"),
    [
        (["--freq_mask_bins=33"], "error", "freq_mask_bins: 12"),
        (["--freq_mask_bins=17"], "warning", "freq_mask_bins: 12"),
        (["--time_mask_frames=39"], "error", "time_mask_frames: 7"),
        (["--time_mask_frames=20"], "warning", "time_mask_frames: 7"),
        (["--freq_mask_bins=11", "--num_freq_masks=3"], "error", "freq_mask_bins: 4"),
        (["--time_mask_frames=10", "--num_time_masks=2"], "warning", "time_mask_frames: 3"),
    ],
)
def test_finds_masks_that_hide_too_much(clean_folder, examine, options, level, mend):
    assert only(examine(clean_folder, *options)[1], "masks", level)["mend"] == mend
    assert examine(clean_folder, "--freq_mask_bins=16", "--time_mask_frames=19")[1] == []


def test_finds_short_clips_that_a_mask_can_hide(data, examine):
    write_sound(data / "high" / "train_1.wav", make_sound("high", 10, 1680))  # 9 frames
    assert examine(data, "--time_mask_frames=9")[1] == []  # up to 8 are masked
    twice = only(examine(data, "--time_mask_frames=6", "--num_time_masks=2")[1], "masks", "note")
    assert twice["seen"].startswith("time_mask_frames 6, 2 times, can hide all of 1 clip of")
    found = only(examine(data, "--time_mask_frames=10")[1], "masks", "note")
    assert names(found) == ["train_1.wav"] and found["mend"] == "time_mask_frames: 7"
    write_sound(data / "high" / "train_2.wav", make_sound("high", 11, 1680))
    assert only(examine(data, "--time_mask_frames=10")[1], "masks", "warning")["clips"]


# What stands where


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_finds_a_sound_in_two_splits_under_any_name_and_format(data, examine, suffix):
    sound, rate = soundfile.read(data / "low" / "train_7.wav", dtype="int16")
    (data / "low" / "test_1.wav").unlink()
    soundfile.write(data / "low" / f"test_1{suffix}", sound, rate)
    listed = data / "testing_list.txt"
    listed.write_text(listed.read_text().replace("low/test_1.wav", f"low/test_1{suffix}"))
    status, findings, printed = examine(data)
    found = only(findings, "duplicates", "error")
    assert status == 2 and "1 sound stands in two splits" in found["seen"]
    assert f"low/train_7.wav (train) = low/test_1{suffix} (test)" in printed


def folds(data: Path) -> list[dict]:
    """The training clips in three folds."""
    clips = sorted(data.glob("*/train_*.wav"))
    return [
        {"audio": str(clip), "label": clip.parent.name, "fold": int(clip.stem.rpartition("_")[2]) % 3 + 1}
        for clip in clips
    ]


FOLD = ["--fold_column_name=fold", "--eval_fold=1"]


def test_finds_a_sound_in_two_folds_that_both_train(data, examine):
    rows = folds(data)
    assert examine(write_csv(data / "clips.csv", rows), *FOLD)[1] == []
    shutil.copy(data / "low" / "train_1.wav", data / "low" / "train_2.wav")  # folds 2 and 3
    status, findings, printed = examine(data / "clips.csv", *FOLD)
    assert status == 2 and "two folds" in only(findings, "duplicates", "error")["seen"]
    assert "low/train_1.wav (fold 2) = low/train_2.wav (fold 3)" in printed.replace("data/", "")
    assert "one fold" in findings[0]["mend"]


def test_finds_a_row_that_stands_in_two_folds(data, examine):
    rows = folds(data)
    write_csv(data / "clips.csv", [*rows, {**rows[0], "fold": 3}])
    assert "two folds" in only(examine(data / "clips.csv", *FOLD)[1], "duplicates", "error")["seen"]


def test_finds_a_sound_with_two_labels(data, examine):
    shutil.copy(data / "low" / "train_1.wav", data / "high" / "train_1.wav")
    _, findings, printed = examine(data)
    found = only(findings, "duplicates", "warning")
    assert "different labels" in found["seen"] and "multi_label_classification" in found["mend"]
    assert "high/train_1.wav (high) = low/train_1.wav (low)" in printed


def test_notes_a_sound_that_stands_there_twice(data, examine):
    shutil.copy(data / "low" / "train_1.wav", data / "low" / "train_2.wav")
    assert names(only(examine(data)[1], "duplicates", "note")) == ["train_1.wav"]


# Groups that go along with a label


def named(paths: dict[str, str], folds: dict[str, str] | None = None) -> list[ClipSummary]:
    """Training clips of labels 0, 1, ... in the order of the labels' names."""
    labels = sorted(set(paths.values()))
    return [
        ClipSummary(path, "train", (labels.index(label),), frozenset([folds[path]] if folds else []))
        for path, label in paths.items()
    ]


SPEAKERS = {"french": "pierre", "german": "anna", "italian": "luigi"}


def spoken(pattern: str, count: int = 8) -> dict[str, str]:
    return {pattern.format(label=label, who=who, n=n): label for label, who in SPEAKERS.items() for n in range(count)}


@pytest.mark.parametrize(
    "pattern, what",
    [
        ("/data/{who}_{n}.wav", "The first parts of the file names tell 3 of 3 labels"),
        ("/data/call-{n}-{who}.wav", "The file names, in part 3, tell 3 of 3 labels"),
        ("/data/{who}{n}.wav", "The letters that file names begin with tell 3 of 3 labels"),
        ("/data/{who}/{n}.wav", "The folders tell 3 of 3 labels"),
        ("/data/{label}/{who}/{n}.wav", "The folders tell 3 of 3 labels"),
        ("/data/{who}/{label}/{n}.wav", "The folders tell 3 of 3 labels"),
        ("{label}_{who}_{n}.wav", "The file names, in part 2, tell 3 of 3 labels"),
    ],
)
def test_finds_one_voice_a_label_where_names_or_folders_tell_it(pattern, what):
    (found,) = check_groups(named(spoken(pattern)), sorted(SPEAKERS))
    assert found.level == "warning" and found.seen.startswith(what) and "anna for german" in found.seen
    assert "fold_column_name" in found.mend


def test_finds_one_fold_a_label():
    clips = spoken("/data/{label}/{n}.wav")
    folds = {path: str(1 + sorted(SPEAKERS).index(label)) for path, label in clips.items()}
    (found,) = check_groups(named(clips, folds), sorted(SPEAKERS))
    assert found.seen.startswith(
        "The folds tell 3 of 3 labels in training: 1 for french, 2 for german, 3 for italian."
    )


@pytest.mark.parametrize(
    "pattern",
    [
        "/data/{label}/{n}.wav",
        "/data/{label}_{n}.wav",
        "/data/{label:.2}-{n}.wav",
        "{label:.3}{n}.wav",
        "/data/{n}.wav",
    ],
)
def test_other_ways_to_write_a_label_are_no_groups(pattern):
    clips = [
        clip
        for n, label in enumerate(SPEAKERS)
        for clip in [(pattern.format(label=label, n=100 * n + k), label) for k in range(8)]
    ]
    assert list(check_groups(named(dict(clips)), sorted(SPEAKERS))) == []


def test_numbers_of_classes_are_no_groups_and_numbers_of_speakers_are():
    for number, is_found in (("{}", False), ("{:03d}", False), ("19{:03d}", True), ("s{}", True)):
        clips = {
            f"/data/{number.format(place)}_{n}.wav": label for place, label in enumerate(SPEAKERS) for n in range(8)
        }
        assert bool(list(check_groups(named(clips), sorted(SPEAKERS)))) == is_found, number


def test_voices_that_say_several_labels_and_few_clips_are_no_groups():
    clips = {
        f"/data/{who}_{label}_{n}.wav": label for label in SPEAKERS for who in SPEAKERS.values() for n in range(4)
    }
    assert list(check_groups(named(clips), sorted(SPEAKERS))) == []
    assert list(check_groups(named(spoken("/data/{who}_{n}.wav", 4)), sorted(SPEAKERS))) == []
    assert list(check_groups([], [])) == []


def test_names_of_real_recordings_hold_no_groups_that_go_along_with_a_label(shared_data):
    for paths in (
        {str(path): path.parent.name for path in (shared_data / "fsdd").glob("*/*.wav")},
        {
            str(shared_data / "esc10" / "audio" / row["filename"]): row["category"]
            for row in csv.DictReader(open(shared_data / "esc10" / "meta" / "esc50.csv", newline=""))
        },
    ):
        assert len(paths) >= 400 and list(check_groups(named(paths), sorted(set(paths.values())))) == []


def in_splits(paths: dict[str, str], is_held_out) -> list[ClipSummary]:
    """Clips by their names, with the number of their label."""
    names = sorted(set(paths.values()))
    return [
        ClipSummary(path, "test" if is_held_out(path) else "train", (names.index(label),), frozenset())
        for path, label in paths.items()
    ]


SITES = {
    f"/data/{place}/site{site}_{n:04d}.wav": place for place in ("wood", "town") for site in "AB" for n in range(6)
}
TAKES = {f"1-{100032 + n}-{take}-0.ogg": "dog" for n in range(6) for take in "AB"}
WORDS = {f"{word}/{who}_nohash_{n}.wav": word for word in ("yes", "no") for who in ("anna", "ben") for n in (1, 2)}


@pytest.mark.parametrize(
    ("paths", "is_divided", "is_whole", "what"),
    [
        (SITES, lambda path: "3." in path, lambda path: "siteB" in path, "what stands before the last number"),
        (TAKES, lambda path: "-B-" in path, lambda path: "100037" in path, "recordings"),
        (WORDS, lambda path: "_2" in path, lambda path: "anna" in path, "speakers"),
    ],
    ids=["sites", "takes", "speakers"],
)
def test_groups_that_names_suggest_are_not_to_be_divided(paths, is_divided, is_whole, what):
    names = sorted(set(paths.values()))
    (found,) = check_divided_groups(in_splits(paths, is_divided), names, has_groups=False)
    assert found.level == "warning" and f"({what}, by the names of files) that trains too" in found.seen
    pattern = found.mend.removeprefix("group_pattern: ").partition("    #")[0]
    groups = {path: re.search(pattern, Path(path).name)[1] for path in paths}
    assert 1 < len(set(groups.values())) < len(paths)
    assert not list(check_divided_groups(in_splits(paths, is_divided), names, has_groups=True))
    assert not list(check_divided_groups(in_splits(paths, is_whole), names, has_groups=False))


@pytest.mark.parametrize(
    "pattern",
    [
        "{label}/{n}.wav",
        "{label}_{n}.wav",
        "{label}/clip_{n}.wav",
        "{label}/x{n}_0.wav",
        "a{n}/b.wav",
        "{label}/train_{n}.wav",
    ],
)
def test_numbers_and_labels_in_names_suggest_no_groups(pattern):
    numbers = {label: range(100 * place, 100 * place + 8) for place, label in enumerate(SPEAKERS)}
    paths = {pattern.format(label=label, n=n): label for label, each in numbers.items() for n in each}
    clips = in_splits(paths, lambda path: list(paths).index(path) % 4 == 0)
    assert not list(check_divided_groups(clips, sorted(SPEAKERS), has_groups=False))


def test_folds_of_esc_divide_no_recording_and_splits_of_fsdd_divide_its_speakers(shared_data):
    clips = [(f"{name}-0.ogg", name[0]) for name in ("1-17092-A", "1-17092-B", "2-18766-A", "2-18766-B")]
    by_fold = in_splits(dict(clips), lambda path: path.startswith("2"))
    assert not list(check_divided_groups(by_fold, ["1", "2"], has_groups=False))
    held_out = set((shared_data / "fsdd" / "testing_list.txt").read_text().split())
    paths = {
        str(path.relative_to(shared_data / "fsdd")): path.parent.name
        for path in (shared_data / "fsdd").glob("*/*.wav")
    }
    (found,) = check_divided_groups(in_splits(paths, held_out.__contains__), sorted(set(paths.values())), False)
    assert "200 of 200 held-out clips" in found.seen and "george, jackson" in found.seen


def test_the_doctor_finds_one_voice_a_label(data, examine):
    who = dict(zip(PITCHES, ("anna", "ben", "cora")))
    for label in PITCHES:
        for number in range(COUNTS["train"]):
            (data / label / f"train_{number}.wav").rename(data / label / f"{who[label]}_{number}.wav")
    _, findings, printed = examine(data)
    assert "anna for high, ben for low, cora for middle" in only(findings, "groups", "warning")["seen"]
    assert "  > Get clips of each label from several of them" in printed


# In which order


def test_what_changes_the_statistics_comes_before_them(data, clean_folder, examine):
    for number in (0, 1):
        write_sound(data / "low" / f"train_{number}.wav", make_sound("low", 10 + number)[::2].clone(), 8000)
    write_sound(data / "high" / "train_1.wav", torch.zeros(SAMPLES))
    argv = ["--mean=0", "--std=1", "--max_length=44", "--time_mask_frames=45"]
    _, findings, printed = examine(data, *argv)
    order = [(found["check"], found["level"]) for found in findings]
    assert order[:1] == [("masks", "error")] and order[-1] == ("statistics", "warning")
    assert order[1:4] == [("rates", "warning"), ("silence", "warning"), ("length", "note")]
    assert "Mend rates, silence, length above first, then measure again" in one(findings, "statistics")["seen"]
    places = [printed.index(f"  {check}: ") for check, _ in order]
    assert places == sorted(places)
    assert (
        "measure again" not in only(examine(clean_folder, "--mean=0", "--std=1")[1], "statistics", "warning")["seen"]
    )


# Labels


@pytest.mark.parametrize("first, second", [("Dog", "dog"), ("dog", "dog "), ("hand saw", "Handsaw"), ("ﬁre", "fire")])
def test_finds_labels_that_differ_by_blanks_or_case_alone(first, second):
    (found,) = check_spelling([first, "cat", second])
    assert found.level == "warning" and f"{first!r} and {second!r}" in found.seen
    assert list(check_spelling(["cat", first])) == []


@pytest.mark.parametrize("name", SHIPPED_TABLES)
def test_shipped_tables_have_no_labels_that_differ_by_blanks_or_case_alone(name):
    assert list(check_spelling(read_label_table(name).names)) == []


def test_the_doctor_finds_a_label_that_is_written_in_two_ways(data, examine):
    rows = [
        {**row, "label": row["label"].title() if number % 12 == 2 else row["label"]}
        for number, row in enumerate(folds(data))
    ]
    _, findings, _ = examine(write_csv(data / "clips.csv", rows), *FOLD)
    found = [found for found in findings if "case" in found["seen"]]
    assert [each["seen"] for each in found] == [
        "Several labels differ by blanks or case alone: 'High' and 'high', 'Low' and 'low', 'Middle' and 'middle'."
    ]


def move(data: Path, label: str, number: int, list_name: str) -> None:
    """Hold a training clip out."""
    listed = data / list_name
    listed.write_text(f"{listed.read_text()}\n{label}/train_{number}.wav")


def test_finds_labels_without_clips(data, examine):
    for number in range(COUNTS["train"]):
        move(data, "low", number, "testing_list.txt")
    found = one(examine(data)[1], "labels")
    assert found["level"] == "warning" and "1 of 3 labels have no clip in train: low." in found["seen"]
    listed = data / "validation_list.txt"
    listed.write_text("\n".join(line for line in listed.read_text().splitlines() if "high" not in line))
    validation = [found for found in examine(data)[1] if "validation" in found["seen"]]
    assert len(validation) == 1 and "no clip in validation: high" in validation[0]["seen"]


def test_finds_imbalance_and_suggests_balanced_sampling(data, examine):
    for number in range(1, COUNTS["train"]):
        (data / "low" / f"train_{number}.wav").unlink()
    _, findings, printed = examine(data)
    found = one(findings, "labels")
    assert found["level"] == "warning" and "high has 12 clips for training and low 1: 12 times" in found["seen"]
    assert "  > class_balanced_sampling: true" in printed
    assert not [found for found in examine(data, "--class_balanced_sampling=true")[1] if found["check"] == "labels"]


@pytest.fixture
def save_model(tmp_path):
    """A trained model with labels of its own."""

    def save(*labels: str) -> str:
        config = make_tiny_config(max_length=FRAMES, id2label=dict(enumerate(labels)))
        random_model(config).save_pretrained(tmp_path / "model")
        ASTFeatureExtractor(num_mel_bins=32, max_length=FRAMES).save_pretrained(tmp_path / "model")
        return f"--model_name_or_path={tmp_path / 'model'}"

    return save


def test_notes_the_models_labels_in_another_order(clean_folder, examine, save_model):
    assert examine(clean_folder, save_model("high", "low", "middle"))[1] == []
    found = only(examine(clean_folder, save_model("high", "middle", "low"))[1], "label order", "note")
    assert "output 1 is 'middle' there and 'low' here" in found["seen"] and "head is kept" in found["seen"]


def test_says_when_the_head_is_dropped(clean_folder, examine, save_model):
    other = save_model("dog", "cat", "bird", "low")
    found = only(examine(clean_folder, other)[1], "label names", "note")
    assert "1 of the data's 3 are among its 4; missing there: high, middle; missing here: bird" in found["seen"]
    assert "Its head is dropped and a fresh one trained" in found["seen"]
    found = only(examine(clean_folder, other, "--do_train=false")[1], "label names", "error")
    assert "cannot be evaluated" in found["seen"]


@pytest.mark.parametrize("labels", [("High", "LOW", "middle"), ("high", "low", "middle", "noise")])
def test_finds_labels_that_are_nearly_the_models(clean_folder, examine, save_model, labels):
    found = only(examine(clean_folder, save_model(*labels))[1], "label names", "warning")
    assert "label_file" in found["mend"] and "head is dropped" in found["seen"]


def test_finds_a_model_whose_outputs_have_no_names(clean_folder, examine, save_model):
    found = only(examine(clean_folder, save_model("LABEL_0", "LABEL_1", "LABEL_2"))[1], "label names", "warning")
    assert "3 outputs without names" in found["seen"] and "id2label" in found["mend"]
    assert only(examine(clean_folder, save_model("LABEL_0", "LABEL_1"))[1], "label names", "note")["mend"] is None


def test_says_how_a_checkpoint_of_the_original_keeps_its_head(clean_folder, examine, reference):
    checkpoint = reference / "original_tiny224_f10_t10_1024.pth"
    argv = [f"--model_name_or_path={checkpoint}", "--hidden_size=192", "--num_attention_heads=3"]
    _, findings, _ = examine(clean_folder, *argv, "--intermediate_size=768", "--num_mel_bins=128")
    found = one(findings, "label names")
    assert found["level"] == "note" and "modeling-ast convert" in found["mend"] and "dropped" in found["seen"]


# Sampling


def test_finds_a_clip_that_balanced_sampling_draws_all_the_time(tmp_path, examine):
    rows = []
    for number in range(121):
        path = write_sound(tmp_path / f"{number}.wav", make_sound("high", number, 800))
        rows.append({"audio": path, "label": "rare" if number == 7 else "common", "part": "train"})
    rows += [{**rows[number], "part": "val"} for number in (7, 8)]
    write_csv(tmp_path / "clips.csv", rows)
    argv = ["--split_column_name=part", "--class_balanced_sampling=true"]
    _, findings, printed = examine(tmp_path / "clips.csv", *argv, "--max_clips=10")
    found = one(findings, "sampling")
    assert found["level"] == "warning" and "7.wav (rare) about 60 times" in found["seen"]
    assert "119 times the median" in found["seen"] and names(found) == ["7.wav"]
    assert "  > class_balanced_sampling: false" in printed


def test_finds_a_label_that_goes_along_with_all_and_clips_without_any(data, examine):
    clips, rare = sorted(data.glob("*/train_*.wav")), ["a", "b", "c", "d"]
    rows = [
        {
            "audio": clip,
            "label": f"speech,{rare[number % 4]}" if number else "",
            "part": ["train", "val"][number % 3 == 2],
        }
        for number, clip in enumerate(clips)
    ]
    write_csv(data / "clips.csv", rows)
    argv = ["--split_column_name=part", "--problem_type=multi_label_classification", "--class_balanced_sampling=true"]
    _, findings, _ = examine(data / "clips.csv", *argv)
    assert one(findings, "labels")["seen"] == "Without any label: 1 clip."
    (dominating,) = [found for found in findings if found["check"] == "sampling"]
    assert "speech is among the labels of" in dominating["seen"]


def test_a_recipe_that_pre_trains_is_read_without_labels(tmp_path, clean_folder, examine):
    (tmp_path / "sounds").mkdir()
    for path in clean_folder.rglob("train_*.wav"):
        shutil.copy(path, tmp_path / "sounds" / f"{path.parent.name}_{path.name}")
    status, findings, _ = examine(tmp_path / "sounds", "--mask_ratio=0.5")
    assert status == 0 and findings == []


# Refusals


def test_refuses_what_it_cannot_examine(clean_folder, examine, tmp_path):
    for argv, message in (
        (["--max_clip=3"], "Unknown: --max_clip=3"),
        (["--max_clips=0"], "max_clips of at least 1, got 0"),
        (["--json", str(tmp_path / "no" / "x.json")], "Expected json to be a file in a folder that exists"),
        (["--model_name_or_path=./nowhere"], "nowhere cannot be used"),
    ):
        with pytest.raises((CommandError, RecipeError), match=message):
            examine(clean_folder, *argv)
    with pytest.raises(DataError, match="no such file or folder"):
        examine(tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "status"), [("data", 2), ("clean", 0), ("nowhere", 2)])
def test_exit_status_is_for_scripts(data, clean_folder, tmp_path, examine, name, status):
    examine(clean_folder)  # which writes the recipe
    (data / "low" / "train_0.wav").write_bytes(b"")
    path = clean_folder if name == "clean" else tmp_path / name
    ended, errors = end_of("check", tmp_path / "recipe.yaml", f"--dataset_name={path}")
    assert ended == status
    assert ("error: " in errors) == (name == "nowhere") and "Traceback" not in errors
