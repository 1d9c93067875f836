"""What is wrong with a data set, found before a long run rather than after it.

`Examination` listens to each clip once and sums it up; every check is a pure function of these summaries, or of
the labels, to findings. A finding is an error where training would stop or results could not be trusted, a
warning where results would probably suffer, and a note where a true fact does no harm.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from hashlib import blake2b
from operator import add
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from modeling_ast import ASTFeatureExtractor
from modeling_ast.audio import AudioError, read_samples, to_waveform
from modeling_ast.data.statistics import FbankStatistics, clip_statistics, recipe_lines

LEVELS = ("note", "warning", "error")
# Whose remedies change what the mean and the deviation of the features are.
CHANGING_STATISTICS = ("files", "rates", "channels", "clipping", "silence", "duplicates", "length")

FULL_SCALE = 0.999  # decoders of lossy files end a little below or above 1
CLIPPED_SHARE = 0.01  # of a clip's samples; of ESC-10's 400 recordings none has more, three have a tenth of it
SILENCE = 1e-4  # root mean square: -80 dB, three steps of 16 bits
OFFSET = 0.02  # of full scale; a third of FSDD's recordings have 0.008
MAX_DRAWS = 50  # of one clip, an epoch; the rarest of AudioSet's are drawn about 30 times
MAX_IMBALANCE = 10  # clips of the largest class for one of the smallest
PERCENTILE = 0.99
MIN_GROUP = 5  # clips a group, and a label, on average: smaller ones coincide by chance
COINCIDENCE = 0.9  # share of a label's clips in one group, and of the group's in the label


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
        splits: Rows by the name of the split, with the columns `audio` (not decoded) and `labels`.
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
        audio, folds = row["audio"], self.folds.get(audio_key(row["audio"]), frozenset())
        summary = ClipSummary(audio["path"] or f"{split} clip {number}", split, _as_labels(row["labels"]), folds)
        _listen(summary, audio["bytes"] or audio["path"], self.extractor, self.ignore_length)
        return summary


def audio_key(audio: Mapping[str, Any]) -> str | bytes:
    """What tells one sound of a column `audio` from another: its path, or a digest of its bytes."""
    return blake2b(audio["bytes"], digest_size=16).digest() if audio["bytes"] else audio["path"]


def _as_labels(labels: int | list[int]) -> tuple[int, ...]:
    return tuple(labels) if isinstance(labels, list) else (labels,)


def _listen(summary: ClipSummary, source: str | bytes, extractor: ASTFeatureExtractor, ignore_length: bool) -> None:
    """Fill in a summary."""
    rate = extractor.sampling_rate
    try:
        samples, summary.sampling_rate = read_samples(source, summary.name, ignore_length)
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


# The files


def check_files(clips: Sequence[ClipSummary]) -> Iterator[Finding]:
    """Clips that cannot be used at all."""
    if faults := tuple(clip.fault for clip in clips if clip.fault):
        yield Finding(
            "error",
            "files",
            f"Cannot be used: {_clips(faults)} of {len(clips)}.",
            "Replace these files, or take them out of the data; training would stop at the first of them.",
            faults,
        )


def check_rates(clips: Sequence[ClipSummary], sampling_rate: int) -> Iterator[Finding]:
    """Sampling rates other than the model's.

    Args:
        clips: Those that can be used.
        sampling_rate: Of the feature extractor, in Hz.
    """
    counts = Counter(clip.sampling_rate for clip in clips)
    low = [clip for clip in clips if clip.sampling_rate < sampling_rate]
    rates = ", ".join(f"{rate} Hz ({_clips(number)})" for rate, number in sorted(counts.items()))
    if not low:
        if set(counts) - {sampling_rate}:
            yield Finding("note", "rates", f"{rates}: resampled to {sampling_rate} Hz whenever a clip is read.")
        return
    lowest = min(counts)
    silent = f"nothing above {lowest // 2} Hz, where the features go on to {sampling_rate // 2} Hz"
    if len(low) == len(clips):
        yield Finding(
            "note",
            "rates",
            f"{rates}: the sound holds {silent}. All clips alike, so that it tells nothing about a clip; the upper "
            "mel bins stay empty.",
            f"sampling_rate: {lowest}    # if the weights are random; pretrained ones expect their own rate",
        )
    else:
        yield Finding(
            "warning",
            "rates",
            f"{rates}. Below {sampling_rate} Hz: {_clips(low)} of {len(clips)}, with {silent}. A model can tell the "
            "source of a clip by that.",
            f"sampling_rate: {lowest}    # for all alike; or get these clips at {sampling_rate} Hz or more",
            tuple(f"{clip.name} ({clip.sampling_rate} Hz)" for clip in low),
        )


def check_channels(clips: Sequence[ClipSummary]) -> Iterator[Finding]:
    """Several channels, and channels that cancel each other."""
    if cancelled := [clip for clip in clips if _cancels_itself(clip)]:
        yield Finding(
            "warning",
            "channels",
            f"The channels cancel each other, and the model hears their mean, so silence: {_clips(cancelled)}.",
            "Write these files again with one channel alone.",
            _names(cancelled),
        )
    counts = Counter(clip.channels for clip in clips)
    if set(counts) - {1}:
        channels = ", ".join(f"{number} with {count} channel(s)" for count, number in sorted(counts.items()))
        yield Finding("note", "channels", f"Clips: {channels}. The model hears the mean of the channels.")


def _cancels_itself(clip: ClipSummary) -> bool:
    return clip.channels > 1 and clip.rms < SILENCE and clip.peak > 10 * SILENCE


def check_levels(clips: Sequence[ClipSummary]) -> Iterator[Finding]:
    """Clipping, silence and offset."""
    clipped = [clip for clip in clips if clip.clipped > CLIPPED_SHARE]
    if clipped:
        yield Finding(
            "warning",
            "clipping",
            f"At full scale or beyond for more than {CLIPPED_SHARE:.0%} of the time: {_clips(clipped)} of "
            f"{len(clips)}.",
            "Record or convert these files again at a lower level; what is cut off does not come back by scaling.",
            tuple(f"{clip.name} ({clip.clipped:.1%})" for clip in clipped),
        )
    slightly = [clip for clip in clips if CLIPPED_SHARE / 10 < clip.clipped <= CLIPPED_SHARE]
    if slightly:
        seen = f"At full scale for at most {CLIPPED_SHARE:.0%} of the time: {_clips(slightly)} of {len(clips)}."
        yield Finding("note", "clipping", seen, clips=_names(slightly))
    silent = [clip for clip in clips if clip.rms < SILENCE and not _cancels_itself(clip)]
    if silent:
        yield Finding(
            "warning",
            "silence",
            f"Silent (below {20 * math.log10(SILENCE):.0f} dB), so a label without a sound: {_clips(silent)} of "
            f"{len(clips)}.",
            "Replace these files, or take them out of the data, unless silence is what their label means.",
            tuple(f"{clip.name} ({_decibels(clip.rms)})" for clip in silent),
        )
    shifted = [clip for clip in clips if abs(clip.offset) > OFFSET]
    if shifted:
        yield Finding(
            "note",
            "offset",
            f"A mean further than {OFFSET:.0%} of full scale from 0: {_clips(shifted)} of {len(clips)}. Training "
            "removes it.",
            clips=tuple(f"{clip.name} ({clip.offset:+.3f})" for clip in shifted),
        )


# Length, statistics and masks


def check_lengths(
    clips: Sequence[ClipSummary], max_length: int, random_crop: bool = False, is_padded: bool = True
) -> Iterator[Finding]:
    """Padding and cut against `max_length`.

    A warning where more than 5 % of the audio or of the clips are cut, or a quarter of the frames could be saved; a
    long tail of lengths, or Speech Commands' usual 98 frames in 128, are worth a note.

    Args:
        clips: Those that can be used.
        max_length: Frames of the features.
        random_crop: Whether training takes any part of a longer clip, so that all of it is heard in time.
        is_padded: Whether shorter clips are padded to `max_length`.
    """
    if not clips:
        return
    frames = np.array([clip.frames for clip in clips])
    enough = max(16, math.ceil(np.quantile(frames, PERCENTILE)))  # a patch has 16 frames
    padding = np.maximum(0, max_length - frames).sum() / (max_length * len(frames))
    cut = np.maximum(0, frames - max_length).sum() / frames.sum()
    lengths = f"Clips of {frames.min()} to {frames.max()} frames (99 % at most {enough}), max_length {max_length}"
    line = f"max_length: {enough}"
    losing = [clip for clip in clips if clip.frames > 1.1 * max_length]
    if losing:
        is_much = (cut > 0.05 or len(losing) > 0.05 * len(clips)) and not random_crop
        where = "of which one part is heard at a time" if random_crop else "whose end is never heard"
        yield Finding(
            "warning" if is_much else "note",
            "length",
            f"{lengths}. Cut by more than a tenth: {_clips(losing)} of {len(clips)}, {where}; {cut:.1%} of all "
            "audio is cut off.",
            line if is_much else None,
            tuple(f"{clip.name} ({clip.frames} frames)" for clip in losing),
        )
    if not is_padded:
        return
    spare = 1 - enough / max_length
    if spare > 0.1:
        yield Finding(
            "warning" if spare > 0.25 else "note",
            "length",
            f"{lengths}: {padding:.0%} of the features are padding; {spare:.0%} fewer frames would do.",
            line,
        )
    elif padding > 0.25:
        yield Finding("note", "length", f"{lengths}: {padding:.0%} of the features are padding.")


def check_statistics(clips: Sequence[ClipSummary], extractor: ASTFeatureExtractor) -> Iterator[Finding]:
    """The recipe's mean and std against those of the training clips.

    A note from a tenth of a deviation on, a warning from a quarter. AudioSet's defaults are 0.5 deviations off on
    ESC-10; the published ones of ESC-50, which count padding and masks, less than 0.1.

    Args:
        clips: Training clips that can be used.
        extractor: With the recipe's statistics.
    """
    real = reduce(add, (clip.statistics for clip in clips), FbankStatistics())
    if not real.cells or not real.std or not extractor.do_normalize:  # nothing heard, or silence alone
        return
    padded_cells = extractor.max_length * extractor.num_mel_bins * real.clips
    fill, num_fill = extractor.padding_value, padded_cells - real.cells
    padded = FbankStatistics(
        real.clips,
        extractor.max_length * real.clips,
        padded_cells,
        real.total + num_fill * fill,
        real.total_of_squares + num_fill * fill**2,
    )
    size = _mismatch(real, extractor)
    if size <= 1:
        return
    seen = (
        f"The features of {_clips(real.clips)} for training have mean {real.mean:.3f} and deviation "
        f"{real.std:.3f}, the run would take {extractor.mean:.3f} and {extractor.std:.3f}"
    )
    lines = recipe_lines(real.mean, real.std)
    if _mismatch(padded, extractor) <= 1:
        yield Finding("note", "statistics", f"{seen}: it counts the padding too, as the original does.", lines)
    else:
        yield Finding("warning" if size > 2.5 else "note", "statistics", f"{seen}.", lines)


def _mismatch(measured: FbankStatistics, extractor: ASTFeatureExtractor) -> float:
    """How far statistics are from the extractor's: 1 for a tenth of a deviation, or for a deviation 10 % off."""
    return 10 * max(abs(measured.mean - extractor.mean) / extractor.std, abs(math.log(measured.std / extractor.std)))


