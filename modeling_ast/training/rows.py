"""Training rows of a table or a stream as a torch `Dataset`: another clip in place of each that cannot be decoded."""

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any

import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node

from modeling_ast.audio import AudioError
from modeling_ast.data.processes import gather_values
from modeling_ast.training.augment import clip_generator

logger = logging.getLogger(__name__)

MAX_DRAWS = 1000  # of clips that cannot be decoded, one after the other: then there is hardly one that can
SHUFFLE_BLOCK = 1000  # clips of a stream, not decoded
_PLACE = "stream_place"
Choice = Callable[[int], slice]  # of a part of a clip, by the number of its samples, as `load_part` takes it


def cut(row: dict[str, Any], choose: Choice | None = None) -> dict[str, Any]:
    """A part of a clip that is decoded already."""
    return row if choose is None else {**row, "waveform": row["waveform"][choose(len(row["waveform"]))]}


class TrainingRows(torch.utils.data.Dataset):
    """Decoded clips of a table: one of them by its index, batches by the pairs of `TrainingSampler`.

    Of each clip the part is decoded that is asked for. In place of each that cannot be decoded, whose `waveform` is
    `None`, stands another one, always the same.

    Args:
        rows: Not decoded.
        prepare: What makes the rows of a batch where they are read: gets, for each, its position and a function that
            reads it, or a part of it, and all rows; `None` reads all of each.
        decode: What decodes a row, or a part of it, as `DecodeAudio.decode_row`; of rows that are decoded already, it
            takes the part alone.
    """

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        prepare: Callable | None = None,
        decode: Callable[[dict[str, Any], Choice | None], dict[str, Any]] = cut,
    ):
        self.rows, self.prepare, self.decode = rows, prepare, decode

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """
        Raises:
            AudioError: More clips than the limit cannot be decoded, or hardly any can.
        """
        return self.read(index)

    def __getitems__(self, pairs: list[tuple[int, int]]) -> list[dict[str, Any]]:
        rows = self.rows.__getitems__([index for _, index in pairs])
        clips = [(position, partial(self._decode, index, row)) for (position, index), row in zip(pairs, rows)]
        if self.prepare is None:
            return [{**read(), "position": position} for position, read in clips]
        return self.prepare(clips, self)

    def read(self, index: int, choose: Choice | None = None) -> dict[str, Any]:
        """A clip, or the part of it that is chosen.

        Raises:
            AudioError: As when all of it is asked for.
        """
        return self._decode(index, self.rows[index], choose)

    def _decode(self, index: int, row: dict[str, Any], choose: Choice | None = None) -> dict[str, Any]:
        decoded = self.decode(row, choose)
        if decoded["waveform"] is not None:
            return decoded
        draws = random.Random(index)
        for _ in range(MAX_DRAWS - 1):
            decoded = self.decode(self.rows[draws.randrange(len(self.rows))], choose)
            if decoded["waveform"] is not None:
                return decoded
        raise AudioError(f"{MAX_DRAWS} training clips in a row cannot be decoded. Is the data where it should be?")


