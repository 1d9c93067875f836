"""Pictures of what a model is given, and of what it makes of it."""

import math
import os
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.ticker import FuncFormatter, MultipleLocator

from modeling_ast import ASTFeatureExtractor
from modeling_ast.inference.explanations import Attention, Occlusion, Spectrogram
from modeling_ast.inference.figures import MAX_NAME, MAX_TITLE, new_figure, save_figure
from modeling_ast.inference.lettering import cut, drawable
from modeling_ast.inference.timeline import Event, Timeline

# Labels in the picture of a timeline, and columns, which are about as many as its pixels.
MAX_TIMELINES, MAX_COLUMNS = 10, 1200
# Where the frequency axis beside mel bins has marks.
KILOHERTZ_TICKS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16)
FOR_COLOUR, AGAINST_COLOUR, ATTENTION_COLOUR = "#d7191c", "#1f78d1", "#ff8c00"


def plot_tags(
    waveform: torch.Tensor,
    extractor: ASTFeatureExtractor,
    tags: list[dict],
    path: str | os.PathLike,
    title: str = "",
    labels: Sequence[str] = (),
    label_names: Sequence[str] = (),
) -> None:
    """Draw the log-mel spectrogram of a clip beside its predicted labels, into a picture file.

    Args:
        waveform: float32 tensor of shape (samples,) at the extractor's rate.
        extractor: Of the features to show: the frames that the model sees, without padding.
        tags: What the audio-classification pipeline gives: `[{"label": ..., "score": ...}, ...]`.
        path: Of the picture; the suffix chooses the format.
        title: Above all.
        labels: That the clip has, to stand below the title; the bars of the right ones have another colour.
        label_names: Of the model, in its order: a name that no font has is drawn as its number among them.

    Raises:
        ValueError: As from the extractor's `to_waveforms`.
    """
    (spectrogram,) = extractor.fbank(extractor.to_waveforms(waveform), extractor.max_length)  # (frames, mel bins)
    figure = new_figure(9, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(3, 1.4))
    extent = (0, extractor.seconds(len(spectrogram)), 0, extractor.num_mel_bins)
    _draw_log_mel(left, spectrogram, extent, extractor.mel_frequencies())
    left.set(xlabel="time (s)")
    title = drawable(title, MAX_TITLE)
    if labels:
        title += f"\nlabel: {cut(', '.join(_names(labels, label_names)), MAX_TITLE)}"
    figure.suptitle(title, fontsize=10)
    names = [cut(name, 24) for name in _names([tag["label"] for tag in tags], label_names)]
    colours = ["#4f81bd" if tag["label"] in labels else "#c0504d" for tag in tags]
    right.barh(range(len(tags)), [tag["score"] for tag in tags], color=colours)
    words = "predicted (blue: right)" if labels else "predicted"
    right.set(xlim=(0, 1), xlabel="score")
    right.set_yticks(range(len(tags)), names)
    right.set_title(words, fontsize=10)
    right.invert_yaxis()
    for side in ("top", "right"):
        right.spines[side].set_visible(False)
    save_figure(figure, path)


