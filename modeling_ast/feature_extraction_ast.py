"""Feature extractor of the Audio Spectrogram Transformer: waveforms to log-mel spectrograms of one length."""

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin
from transformers.utils import TensorType, logging

from .configuration_ast import ASTConfig
from .fbank import fbank, frame_length, frame_shift, mel_bin_frequencies
from .samples import split_clips, to_waveform

logger = logging.get_logger(__name__)

# Keys that Transformers writes into preprocessor_config.json and that say nothing about the features.
_BOOKKEEPING_KEYS = ("feature_extractor_type", "auto_map", "processor_class", "_commit_hash")
# Keys of Transformers' own AST extractor, with the only value that has a meaning there.
_STOCK_KEYS = {"feature_size": 1, "padding_side": "right"}
PADDINGS = ("max_length", "longest")
# A file of settings comes from strangers. More than these, far beyond any recording and any logarithm of its energy,
# would take the memory of the machine, or turn every clip into numbers that are none.
MAX_SAMPLING_RATE, MAX_MEL_BINS, MAX_FRAMES, MAX_STATISTIC = 10_000_000, 10_000, 1_000_000, 1e6
# Above this, more than a minute and a half of frames, a `max_length` that comes with `truncation` counts samples.
_LEAST_SAMPLES = 10_000


