"""Batches of held-out clips, which come again after every epoch: decoded once, where they fit into memory."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import psutil
import torch
from torch.utils.data import DataLoader

MAX_BYTES = 2**30  # of all processes together: 2,000 clips of 10 s
MAX_SHARE = 0.125  # of the memory that is free


class KeptBatches(torch.utils.data.Dataset):
    """Batches in memory, by the indices of their clips.

    Args:
        batches: As a collator makes them.
        num_clips: Of all processes.
    """

    def __init__(self, batches: dict[tuple[int, ...], dict[str, torch.Tensor]], num_clips: int):
        self.batches, self.num_clips = batches, num_clips

    def __len__(self) -> int:
        return self.num_clips

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return self.batches[tuple(indices)]


def as_it_is(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The collator of these batches."""
    return batch


def read_batches(
    rows: Sequence[dict[str, Any]],
    sampler: Iterable[list[int]],
    collator: Callable,
    num_workers: int,
    start_method: str | None,
    num_processes: int,
) -> KeptBatches | None:
    """Read all batches of this process, if they fit into its part of the memory; `None` if not.

    Args:
        rows: Decoded when they are asked for.
        sampler: Of the indices of each batch.
        collator: Makes a batch of rows.
        num_workers: Processes that read; 0 is this one.
        start_method: Of these processes.
        num_processes: That keep as many, as if all were on this machine.
    """
    max_bytes = min(MAX_BYTES, MAX_SHARE * psutil.virtual_memory().available) / num_processes
    order, kept, num_bytes = list(sampler), {}, 0
    # With a generator of its own, so that reading draws nothing from the one of the training.
    options = {"num_workers": num_workers, "generator": torch.Generator(), "multiprocessing_context": start_method}
    for indices, batch in zip(order, DataLoader(rows, batch_sampler=order, collate_fn=collator, **options)):
        num_bytes += sum(values.nbytes for values in batch.values())
        if num_bytes / (len(kept) + 1) * len(order) > max_bytes:
            return None
        kept[tuple(indices)] = batch
    return KeptBatches(kept, len(rows))
