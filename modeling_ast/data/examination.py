"""What is wrong with a data set, found before a long run rather than after it: clips summed up, and findings.

`Examination` listens to each clip once and sums it up. Every check, of `sound_checks` and `label_checks`, is a pure
function of these summaries, or of the labels, to findings. A finding is an error where training would stop or results
could not be trusted, a warning where results would probably suffer, and a note where a true fact does no harm.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from modeling_ast import ASTFeatureExtractor
from modeling_ast.audio import AudioError, to_waveform
from modeling_ast.data.clips import Clip
from modeling_ast.data.near_duplicates import read_spectrum
from modeling_ast.data.recipes import DataArguments
from modeling_ast.data.sources import read_folds
from modeling_ast.data.statistics import FbankStatistics, clip_statistics

LEVELS = ("note", "warning", "error")
# Whose remedies change what the mean and the deviation of the features are.
CHANGING_STATISTICS = ("files", "rates", "channels", "clipping", "silence", "duplicates", "length")
FULL_SCALE = 0.999  # decoders of lossy files end a little below or above 1


@dataclass(frozen=True)
class Finding:
    """One thing that was seen.

    Args:
        level: One of `LEVELS`.
        check: What was looked at.
        seen: What was seen, with counts.
        mend: The recipe's line or the action that mends it; `None` where nothing needs to be done.
        clips: Names of all clips concerned, each with what is particular to it.
    """

    level: str
    check: str
    seen: str
    mend: str | None = None
    clips: tuple[str, ...] = ()


@dataclass(slots=True)
class ClipSummary:
    """What the checks know of a clip. Where `fault` says why it cannot be used, nothing else is known."""

    name: str
    split: str
    labels: tuple[int, ...]
    folds: frozenset[str]
    fault: str | None = None
    sampling_rate: int = 0  # of the file, in Hz
    channels: int = 0
    peak: float = 0.0  # of all channels
    clipped: float = 0.0  # share of the samples at full scale
    rms: float = 0.0  # of the mean of the channels, as the model hears it
    offset: float = 0.0  # mean
    digest: bytes = b""  # of the samples
    frames: int = 0  # 10 ms apart, before any cut
    statistics: FbankStatistics = FbankStatistics()
    spectrum: np.ndarray | None = None  # as from `read_spectrum`


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Findings in the order in which to mend them: errors, what changes the statistics, and all else, the worst first.

    Mean and deviation are measured of the data as they are: where something before them is to be mended, they say so.
    """

    def changes(finding: Finding) -> bool:
        return finding.check in CHANGING_STATISTICS and finding.mend is not None

    ordered = sorted(findings, key=lambda f: (f.level != "error", not changes(f), -LEVELS.index(f.level)))
    if before := dict.fromkeys(finding.check for finding in ordered if changes(finding)):
        again = f" Mend {', '.join(before)} above first, then measure again: that changes these numbers."
        ordered = [replace(f, seen=f.seen + again) if f.check == "statistics" else f for f in ordered]
    return ordered


class Examination(torch.utils.data.Dataset):
    """Summaries of the clips of all splits, each computed when asked for, so that a `DataLoader` can use workers.

    Args:
        splits: Rows by the name of the split, with the columns `audio` (not decoded) and perhaps `labels`.
        extractor: Of the features.
        folds: In which folds a clip stands, by `audio_key`; empty without folds.
        max_clips: Look at so many clips alone, drawn at random; `None` means all.
        ignore_length: As for `load_waveform`.
    """

    def __init__(
        self,
        splits: Mapping[str, Dataset],
        extractor: ASTFeatureExtractor,
        folds: Mapping[str | bytes, frozenset[str]],
        max_clips: int | None = None,
        ignore_length: bool = False,
    ):
        self.splits, self.extractor, self.folds = splits, extractor, folds
        self.ignore_length = ignore_length
        self.places = [(name, index) for name, rows in splits.items() for index in range(len(rows))]
        if max_clips is not None and max_clips < len(self.places):
            drawn = torch.randperm(len(self.places), generator=torch.Generator().manual_seed(0))[:max_clips]
            self.places = [self.places[index] for index in sorted(drawn.tolist())]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> ClipSummary:
        split, number = self.places[index]
        row = self.splits[split][number]
        clip, folds = Clip(row["audio"]), self.folds.get(audio_key(row["audio"]), frozenset())
        summary = ClipSummary(clip.name or f"{split} clip {number}", split, as_tuple(row.get("labels", [])), folds)
        _listen(summary, clip, self.extractor, self.ignore_length)
        return summary


def audio_key(audio: Mapping[str, Any]) -> str | bytes:
    """What tells one sound of a column `audio` from another: its name, or a digest of its bytes."""
    clip = Clip(audio)
    return blake2b(clip.content, digest_size=16).digest() if clip.content else clip.name


def read_all_folds(data_args: DataArguments) -> dict[str | bytes, frozenset[str]]:
    """In which folds each clip stands."""
    if data_args.fold_column_name is None and not data_args.has_groups:
        return {}
    rows, names = read_folds(data_args)
    folds = {}
    for row, name in zip(rows, names):
        folds.setdefault(audio_key(row["audio"]), set()).add(name)
    return {key: frozenset(names) for key, names in folds.items()}


def as_tuple(labels: int | list[int]) -> tuple[int, ...]:
    return tuple(labels) if isinstance(labels, list) else (labels,)


def _listen(summary: ClipSummary, clip: Clip, extractor: ASTFeatureExtractor, ignore_length: bool) -> None:
    """Fill in a summary."""
    rate = extractor.sampling_rate
    try:
        samples, summary.sampling_rate = clip.read_samples(ignore_length)
    except AudioError as error:
        summary.fault = str(error)
        return
    waveform = to_waveform(samples, summary.sampling_rate, rate)  # as training reads it
    if not torch.isfinite(waveform).all():
        summary.fault = f"{summary.name}: holds NaN or infinite samples."
        return
    if len(waveform) < extractor.frame_length:
        milliseconds = 1000 * len(waveform) / rate
        summary.fault = f"{summary.name}: too short, {milliseconds:.1f} ms where one frame takes 25 ms."
        return
    summary.channels = samples.shape[1]
    magnitudes = samples.abs()
    summary.peak = magnitudes.max().item()
    summary.clipped = (magnitudes >= FULL_SCALE).float().mean().item()
    summary.digest = blake2b(samples.numpy().tobytes(), digest_size=16).digest()
    summary.offset = waveform.mean().item()
    summary.rms = (waveform - waveform.mean()).square().mean().sqrt().item()
    summary.frames = extractor.num_frames(len(waveform))
    summary.statistics = clip_statistics(waveform, extractor)
    summary.spectrum = read_spectrum(waveform, extractor)


def count_clips(clips: int | Sequence) -> str:
    number = clips if isinstance(clips, int) else len(clips)
    return f"{number} clip" if number == 1 else f"{number} clips"


def name_clips(clips: Sequence[ClipSummary]) -> tuple[str, ...]:
    return tuple(clip.name for clip in clips)