def plot_timeline(
    waveform: Iterable[torch.Tensor],
    extractor: ASTFeatureExtractor,
    timeline: Timeline,
    events: Sequence[Event],
    path: str | os.PathLike,
    title: str = "",
    truth: Sequence[Event] | None = None,
) -> None:
    """Draw the log-mel spectrogram of a recording over the scores and events in it, into a picture file.

    Shown are up to 10 labels: those with events first, then those with the highest scores. Of a long recording each
    column is the mean energy, or the highest score, of the time that it stands for.

    Args:
        waveform: Of the recording, as `read_recording` gives it: pieces of shape (samples,) at the extractor's rate.
            `[waveform]` for one that is at hand.
        extractor: Of the features to show.
        timeline: Of the recording.
        events: Of the recording, as bars over the scores.
        path: Of the picture; the suffix chooses the format.
        title: Above all.
        truth: What is annotated, as bars above those of the events; `None` where nobody has annotated anything.
    """
    peaks = dict(zip(timeline.label_names, timeline.scores.max(axis=0)))
    with_events = {event.label for event in (*events, *(truth or ()))}
    shown = sorted(peaks, key=lambda label: (label not in with_events, -peaks[label]))[:MAX_TIMELINES]
    log_mel = _pool_spectrogram(waveform, extractor, int(timeline.boundaries[-1]))
    scores, times = _pool_scores(timeline.scores[:, [timeline.label_names.index(label) for label in shown]], timeline)

    figure = new_figure(12, 4.2 + 0.3 * len(shown))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 0.3 * len(shown) + 0.2))
    _draw_log_mel(above, log_mel, (0, timeline.seconds, 0, extractor.num_mel_bins), extractor.mel_frequencies())
    above.set_title(drawable(title, MAX_TITLE))
    is_share = scores.min() >= 0 and scores.max() <= 1
    limits = {"vmin": 0, "vmax": 1} if is_share else {}
    image = below.pcolormesh(times, np.arange(len(shown) + 1) - 0.5, scores.T, cmap="Blues", **limits)
    figure.colorbar(image, ax=below, label="score", pad=0.01)
    for row, label in enumerate(shown):
        for some, height, colour in ((truth or (), -0.08, "#4b8b3b"), (events, 0.2, "#c0504d")):
            spans = [(event.start, event.end - event.start) for event in some if event.label == label]
            below.broken_barh(spans, (row + height, 0.22), color=colour, linewidth=0.5)
    below.set_yticks(range(len(shown)), _names(shown, timeline.label_names))
    below.set(xlim=(0, timeline.seconds), ylim=(len(shown) - 0.5, -0.5))
    annotations = "" if truth is None else ", annotations (green)"
    below.set_title(f"scores (blue){annotations} and events (red)", fontsize=9, loc="left")
    for row in range(1, len(shown)):
        below.axhline(row - 0.5, color="white", linewidth=1.5)
    _mark_time(below)
    save_figure(figure, path)


def _pool_spectrogram(
    waveform: Iterable[torch.Tensor], extractor: ASTFeatureExtractor, num_samples: int
) -> torch.Tensor:
    """Log-mel spectrogram of pieces, (columns, mel bins)."""
    num_frames, shift = extractor.num_frames(num_samples), extractor.frame_shift
    num_columns = min(num_frames, MAX_COLUMNS)
    sums, counts = torch.zeros(num_columns, extractor.num_mel_bins), torch.zeros(num_columns, 1)
    before = -extractor.first_sample  # by so much a frame reaches to the left of its place
    context = before and before // shift + 2  # frames that are computed again, since their left is known
    kept, begin, first = torch.zeros(0), 0, 0  # samples from a frame on, its number, and that of the next one
    for part in chain((part for piece in waveform for part in piece.split(10 * extractor.sampling_rate)), [None]):
        if part is None:
            last = begin + extractor.num_frames(len(kept))
        else:
            kept = torch.cat((kept, part))
            last = begin + (len(kept) + before - extractor.frame_length) // shift + 1  # that lie within it
        last = min(last, num_frames)
        if last > first:
            (frames,) = extractor.fbank([kept], last - begin)  # (frames, mel bins)
            columns = torch.arange(first, last) * num_columns // num_frames
            sums.index_add_(0, columns, frames[first - begin :].exp())
            counts.index_add_(0, columns, torch.ones(last - first, 1))
            skipped = max(0, last - context - begin)
            kept, begin, first = kept[skipped * shift :], begin + skipped, last
    return (sums / counts).log()


def _pool_scores(scores: np.ndarray, timeline: Timeline) -> tuple[np.ndarray, np.ndarray]:
    """Highest scores (columns, labels), and the times between which they hold (columns + 1,)."""
    starts = np.linspace(0, len(scores), min(len(scores), MAX_COLUMNS), endpoint=False).astype(int)
    return np.maximum.reduceat(scores, starts), timeline.times[[*starts, len(scores)]]


