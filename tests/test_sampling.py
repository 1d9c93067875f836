"""The order of training: every clip once or by its weight, the same for everybody, and never the same twice."""

import json
import time
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, List, Value, concatenate_datasets
from scipy.stats import chisquare

from modeling_ast.data.clip_tables import ClipCounts
from modeling_ast.data.labels import read_label_table
from modeling_ast.data.sources import load_splits
from modeling_ast.training.rows import TrainingRows
from modeling_ast.training.sampling import TrainingSampler, class_balanced_draws, class_balanced_weights

pytestmark = pytest.mark.usefixtures("one_thread")


def indices(sampler: TrainingSampler, epoch: int = 0) -> list[int]:
    sampler.set_epoch(epoch)
    return [index for _, index in sampler]


def positions(sampler: TrainingSampler, epoch: int = 0) -> list[int]:
    sampler.set_epoch(epoch)
    return [position for position, _ in sampler]


def weights_by_hand(labels: list[list[int]]) -> list[float]:
    """As the original's script: each clip's sum of the classes' weights, in plain Python; none is one class more."""
    classes = [clip or [None] for clip in labels]
    counts = Counter(label for clip in classes for label in clip)
    return [sum(1000 / (counts[label] + 0.01) for label in clip) for clip in classes]


# Weights


def test_weights_equal_the_original(reference):
    index_of = read_label_table("audioset").index_of()
    clips = json.loads((reference / "sampling_train_data.json").read_text())["data"]
    labels = [[index_of[mid] for mid in clip["labels"].split(",")] for clip in clips]
    weights = class_balanced_weights(Dataset.from_dict({"labels": labels}), 527)
    expected = np.loadtxt(reference / "sampling_train_data_weight.csv")
    assert weights.dtype == torch.float64 and len(expected) > 100
    np.testing.assert_allclose(weights, expected, rtol=1e-9)


def test_weights_of_a_data_file_of_the_original_equal_the_original(reference, tmp_path):
    """The same from the file to the weights, in the order of the file."""
    data_file = tmp_path / "data.json"
    data_file.write_text((reference / "sampling_train_data.json").read_text())
    for clip in json.loads(data_file.read_text())["data"]:
        (tmp_path / clip["wav"]).touch()
    splits = load_splits(
        str(data_file), validation_file=str(data_file), label_file="audioset", multi_label=True, audio_dir="."
    )
    weights = class_balanced_weights(splits.train, len(splits.label_names))
    np.testing.assert_allclose(weights, np.loadtxt(reference / "sampling_train_data_weight.csv"), rtol=1e-9)


def test_a_stream_draws_by_the_same_weights_as_a_table():
    labels = [[0], [0, 1], [2], [], [0, 2], [0]]
    weights = class_balanced_weights(Dataset.from_dict({"labels": labels}), 4)
    counts = np.bincount([label for clip in labels for label in clip], minlength=4)
    draws = class_balanced_draws(ClipCounts(len(labels), counts, without_labels=1))
    of_clips = torch.stack([draws[clip or [-1]].sum() for clip in labels])
    torch.testing.assert_close(of_clips, weights / weights.sum() * len(labels))
    with pytest.raises(ValueError, match="got clips without any"):
        class_balanced_draws(ClipCounts(3, np.zeros(2, int)))


def test_weights_of_one_label_a_clip_balance_the_classes():
    labels = [0] * 90 + [1] * 9 + [2]
    weights = class_balanced_weights(Dataset.from_dict({"labels": labels}), 3)
    np.testing.assert_allclose(weights, weights_by_hand([[label] for label in labels]), rtol=1e-12)
    shares = [weights[torch.tensor(labels) == label].sum() / weights.sum() for label in range(3)]
    assert shares == pytest.approx([1 / 3] * 3, abs=4e-3)  # not quite, for the 0.01


def test_clips_without_labels_are_drawn_as_a_class():
    labels = [[0, 2], [], [1], [0], []]
    weights = class_balanced_weights(Dataset.from_dict({"labels": labels}), 4)
    np.testing.assert_allclose(weights, weights_by_hand(labels), rtol=1e-12)
    assert weights[1] == weights[4] == pytest.approx(1000 / 2.01) and weights.shape == (5,)


def test_weights_of_selected_clips_count_these_alone():
    """As folds and limits leave them, in their order."""
    labels = [[0], [1, 2], [], [2], [0, 1], [0]]
    rows = Dataset.from_dict({"labels": labels, "audio": list("abcdef")})
    for chosen in ([5, 1, 4], [2, 3], range(1, 5)):
        np.testing.assert_allclose(
            class_balanced_weights(rows.select(chosen), 3), weights_by_hand([labels[i] for i in chosen]), rtol=1e-12
        )
    single = Dataset.from_dict({"labels": [2, 0, 0, 1]}).select([3, 2, 1])
    np.testing.assert_allclose(class_balanced_weights(single, 3), weights_by_hand([[1], [0], [0]]), rtol=1e-12)


