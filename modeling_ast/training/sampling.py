"""The order of training clips: shuffled, class-balanced, grouped by length; the same for any number of processes."""

from collections.abc import Iterator
from itertools import chain
from multiprocessing.pool import ThreadPool

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch.utils.data import Sampler
from tqdm.auto import tqdm

from modeling_ast.audio import AudioError
from modeling_ast.data.clip_tables import ClipCounts
from modeling_ast.data.clips import Clip
from modeling_ast.data.recipes import RecipeError
from modeling_ast.training.augment import clip_generator

INDICES_AT_ONCE = 10_000  # of an epoch, as Python objects
_FIRST_PASS = -(1 << 62)  # of the generators of passes, which count down from here, as those of epochs do from -1


def class_balanced_weights(rows: Dataset, num_labels: int) -> torch.Tensor:
    """Weight of each clip in class-balanced sampling: the sum over its labels of 1000 / (clips with it + 0.01).

    Clips without labels, which the original does not know, are drawn as one class more.

    Args:
        rows: With a column `labels`: a class index, or a list of them.
        num_labels: Number of labels.

    Returns:
        float64 tensor of shape (clips,).

    Raises:
        ValueError: No clip has a label, so that there is nothing to balance.

    Source: the original's sampling weights for AudioSet.
    """
    counts_per_clip, labels = _flat_labels(rows)
    if len(labels) == 0:
        raise ValueError("Expected labels to balance the classes by, got clips without any.")
    clips = np.repeat(np.arange(len(counts_per_clip)), counts_per_clip)
    class_weights = _class_weights(np.bincount(labels, minlength=num_labels))
    weights = np.bincount(clips, weights=class_weights[labels], minlength=len(counts_per_clip))
    is_without = counts_per_clip == 0
    weights[is_without] = _class_weights(is_without.sum())
    return torch.from_numpy(weights)


def count_clips(rows: Dataset, num_labels: int) -> ClipCounts:
    """How many clips there are, and of each label; nothing is decoded.

    Args:
        rows: As for `class_balanced_weights`.
        num_labels: Number of labels.
    """
    counts_per_clip, labels = _flat_labels(rows)
    without = int((counts_per_clip == 0).sum())
    return ClipCounts(len(counts_per_clip), np.bincount(labels, minlength=num_labels), without)