class TrainingStream(torch.utils.data.Dataset):
    """Decoded clips of a stream without end, batches by the pairs of `StreamSampler`: each clip once a pass.

    The stream has a part for each data worker of each process. In each pass its shards come in a new order and are
    dealt to the parts like cards, the next pass's from where the last one's ended. A part that has read its shards
    goes on with the next pass, and waits for no other. Where there are fewer shards than parts, some read the same
    ones, and each takes its own of their clips. Of the clips a part reads, each 1,000 are shuffled.

    The same seed and number of parts give the same clips, also where a run goes on from a checkpoint: a part reads
    again the block that it was in, and decodes none of its clips again. With another number of parts the order is
    another, and a run that goes on begins a new pass.

    Of each clip the part is decoded that is asked for; one that cannot be decoded is left out.

    Args:
        rows: With `audio`, not decoded, and `labels`.
        decode: As for `TrainingRows`.
        prepare: What makes the rows of a batch where they are read: gets, for each, its position and a function that
            reads a part of it.
        seed: Of the order.
        mean_draws: How often a clip is drawn in a pass for each of its labels, on average, or one without labels:
            `class_balanced_draws`. How often it is, is Poisson's, which draws with replacement come to; all within
            one block. `None` draws each clip once.

    Source: Oza and Russell, "Online Bagging and Boosting" (2001), for Poisson's numbers in place of draws from all.
    """

    def __init__(
        self,
        rows: IterableDataset,
        decode: Callable[[dict[str, Any], Choice | None], dict[str, Any]],
        prepare: Callable,
        seed: int = 0,
        mean_draws: torch.Tensor | None = None,
    ):
        self.rows, self.decode, self.prepare, self.seed, self.mean_draws = rows, decode, prepare, seed, mean_draws
        self._saved: dict[str, Any] = {}
        self.divide(1)

    def divide(self, num_parts: int) -> None:
        """Begin, with so many parts, where the loaded state says."""
        num_shards = self.rows.num_shards
        self.num_parts = num_parts
        # Those that share shards are as many in each group.
        self.num_groups = max(n for n in range(1, min(num_parts, num_shards) + 1) if num_parts % n == 0)
        self.places = self._saved.get("places", {})  # of the parts: pass, and the state of its rows
        self.first_pass = 0
        layout = {"num_parts": num_parts, "num_shards": num_shards}
        if self._saved and any(self._saved[name] != number for name, number in layout.items()):
            self.first_pass = 1 + max((place["pass"] for place in self.places.values()), default=-1)
            self.places = {}
            logger.warning(
                f"The stream goes on with a new pass: it has {num_shards} shards for {num_parts} data workers in all, "
                f"and had {self._saved['num_shards']} for {self._saved['num_parts']} before."
            )
        self._own_parts: set[int] = set()  # of which this process has had clips
        self._readers: dict[int, Iterator] = {}

    def __getitems__(self, pairs: list[tuple[int, int]]) -> list[dict[str, Any]]:
        """
        Args:
            pairs: Of a position, and the part, which is the same for all.

        Returns:
            Clips, each with its position; the last one also with the place in the stream behind it.

        Raises:
            AudioError: Hardly any clip can be decoded.
        """
        part = pairs[0][1]
        batch = _Batch(self._readers.setdefault(part, self._read(part)), self.decode)
        rows = self.prepare([(position, batch.read_next) for position, _ in pairs])
        rows[-1][_PLACE] = {part: batch.place}
        return rows

    def _read(self, part: int) -> Iterator[tuple[int, IterableDataset, dict[str, Any]]]:
        place = self.places.get(part, {"pass": self.first_pass, "rows": None})
        for number in count(place["pass"]):
            stream = self._begin_pass(part, number)
            if place["rows"] is not None and number == place["pass"]:
                stream.load_state_dict(place["rows"])
            # Not by its own `__iter__`, which divides it among data workers once more.
            for batch in stream.iter(batch_size=1):
                yield number, stream, {name: values[0] for name, values in batch.items()}
            yield number, stream, None  # the end of a pass

    def _begin_pass(self, part: int, number: int) -> IterableDataset:
        group, member = part % self.num_groups, part // self.num_groups
        num_members = self.num_parts // self.num_groups
        rank = (group - number * self.rows.num_shards) % self.num_groups
        stream = split_dataset_by_node(self.rows, rank, self.num_groups, strategy="shards").map(
            partial(
                _shuffle_block,
                seed=self.seed,
                first_block=(number * self.num_groups + group) << 32,
                share=slice((member + number) % num_members, None, num_members),
                mean_draws=self.mean_draws,
            ),
            with_indices=True,
            batched=True,
            batch_size=SHUFFLE_BLOCK,
            features=self.rows.features,
        )
        # The order of shards, which `datasets` shuffles by this number unless it is 0.
        stream.set_epoch((self.seed << 31) + number + 1)
        return stream

    def note_place(self, batch: dict[str, Any]) -> None:
        """Take out of a batch of `collate_with_place` what says that its clips have been trained on."""
        place = batch.pop(_PLACE)
        self.places = {**self.places, **place}
        self._own_parts |= place.keys()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, of all processes together."""
        places = dict(self.places)  # from where the run goes on, those of the parts of other processes too
        for own in gather_values({part: self.places[part] for part in self._own_parts}):
            places |= own
        return {"num_parts": self.num_parts, "num_shards": self.rows.num_shards, "places": places}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from the state of a checkpoint, when the stream is divided next.

        Args:
            state: As from `state`; empty of a checkpoint that does not have it, as of earlier versions.
        """
        if not state:
            logger.warning("The checkpoint does not tell where its stream was: the stream begins anew.")
        self._saved = state


class _Batch:
    """The next clips of a part of a stream that can be decoded.

    Args:
        reader: Gives them, not decoded, each with the pass and the stream that it is of, and `None` after a pass.
        decode: As for `TrainingRows`.
    """

    def __init__(self, reader: Iterator, decode: Callable):
        self.reader, self.decode = reader, decode

    def read_next(self, choose: Choice | None) -> dict[str, Any]:
        """
        Raises:
            AudioError: More clips than the limit cannot be decoded, or hardly any can.
        """
        for _ in range(MAX_DRAWS):
            self.number, self.stream, row = next(self.reader)
            if row is not None and (decoded := self.decode(row, choose))["waveform"] is not None:
                return decoded
        raise AudioError(
            f"{MAX_DRAWS} training clips of a stream in a row cannot be decoded. Is the data where it should be?"
        )

    @property
    def place(self) -> dict[str, Any]:
        """Behind the last clip."""
        return {"pass": self.number, "rows": self.stream.state_dict()}


def collate_with_place(rows: list[dict[str, Any]], collator: Callable) -> dict[str, Any]:
    """A batch of a stream, with the place behind it."""
    return {**collator(rows), _PLACE: rows[-1][_PLACE]}


def _shuffle_block(
    rows: dict[str, list],
    indices: list[int],
    seed: int,
    first_block: int,
    share: slice,
    mean_draws: torch.Tensor | None,
) -> dict[str, list]:
    """Some of so many rows, in another order, which is the same for all parts that read them."""
    # Positions are not negative: no clip has this generator.
    generator = clip_generator(seed, -1 - first_block - indices[0])
    drawn = torch.arange(len(indices))
    if mean_draws is not None:
        means = torch.stack([mean_draws[-1 if labels == [] else labels].sum() for labels in rows["labels"]])
        drawn = drawn.repeat_interleave(torch.poisson(means, generator).long())
    order = drawn[torch.randperm(len(drawn), generator=generator)][share].tolist()
    return {name: [column[index] for index in order] for name, column in rows.items()}
