"""What a model attends to, and what its answer hangs on, over the spectrogram of one clip.

The two are not the same. Attention says where a layer takes information from, for all labels together. Occlusion is
about one label, and measured on what the model answers: of the two it is the one to trust.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, ASTPreTrainedModel


@dataclass(frozen=True)
class Spectrogram:
    """One clip as the model gets it, without padding, and its axes.

    `log_mel` is (frames, mel bins), before normalisation; `times` the middle of each frame in seconds; `frequencies`
    the middle of each mel bin in Hz; `frame_seconds` the step from frame to frame.
    """

    log_mel: torch.Tensor
    times: torch.Tensor
    frequencies: torch.Tensor
    frame_seconds: float


@dataclass(frozen=True)
class Attention:
    """The attention maps of one clip, from `explain_attention`.

    `weights` is (layers, heads, 2, frequency patches, time patches), as from `attention_maps`; `num_frames` counts
    the padding, at which a model may look as well.
    """

    spectrogram: Spectrogram
    weights: torch.Tensor
    num_frames: int
    config: ASTConfig

    def over_patches(self, layer: int = -1, head: int | None = None) -> torch.Tensor:
        """One map (frequency patches, time patches): the mean of both special tokens, and of all heads for `None`.

        Raises:
            ValueError: No such layer or head.
        """
        for name, index, count in (("layer", layer, len(self.weights)), ("head", head, self.weights.shape[1])):
            if index is not None and not -count <= index < count:
                raise ValueError(f"Expected {name} from 0 to {count - 1}, or from -{count} to -1, got {index}.")
        heads = self.weights[layer].mean(dim=1)  # (heads, frequency patches, time patches)
        return heads.mean(dim=0) if head is None else heads[head]

    def over_cells(self, layer: int = -1, head: int | None = None) -> torch.Tensor:
        """The same map as (num_frames, mel bins): in each cell the mean of the patches over it, NaN where none is.

        Raises:
            ValueError: No such layer or head.
        """
        patches = self.over_patches(layer, head).flatten()  # frequency-major, as F.fold takes them
        geometry = {
            "output_size": (self.config.num_mel_bins, self.num_frames),
            "kernel_size": self.config.patch_size,
            "stride": (self.config.frequency_stride, self.config.time_stride),
        }
        columns = torch.stack((patches, torch.ones_like(patches)))  # (2, patches)
        total, count = F.fold(columns.unsqueeze(1).expand(-1, self.config.patch_size**2, -1), **geometry).squeeze(1)
        return (total / count).T


@dataclass(frozen=True)
class Occlusion:
    """What one label of one clip hangs on, from `occlusion_map`.

    `log_odds` (nats) are those of the label with nothing covered. `drop` (frames, mel bins) says how far they fall
    when the surroundings of a cell are covered; it is below 0 where the sound speaks against the label.
    """

    spectrogram: Spectrogram
    label: str
    log_odds: float
    drop: torch.Tensor

    @property
    def score(self) -> float:
        """The probability of the label, as from a pipeline."""
        return torch.tensor(self.log_odds).sigmoid().item()

    def peak(self) -> tuple[float, float, float]:
        """Where the label hangs on the clip most: seconds, Hz, and the drop there."""
        highest = self.drop.max()
        # Neighbouring cells that were covered by the same windows have the same value: the middle of them.
        frame, mel_bin = (self.drop == highest).nonzero().float().mean(dim=0).round().long()
        return self.spectrogram.times[frame].item(), self.spectrogram.frequencies[mel_bin].item(), highest.item()


@torch.inference_mode()
def attention_maps(
    model: ASTPreTrainedModel, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The attention that the two special tokens pay to the patches: the weights that the model computes with.

    (The original's demo computes its maps from the input of each layer without its layer norm: others.)

    Args:
        model: With or without a head; set to eval mode.
        input_values: Of shape (batch, frames, mel bins), of any length. The weights of all tokens are held for a
            moment, 0.8 GiB for a clip of ten seconds and a network of the original's size.
        attention_mask: As for the model, (batch, frames).

    Returns:
        float32 tensor of shape (layers, batch, heads, 2, frequency patches, time patches): CLS, then distillation;
        row 0 holds the lowest frequencies. Patches of padding have 0. What a map lacks to a sum of 1 goes to the
        special tokens themselves.

    Raises:
        ValueError: As from the model.
    """
    attentions = model.eval()(input_values, attention_mask=attention_mask, output_attentions=True).attentions
    maps = []
    for weights in attentions:  # (batch, heads, tokens, tokens)
        special = weights[:, :, :2].flatten(1, 2).transpose(1, 2)  # (batch, tokens, heads x 2)
        maps.append(model.fold_patches(special).movedim(-1, 1).unflatten(1, (-1, 2)))
    return torch.stack(maps).float()