class ASTFeatureExtractor(FeatureExtractionMixin):
    r"""Waveforms to `input_values`: log-mel filter bank, one length, normalisation.

    The three steps can be called one by one (`fbank`, `fit_length`, `normalize`); training masks between the second
    and the third. `__call__` is their composition. Features equal those of Transformers' own extractor.

    Args:
        sampling_rate: Rate of the waveforms in Hz.
        num_mel_bins: Number of mel bins.
        max_length: Number of frames (10 ms apart) of `input_values`: longer clips keep their head, shorter ones are
            padded at the end.
        min_length: Frames that a clip is padded to at least whatever `padding` says: one patch of the model.
        padding: "max_length" pads or cuts every clip to `max_length`, as the original. "longest" pads a batch to its
            longest clip, cuts nothing, and returns an `attention_mask`, with which the model's output does not depend
            on the padding. Transformers' own extractor ignores this key and does the former.
        padding_value: What padded frames hold before normalisation. 0.0 as in the original, which is not silence
            (-15.94) but loud; pretrained weights expect it. Transformers' own extractor ignores this key and pads
            with 0.0.
        do_normalize: Whether the last step is done.
        mean: Mean of the log-mel features of the data set. Default: AudioSet's.
        std: Standard deviation of the log-mel features of the data set. Default: AudioSet's.
        return_attention_mask: Whether calls that do not say so return an `attention_mask`. `None`: where the padding
            is "longest".
        feature_size, padding_side: Of Transformers' other extractors; here always 1 and "right".

    Raises:
        TypeError: An option is not known.
        ValueError: An option has a value that cannot work.

    Source: Gong et al., AST, Interspeech 2021, and its published code, for every step and number.
    """

    model_input_names = ["input_values", "attention_mask"]

    def __init__(
        self,
        sampling_rate: int = 16000,
        num_mel_bins: int = 128,
        max_length: int = 1024,
        padding_value: float = 0.0,
        do_normalize: bool = True,
        mean: float = -4.2677393,
        std: float = 4.5689974,
        min_length: int = 16,
        padding: str = "max_length",
        return_attention_mask: bool | None = None,
        **kwargs,
    ):
        for name, value, most in (
            ("sampling_rate", sampling_rate, MAX_SAMPLING_RATE),
            ("num_mel_bins", num_mel_bins, MAX_MEL_BINS),
            ("max_length", max_length, MAX_FRAMES),
            ("min_length", min_length, MAX_FRAMES),
        ):
            if not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"Expected {name} to be a whole number from 1 to {most:,}, got {value!r:.40}.")
        for name, value in (("mean", mean), ("std", std), ("padding_value", padding_value)):
            if not isinstance(value, (int, float)) or not abs(value) <= MAX_STATISTIC:  # NaN is not
                raise ValueError(
                    f"Expected {name} to be a number of at most {MAX_STATISTIC:.0e} in size, got {value!r:.40}."
                )
        if not std >= 1 / MAX_STATISTIC:
            raise ValueError(f"Expected std of at least {1 / MAX_STATISTIC:.0e}, got {std!r}.")
        _check_padding(padding)
        if sampling_rate < 100:
            raise ValueError(f"Expected sampling_rate of at least 100 Hz (a sample a frame), got {sampling_rate}.")
        if return_attention_mask not in (None, True, False):
            raise ValueError(
                f"Expected return_attention_mask to be true, false or none, got {return_attention_mask!r}."
            )
        if do_normalize not in (True, False):  # text in a file, "false", would count as true
            raise ValueError(f"Expected do_normalize to be true or false, got {do_normalize!r:.40}.")
        for name, only_value in _STOCK_KEYS.items():
            if kwargs.pop(name, only_value) != only_value:
                raise ValueError(f"{name} can only be {only_value!r}: nothing else has an effect on AST features.")
        bookkeeping = {name: kwargs.pop(name) for name in _BOOKKEEPING_KEYS if name in kwargs}
        if kwargs:
            raise TypeError(f"{type(self).__name__} has no option {', '.join(map(repr, kwargs))}.")
        bookkeeping.pop("feature_extractor_type", None)
        super().__init__(**bookkeeping)
        self.sampling_rate, self.num_mel_bins = sampling_rate, num_mel_bins
        self.max_length, self.min_length = max_length, min_length
        self.padding, self.padding_value = padding, padding_value
        self.do_normalize, self.mean, self.std = do_normalize, mean, std
        self.return_attention_mask = return_attention_mask
        self.feature_size, self.padding_side = _STOCK_KEYS.values()

    @property
    def frame_length(self) -> int:
        """Samples in one frame; a clip must be at least as long."""
        return frame_length(self.sampling_rate)

    @property
    def frame_shift(self) -> int:
        """Samples from the start of one frame to the start of the next."""
        return frame_shift(self.sampling_rate)

    @property
    def first_sample(self) -> int:
        """Where the first frame begins, in samples from the start of the clip."""
        return 0

    def num_samples(self, num_frames: int) -> int:
        """Samples that so many frames take up, from the start of the clip: what lies behind changes none of them."""
        return (num_frames - 1) * self.frame_shift + self.frame_length

    def max_samples(self, num_frames: int) -> int:
        """Samples of the longest clip of so many frames; there may be a few that no whole frame takes up."""
        return self.num_samples(num_frames + 1) - 1

    def num_frames(self, num_samples: int | torch.Tensor) -> int | torch.Tensor:
        """Whole frames in so many samples, which must be one frame or more."""
        return (num_samples - self.frame_length) // self.frame_shift + 1

    def seconds(self, num_frames: int) -> float:
        """Seconds from the start of a frame to the start of the one that follows so many frames later."""
        return num_frames * self.frame_shift / self.sampling_rate

    @staticmethod
    def options_for(config: ASTConfig) -> dict[str, int]:
        """The options that follow from a model: how many frames, and how many mel bins, it takes."""
        sizes = {"max_length": config.max_length, "num_mel_bins": config.num_mel_bins}
        return {**sizes, "min_length": config.patch_size}

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs):
        """As in Transformers; keys of a file that have no effect here are dropped, with a warning if unknown.

        Raises:
            TypeError: A keyword that looks like a misspelt option.
            ValueError: An option has a value that cannot work.
        """
        for kind in cls.__subclasses__():  # other features, that a file names
            if kind.__name__ == feature_extractor_dict.get("feature_extractor_type"):
                return kind.from_dict(feature_extractor_dict, **kwargs)
        known = inspect.signature(ASTFeatureExtractor.__init__).parameters.keys() - {"self", "kwargs"}
        if "padding" not in feature_extractor_dict:  # of Transformers' own, which writes a false that it ignores
            feature_extractor_dict = {**feature_extractor_dict, "return_attention_mask": None}
        kept = {key: value for key, value in feature_extractor_dict.items() if key in known.union(_BOOKKEEPING_KEYS)}
        unknown = feature_extractor_dict.keys() - kept.keys() - _STOCK_KEYS.keys()
        if unknown:
            logger.warning(f"Keys of preprocessor_config.json that AST features do not depend on: {sorted(unknown)}.")
        overrides = {key: kwargs.pop(key) for key in known.union(_STOCK_KEYS).intersection(kwargs)}
        for key in kwargs:  # other keywords of Transformers end here too; a misspelt one of ours must not
            if meant := difflib.get_close_matches(key, known, n=1, cutoff=0.8):
                raise TypeError(f"{cls.__name__} has no option {key!r}. Is {meant[0]!r} meant?")
        return super().from_dict({**kept, **overrides}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """What preprocessor_config.json holds.

        Without `feature_extractor_type`: by that name Transformers would always find its own class, because both have
        the same. Without it the Auto class decides by the model, so that this class is found where this package is
        imported and Transformers' own elsewhere. Where code travels along (`auto_map`) the type is written, since
        otherwise Transformers would ask for trust before it loads even its own class.
        """
        output = super().to_dict()
        if "auto_map" not in output:
            del output["feature_extractor_type"]
        return output

    def to_waveforms(self, raw_speech: Any) -> list[torch.Tensor]:
        """One clip or many, in any form that `__call__` takes, to a list of checked 1-D float32 tensors.

        Integer PCM is scaled to [-1, 1].

        Raises:
            ValueError: Several channels, no clip, an empty or too short one, NaN or infinite samples, integers without
                a known full scale.
        """
        clips = split_clips(raw_speech)
        names = ["the clip"] if len(clips) == 1 else [f"clip {index} of {len(clips)}" for index in range(len(clips))]
        return [to_waveform(clip, name, self.frame_length, self.sampling_rate) for clip, name in zip(clips, names)]

    def fbank(
        self, waveforms: list[torch.Tensor] | torch.Tensor, max_frames: int | None = None
    ) -> list[torch.Tensor] | torch.Tensor:
        """Step 1: log-mel spectrograms, each of shape (frames, num_mel_bins), of checked waveforms.

        Args:
            waveforms: Each of shape (samples,); or one tensor (..., samples), which gives (..., frames, num_mel_bins).
            max_frames: How many frames are kept; what lies behind them is not computed. `None` means all.

        Raises:
            ValueError: A clip is shorter than one frame.
        """
        samples = None if max_frames is None else max(self.num_samples(max_frames), self.frame_length)
        if isinstance(waveforms, torch.Tensor):
            return self._fbank(waveforms[..., :samples])[..., :max_frames, :]
        waveforms = [waveform[:samples] for waveform in waveforms]
        if len(waveforms) > 1 and len({(w.shape, w.device) for w in waveforms}) == 1:
            spectrograms = list(self._fbank(torch.stack(waveforms)))
        elif min(map(len, waveforms)) >= self.frame_length and {w.device.type for w in waveforms} == {"cuda"}:
            spectrograms = self._fbank_together(waveforms)  # where a call costs more than what it computes of a clip
        else:
            spectrograms = [self._fbank(waveform) for waveform in waveforms]
        return [spectrogram[:max_frames] for spectrogram in spectrograms]

    def _fbank_together(self, waveforms: list[torch.Tensor]) -> list[torch.Tensor]:
        """Spectrograms of clips of several lengths in one call, since no frame hears what lies behind its clip."""
        together = self._fbank(pad_sequence(waveforms, batch_first=True))
        return [own[: self.num_frames(len(waveform))] for own, waveform in zip(together, waveforms)]

    def _fbank(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Waveforms (..., samples) to log-mel spectrograms (..., frames, num_mel_bins)."""
        return fbank(waveforms, self.sampling_rate, self.num_mel_bins)

    def mel_frequencies(self) -> torch.Tensor:
        """The middle of each mel bin in Hz: (num_mel_bins,)."""
        return mel_bin_frequencies(self.sampling_rate, self.num_mel_bins)

    def fit_length(
        self,
        spectrograms: list[torch.Tensor],
        max_length: int | None = None,
        padding: str | None = None,
        truncation: bool | None = None,
    ) -> torch.Tensor:
        """Step 2: one length, by padding at the end.

        Args:
            spectrograms: Each (frames, num_mel_bins).
            max_length: Number of frames; `None` means the extractor's own. Under "longest" where longer clips are cut;
                `None` then cuts nothing.
            padding: "max_length" or "longest"; `None` means the extractor's own.
            truncation: As of `__call__`.

        Returns:
            Tensor of shape (batch, frames, num_mel_bins).

        Raises:
            ValueError: Another word for `padding`, or a `max_length` that is no whole number above 0.
        """
        padding = self.padding if padding is None else _check_padding(padding)
        limit = self._limit(max_length, padding, truncation)
        length = max(*(len(spectrogram) for spectrogram in spectrograms), self.min_length)
        if padding == "max_length":
            length = limit or max(length, self._limit(max_length, padding))
        elif limit is not None:
            length = min(length, limit)
        batch = spectrograms[0].new_empty((len(spectrograms), length, self.num_mel_bins))
        for index, spectrogram in enumerate(spectrograms):
            frames = min(length, spectrogram.shape[0])
            batch[index, :frames] = spectrogram[:frames]
            batch[index, frames:] = self.padding_value
        return batch

    def _limit(self, max_length: int | None, padding: str, truncation: bool | None = None) -> int | None:
        """How many frames of a clip are kept; `None` where none are cut."""
        if truncation is False:
            return None
        if max_length is None:
            return self.max_length if padding == "max_length" or truncation else None
        if not isinstance(max_length, int) or max_length < 1:
            raise ValueError(f"Expected max_length to be a whole number of frames above 0, got {max_length!r}.")
        return max_length

    def _in_frames(self, max_length: int | None, truncation: bool | None) -> int | None:
        """`max_length` of a call; beside truncation it may count samples, as in guides for models of waveforms."""
        if truncation is None or not isinstance(max_length, int) or max_length < _LEAST_SAMPLES:
            return max_length
        rate = self.sampling_rate
        frames = max(1, self.num_frames(max_length))
        logger.warning_once(
            f"max_length {max_length} with truncation is taken for samples ({max_length / rate:g} s at {rate} Hz, "
            f"{frames} frames). AST counts frames of 10 ms: say max_length={frames}."
        )
        return frames

    def mask_frames(self, spectrograms: list[torch.Tensor], length: int) -> torch.Tensor:
        """Which frames are a clip's (1) and which padding (0), as int64 (batch, length).

        A clip shorter than one patch counts as one whole patch.
        """
        own = torch.tensor([max(len(spectrogram), self.min_length) for spectrogram in spectrograms])
        return (torch.arange(length) < own.unsqueeze(1)).long().to(spectrograms[0].device)

    def normalize(self, spectrogram: torch.Tensor) -> torch.Tensor:
        """Step 3: mean 0 and standard deviation 0.5 (not 1: the original divides by twice the deviation)."""
        return (spectrogram - self.mean).div_(2 * self.std)

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        return_tensors: str | TensorType | None = None,
        max_length: int | None = None,
        padding: str | bool | None = None,
        return_attention_mask: bool | None = None,
        truncation: bool | None = None,
    ) -> BatchFeature:
        """One clip or many to model inputs.

        Args:
            raw_speech: A mono clip (1-D numpy array, torch tensor or list of numbers), a list of mono clips, or a 2-D
                torch tensor (batch, samples). Floats in [-1, 1], or integer PCM (uint8, int8, int16, int32), which is
                scaled to that range. Computed on the device of the input.
            sampling_rate: Rate of the clips in Hz, compared with the extractor's; `None` means that it is the same.
            return_tensors: "pt" or "np" for one tensor of shape (batch, frames, num_mel_bins); `None` for a list of
                numpy arrays (frames, num_mel_bins), as Transformers' own extractor gives.
            max_length: Number of frames; `None` means the extractor's own. Under "longest" where longer clips are cut;
                `None` then cuts nothing.
            padding: "max_length" or "longest" (or `True`, which is Transformers' other word for it); `None` means the
                extractor's own.
            return_attention_mask: Whether `attention_mask` (batch, frames) comes along: 1 for a clip's frames, 0 for
                its padding. `None` means the extractor's own, or else where the padding is "longest".
            truncation: `True` cuts longer clips under "longest" too, to the extractor's `max_length` where the call
                names none; `False` cuts nothing, and pads to the longest clip if that is longer than `max_length`.
                With either, a `max_length` of 10,000 and more counts samples, as in Hugging Face's guides for models
                of waveforms; a warning says so. `None` cuts under "max_length", and to a `max_length` that is named.

        Returns:
            `BatchFeature` with `input_values` and, where wanted, `attention_mask`.

        Raises:
            ValueError: Another sampling rate, several channels, no clip, an empty one or one shorter than 25 ms, NaN
                or infinite samples, integers without a known full scale, or another word for `padding`.
        """
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(
                f"Expected clips at {self.sampling_rate} Hz, got {sampling_rate} Hz. Resample them first "
                f"(modeling_ast.load_waveform(path, sampling_rate={self.sampling_rate}) does it for sound files)."
            )
        padding = self.padding if padding is None else _check_padding("longest" if padding is True else padding)
        waveforms = self.to_waveforms(raw_speech)
        max_length = self._in_frames(max_length, truncation)
        spectrograms = self.fbank(waveforms, self._limit(max_length, padding, truncation))
        input_values = self.fit_length(spectrograms, max_length, padding, truncation)
        if self.do_normalize:
            input_values = self.normalize(input_values)
        outputs = {"input_values": input_values.detach()}
        if return_attention_mask is None:
            return_attention_mask = self.return_attention_mask
        if padding == "longest" if return_attention_mask is None else return_attention_mask:
            outputs["attention_mask"] = self.mask_frames(spectrograms, input_values.shape[1])
        if return_tensors is None:
            return BatchFeature({name: list(tensor.cpu().numpy()) for name, tensor in outputs.items()})
        if TensorType(return_tensors) == TensorType.PYTORCH:
            return BatchFeature({**outputs, "input_values": input_values})
        arrays = {name: tensor.cpu().numpy() for name, tensor in outputs.items()}
        return BatchFeature(arrays, tensor_type=return_tensors)

    def pad(
        self,
        processed_features: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | TensorType | None = None,
    ) -> BatchFeature:
        """Features of clips of different lengths to one batch, as Transformers' `DataCollatorWithPadding` asks for it.

        Args:
            processed_features: With `input_values`, each (frames, num_mel_bins) as from a call with padding "longest",
                and whatever else is to be batched, such as labels: a list of dictionaries, or a dictionary of lists.
            padding: `True` or "longest", "max_length", or `False`. Padded frames hold what a call pads with.
            max_length: Number of frames, to pad to or to cut at.
            truncation: Whether longer clips are cut to `max_length`.
            pad_to_multiple_of: Round the length up to a multiple of this.
            return_attention_mask: Whether `attention_mask` comes along. `None` means the extractor's own, or else
                where clips are padded.
            return_tensors: "pt" or "np"; `None` means the kind of the first clip, or lists.

        Raises:
            ValueError: No `input_values`, another word for `padding`, or no `max_length` where it is needed.
        """
        if not isinstance(processed_features, Mapping):
            names = processed_features[0].keys() if processed_features else ()
            processed_features = {name: [each[name] for each in processed_features] for name in names}
        if "input_values" not in processed_features:
            raise ValueError(f"Expected features with input_values, got {sorted(processed_features)}.")
        clips = processed_features["input_values"]
        strategy = {True: "longest", False: "do_not_pad"}.get(padding, getattr(padding, "value", padding))
        if strategy not in (*PADDINGS, "do_not_pad"):
            raise ValueError(f"Expected padding to be true, false or one of {', '.join(PADDINGS)}, got {padding!r}.")
        if max_length is None and (truncation or strategy == "max_length"):
            raise ValueError("Expected max_length, in frames, to pad to or to cut at, got none.")
        if return_tensors is None and len(clips):
            kinds = {torch.Tensor: "pt", np.ndarray: "np"}
            return_tensors = next((kinds[kind] for kind in kinds if isinstance(clips[0], kind)), None)
        clips = [np.asarray(clip, dtype=np.float32) for clip in clips]

        def rounded(length: int) -> int:
            return math.ceil(length / pad_to_multiple_of) * pad_to_multiple_of if pad_to_multiple_of else length

        if truncation:
            clips = [clip[: rounded(max_length)] for clip in clips]
        length = max(map(len, clips), default=0) if strategy == "longest" else max_length
        missing = [0 if strategy == "do_not_pad" else max(0, rounded(length) - len(clip)) for clip in clips]
        output = {name: list(values) for name, values in processed_features.items()}
        output["input_values"] = [self._pad_end(clip, number) for clip, number in zip(clips, missing)]
        if return_attention_mask is None:
            return_attention_mask = self.return_attention_mask
        if strategy != "do_not_pad" if return_attention_mask is None else return_attention_mask:
            masks = processed_features.get("attention_mask", [np.ones(len(clip), np.int64) for clip in clips])
            output["attention_mask"] = [
                np.pad(np.asarray(mask)[: len(clip)], (0, number)).astype(np.int64)
                for mask, clip, number in zip(masks, clips, missing)
            ]
        return BatchFeature(output, tensor_type=return_tensors)

    def _pad_end(self, clip: np.ndarray, number: int) -> np.ndarray:
        value = self.padding_value
        if clip.ndim == 2 and self.do_normalize:  # features; of waveforms nothing is normalised
            value = (value - self.mean) / (2 * self.std)
        return np.pad(clip, [(0, number)] + [(0, 0)] * (clip.ndim - 1), constant_values=value)


def _check_padding(padding: Any) -> str:
    if padding not in PADDINGS:
        raise ValueError(f"Expected padding to be one of {', '.join(PADDINGS)}, got {padding!r}.")
    return padding


__all__ = ["ASTFeatureExtractor"]
