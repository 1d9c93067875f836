"""What the sounds of a data set say: files, rates, channels, levels, lengths, statistics and masks."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add

import numpy as np

from modeling_ast import ASTFeatureExtractor
from modeling_ast.data.examination import ClipSummary, Finding, count_clips, name_clips
from modeling_ast.data.statistics import FbankStatistics, recipe_lines

CLIPPED_SHARE = 0.01  # of a clip's samples; of ESC-10's 400 recordings none has more, three have a tenth of it
SILENCE = 1e-4  # root mean square: -80 dB, three steps of 16 bits
OFFSET = 0.02  # of full scale; a third of FSDD's recordings have 0.008
PERCENTILE = 0.99


def check_files(clips: Sequence[ClipSummary]) -> Iterator[Finding]:
    """Clips that cannot be used at all."""
    if faults := tuple(clip.fault for clip in clips if clip.fault):
        yield Finding(
            "error",
            "files",
            f"Cannot be used: {count_clips(faults)} of {len(clips)}.",
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
    rates = ", ".join(f"{rate} Hz ({count_clips(number)})" for rate, number in sorted(counts.items()))
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
            f"{rates}. Below {sampling_rate} Hz: {count_clips(low)} of {len(clips)}, with {silent}. A model can tell "
            "the source of a clip by that.",
            f"sampling_rate: {lowest}    # for all alike; or get these clips at {sampling_rate} Hz or more",
            tuple(f"{clip.name} ({clip.sampling_rate} Hz)" for clip in low),
        )


def check_channels(clips: Sequence[ClipSummary]) -> Iterator[Finding]:
    """Several channels, and channels that cancel each other."""
    if cancelled := [clip for clip in clips if _cancels_itself(clip)]:
        yield Finding(
            "warning",
            "channels",
            f"The channels cancel each other, and the model hears their mean, so silence: {count_clips(cancelled)}.",
            "Write these files again with one channel alone.",
            name_clips(cancelled),
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
            f"At full scale or beyond for more than {CLIPPED_SHARE:.0%} of the time: {count_clips(clipped)} of "
            f"{len(clips)}.",
            "Record or convert these files again at a lower level; what is cut off does not come back by scaling.",
            tuple(f"{clip.name} ({clip.clipped:.1%})" for clip in clipped),
        )
    slightly = [clip for clip in clips if CLIPPED_SHARE / 10 < clip.clipped <= CLIPPED_SHARE]
    if slightly:
        seen = f"At full scale for at most {CLIPPED_SHARE:.0%} of the time: {count_clips(slightly)} of {len(clips)}."
        yield Finding("note", "clipping", seen, clips=name_clips(slightly))
    silent = [clip for clip in clips if clip.rms < SILENCE and not _cancels_itself(clip)]
    if silent:
        yield Finding(
            "warning",
            "silence",
            f"Silent (below {20 * math.log10(SILENCE):.0f} dB), so a label without a sound: {count_clips(silent)} of "
            f"{len(clips)}.",
            "Replace these files, or take them out of the data, unless silence is what their label means.",
            tuple(f"{clip.name} ({_decibels(clip.rms)})" for clip in silent),
        )
    shifted = [clip for clip in clips if abs(clip.offset) > OFFSET]
    if shifted:
        yield Finding(
            "note",
            "offset",
            f"A mean further than {OFFSET:.0%} of full scale from 0: {count_clips(shifted)} of {len(clips)}. Training "
            "removes it.",
            clips=tuple(f"{clip.name} ({clip.offset:+.3f})" for clip in shifted),
        )


def _decibels(rms: float) -> str:
    return f"{20 * math.log10(rms):.0f} dB" if rms > 0 else "digital silence"


def check_lengths(
    clips: Sequence[ClipSummary],
    max_length: int,
    random_crop: bool = False,
    is_padded: bool = True,
    are_stretches: bool = False,
) -> Iterator[Finding]:
    """Padding and cut against `max_length`.

    A warning where more than 5 % of the audio or of the clips are cut, or a quarter of the frames could be saved; a
    long tail of lengths, or Speech Commands' usual 98 frames in 128, are worth a note.

    Args:
        clips: Those that can be used.
        max_length: Frames of the features.
        random_crop: Whether training takes any part of a longer clip, so that all of it is heard in time.
        is_padded: Whether shorter clips are padded to `max_length`.
        are_stretches: Whether longer ones may be cut into windows.
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
            f"{lengths}. Cut by more than a tenth: {count_clips(losing)} of {len(clips)}, {where}; {cut:.1%} of all "
            "audio is cut off.",
            (f"window_seconds: {max_length / 100:g}" if are_stretches else line) if is_much else None,
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
        f"The features of {count_clips(real.clips)} for training have mean {real.mean:.3f} and deviation "
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
    freq_masks: tuple[int, int],
    time_masks: tuple[int, int],
    num_mel_bins: int,
    max_length: int,
    is_padded: bool = True,
) -> Iterator[Finding]:
    """Masks that leave too little.

    Args:
        clips: Training clips that can be used.
        freq_masks: Mel bins of one, and how many there are, of the recipe.
        time_masks: Frames of one, and how many there are.
        num_mel_bins: Of the features.
        max_length: Frames of the features.
        is_padded: Whether shorter clips are padded to `max_length`; else their time masks are shorter too.
    """
    for key, (size, number), axis, usual in (
        ("freq_mask_bins", freq_masks, num_mel_bins, num_mel_bins * 48 // 128),
        ("time_mask_frames", time_masks, max_length, max_length // 5),
    ):
        if number * size > axis / 2:
            hides_all = number * size > axis
            what = "hides all of a clip at times" if hides_all else "hides more than half of a clip at times"
            unit = key.rpartition("_")[2]
            level = "error" if hides_all else "warning"
            seen = f"{key} {_times(size, number)} of {axis} {unit} {what}."
            yield Finding(level, "masks", seen, f"{key}: {max(1, usual // number)}")
    frames, number = time_masks
    hidden = [clip for clip in clips if clip.frames <= number * (frames - 1)]
    if hidden and is_padded and number * frames <= max_length / 2:
        yield Finding(
            "warning" if len(hidden) > 0.05 * len(clips) else "note",
            "masks",
            f"time_mask_frames {_times(frames, number)} can hide all of {count_clips(hidden)} of {len(clips)} for "
            "training.",
            f"time_mask_frames: {max(1, int(np.median([clip.frames for clip in clips])) // 5 // number)}",
            tuple(f"{clip.name} ({clip.frames} frames)" for clip in hidden),
        )


def _times(size: int, number: int) -> str:
    return str(size) if number == 1 else f"{size}, {number} times,"