def explain_attention(
    model: ASTPreTrainedModel,
    extractor: ASTFeatureExtractor,
    waveform: torch.Tensor,
    padding: str | None = None,
    start_seconds: float = 0.0,
) -> Attention:
    """`attention_maps` of one clip, with what is needed to draw them (`plots.plot_attention`).

    Args:
        model: With or without a head; set to eval mode.
        extractor: Of the model's features.
        waveform: One clip, as the extractor takes it. What the extractor cuts off is not in the maps either.
        padding: See `ASTFeatureExtractor.__call__`.
        start_seconds: Of the clip in its recording; added to all times.

    Raises:
        ValueError: Several clips, or as from the extractor and the model.
    """
    spectrogram, features = _featurize(extractor, waveform, padding, start_seconds)
    weights = attention_maps(model, **features.to(model.device))[:, 0].cpu()
    return Attention(spectrogram, weights, num_frames=features["input_values"].shape[1], config=model.config)


@torch.inference_mode()
def occlusion_map(
    model: ASTForAudioClassification,
    extractor: ASTFeatureExtractor,
    waveform: torch.Tensor,
    label: str | None = None,
    *,
    window_frames: int = 32,
    window_bins: int = 16,
    step_frames: int = 16,
    step_bins: int = 8,
    batch_size: int = 16,
    padding: str | None = None,
    start_seconds: float = 0.0,
) -> Occlusion:
    """Cover the spectrogram of a clip window by window, and measure how far the log-odds of a label fall.

    A window is covered with the clip's own background: the mean of each mel bin over time. (Tried on tone bursts in
    noise. The median does as well on short ones, but takes a sound that lasts over half of the clip for background;
    low quantiles and constants are unlike anything in the clip, and pointed elsewhere more often.)

    Log-odds and not probabilities: these hardly move while the model is sure. They mean the same for a sigmoid (there
    they are the logit) and for a softmax (the logit against all others together).

    Args:
        model: Single-label or multi-label by its configuration's `problem_type`; set to eval mode.
        extractor: Of the model's features.
        waveform: One clip, as the extractor takes it. What the extractor cuts off is not in the map either.
        label: Name; `None` means the one with the highest score.
        window_frames: Size along time, 10 ms a frame. A window longer than the clip covers all of it.
        window_bins: Size along frequency, in mel bins. The smaller the window the finer the map, and the easier
            the model bridges what is covered.
        step_frames: From window to window, at most a window. One forward pass a window: ten seconds of 128 mel bins
            take 930 with the defaults.
        step_bins: The same along frequency.
        batch_size: Windows at a time.
        padding: See `ASTFeatureExtractor.__call__`. Padding is never covered.
        start_seconds: Of the clip in its recording; added to all times.

    Returns:
        The map; a cell has the mean over the windows that cover it.

    Raises:
        ValueError: No such label, sizes that cannot work, a `problem_type` without probabilities, several clips, or as
            from the extractor and the model.

    Source: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.2.
    """
    sizes = {"window_frames": window_frames, "window_bins": window_bins, "batch_size": batch_size}
    _check_sizes({**sizes, "step_frames": step_frames, "step_bins": step_bins}, extractor.num_mel_bins)
    spectrogram, features = _featurize(extractor, waveform, padding, start_seconds)
    frames, bins = spectrogram.log_mel.shape
    features = features.to(model.device)
    input_values = features.pop("input_values")  # (1, frames and padding, mel bins)
    logits = model.eval()(input_values, **features).logits
    index = _label_index(model.config.id2label, label, logits)
    log_odds = _log_odds(logits, index, model.config.problem_type)
    background = input_values[0, :frames].mean(dim=0)  # (mel bins,)

    windows = [
        (slice(frame, frame + window_frames), slice(mel_bin, mel_bin + window_bins))
        for frame in _starts(frames, window_frames, step_frames)
        for mel_bin in _starts(bins, window_bins, step_bins)
    ]
    total, count = torch.zeros(frames, bins), torch.zeros(frames, bins)
    for first in tqdm(range(0, len(windows), batch_size), desc="Covering", unit="batch"):
        batch = windows[first : first + batch_size]
        covered = input_values.repeat(len(batch), 1, 1)
        for clip, (where_time, where_frequency) in zip(covered, batch):
            clip[:frames][where_time, where_frequency] = background[where_frequency]
        masks = {name: mask.expand(len(batch), -1) for name, mask in features.items()}
        drops = log_odds - _log_odds(model(covered, **masks).logits, index, model.config.problem_type)
        for window, drop in zip(batch, drops.tolist()):
            total[window] += drop
            count[window] += 1
    return Occlusion(spectrogram, model.config.id2label[index], log_odds=log_odds.item(), drop=total / count)


