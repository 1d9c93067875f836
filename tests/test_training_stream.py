"""A stream in training: each clip once a pass, on any number of processes and workers, also where a run is resumed."""

import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from datasets import Dataset, IterableDataset, load_dataset_builder
from torch.utils.data import BatchSampler, DataLoader

from modeling_ast import ASTFeatureExtractor
from modeling_ast.audio import AudioError
from modeling_ast.training import rows as training_rows
from modeling_ast.training.arguments import AugmentArguments
from modeling_ast.training.collator import AugmentingCollator
from modeling_ast.training.rows import TrainingStream, collate_with_place
from modeling_ast.training.sampling import StreamSampler

pytestmark = pytest.mark.usefixtures("one_thread")
# Shards of a data set: more than workers, fewer, of sizes of their own, one alone.
SIZES = {"many": [5] * 12, "unequal": [12, 3, 9, 20, 1], "one": [30]}
PROCESSES, WORKERS = (1, 2, 3), (0, 2, 3)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(training_rows, "SHUFFLE_BLOCK", 7)


def generate(shards: list[range], read: tuple[list]) -> Iterator[dict]:
    for shard in shards:
        for clip in shard:
            read[0].append(clip)
            yield {"audio": clip, "labels": clip % 2}


def make_rows(sizes: list[int], read: list | None = None) -> IterableDataset:
    """Clips that are their own numbers, written into a list when they are read."""
    read = [] if read is None else read
    ends = torch.tensor(sizes).cumsum(0).tolist()
    shards = [range(end - size, end) for size, end in zip(sizes, ends)]
    features = Dataset.from_dict({"audio": [0], "labels": [0]}).features
    return IterableDataset.from_generator(
        generate, features=features, gen_kwargs={"shards": shards, "read": ([] if read is None else read,)}
    )


def write_row_groups(folder: Path, sizes: list[int]) -> IterableDataset:
    """One Parquet file, with a row group of each size."""
    clips = list(range(sum(sizes)))
    table = pa.table({"audio": clips, "labels": [clip % 2 for clip in clips]})
    with pq.ParquetWriter(folder / "train-00000-of-00001.parquet", table.schema) as writer:
        start = 0
        for size in sizes:
            writer.write_table(table.slice(start, size))
            start += size
    return load_dataset_builder(str(folder)).as_streaming_dataset()["train"].reshard()


def decode(row: dict, choose: Callable, bad: frozenset = frozenset(), decoded: list | None = None) -> dict:
    """A clip is its number, and a part of it that and the part."""
    if decoded is not None:
        decoded.append(row["audio"])
    return {"waveform": None if row["audio"] in bad else row["audio"], "labels": row["labels"], "part": choose(100)}


def make_stream(rows: IterableDataset, decode: Callable = decode, **others) -> TrainingStream:
    """Of clips of which the part is taken that begins at their position."""

    def take_part(read: Callable, position: int) -> dict:
        return {**read(lambda length: slice(position, length)), "position": position}

    def prepare(clips: list[tuple[int, Callable]]) -> list[dict]:
        return [take_part(read, position) for position, read in clips]

    return TrainingStream(rows, decode, prepare, **others)


class Run:
    """What the processes of a run read, each by the batches that Accelerate deals to it."""

    def __init__(
        self, rows, processes=1, workers=0, batch_size=1, num_draws=198, seed=0, saved=None, skip=0, **others
    ):
        self.clips, self.passes = {}, defaultdict(list)  # by their positions
        self.places = {}
        self.num_parts, self.num_shards = processes * max(1, workers), rows.num_shards
        for rank in range(processes):
            decoding = partial(decode, **others.get("decoding", {}))
            stream = make_stream(rows, decoding, seed=seed, mean_draws=others.get("mean_draws"))
            if saved is not None:
                stream.load_state(torch.load(io.BytesIO(saved), weights_only=True))
            stream.divide(self.num_parts)
            sampler = BatchSampler(StreamSampler(num_draws, batch_size, self.num_parts), batch_size, drop_last=False)
            batches = SkipBatchSampler(BatchSamplerShard(sampler, processes, rank), skip)
            num_workers = workers if others.get("forks") else 0
            collator = partial(collate_with_place, collator=lambda rows: {"rows": rows})
            for batch in DataLoader(stream, batch_sampler=batches, num_workers=num_workers, collate_fn=collator):
                (place,) = batch["stream_place"].values()
                stream.note_place(batch)
                for row in batch["rows"]:
                    self.clips[row["position"]] = row["waveform"]
                    self.passes[place["pass"]].append(row["waveform"])  # of batches of one
            self.places |= stream.places

    @property
    def state(self) -> bytes:
        content = io.BytesIO()
        state = {"num_parts": self.num_parts, "num_shards": self.num_shards, "places": self.places}
        torch.save(state, content)
        return content.getvalue()


