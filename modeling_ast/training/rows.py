"""Training rows as a torch `Dataset`: in the sampler's order, another clip in place of each that cannot be decoded."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import get_worker_info

from modeling_ast.audio import AudioError

MAX_DRAWS = 1000  # of clips that cannot be decoded, one after the other: then there is hardly one that can


class TrainingRows(torch.utils.data.Dataset):
    """Decoded clips of a table: one of them by its index, batches by the pairs of `TrainingSampler`.

    In place of each that cannot be decoded, which `decode` gives without a waveform, stands another one, always the
    same.

    Args:
        rows: As from `decode`.
        prepare: What is done with a row of a batch where it is read: gets it, with its position, and all rows.
    """

    def __init__(self, rows: Dataset, prepare: Callable | None = None):
        self.rows, self.prepare = rows, prepare

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """
        Raises:
            AudioError: More clips than the limit cannot be decoded, or hardly any can.
        """
        return self._replaced(index, self.rows[index])

    def __getitems__(self, pairs: list[tuple[int, int]]) -> list[dict[str, Any]]:
        indices = [index for _, index in pairs]
        rows = map(self._replaced, indices, self.rows.__getitems__(indices))
        rows = [{**row, "position": position} for (position, _), row in zip(pairs, rows)]
        return rows if self.prepare is None else [self.prepare(row, self) for row in rows]

    def _replaced(self, index: int, row: dict[str, Any]) -> dict[str, Any]:
        if row["waveform"] is not None:
            return row
        draws = random.Random(index)
        for _ in range(MAX_DRAWS - 1):
            row = self.rows[draws.randrange(len(self.rows))]
            if row["waveform"] is not None:
                return row
        raise AudioError(f"{MAX_DRAWS} training clips in a row cannot be decoded. Is the data where it should be?")


class TrainingStream(torch.utils.data.IterableDataset):
    """Decoded rows of a stream without those that cannot be, each with a position, as `TrainingRows` gives them.

    A stream has no order that all workers share: positions, and so the augmentation, are the same again only with the
    same number of workers.
    """

    def __init__(self, rows: IterableDataset):
        self.rows = rows
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for offset, row in enumerate(row for row in self.rows if row["waveform"] is not None):
            yield {**row, "position": (self.epoch << 40) + offset * count + number}