def _featurize(
    extractor: ASTFeatureExtractor, waveform: torch.Tensor, padding: str | None, start_seconds: float
) -> tuple[Spectrogram, dict[str, torch.Tensor]]:
    """A clip for the eye and for the model."""
    waveforms = extractor.to_waveforms(waveform)
    if len(waveforms) != 1:
        raise ValueError(f"Expected one clip to explain, got {len(waveforms)}. Explain them one by one.")
    features = extractor(waveforms, return_tensors="pt", padding=padding)
    log_mel = extractor.fbank(waveforms, features["input_values"].shape[1])[0].cpu()
    numbers = torch.arange(len(log_mel), dtype=torch.float64)
    middles = extractor.first_sample + numbers * extractor.frame_shift + extractor.frame_length / 2  # samples
    times = start_seconds + middles / extractor.sampling_rate
    return Spectrogram(log_mel, times, extractor.mel_frequencies(), extractor.seconds(1)), features


def _log_odds(logits: torch.Tensor, index: int, problem_type: str | None) -> torch.Tensor:
    """Of one label: (batch, num_labels) to (batch,). Their sigmoid is the label's probability."""
    logits = logits.float()
    if problem_type == "multi_label_classification":
        return logits[:, index]
    if problem_type in (None, "single_label_classification") and logits.shape[1] > 1:  # as in pipelines
        others = torch.cat((logits[:, :index], logits[:, index + 1 :]), dim=1)
        return logits[:, index] - others.logsumexp(dim=1)
    raise ValueError(
        "Expected a model of problem_type multi_label_classification, or single_label_classification with two labels "
        f"or more, got {problem_type} with {logits.shape[1]}: it has no probabilities that could fall."
    )


def _label_index(id2label: dict[int, str], label: str | None, logits: torch.Tensor) -> int:
    if label is None:
        return int(logits.argmax())
    indices = {name: index for index, name in id2label.items()}
    if label not in indices:
        some = ", ".join(list(indices)[:5]) + (", ..." if len(indices) > 5 else "")
        raise ValueError(f"Expected one of the model's {len(indices)} labels ({some}), got {label!r}.")
    return indices[label]


def _check_sizes(sizes: dict[str, int], num_mel_bins: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"Expected {name} to be a whole number above 0, got {size!r}.")
    if sizes["window_bins"] > num_mel_bins:
        raise ValueError(f"Expected window_bins of at most {num_mel_bins}, all mel bins, got {sizes['window_bins']}.")
    for axis in ("frames", "bins"):
        step, window = sizes[f"step_{axis}"], sizes[f"window_{axis}"]
        if step > window:
            raise ValueError(
                f"Expected step_{axis} of at most window_{axis} ({window}), or some cells would never be covered, "
                f"got {step}."
            )


def _starts(length: int, window: int, step: int) -> list[int]:
    """Where windows begin on an axis; the last one ends with it."""
    last = max(0, length - window)
    return [*range(0, last, step), last]
