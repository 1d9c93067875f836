"""Batches of held-out clips, which come again after every epoch: decoded once, as far as they fit into memory."""

from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch

MAX_BYTES = 2 * 2**30  # of all processes together: 4,000 clips of 10 s
MAX_SHARE = 0.125  # of the memory that is free


class KeptBatches(torch.utils.data.Dataset):
    """Rows as batches of what a collator makes of them, kept by the process that made them.

    A loader asks for the same indices in the same order each time, and so does each worker of it that stays.
    What no longer fits is made anew.

    Args:
        rows: Of the clips, decoded when they are asked for.
        collator: Makes a batch of tensors of some rows.
        max_bytes: That a process may keep.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], collator: Callable, max_bytes: int):
        self.rows, self.collator, self.max_bytes = rows, collator, max_bytes
        self.num_bytes, self._batches = 0, {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """A batch, as the loader's collator gets it, which has nothing left to do."""
        batch = self._batches.get(tuple(indices))
        if batch is None:
            batch = self.collator(self.rows.__getitems__(indices))
            num_bytes = sum(values.nbytes for values in batch.values())
            if self.num_bytes + num_bytes <= self.max_bytes:
                self.num_bytes += num_bytes
                self._batches[tuple(indices)] = batch
        return {name: values.clone() for name, values in batch.items()}  # a worker's go to memory that is shared


def as_it_is(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The collator of these batches."""
    return batch


def bytes_a_process(num_processes: int) -> int:
    """What each may keep of some processes that read held-out clips, as if all were on this machine."""
    return int(min(MAX_BYTES, MAX_SHARE * psutil.virtual_memory().available) / num_processes)