def test_weights_of_joined_tables_are_those_of_the_whole():
    parts = [[[0], [1]], [[1, 2]], [[], [0]]]
    rows = concatenate_datasets([Dataset.from_dict({"labels": part}) for part in parts])
    expected = weights_by_hand([clip for part in parts for clip in part])
    np.testing.assert_allclose(class_balanced_weights(rows, 3), expected, rtol=1e-12)


def test_weights_need_no_clip_to_be_decoded():
    def fail(batch):
        raise AssertionError("decoded")

    rows = Dataset.from_dict({"labels": [0, 1, 1]}).with_transform(fail)
    np.testing.assert_allclose(class_balanced_weights(rows, 2), weights_by_hand([[0], [1], [1]]), rtol=1e-12)


def test_weights_of_clips_without_any_label_are_refused():
    with pytest.raises(ValueError, match="Expected labels to balance the classes by, got clips without any"):
        class_balanced_weights(Dataset.from_dict({"labels": [[], []]}).cast_column("labels", List(Value("int64"))), 3)


# Order


@pytest.mark.parametrize("num_clips", [1, 7, 12])
def test_an_epoch_holds_every_clip_once(num_clips):
    assert sorted(indices(TrainingSampler(num_clips, 1, seed=0))) == list(range(num_clips))


def test_epochs_differ_and_come_again():
    sampler = TrainingSampler(50, 10, seed=0)
    epochs = [indices(sampler, epoch) for epoch in range(4)]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    again = TrainingSampler(50, 10, seed=0)
    assert [indices(again, epoch) for epoch in (3, 1)] == [
        epochs[3],
        epochs[1],
    ]  # in whatever order they are asked for
    assert indices(again, 1) == indices(again, 1)


@pytest.mark.parametrize("weights", [None, torch.ones(50)], ids=["shuffled", "weighted"])
def test_runs_with_other_seeds_share_no_epochs(weights):
    """Else means over seeds 0, 1 and 2 would be of runs that saw the data in one another's order."""
    orders = [tuple(indices(TrainingSampler(50, 10, seed, weights), epoch)) for seed in range(3) for epoch in range(5)]
    assert len(set(orders)) == 15


def test_the_order_is_nobody_elses_and_leaves_the_global_state():
    orders = []
    for seed in (0, 1):
        torch.manual_seed(seed), np.random.seed(seed)
        before = torch.get_rng_state()
        orders.append(indices(TrainingSampler(50, 10, seed=3, weights=torch.arange(50.0))))
        assert torch.equal(torch.get_rng_state(), before)
    assert orders[0] == orders[1]


def test_the_order_is_the_same_for_every_batch():
    """An epoch of 24 is 24 clips in the same order in batches of 1 and of 12."""
    for weights in (None, torch.arange(24.0)):
        assert len({tuple(indices(TrainingSampler(24, size, 0, weights), 2)) for size in (1, 4, 12, 24)}) == 1


@pytest.mark.parametrize(("num_clips", "batch_size", "length"), [(10, 4, 12), (12, 4, 12), (13, 12, 24), (3, 10, 10)])
def test_an_epoch_is_completed_to_whole_batches_by_its_own_first_clips(num_clips, batch_size, length):
    sampler = TrainingSampler(num_clips, batch_size, seed=0)
    drawn = indices(sampler)
    assert len(sampler) == len(drawn) == length
    assert sorted(drawn[:num_clips]) == list(range(num_clips))
    assert drawn == (drawn[:num_clips] * length)[:length]


def test_an_epoch_with_weights_is_completed_to_whole_batches():
    sampler = TrainingSampler(10, 4, seed=0, weights=torch.ones(10))
    assert len(indices(sampler)) == len(sampler) == 12


@pytest.mark.parametrize("weights", [None, torch.ones(10)], ids=["shuffled", "weighted"])
def test_drop_last_cuts_an_epoch_to_whole_batches(weights):
    sampler = TrainingSampler(10, 4, seed=0, weights=weights, drop_last=True)
    assert len(indices(sampler)) == len(sampler) == 8
    assert indices(sampler) == indices(TrainingSampler(10, 4, seed=0, weights=weights))[:8]
    assert len(TrainingSampler(12, 4, seed=0, drop_last=True)) == 12


