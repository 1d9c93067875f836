"""Windows of recordings: cut from pieces that arrive, shared among processes, and put together to batches."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info


@dataclass
class Window:
    """A stretch of a recording for the model, and from where on its scores cover the recording.

    Windows overlap; each covers its middle, up to where the next one takes over, so that together they cover every
    sample once.
    """

    waveform: torch.Tensor  # (samples,)
    start: int  # samples from the start of the recording; the first window covers its beginning too
    stop: int  # where the next window takes over; the last one covers all up to the end
    is_whole_recording: bool = False


class WindowCutter:
    """Windows of a recording that arrives in pieces of any length; the same windows however it is cut into pieces.

    Windows start every `length - left - right` samples. Once one reaches the end of the recording there is no further
    one; the last may be shorter. A last one that is shorter than `min_length` is left out, and the one before it
    covers all up to the end.

    Args:
        length: Of a window, in samples.
        left: How much of a window, at its start, another one covers, in samples.
        right: The same at its end.
        min_length: Of a last window.
    """

    def __init__(self, length: int, left: int, right: int, min_length: int):
        self.length, self.left, self.hop, self.min_length = length, left, length - left - right, min_length
        self.kept = torch.zeros(0)  # from the start of the next window on
        self.position = 0  # of the next window
        self.num_samples = 0  # of the recording so far

    def push(self, waveform: torch.Tensor) -> list[Window]:
        """The windows that a piece completes.

        Args:
            waveform: Of shape (samples,).
        """
        self.num_samples += len(waveform)
        self.kept = torch.cat((self.kept, waveform))
        windows, first = [], 0
        # A window that only just reaches what has arrived waits for nothing: it is whole.
        while len(self.kept) - first >= self.length:
            windows.append(self._window(self.kept[first : first + self.length]))
            first += self.hop
        if first:  # a hop that is longer than a window would skip sound, and cannot be
            self.kept = self.kept[first:].clone()
        return windows

    def finish(self) -> list[Window]:
        """The last window, if there is one more when nothing more arrives."""
        # What is kept begins where the next window would; up to `length - hop` of it was in the last one.
        is_new = len(self.kept) > (self.length - self.hop if self.position else 0)
        if not is_new or (self.position and len(self.kept) < self.min_length):
            return []
        window = self._window(self.kept)
        window.stop, window.is_whole_recording = self.num_samples, window.start == 0
        return [window]

    def cut(self, pieces: Iterable[torch.Tensor]) -> Iterator[Window]:
        """The windows of a whole recording.

        Args:
            pieces: Each (samples,), one behind the other.
        """
        for piece in pieces:
            yield from self.push(piece)
        yield from self.finish()

    def _window(self, waveform: torch.Tensor) -> Window:
        start = self.position + self.left if self.position else 0
        self.position += self.hop
        return Window(waveform, start, self.position + self.left)


class WindowDataset(IterableDataset):
    """(index of the recording, window) of many recordings, which worker processes share among them.

    Args:
        inputs: The recordings.
        preprocess: A recording, and `params` as keywords, to its windows.
        params: For `preprocess`.
    """

    def __init__(self, inputs: Iterable, preprocess: Callable, params: dict):
        self.inputs, self.preprocess, self.params = inputs, preprocess, params

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if is_indexed(self.inputs):
            sources = ((index, self.inputs[index]) for index in range(number, len(self.inputs), count))
        else:
            sources = enumerate(self.inputs)
        for index, source in sources:
            for item in self.preprocess(source, **self.params):
                yield index, item


def is_indexed(inputs: Iterable) -> bool:
    """Whether each recording can be asked for by its number, so that processes need not run through all of them."""
    return hasattr(inputs, "__len__") and not isinstance(inputs, IterableDataset)


def collate_windows(items: list[tuple[int, dict[str, Any]]]) -> tuple[list[tuple[int, dict]], dict[str, torch.Tensor]]:
    """What belongs to each window, and the features of those that have some as one batch, padded to the longest."""
    features = [
        (item.pop("input_values")[0], item.pop("attention_mask")[0]) for _, item in items if "error" not in item
    ]
    batch = {}
    if features:
        pad = torch.nn.utils.rnn.pad_sequence  # with zeros, which the mask hides
        values, masks = zip(*features)
        batch = {"input_values": pad(values, batch_first=True), "attention_mask": pad(masks, batch_first=True)}
    return items, batch