def _flat_labels(rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """How many labels each clip has, and those of all clips in a row."""
    column = rows.with_format("arrow").select_columns("labels")[:]["labels"].combine_chunks()
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return np.asarray(column.value_lengths()), np.asarray(column.flatten())
    return np.ones(len(column), dtype=int), np.asarray(column)


def class_balanced_draws(counts: ClipCounts) -> torch.Tensor:
    """How often a clip of a stream is drawn in a pass for each of its labels, on average: as `class_balanced_weights`
    have it, and as many draws as there are clips.

    Returns:
        float64 tensor of shape (num_labels + 1,), the last of a clip without labels.

    Raises:
        ValueError: No clip has a label.
    """
    if not counts.of_labels.any():
        raise ValueError("Expected labels to balance the classes by, got clips without any.")
    of_classes = np.append(counts.of_labels, counts.without_labels)
    weights = np.where(of_classes > 0, _class_weights(of_classes), 0)
    total = weights @ of_classes
    return torch.from_numpy(weights * counts.clips / total)


def _class_weights(counts: np.ndarray) -> np.ndarray:
    return 1000 / (counts + 0.01)


def read_clip_seconds(rows: Dataset, allow_bad: bool = False, ignore_length: bool = False) -> torch.Tensor:
    """Length of each clip in seconds, by the headers of the sound files.

    Args:
        rows: With a column `audio` as `load_splits` gives it, not decoded.
        allow_bad: Whether a clip that cannot be read has a length of 0: another one will take its place.
        ignore_length: As for `load_waveform`.

    Returns:
        float64 tensor of shape (clips,).

    Raises:
        AudioError: A file cannot be read, and bad ones are not allowed.
    """

    def read(index: int) -> float:
        try:
            return Clip(rows[index]["audio"]).read_seconds(ignore_length)
        except AudioError:
            if allow_bad:
                return 0.0
            raise

    with ThreadPool(16) as pool:
        seconds = pool.imap(read, range(len(rows)), chunksize=16)
        seconds = list(tqdm(seconds, desc="Lengths of the clips", total=len(rows)))
    return torch.tensor(seconds, dtype=torch.float64)


def sort_by_length(rows: Dataset, ignore_length: bool = False) -> Dataset:
    """Rows to evaluate, the shortest first, so that little of a batch is padding.

    Raises:
        AudioError: See `read_clip_seconds`.
    """
    return rows.select(read_clip_seconds(rows, ignore_length=ignore_length).argsort(stable=True))


def group_by_length(
    order: torch.Tensor, clip_seconds: torch.Tensor, batch_size: int, generator: torch.Generator
) -> torch.Tensor:
    """The same draws, cut into batches of similar lengths that come in an order of their own.

    Windows of 50 batches, or of a quarter of the epoch where that is less, are sorted by length, so that a clip still
    meets others in every epoch. Clips of one length keep their drawn order.

    Args:
        order: Indices of clips, whole batches of them.
        clip_seconds: Length of each clip.
        batch_size: Clips in a batch.
        generator: Of the order of the batches.

    Source: Transformers' `get_length_grouped_indices`, for the windows and their size.
    """
    batches_at_once = max(1, min(50, len(order) // batch_size // 4))
    windows = order.split(batches_at_once * batch_size)
    batches = torch.cat([window[clip_seconds[window].argsort(stable=True)] for window in windows])
    batches = batches.view(-1, batch_size)
    return batches[torch.randperm(len(batches), generator=generator)].flatten()


class TrainingSampler(Sampler):
    """Pairs (position, index of the clip), an epoch at a time.

    The position counts on from epoch to epoch and seeds the clip's augmentation. An epoch is as many draws as there
    are clips, completed to whole global batches by its own first ones, so that any layout of processes and
    accumulation steps makes the same updates. With `samples_per_epoch` it is so many, completed likewise, and where
    no weights are given epochs follow one another through shuffled passes, so that each clip comes once before any
    comes twice.

    Args:
        num_clips: Number of training clips.
        global_batch_size: Clips per update, over all processes and accumulation steps.
        seed: Of the order; the same on all processes.
        weights: Of shape (num_clips,): draw with replacement, by these weights; `None` shuffles.
        drop_last: Whether the epoch is cut to whole batches instead.
        clip_seconds: Of shape (num_clips,): a global batch gets clips of similar lengths; `None` mixes lengths.
        samples_per_epoch: Draws an epoch; `None` is as many as there are clips.
        num_epochs: Epochs after which orders and positions are those of the first ones again; `None` means never.

    Source: Koutini et al., "Efficient Training of Audio Transformers with Patchout" (2022), and Huang et al., "Masked
        Autoencoders that Listen" (2022), for epochs of 100,000 and 200,000 weighted draws of AudioSet.
    """

    def __init__(
        self,
        num_clips: int,
        global_batch_size: int,
        seed: int,
        weights: torch.Tensor | None = None,
        drop_last: bool = False,
        clip_seconds: torch.Tensor | None = None,
        samples_per_epoch: int | None = None,
        num_epochs: int | None = None,
    ):
        self.num_epochs = num_epochs
        self.num_clips = num_clips
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.clip_seconds = clip_seconds
        self.cumulative_weights = None if weights is None else weights.double().cumsum(0)
        self.samples_per_epoch = samples_per_epoch
        self.epoch = 0
        draws = num_clips if samples_per_epoch is None or num_clips == 0 else samples_per_epoch
        self.length = draws // global_batch_size * global_batch_size
        if not drop_last and self.length < draws:
            self.length += global_batch_size
        if self.length == 0:
            got = f"{num_clips} training clips" if draws == num_clips else f"samples_per_epoch {draws}"
            raise RecipeError(
                f"Expected at least one batch of {global_batch_size} clips, got {got}. Use a smaller batch, or do not "
                "drop the last one."
            )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch if self.num_epochs is None else epoch % self.num_epochs

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # Positions are not negative: no clip has this generator, and runs with other seeds share no epoch.
        generator = clip_generator(self.seed, -1 - self.epoch)
        if self.cumulative_weights is not None:
            draws = torch.rand(self.length, generator=generator, dtype=torch.float64) * self.cumulative_weights[-1]
            order = torch.searchsorted(self.cumulative_weights, draws, right=True).clamp(max=self.num_clips - 1)
        elif self.samples_per_epoch is None:
            order = torch.randperm(self.num_clips, generator=generator)
            order = order.repeat(-(-self.length // self.num_clips))[: self.length]
        else:
            order = self._part_of_passes()
        if self.clip_seconds is not None:
            order = group_by_length(order, self.clip_seconds, self.global_batch_size, generator)
        first = self.epoch * self.length
        indices = chain.from_iterable(part.tolist() for part in order.split(INDICES_AT_ONCE))
        return ((first + offset, index) for offset, index in enumerate(indices))

    def _part_of_passes(self) -> torch.Tensor:
        """The epoch's part of shuffled passes over all clips that follow one another."""
        number, start = divmod(self.epoch * self.length, self.num_clips)
        passes, drawn = [], -start
        while drawn < self.length:
            # No epoch has this generator.
            generator = clip_generator(self.seed, _FIRST_PASS - number)
            passes.append(torch.randperm(self.num_clips, generator=generator))
            number, drawn = number + 1, drawn + self.num_clips
        return torch.cat(passes)[start : start + self.length]


class StreamSampler(Sampler):
    """Pairs (position, part of the stream) of a whole run: its batches are the parts' in turn.

    Where batches are dealt to the processes in turn, and those of a process to its data workers, each has one part.

    Args:
        num_draws: Clips of the run.
        batch_size: Clips that a process takes at once.
        num_parts: One for each data worker of each process.
    """

    def __init__(self, num_draws: int, batch_size: int, num_parts: int):
        self.num_draws, self.batch_size, self.num_parts = num_draws, batch_size, num_parts

    def __len__(self) -> int:
        return self.num_draws

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((position, position // self.batch_size % self.num_parts) for position in range(self.num_draws))