def test_positions_count_on_from_epoch_to_epoch():
    """Those of an epoch's completion are positions of their own too: such a clip is augmented anew."""
    for drop_last, length in ((False, 12), (True, 8)):
        sampler = TrainingSampler(10, 4, seed=0, drop_last=drop_last)
        counted = [position for epoch in range(3) for position in positions(sampler, epoch)]
        assert counted == list(range(3 * length))


def test_too_few_clips_are_refused():
    with pytest.raises(ValueError, match="at least one batch of 12 clips, got 10 training clips. Use a smaller batch"):
        TrainingSampler(10, 12, seed=0, drop_last=True)
    with pytest.raises(ValueError, match="got 0 training clips"):
        TrainingSampler(0, 12, seed=0)


# Epochs of so many draws


@pytest.mark.parametrize(("num_clips", "samples", "batch_size"), [(50, 20, 5), (50, 21, 4), (7, 20, 3), (12, 12, 12)])
def test_epochs_of_so_many_draws_go_on_through_one_shuffled_pass_after_the_other(num_clips, samples, batch_size):
    """Each clip once before any twice, whatever epochs and passes have in common."""
    sampler = TrainingSampler(num_clips, batch_size, seed=0, samples_per_epoch=samples)
    assert len(sampler) == -(-samples // batch_size) * batch_size
    epochs = [indices(sampler, epoch) for epoch in range(12)]
    assert {len(epoch) for epoch in epochs} == {len(sampler)}
    draws = [index for epoch in epochs for index in epoch]
    passes = [draws[start : start + num_clips] for start in range(0, len(draws), num_clips)]
    for whole in passes[:-1]:
        assert sorted(whole) == list(range(num_clips))
    assert len(set(passes[-1])) == len(passes[-1])
    assert len(set(map(tuple, passes))) == len(passes)
    counted = [position for epoch in range(12) for position in positions(sampler, epoch)]
    assert counted == list(range(len(draws)))
    again = TrainingSampler(num_clips, batch_size, seed=0, samples_per_epoch=samples)
    assert [indices(again, epoch) for epoch in (7, 2)] == [epochs[7], epochs[2]]  # as a run that is resumed asks
    assert indices(TrainingSampler(num_clips, batch_size, seed=1, samples_per_epoch=samples)) != epochs[0]


def test_an_epoch_of_so_many_draws_by_weight_is_that_many_and_none_goes_on():
    weights = torch.tensor([1.0, 2.0, 0.0, 3.0])
    sampler = TrainingSampler(4, 8, seed=0, weights=weights, samples_per_epoch=1000)
    epochs = [indices(sampler, epoch) for epoch in range(4)]
    assert {len(epoch) for epoch in epochs} == {1000} and len(set(map(tuple, epochs))) == 4
    counts = np.bincount(np.concatenate(epochs), minlength=4)
    assert counts[2] == 0
    assert chisquare(counts[[0, 1, 3]], 4000 * np.array([1, 2, 3]) / 6).pvalue > 0.01
    assert indices(TrainingSampler(4, 4, 0, weights, samples_per_epoch=4), 1) == indices(
        TrainingSampler(4, 4, 0, weights), 1
    )


def test_epochs_of_so_many_draws_are_cut_or_completed_to_whole_batches():
    assert len(TrainingSampler(50, 8, 0, drop_last=True, samples_per_epoch=20)) == 16
    assert len(TrainingSampler(50, 8, 0, samples_per_epoch=20)) == 24
    assert len(TrainingSampler(3, 8, 0, samples_per_epoch=20)) == 24
    with pytest.raises(ValueError, match="at least one batch of 8 clips, got samples_per_epoch 7"):
        TrainingSampler(50, 8, 0, drop_last=True, samples_per_epoch=7)
    with pytest.raises(ValueError, match="got 0 training clips"):
        TrainingSampler(0, 8, 0, samples_per_epoch=7)


def test_batches_of_similar_lengths_are_of_the_epochs_own_draws():
    seconds = torch.rand(60, generator=torch.Generator().manual_seed(0))
    mixed = TrainingSampler(60, 4, seed=0, samples_per_epoch=40)
    grouped = TrainingSampler(60, 4, seed=0, samples_per_epoch=40, clip_seconds=seconds)
    spreads = []
    for epoch in range(3):
        assert sorted(indices(grouped, epoch)) == sorted(indices(mixed, epoch))
        spreads.append([seconds[indices(each, epoch)].view(-1, 4).std(dim=1).mean() for each in (grouped, mixed)])
    assert all(of_grouped < 0.8 * of_mixed for of_grouped, of_mixed in spreads)


# Weighted order


def test_clips_are_drawn_in_proportion_to_their_weights():
    weights = torch.tensor([1.0, 2.0, 0.0, 3.0, 0.5, 0.0, 10.0, 0.0])
    sampler = TrainingSampler(8, 1, seed=0, weights=weights)
    counts = np.bincount([index for epoch in range(1000) for index in indices(sampler, epoch)], minlength=8)
    drawn = weights.numpy() > 0
    assert counts.sum() == 8000 and counts[~drawn].sum() == 0
    expected = 8000 * weights.numpy() / weights.sum().item()
    assert chisquare(counts[drawn], expected[drawn]).pvalue > 0.01


def test_draws_are_independent_of_one_another():
    """With replacement: of 1000 equal clips an epoch leaves out a share of 1 / e."""
    drawn = indices(TrainingSampler(1000, 1, seed=0, weights=torch.ones(1000)))
    assert 1 - len(set(drawn)) / 1000 == pytest.approx(np.exp(-1), abs=0.03)


@pytest.mark.parametrize("where", [slice(0, 3), slice(5, 8)], ids=["at the beginning", "at the end"])
def test_clips_without_weight_are_never_drawn(where):
    weights = torch.ones(8)
    weights[where] = 0
    drawn = {index for epoch in range(200) for index in indices(TrainingSampler(8, 8, 0, weights), epoch)}
    assert drawn == set(weights.nonzero().flatten().tolist())


def test_clips_without_weight_are_not_drawn_at_the_edge_either(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda size, **_: torch.zeros(size, dtype=torch.float64))  # the smallest draw
    assert set(indices(TrainingSampler(8, 8, 0, torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0])))) == {2}


