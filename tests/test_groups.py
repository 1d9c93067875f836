"""Groups of clips, such as speakers, that no split divides."""

from pathlib import Path

import numpy as np
import pytest
from helpers import write_csv, write_sound

from modeling_ast.data.clips import iterate_clips
from modeling_ast.data.examination import read_all_folds
from modeling_ast.data.held_out import make_folds, read_groups
from modeling_ast.data.labels import DataError
from modeling_ast.data.recipes import DataArguments, RecipeError, parse_data_arguments
from modeling_ast.data.sources import load_splits, read_folds

SPEAKERS = ("anna", "ben", "cleo", "dora", "emil")
PATTERN = "^([a-z]+)_nohash"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder a word, with two clips of each of five speakers in it."""
    for word in ("one", "two"):
        (tmp_path / word).mkdir()
        for speaker in SPEAKERS:
            for number in range(2):
                write_sound(tmp_path / word / f"{speaker}_nohash_{number}.wav", np.full(800, 0.1))
    return tmp_path


def list_clips(folder: Path, **columns) -> Path:
    """A list of the clips, with the speaker in a column."""
    rows = [
        {"audio": path, "label": path.parent.name, "speaker": path.name.partition("_")[0], **columns}
        for path in sorted(folder.glob("*/*.wav"))
    ]
    return write_csv(folder / "clips.csv", rows)


def groups_of(splits) -> dict[str, set[str]]:
    return {name: set(read_groups(rows)) for name, rows in splits}


@pytest.mark.parametrize("by", ["name", "column"])
@pytest.mark.parametrize("fraction", [0.1, 0.4, 0.8])
def test_what_is_drawn_to_validate_divides_no_group(folder, by, fraction):
    """Of four clips of each of five speakers whole speakers are held out, as many clips as can be."""
    if by == "name":
        source = {"dataset_name": str(folder), "group_pattern": PATTERN}
    else:
        source = {"dataset_name": str(list_clips(folder)), "group_column_name": "speaker"}
    splits = load_splits(**source, validation_fraction=fraction)
    groups = groups_of(splits)
    assert groups["train"] | groups["validation"] == set(SPEAKERS) and not groups["train"] & groups["validation"]
    assert len(splits.validation) == 4 * len(groups["validation"]) == {0.1: 4, 0.4: 8, 0.8: 16}[fraction]
    assert sorted(splits.validation["labels"]) == sorted(len(groups["validation"]) * [0, 0, 1, 1])


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("fraction", [0.05, 0.15, 0.34])
def test_what_is_drawn_to_validate_has_a_like_share_of_every_label(tmp_path, fraction, multi_label):
    """Of recordings with one label each, and clips of them, not all as many: no label is far from the fraction."""
    rows, counts = [], {"dog": 6, "rain": 6, "clock": 9}
    for label, count in counts.items():
        for number in range(count):
            write_sound(tmp_path / f"{label}_{number}.wav", np.zeros(1600))
            for place in range(1 + (number + len(label)) % 3):
                times = {"start": place / 40, "end": place / 40 + 0.05}
                rows.append({"audio": f"{label}_{number}.wav", **times, "label": label})
    splits = load_splits(
        str(write_csv(tmp_path / "clips.csv", rows)), validation_fraction=fraction, multi_label=multi_label
    )
    own = {name: set(clip.path for clip in iterate_clips(part)) for name, part in splits}
    assert not own["train"] & own["validation"] and own["validation"]
    labels = [label for each in splits.validation["labels"] for label in np.atleast_1d(each)]
    for number, label in enumerate(splits.label_names):
        total = sum(row["label"] == label for row in rows)
        # The largest recording has three clips: half of one may be lacking or be too many.
        assert abs(labels.count(number) - fraction * total) <= 1.5 + 1e-9


@pytest.mark.parametrize(
    "column, key", [("Split", "split_column_name"), ("subset", "split_column_name"), ("fold", "fold_column_name")]
)
def test_a_column_that_seems_to_hold_out_and_that_no_key_names_is_told(folder, caplog, column, key):
    clips = list_clips(folder, **{column: "train"})
    load_splits(str(clips))
    assert f"clips.csv: the column {column!r} holds nothing out unless {key} names it." in caplog.text
    caplog.clear()
    load_splits(str(clips), group_column_name="speaker")
    other = folder / "other.csv"
    other.write_bytes(clips.read_bytes())
    load_splits(str(clips), validation_file=str(other))
    load_splits(str(clips), unlabelled=True)
    assert "holds nothing out" not in caplog.text


def test_the_largest_group_trains(tmp_path):
    """Of sixty clips of one speaker and four of each of nine, about a tenth validates."""
    for number in range(60 + 9 * 4):
        speaker = "anna" if number < 60 else f"s{number % 9}"
        write_sound(tmp_path / ("one", "two")[number // 9 % 2] / f"{speaker}_{number}.wav", np.zeros(400))
    splits = load_splits(str(tmp_path), group_pattern=r"^([a-z]+\d?)_", validation_fraction=0.1)
    assert 4 <= len(splits.validation) <= 16 and "anna" in groups_of(splits)["train"]


def test_a_group_is_held_out_by_its_name_of_all_that_a_folder_holds(folder, caplog):
    (folder / "testing_list.txt").write_text("one/anna_nohash_0.wav\n")
    with pytest.raises(DataError, match="expected no group in two splits, got anna in .* and .*eval_fold"):
        load_splits(str(folder), group_pattern=PATTERN)
    splits = load_splits(str(folder), group_pattern=PATTERN, eval_fold="ben")
    assert groups_of(splits) == {"train": set(SPEAKERS) - {"ben"}, "validation": {"ben"}}
    assert len(splits.train) == 16 and "1 clips of test are taken together" in caplog.text


def test_numbers_with_zeros_before_them_are_names_of_groups(tmp_path):
    for number in range(6):
        write_sound(tmp_path / ("one", "two")[number % 2] / f"03-01-0{number // 2 + 1}.wav", np.zeros(400))
    splits = load_splits(str(tmp_path), group_pattern=r"-(\d+)\.wav", eval_fold="02")
    assert groups_of(splits) == {"train": {"01", "03"}, "validation": {"02"}}


def test_folds_of_groups_hold_out_every_clip_once(folder):
    source = str(list_clips(folder))
    held_out = [
        groups_of(load_splits(source, group_column_name="speaker", num_folds=2, eval_fold=fold))["validation"]
        for fold in ("1", "2")
    ]
    assert held_out[0] | held_out[1] == set(SPEAKERS) and not held_out[0] & held_out[1]
    rows, names = read_folds(DataArguments(source, group_column_name="speaker"))
    assert len(rows) == 20 and set(names) == set(SPEAKERS)


def test_clips_with_several_labels_have_folds_of_like_sizes(folder):
    source = {"dataset_name": str(list_clips(folder)), "group_column_name": "speaker", "multi_label": True}
    splits = load_splits(**source, num_folds=5, eval_fold="3")
    assert len(splits.validation) == 4 and len(groups_of(splits)["validation"]) == 1


@pytest.mark.parametrize("multi_label", [False, True])
def test_without_groups_clips_are_dealt_into_folds(folder, multi_label):
    """Each is held out once, drawn anew by nothing, and of one label a clip each fold has a like share of both."""
    (folder / "testing_list.txt").write_text("one/anna_nohash_0.wav\n")
    held_out, shares = [], []
    for fold in "1234":
        splits = load_splits(str(folder), num_folds=4, eval_fold=fold, multi_label=multi_label)
        again = load_splits(str(folder), num_folds=4, eval_fold=fold, multi_label=multi_label)
        own = {name: [clip.path for clip in iterate_clips(part)] for name, part in splits}
        assert own == {name: [clip.path for clip in iterate_clips(part)] for name, part in again}
        assert len(own["train"]) == 15 and not set(own["train"]) & set(own["validation"])
        held_out += own["validation"]
        shares.append(np.mean(np.ravel(splits.validation["labels"])))
    assert len(set(held_out)) == len(held_out) == 20 and len(own) == 2
    assert multi_label or set(shares) <= {0.4, 0.6}
    assert len({Path(path).name.split("_")[0] for path in own["validation"]}) > 1  # not in the order of their names


def test_stretches_of_a_recording_are_in_one_fold(tmp_path):
    rows = []
    for number in range(9):
        write_sound(tmp_path / f"{number}.wav", np.zeros(8000))
        for place in range(3):
            rows.append(
                {"audio": f"{number}.wav", "start": place / 8, "end": place / 8 + 0.1, "label": "ab"[place % 2]}
            )
    source = str(write_csv(tmp_path / "clips.csv", rows))
    own = [load_splits(source, num_folds=3, eval_fold=fold) for fold in "123"]
    held_out = [{clip.path for clip in iterate_clips(splits.validation)} for splits in own]
    assert [len(paths) for paths in held_out] == [3, 3, 3] and len(set.union(*held_out)) == 9
    assert all(len(splits.validation) == 9 for splits in own)


def test_dealt_folds_depend_on_names_alone():
    names, labels = np.array([f"{number}.wav" for number in range(40)], dtype=object), np.arange(40) % 3
    order = np.random.default_rng(0).permutation(40)
    for each in (labels, None):
        folds = make_folds(names, each, 4)
        np.testing.assert_array_equal(make_folds(names[order], each if each is None else each[order], 4), folds[order])


def test_a_file_that_is_listed_twice_is_in_one_fold(folder):
    source = list_clips(folder)
    source.write_text(source.read_text() + source.read_text().splitlines()[1] + "\n")
    for fold in "123":
        parts = [
            {clip.path for clip in iterate_clips(part)}
            for _, part in load_splits(str(source), num_folds=3, eval_fold=fold)
        ]
        assert not parts[0] & parts[1]


@pytest.mark.parametrize("seed", range(20))
def test_folds_divide_no_group_and_share_out_the_labels(seed):
    rng = np.random.default_rng(seed)
    num_folds = int(rng.integers(2, 6))
    groups = np.concatenate([np.arange(num_folds), rng.integers(0, 30, 200)]).astype(str).astype(object)
    labels = rng.integers(0, 3, len(groups))
    folds = make_folds(groups, labels, num_folds)
    assert set(folds) == set(range(1, num_folds + 1))
    assert all(len(set(folds[groups == group])) == 1 for group in set(groups))
    shares = [[(labels[folds == fold] == label).mean() for label in range(3)] for fold in set(folds)]
    assert np.abs(np.array(shares) - [(labels == label).mean() for label in range(3)]).max() < 0.2


def test_folds_that_a_column_names_may_not_divide_a_group(folder):
    source, by_group = str(list_clips(folder, fold=1)), {"group_column_name": "speaker", "fold_column_name": "fold"}
    lines = Path(source).read_text().splitlines()
    divided = [line[:-1] + "2" if "anna_nohash_0" in line else line for line in lines]
    whole = [line[:-1] + "2" if "anna" in line else line for line in lines]
    Path(source).write_text("\n".join(whole) + "\n")
    assert groups_of(load_splits(source, **by_group, eval_fold="2"))["validation"] == {"anna"}
    Path(source).write_text("\n".join(divided) + "\n")
    with pytest.raises(DataError, match="got anna in train and validation"):
        load_splits(source, **by_group, eval_fold="2")


def test_a_trained_model_is_evaluated_on_whatever_group_there_is(folder):
    """What was held out is asked of the data that trained alone."""
    (folder / "testing_list.txt").write_text("one/anna_nohash_0.wav\n")
    splits = load_splits(str(folder), group_pattern=PATTERN, model_labels=["one", "two"])
    assert groups_of(splits) == {"train": set(SPEAKERS), "test": {"anna"}}


def test_check_takes_groups_for_folds(folder):
    folds = read_all_folds(DataArguments(str(folder), group_pattern=PATTERN))
    assert folds[str(folder / "one" / "ben_nohash_0.wav")] == {"ben"} and len(folds) == 20


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"group_pattern": "^(x+)_"},
            r"row 1 \(.*\): expected group_pattern '.*' to find a group in the name",
        ),
        ({"group_column_name": "kit"}, "expected a column 'kit'"),
        ({"group_pattern": PATTERN, "eval_fold": "zoe"}, "eval_fold to be one of anna, ben, .* got zoe"),
        (
            {"group_pattern": "(nohash)", "eval_fold": "nohash"},
            "two groups or more, to hold out one, got nohash alone",
        ),
        ({"group_pattern": "(nohash)"}, "expected two groups or more, to hold out one, got nohash alone"),
        (
            {"group_pattern": PATTERN, "eval_fold": "1", "num_folds": 6},
            "Expected 6 clips or groups, or more, .*, got 5",
        ),
        ({"eval_fold": "1", "num_folds": 21}, "Expected 21 clips or groups, or more, .*, got 20"),
        ({"eval_fold": "4", "num_folds": 3}, "eval_fold to be one of 1, 2, 3, got 4"),
        ({"group_pattern": PATTERN, "num_folds": 2}, "Expected eval_fold with num_folds"),
    ],
)
def test_groups_that_cannot_be_used_are_one_sentence(folder, settings, words):
    with pytest.raises(DataError, match=words):
        load_splits(str(list_clips(folder)), **settings)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["--group_pattern=a", "--group_column_name=b"], "Expected group_column_name or group_pattern, got both"),
        (["--group_pattern=(a"], "Expected group_pattern to be a regular expression, got missing"),
        (["--group_pattern=(a)(b)"], "Expected one pair of brackets in group_pattern, .* got 2"),
        (
            ["--num_folds=3", "--unlabelled=true", "--eval_fold=1"],
            "leave out num_folds, groups or unlabelled",
        ),
        (["--num_folds=3", "--streaming=true"], "num_folds has no effect on a stream"),
        (["--num_folds=1", "--group_pattern=a"], r"num_folds in \[2, inf\), got 1"),
        (["--num_folds=3", "--fold_column_name=fold"], "num_folds makes folds, and fold_column_name names them"),
        (["--group_pattern=a", "--unlabelled=true"], "Of clips without labels a group is held out by its name alone"),
        (["--group_pattern=a", "--streaming=true"], "group_pattern has no effect on a stream"),
    ],
)
def test_keys_of_groups_without_effect_are_refused(keys, words):
    with pytest.raises(RecipeError, match=words):
        parse_data_arguments(None, ["--dataset_name=x", *keys], "a test")