def _mark_time(axes) -> None:
    """Seconds, or minutes and hours where there are many."""
    start, end = axes.get_xlim()
    if end - start <= 120:
        axes.set_xlabel("time (s)")
        return
    is_long = end >= 3600
    steps = [15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400]
    axes.xaxis.set_major_locator(MultipleLocator(next((s for s in steps if end / s <= 12), end / 12)))

    def clock(seconds: float, _) -> str:
        minutes, seconds = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if is_long else f"{minutes}:{seconds:02}"

    axes.xaxis.set_major_formatter(FuncFormatter(clock))
    axes.set_xlabel("time (h:min:s)" if is_long else "time (min:s)")


def plot_occlusion(occlusion: Occlusion, path: str | os.PathLike, title: str = "") -> None:
    """Draw the log-mel spectrogram of a clip, and below it what a label hangs on, into a picture file.

    Args:
        occlusion: What `modeling_ast.inference.explanations.occlusion_map` gives.
        path: Of the picture; the suffix chooses the format.
        title: Above all.
    """
    figure = new_figure(10, 6)
    above, below = figure.subplots(2, 1, sharex=True, sharey=True)
    spectrogram = occlusion.spectrogram
    extent = _extent(spectrogram, spectrogram.log_mel)
    _draw_log_mel(above, spectrogram.log_mel, extent, spectrogram.frequencies)
    _draw_cells(below, spectrogram.log_mel, extent, "gray")
    image = _draw_map(below, spectrogram, occlusion.drop, (AGAINST_COLOUR, FOR_COLOUR))
    figure.colorbar(image, ax=below, label="fall of the log-odds\nwhen covered (nats)", pad=0.01)
    _mark_kilohertz(below, spectrogram.frequencies)
    words = f"{drawable(occlusion.label, 60)} (score {occlusion.score:.3f}): red speaks for it, blue against it"
    below.set_title(words, fontsize=10)
    below.set(xlabel="time (s)", ylabel="mel bin")
    below.ticklabel_format(axis="x", useOffset=False)
    figure.suptitle(drawable(title, MAX_TITLE))
    save_figure(figure, path)


def plot_attention(
    attention: Attention, path: str | os.PathLike, layer: int = -1, with_heads: bool = False, title: str = ""
) -> None:
    """Draw where the special tokens look, over the log-mel spectrogram of a clip, into a picture file.

    Args:
        attention: What `modeling_ast.inference.explanations.explain_attention` gives.
        path: Of the picture; the suffix chooses the format.
        layer: Counted from 0, or from -1, the last, backwards.
        with_heads: Whether the single heads are drawn, too, below the mean of all.
        title: Above all.

    Raises:
        ValueError: No such layer.
    """
    num_heads = attention.weights.shape[1] if with_heads else 0
    columns = 3 if num_heads % 4 else 4
    rows = math.ceil(num_heads / columns)
    figure = new_figure(10, 3.6 + 1.9 * rows)
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=(3.2, *[1.7] * rows))
    mean = figure.add_subplot(grid[0, :])
    image, share = _draw_attention(mean, attention, layer)
    figure.colorbar(image, ax=mean, label="attention a patch", pad=0.01)
    _mark_kilohertz(mean, attention.spectrogram.frequencies)
    words = (
        f"layer {layer % len(attention.weights)}, mean of the heads and both special tokens; on patches {share:.0%}"
    )
    if attention.num_frames > len(attention.spectrogram.log_mel):
        words += "; padding behind the dashed line"
    mean.set_title(words, fontsize=10)
    mean.set(xlabel="time (s)", ylabel="mel bin")
    mean.ticklabel_format(axis="x", useOffset=False)
    for head in range(num_heads):
        row, column = divmod(head, columns)
        axes = figure.add_subplot(grid[1 + row, column], sharex=mean, sharey=mean)
        _, share = _draw_attention(axes, attention, layer, head)
        axes.set_title(f"head {head}; on patches {share:.0%}", fontsize=8)
        is_lowest = head + columns >= num_heads
        axes.tick_params(labelsize=7, labelleft=column == 0, labelbottom=is_lowest)
    figure.suptitle(drawable(title, MAX_TITLE))
    save_figure(figure, path)