def test_rare_classes_are_drawn_as_often_as_common_ones():
    labels = [0] * 900 + [1] * 90 + [2] * 10
    sampler = TrainingSampler(1000, 1, 0, class_balanced_weights(Dataset.from_dict({"labels": labels}), 3))
    counts = np.bincount([labels[index] for epoch in range(6) for index in indices(sampler, epoch)])
    assert chisquare(counts).pvalue > 0.01


@pytest.mark.slow
def test_two_million_clips_are_weighted_and_drawn_quickly():
    """The size of AudioSet, one to three labels a clip; a minute is allowed, on any machine."""
    generator = np.random.default_rng(0)
    per_clip = generator.integers(1, 4, 2_000_000)
    labels = generator.integers(0, 527, per_clip.sum())
    column = pa.ListArray.from_arrays(np.concatenate([[0], per_clip.cumsum()]).astype(np.int32), labels)
    rows = Dataset(pa.table({"labels": column}))
    start = time.process_time()
    weights = class_balanced_weights(rows, 527)
    sampler = TrainingSampler(2_000_000, 12, seed=0, weights=weights)
    position, index = next(iter(sampler))  # the whole epoch is drawn for it
    assert time.process_time() - start < 60
    assert weights.shape == (2_000_000,) and len(sampler) == 166_667 * 12
    assert position == 0 and 0 <= index < 2_000_000


# Rows


class Numbers:
    """A transform that counts how often it is called."""

    def __init__(self):
        self.calls = 0

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        self.calls += 1
        return {"waveform": [torch.full((2,), float(number)) for number in batch["number"]], "labels": batch["number"]}


def test_rows_bring_their_position_along():
    dataset = Dataset.from_dict({"number": [10, 11, 12, 13]})
    transform = Numbers()
    rows = TrainingRows(dataset.with_transform(transform))
    assert len(rows) == 4
    batch = rows.__getitems__([(100, 3), (101, 0), (102, 3)])
    assert transform.calls == 1  # a batch is decoded at once
    assert [(row["position"], row["labels"], row["waveform"].tolist()) for row in batch] == [
        (100, 13, [13.0, 13.0]),
        (101, 10, [10.0, 10.0]),
        (102, 13, [13.0, 13.0]),
    ]
    assert rows[1]["labels"] == 11


def test_rows_of_a_selection_are_its_own():
    rows = TrainingRows(Dataset.from_dict({"number": [10, 11, 12, 13]}).select([3, 1]).with_transform(Numbers()))
    assert len(rows) == 2 and [row["labels"] for row in rows.__getitems__([(0, 0), (1, 1)])] == [13, 11]


def test_a_loader_gives_an_epoch_in_the_order_of_the_sampler():
    dataset = Dataset.from_dict({"number": list(range(10))}).with_transform(Numbers())
    sampler = TrainingSampler(10, 4, seed=0)
    sampler.set_epoch(2)
    loader = torch.utils.data.DataLoader(
        TrainingRows(dataset), batch_size=4, sampler=sampler, collate_fn=lambda rows: rows
    )
    assert [(row["position"], row["labels"]) for batch in loader for row in batch] == list(sampler)
