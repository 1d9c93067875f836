"""Mean and standard deviation of the log-mel features of a data set: the recipe's `mean` and `std`."""

import math
from dataclasses import astuple, dataclass
from functools import partial
from operator import add
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from modeling_ast import ASTFeatureExtractor
from modeling_ast.audio import AudioError
from modeling_ast.data.clips import Clip


@dataclass(frozen=True, slots=True)
class FbankStatistics:
    """Sums over the cells of spectrograms, in float64; those of two sets of clips add up to those of both."""

    clips: int = 0
    frames: int = 0
    cells: int = 0
    total: float = 0.0
    total_of_squares: float = 0.0

    def __add__(self, other: "FbankStatistics") -> "FbankStatistics":
        return FbankStatistics(*map(add, astuple(self), astuple(other)))

    @property
    def mean(self) -> float:
        return self.total / self.cells

    @property
    def std(self) -> float:
        """Of all cells (divided by their number, not by one less)."""
        # The mean is about as large as the deviation, so that the difference costs float64 a digit at most.
        return math.sqrt(max(0.0, self.total_of_squares / self.cells - self.mean**2))


def recipe_lines(mean: float, std: float) -> str:
    """The two lines of a recipe."""
    return f"mean: {mean:.3f}\nstd: {std:.3f}"


def clip_statistics(waveform: torch.Tensor, extractor: ASTFeatureExtractor) -> FbankStatistics:
    """Sums over the real frames of a clip: at most `max_length`, without padding, masks or normalisation.

    Args:
        waveform: Tensor of shape (samples,), at the extractor's rate. Its mean is removed first, as in training.
        extractor: Of the features.

    Raises:
        ValueError: The clip is shorter than a frame, or holds NaN or infinite samples.
    """
    (waveform,) = extractor.to_waveforms([waveform - waveform.mean()])
    (spectrogram,) = extractor.fbank([waveform], extractor.max_length)
    cells = spectrogram.double()  # (frames, num_mel_bins)
    return FbankStatistics(1, len(cells), cells.numel(), cells.sum().item(), cells.square().sum().item())


def _row_statistics(row: dict[str, Any], extractor: ASTFeatureExtractor, ignore_length: bool) -> FbankStatistics:
    clip = Clip(row["audio"])
    waveform = clip.load(extractor.sampling_rate, ignore_length)
    try:
        return clip_statistics(waveform, extractor)
    except ValueError as error:
        raise AudioError(f"{clip.name or 'a clip without a path'}: {error}") from error


def pooled_statistics(
    rows: Dataset | IterableDataset,
    extractor: ASTFeatureExtractor,
    num_workers: int = 0,
    ignore_length: bool = False,
) -> FbankStatistics:
    """Sums over the real frames of all clips, each cell counting the same.

    Args:
        rows: A table or a stream with a column `audio`, not decoded.
        extractor: Of the features.
        num_workers: Processes that read and compute; the result does not depend on them.
        ignore_length: As for `load_waveform`.

    Raises:
        AudioError: A clip that cannot be read, or is too short.
    """
    to_statistics = partial(_row_statistics, extractor=extractor, ignore_length=ignore_length)
    loader = DataLoader(rows, batch_size=None, num_workers=num_workers, collate_fn=to_statistics)
    total = len(rows) if isinstance(rows, Dataset) else None
    clips = tqdm(loader, desc="Features", unit="clip", total=total)
    return sum(clips, FbankStatistics())