def _draw_attention(axes, attention: Attention, layer: int, head: int | None = None) -> tuple[Any, float]:
    """The drawn map, and the share of the attention that goes to patches."""
    spectrogram = attention.spectrogram
    extent = _extent(spectrogram, spectrogram.log_mel)
    _draw_cells(axes, spectrogram.log_mel, extent, "gray")
    cells = attention.over_cells(layer, head)
    image = _draw_map(axes, spectrogram, cells, ("white", ATTENTION_COLOUR), lowest=0.0)
    if len(cells) > len(spectrogram.log_mel):  # a model may look at the padding, too
        axes.axvline(extent[1], color="black", linestyle="--", linewidth=1)
    return image, attention.over_patches(layer, head).sum().item()


def _names(labels: Sequence[str], label_names: Sequence[str]) -> list[str]:
    """As they can be drawn."""
    numbers = {label: number for number, label in enumerate(label_names)}
    return [drawable(label, MAX_NAME, numbers.get(label)) for label in labels]


def _draw_log_mel(axes, log_mel: torch.Tensor, extent: tuple, frequencies: torch.Tensor) -> None:
    """A spectrogram (frames, mel bins) with what its axes and colours mean."""
    image = _draw_cells(axes, log_mel, extent, "magma")
    axes.figure.colorbar(image, ax=axes, label="log energy", pad=0.01)
    axes.set(ylabel="mel bin")
    _mark_kilohertz(axes, frequencies)


def _draw_cells(axes, cells: torch.Tensor, extent: tuple, colours, **options: Any):
    """Numbers (frames, mel bins) as colours, by default from the lowest twentieth on."""
    options = options or {"vmin": np.quantile(cells.numpy(), 0.05)}
    return axes.imshow(cells.T.numpy(), origin="lower", aspect="auto", cmap=colours, extent=extent, **options)


def _mark_kilohertz(axes, frequencies: torch.Tensor) -> None:
    """On the right, beside mel bins on the left."""
    hertz = frequencies.numpy()
    ticks = [kilohertz for kilohertz in KILOHERTZ_TICKS if hertz[0] < 1000 * kilohertz < hertz[-1]]
    right = axes.secondary_yaxis("right")
    right.set_yticks(np.interp([1000 * tick for tick in ticks], hertz, np.arange(len(hertz)) + 0.5), ticks)
    right.set_ylabel("kHz")


def _draw_map(axes, spectrogram: Spectrogram, cells: torch.Tensor, colours: tuple, lowest: float | None = None):
    """Cells (frames, mel bins) over what is drawn already: the further from 0, the more opaque.

    Args:
        axes: Of matplotlib.
        spectrogram: Which begins where the cells do.
        cells: NaN where nothing is to be drawn.
        colours: Of values below and above 0.
        lowest: End of the scale; `None` means as far below 0 as the other end is above.
    """
    highest = cells.nan_to_num().abs().max().item() or 1.0  # all 0 where a model ignores its input
    lowest = -highest if lowest is None else lowest
    values = np.linspace(lowest, highest, 257)
    below, above = (np.array(to_rgb(colour)) for colour in colours)
    hues = np.where(values[:, None] < 0, below, above)
    colour_map = ListedColormap(np.column_stack((hues, 0.8 * np.abs(values) / highest)))
    options = {"vmin": lowest, "vmax": highest, "interpolation": "nearest"}
    return _draw_cells(axes, cells, _extent(spectrogram, cells), colour_map, **options)


def _extent(spectrogram: Spectrogram, cells: torch.Tensor) -> tuple[float, float, float, float]:
    """Seconds and mel bins of (frames, mel bins), each frame about its middle."""
    step = spectrogram.frame_seconds
    start = float(spectrogram.times[0]) - step / 2
    return start, start + len(cells) * step, 0, cells.shape[1]