def check_passes(run: Run, num_clips: int) -> None:
    whole = min(place["pass"] for place in run.places.values())
    assert whole >= 2
    orders = [run.passes[number] for number in range(whole)]
    assert all(sorted(order) == list(range(num_clips)) for order in orders)
    assert len({tuple(order) for order in orders}) == whole  # each in an order of its own


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_each_pass_has_each_clip_once(sizes, processes, workers):
    run = Run(make_rows(sizes), processes, workers)
    check_passes(run, sum(sizes))
    assert sorted(run.clips) == list(range(198))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has processors
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("processes", PROCESSES)
def test_each_pass_has_each_row_of_one_file_once(tmp_path, processes, workers):
    """In data workers of their own, which read the row groups of one Parquet file."""
    rows = write_row_groups(tmp_path, SIZES["many"])
    assert rows.num_shards == 12
    run = Run(rows, processes, workers, forks=True)
    check_passes(run, 60)
    assert run.clips == Run(rows, processes, workers).clips


def test_no_shard_is_read_twice_in_a_pass():
    """Nor does any part read what is another one's, where there is a shard for each."""
    for processes, workers in ((1, 0), (2, 2), (3, 3)):
        read: list[int] = []
        stream = make_stream(make_rows(SIZES["many"], read))
        stream.divide(processes * max(1, workers))
        for part in range(stream.num_parts):
            for _ in stream._begin_pass(part, 3).iter(1):
                pass
        assert sorted(read) == list(range(60))


def test_passes_stay_together():
    """A part that had more shards in one pass has fewer in the next: none is seen more often than others for long."""
    run = Run(make_rows([4] * 7), processes=2, workers=2, num_draws=28 * 30)
    counts = Counter(run.clips.values())
    assert max(counts.values()) - min(counts.values()) <= 3
    assert {place["pass"] for place in run.places.values()} <= {29, 30, 31}