def check_masks(
    clips: Sequence[ClipSummary],
    freq_mask_bins: int,
    time_mask_frames: int,
    num_mel_bins: int,
    max_length: int,
    is_padded: bool = True,
) -> Iterator[Finding]:
    """Masks that leave too little.

    Args:
        clips: Training clips that can be used.
        freq_mask_bins: Of the recipe.
        time_mask_frames: Of the recipe.
        num_mel_bins: Of the features.
        max_length: Frames of the features.
        is_padded: Whether shorter clips are padded to `max_length`; else their time masks are shorter too.
    """
    for key, size, axis, usual in (
        ("freq_mask_bins", freq_mask_bins, num_mel_bins, num_mel_bins * 48 // 128),
        ("time_mask_frames", time_mask_frames, max_length, max_length // 5),
    ):
        if size > axis / 2:
            what = "hides all of a clip at times" if size > axis else "hides more than half of a clip at times"
            unit = key.rpartition("_")[2]
            level = "error" if size > axis else "warning"
            yield Finding(level, "masks", f"{key} {size} of {axis} {unit} {what}.", f"{key}: {usual}")
    hidden = [clip for clip in clips if clip.frames < time_mask_frames <= max_length / 2]  # at most one frame less
    if hidden and is_padded:
        yield Finding(
            "warning" if len(hidden) > 0.05 * len(clips) else "note",
            "masks",
            f"time_mask_frames {time_mask_frames} can hide all of {_clips(hidden)} of {len(clips)} for training.",
            f"time_mask_frames: {max(1, int(np.median([clip.frames for clip in clips])) // 5)}",
            tuple(f"{clip.name} ({clip.frames} frames)" for clip in hidden),
        )


# What stands where


def check_duplicates(clips: Sequence[ClipSummary], label_names: Sequence[str]) -> Iterator[Finding]:
    """The same samples in two splits or folds, or under two labels. Silent clips do not count.

    Args:
        clips: Those that can be used.
        label_names: Of the data.
    """
    groups = {}
    for clip in clips:
        if clip.rms >= SILENCE:
            groups.setdefault(clip.digest, []).append(clip)
    groups = [group for group in groups.values() if len(group) > 1]
    if in_two_folds := [group for group in groups if _spans_folds(group)]:
        yield Finding(
            "error",
            "duplicates",
            f"{_sounds(in_two_folds)} in two folds: what one fold holds out is trained on.",
            "Put all clips of one recording into one fold.",
            _listed(in_two_folds, lambda clip: f"fold {', '.join(sorted(clip.folds)) or 'none'}"),
        )
    if in_two_splits := [group for group in groups if _spans_splits(group) and not _spans_folds(group)]:
        yield Finding(
            "error",
            "duplicates",
            f"{_sounds(in_two_splits)} in two splits: what is held out is trained on, or chosen on.",
            "Take all but one of each out of the data.",
            _listed(in_two_splits, lambda clip: clip.split),
        )
    if contradicting := [group for group in groups if _contradicts_itself(group)]:
        yield Finding(
            "warning",
            "duplicates",
            f"{_sounds(contradicting)} there more than once, with different labels.",
            "Keep the row with the right label or, if all are right, one row with all of them "
            "(problem_type: multi_label_classification).",
            _listed(contradicting, lambda clip: _some([label_names[label] for label in clip.labels])),
        )
    if rest := [g for g in groups if not (_spans_folds(g) or _spans_splits(g) or _contradicts_itself(g))]:
        seen = f"{_sounds(rest)} more than once in one split, with the same labels."
        yield Finding("note", "duplicates", seen, clips=_listed(rest, lambda clip: clip.split))


def _spans_folds(group: Sequence[ClipSummary]) -> bool:
    return len(frozenset().union(*(clip.folds for clip in group))) > 1


def _spans_splits(group: Sequence[ClipSummary]) -> bool:
    return len({clip.split for clip in group}) > 1


def _contradicts_itself(group: Sequence[ClipSummary]) -> bool:
    return len({frozenset(clip.labels) for clip in group}) > 1


def check_groups(clips: Sequence[ClipSummary], label_names: Sequence[str]) -> Iterator[Finding]:
    """Groups that folds, folders or parts of the file names suggest, where each label has one of its own.

    Such as a voice a language: a model can learn the group in place of the label. What is only another way to write
    the label is no group, nor are numbers of up to three digits in names, which number labels or clips.

    Args:
        clips: Training clips.
        label_names: Of the data.
    """
    clips = [clip for clip in clips if len(clip.labels) == 1]
    labels = [label_names[clip.labels[0]] for clip in clips]
    sizes, found = Counter(labels), []
    for what, groups in _groupings(clips):
        pairs, group_sizes = Counter(zip(labels, groups)), Counter(groups)
        if len(clips) < MIN_GROUP * max(len(sizes), len(group_sizes)):
            continue
        together = {
            label: group
            for (label, group), count in pairs.items()
            if count >= COINCIDENCE * max(sizes[label], group_sizes[group])
        }
        written_alike = sum(_is_written_alike(group, label) for label, group in together.items())
        if len(together) < max(2, len(sizes) / 2) or 2 * written_alike >= len(together) or together in found:
            continue
        found.append(together)
        yield Finding(
            "warning",
            "groups",
            f"{what} tell {len(together)} of {len(sizes)} labels in training: "
            f"{_some([f'{group} for {label}' for label, group in sorted(together.items())])}. If these are voices, "
            "places or devices, a model can learn them in place of the labels, and held-out clips of the same ones "
            "do not show it.",
            "Get clips of each label from several of them, and hold out whole ones: a column of them is a "
            "fold_column_name, one of them an eval_fold.",
        )


def _groupings(clips: Sequence[ClipSummary]) -> Iterator[tuple[str, list[str]]]:
    """What says to which group a clip may belong, and the group of each."""
    if clips and all(len(clip.folds) == 1 for clip in clips):
        yield "The folds", [next(iter(clip.folds)) for clip in clips]
    paths = [PurePath(clip.name) for clip in clips]
    depth = min((len(path.parts) for path in paths), default=1)
    for above in range(1, min(depth, 4)):  # the folder, the one that it is in, and that one's
        yield "The folders", [path.parts[-1 - above] for path in paths]
    parts = [[part for part in re.split(r"[\W_]+", path.stem) if part] for path in paths]
    same_number = len(set(map(len, parts))) == 1
    for place in range(len(parts[0]) if same_number else min(map(len, parts), default=0) and 1):
        groups = [each[place] for each in parts]
        if all(re.fullmatch(r"\d{1,3}|.", group) for group in groups):
            continue
        yield f"The file names, in part {place + 1}," if place else "The first parts of the file names", groups
    heads = [re.match(r"[^\W\d_]{2,}", path.stem) for path in paths]
    if heads and all(heads):
        yield "The letters that file names begin with", [head[0] for head in heads]


def _is_written_alike(group: str, label: str) -> bool:
    """Whether one is the other, a part of it, or its letters in short, as `hh` of hihat."""
    group, label = _plain(group), _plain(label)
    if group == label or (min(len(group), len(label)) > 1 and (group in label or label in group)):
        return True
    letters = iter(label)
    return group[:1] == label[:1] and all(letter in letters for letter in group)


# Labels


def check_spelling(label_names: Sequence[str]) -> Iterator[Finding]:
    """Labels that differ by blanks or case alone."""
    alike = {}
    for name in label_names:
        alike.setdefault("".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    if alike := [names for names in alike.values() if len(names) > 1]:
        each = _some([" and ".join(map(repr, names)) for names in alike])
        yield Finding(
            "warning",
            "labels",
            f"Several labels differ by blanks or case alone: {each}.",
            "Write them alike in the data, if they mean the same.",
        )


def read_labels(rows: Dataset) -> list[tuple[int, ...]]:
    """The labels of each clip, without its sound."""
    return [_as_labels(labels) for labels in list(rows.select_columns("labels")["labels"])]


def check_label_counts(
    labels: Mapping[str, Sequence[tuple[int, ...]]], label_names: Sequence[str], is_balanced: bool
) -> Iterator[Finding]:
    """Classes without clips, and classes of very different size.

    Args:
        labels: Of each clip, by split (`train`, `validation`, maybe `test`).
        label_names: Of the data.
        is_balanced: Whether training draws rare classes more often.
    """
    counts = {split: Counter(label for clip in clips for label in clip) for split, clips in labels.items()}
    for split in labels:
        missing = [name for index, name in enumerate(label_names) if not counts[split][index]]
        if not missing:
            continue
        seen = f"{len(missing)} of {len(label_names)} labels have no clip in {split}: {_some(missing)}."
        if split == "train":
            mend = "Get clips of them, or take them out of the label table: the model cannot learn them."
        else:
            mend = f"Move clips of them to {split}: what is measured there says nothing about them."
        yield Finding("warning", "labels", seen, mend)
    sizes = counts["train"].most_common()
    if sizes and not is_balanced and sizes[0][1] >= MAX_IMBALANCE * sizes[-1][1]:
        (largest, most), (smallest, fewest) = sizes[0], sizes[-1]
        yield Finding(
            "warning",
            "labels",
            f"{label_names[largest]} has {_clips(most)} for training and {label_names[smallest]} {fewest}: "
            f"{most / fewest:.0f} times as many.",
            "class_balanced_sampling: true",
        )
    if unlabelled := sum(not clip for clips in labels.values() for clip in clips):
        yield Finding("note", "labels", f"Without any label: {_clips(unlabelled)}.")


def check_label_names(
    label_names: Sequence[str], model_label_names: Sequence[str] | None, model: str, is_training: bool = True
) -> Iterator[Finding]:
    """The labels of the data and their order against those of the model that the run starts from.

    Args:
        label_names: Of the data, in its order.
        model_label_names: Of the model, in the order of its outputs; empty where its weights do not name them,
            `None` where they have no head to keep.
        model: Its name.
        is_training: Whether a fresh head would be trained.
    """
    if model_label_names is None or list(label_names) == list(model_label_names):
        return
    ours, theirs = set(label_names), set(model_label_names)
    if ours == theirs:
        first = next(i for i, (own, other) in enumerate(zip(label_names, model_label_names)) if own != other)
        yield Finding(
            "note",
            "label order",
            f"{model} has the same {len(theirs)} labels in another order: output {first} is "
            f"{model_label_names[first]!r} there and {label_names[first]!r} here. The head is kept, its outputs "
            "change places.",
        )
        return
    fate = "Its head is dropped and a fresh one trained" if is_training else "It cannot be evaluated here"
    level = "warning" if is_training else "error"
    if not theirs:
        yield Finding(
            "note" if is_training else level,
            "label names",
            f"{model} has no label names. {fate}.",
            f"modeling-ast convert {model} FOLDER --labels CSV    # keeps a head of the same labels",
        )
        return
    if all(re.fullmatch(r"LABEL_\d+", name) for name in theirs):
        same_number = len(theirs) == len(label_names)
        yield Finding(
            level if same_number or not is_training else "note",
            "label names",
            f"{model} has {len(theirs)} outputs without names, the data {len(label_names)} labels. {fate}.",
            "Write the names into the model's id2label (config.json) if its outputs mean these labels."
            if same_number
            else None,
        )
        return
    alike = {_plain(name) for name in ours} & {_plain(name) for name in theirs}
    seen = (
        f"{model} has other labels: {len(ours & theirs)} of the data's {len(ours)} are among its {len(theirs)}; "
        f"missing there: {_some(sorted(ours - theirs))}; missing here: {_some(sorted(theirs - ours))}. {fate}."
    )
    is_meant = len(alike) < len(ours) / 2 and is_training  # another task, as in most fine-tuning
    yield Finding(
        "note" if is_meant else level,
        "label names",
        seen,
        None
        if is_meant
        else "Spell the labels as the model does (label_file: PATH), if they are meant to be the same.",
    )


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def check_sampling_weights(
    weights: torch.Tensor, rows: Dataset, labels: Sequence[tuple[int, ...]], label_names: Sequence[str]
) -> Iterator[Finding]:
    """Class-balanced sampling that draws a few clips or one class all the time.

    Args:
        weights: Of each training clip, as it is drawn by, of shape (clips,).
        rows: The training clips.
        labels: Theirs.
        label_names: Of the data.
    """
    draws = weights * len(weights) / weights.sum()  # expected in an epoch
    often = (draws > MAX_DRAWS).nonzero().flatten().tolist()
    if often:
        first = max(often, key=lambda index: draws[index])
        names = [_name(rows, index) for index in often]
        yield Finding(
            "warning",
            "sampling",
            f"Drawn more than {MAX_DRAWS} times an epoch: {_clips(often)}. {_name(rows, first)} "
            f"({', '.join(label_names[label] for label in labels[first])}) about {draws[first]:.0f} times; "
            f"its weight is {weights[first] / weights.median():.0f} times the median.",
            "class_balanced_sampling: false    # or get more clips of these labels",
            tuple(f"{name} (about {draws[index]:.0f} times)" for index, name in zip(often, names)),
        )
    shares = torch.zeros(len(label_names), dtype=torch.float64)
    for clip, weight in zip(labels, weights.tolist()):
        for label in set(clip):
            shares[label] += weight
    shares /= weights.sum()
    label = int(shares.argmax())
    if shares[label] > 0.5 and len(label_names) > 3:
        yield Finding(
            "warning",
            "sampling",
            f"{label_names[label]} is among the labels of {shares[label]:.0%} of the draws, balanced as they "
            "are: it goes along with rare labels.",
            f"Get clips of the rare labels without {label_names[label]}, or leave this label out.",
        )
    if never := (weights == 0).nonzero().flatten().tolist():
        yield Finding(
            "warning",
            "sampling",
            f"Without a label, and so never drawn: {_clips(never)}.",
            "class_balanced_sampling: false    # if they are to be learnt from",
            tuple(_name(rows, index) for index in never),
        )


def _name(rows: Dataset, index: int) -> str:
    return rows[index]["audio"]["path"] or f"train clip {index}"


# Words


def _clips(clips: int | Sequence) -> str:
    number = clips if isinstance(clips, int) else len(clips)
    return f"{number} clip" if number == 1 else f"{number} clips"


def _sounds(groups: Sequence) -> str:
    return "1 sound stands" if len(groups) == 1 else f"{len(groups)} sounds stand"


def _names(clips: Sequence[ClipSummary]) -> tuple[str, ...]:
    return tuple(clip.name for clip in clips)


def _listed(groups: Sequence[Sequence[ClipSummary]], what) -> tuple[str, ...]:
    """Each group of equal clips in one line."""
    return tuple(" = ".join(f"{clip.name} ({what(clip)})" for clip in group) for group in groups)


def _some(names: Sequence[str]) -> str:
    if not names:
        return "none"
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _decibels(rms: float) -> str:
    return f"{20 * math.log10(rms):.0f} dB" if rms > 0 else "digital silence"