def test_a_seed_gives_an_order():
    first, again, other = (Run(make_rows(SIZES["many"]), 2, 2, seed=seed).clips for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(first) == sorted(other)


def test_clips_of_several_shards_are_mixed():
    order = list(Run(make_rows([3] * 20), num_draws=60).clips.values())
    assert order != sorted(order)
    assert all(len({clip // 3 for clip in order[start : start + 7]}) >= 3 for start in range(0, 56, 7))


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(
    "processes, workers, batch_size",
    [pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 3, 1), (2, 0, 3), (3, 2, 2))]
    + [(1, 0, 4), (2, 3, 4)],
)
def test_a_resumed_run_has_the_clips_of_one_that_was_not_stopped(sizes, processes, workers, batch_size):
    """And decodes no clip again."""
    layout = {"processes": processes, "workers": workers, "batch_size": batch_size}
    rows, in_all = make_rows(sizes), processes * batch_size * 20
    whole = Run(rows, num_draws=in_all, **layout)
    for skip in (1, 7, 17):
        begun = Run(rows, num_draws=skip * processes * batch_size, **layout)
        decoded: list[int] = []
        end = Run(rows, num_draws=in_all, saved=begun.state, skip=skip, decoding={"decoded": decoded}, **layout)
        assert begun.clips | end.clips == whole.clips
        assert len(decoded) == len(end.clips)


def test_a_resumed_run_reads_again_the_block_and_the_shard_that_it_was_in():
    read: list[int] = []
    rows = make_rows([14] * 20, read)
    stream = make_stream(rows)
    before = [stream.__getitems__([(position, 0)])[0] for position in range(200)]
    again = make_stream(rows)
    again.load_state({"num_parts": 1, "num_shards": 20, "places": before[-1]["stream_place"]})
    again.divide(1)
    read.clear()
    (row,) = again.__getitems__([(200, 0)])
    assert row["waveform"] not in {each["waveform"] for each in before}
    assert 7 <= len(read) <= 14 + 7


def test_with_another_number_of_workers_a_run_goes_on_with_a_new_pass(caplog):
    rows = make_rows(SIZES["many"])
    begun = Run(rows, num_draws=100)  # in the second of its passes
    end = Run(rows, 1, 2, num_draws=300, saved=begun.state, skip=100)
    assert min(end.passes) == 2 and sorted(end.passes[2]) == list(range(60))
    assert "new pass: it has 12 shards for 2 data workers in all, and had 12 for 1 before" in caplog.text


def test_classes_are_drawn_alike():
    """Label 1 is that of every tenth clip: each of its clips is drawn nine times as often, and not always so often."""
    rows = make_rows([20] * 10).map(lambda row: {"labels": int(row["audio"] % 10 == 0)})
    rows = rows.cast(Dataset.from_dict({"audio": [0], "labels": [0]}).features)
    draws = torch.tensor([1 / 0.9, 1 / 0.1]) / 2
    run = Run(rows, 2, 2, num_draws=2000, mean_draws=draws)  # ten passes
    counts = Counter(run.clips.values())
    rare = [counts[clip] for clip in range(0, 200, 10)]
    assert sum(rare) / 2000 == pytest.approx(0.5, abs=0.05)
    assert sum(rare) / len(rare) == pytest.approx(50, rel=0.1) and len(set(rare)) > 10
    assert len(counts) >= 195
    passes = [len(run.passes[number]) for number in range(8)]
    assert sum(passes) / 8 == pytest.approx(200, rel=0.05) and len(set(passes)) > 3
    begun = Run(rows, 2, 2, num_draws=1000, mean_draws=draws)
    end = Run(rows, 2, 2, num_draws=2000, saved=begun.state, skip=500, mean_draws=draws)
    assert begun.clips | end.clips == run.clips


def test_parts_that_share_a_shard_share_its_draws():
    draws = torch.tensor([1.5, 0.5])
    alone, shared = (Run(make_rows([30]), workers=workers, num_draws=198, mean_draws=draws) for workers in (0, 3))
    for number in range(3):
        assert sorted(alone.passes[number]) == sorted(shared.passes[number])


def test_parts_are_those_of_the_position():
    """A row that cannot be decoded is none of the batch, and the next one has its position."""
    bad = frozenset({3, 17, 29})
    stream = make_stream(make_rows([30]), partial(decode, bad=bad))
    found = []
    for start in range(0, 27, 3):
        batch = stream.__getitems__([(position, 0) for position in range(start, start + 3)])
        for position, row in enumerate(batch, start):
            assert (row["position"], row["part"]) == (position, slice(position, 100))
            found.append(row["waveform"])
    assert sorted(found) == [clip for clip in range(30) if clip not in bad]


def test_mixup_of_a_stream_reads_no_clip_twice():
    decoded: list[int] = []
    augment = AugmentArguments(mixup_probability=1.0, mixup_partner="batch", random_crop=True)
    collator = AugmentingCollator(ASTFeatureExtractor(max_length=1), 2, augment=augment)
    stream = make_stream(make_rows([30]), partial(decode, decoded=decoded))
    stream.prepare = collator.prepare
    for start in range(0, 60, 4):
        batch = stream.__getitems__([(position, 0) for position in range(start, start + 4)])
        partners = [row["partner"]["waveform"] for row in batch]
        assert partners == [batch[index]["waveform"] for index in (1, 0, 3, 2)]
    assert sorted(decoded) == sorted([*range(30)] * 2)


def test_clips_that_cannot_be_decoded_are_left_out():
    bad = frozenset({3, 4, 17})
    run = Run(make_rows(SIZES["many"]), 2, 2, decoding={"bad": bad})
    assert sorted(run.passes[0]) == [clip for clip in range(60) if clip not in bad]


def test_a_stream_without_clips_is_an_error(monkeypatch):
    monkeypatch.setattr(training_rows, "MAX_DRAWS", 100)
    with pytest.raises(AudioError, match="100 training clips of a stream in a row cannot be decoded"):
        Run(make_rows([30]), decoding={"bad": frozenset(range(30))})
    with pytest.raises(AudioError, match="100 training clips of a stream in a row"):
        Run(make_rows([0]))


def test_a_checkpoint_without_the_place_in_its_stream_is_told(caplog):
    stream = make_stream(make_rows(SIZES["one"]))
    stream.load_state({})
    stream.divide(1)
    assert stream.places == {} and "the stream begins anew" in caplog.text


def test_a_checkpoint_of_a_resumed_run_has_the_newest_place_of_each_part(monkeypatch):
    saved = {"num_parts": 2, "num_shards": 4, "places": {part: {"pass": 0, "rows": None} for part in (0, 1)}}
    streams = [make_stream(make_rows([5] * 4)) for _ in range(2)]
    gathered = []
    monkeypatch.setattr(training_rows, "gather_values", lambda value: gathered.append(value) or [value])
    for rank, stream in enumerate(streams):
        stream.load_state(saved)
        stream.divide(2)
        stream.note_place({"stream_place": {rank: {"pass": 3, "rows": None}}})
        stream.state()
    monkeypatch.setattr(training_rows, "gather_values", lambda value: gathered)
    for stream in streams:
        assert {part: place["pass"] for part, place in stream.state()["places"].items()} == {0: 3, 1: 3}
