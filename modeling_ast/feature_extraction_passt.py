"""Feature extractor of PaSST: what another Audio Spectrogram Transformer, at 32 kHz, takes for a spectrogram.

The network is ours (`layouts.py` reads its weights), the way to its input is not AST's. Against that one: the
pre-emphasis is the waveform's, not each frame's, whose mean stays; frames lie around their points in time, so that the
clip is mirrored at both ends; filters reach from 0 to 15 kHz; 1e-5 is added to the energies before the logarithm, so
that silence is -11.5; and what is normalised with are round numbers.

Source: Koutini et al., "Efficient Training of Audio Transformers with Patchout", Interspeech 2022, and the package
hear21passt, for every step and number.
"""

import math
from typing import Any

import torch

from .fbank import PREEMPHASIS, log_mel, mel_bin_frequencies
from .feature_extraction_ast import ASTFeatureExtractor

SAMPLING_RATE = 32000
LIMITS_HZ = (0.0, 15000.0)  # of the filters: half the rate, less 1 kHz for the training's random shifts of it
ENERGY_OFFSET = 1e-5


class PaSSTFeatureExtractor(ASTFeatureExtractor):
    r"""Waveforms at 32 kHz to `input_values`, as PaSST computes them: 100 frames a second, 1000 for 10 seconds.

    All else is as of `ASTFeatureExtractor`, of which it is one: calls, padding, masks, files. A file of its settings
    names this class, so that Transformers without this package refuses it, instead of computing other features.

    Args:
        sampling_rate: 32000 alone.
        max_length: Number of frames of `input_values`.
        mean: Of the normalisation, (x + 4.5) / 5; no data set's.
        std: The same: half of 5.
        padding_value: What padded frames hold before normalisation: silence, since PaSST pads waveforms. The last two
            frames of a padded clip, which reach over its end, are mirrored here and fade out there.
        **kwargs: As of `ASTFeatureExtractor`.

    Raises:
        TypeError: An option is not known.
        ValueError: Another sampling rate, or an option with a value that cannot work.
    """

    def __init__(
        self,
        sampling_rate: int = SAMPLING_RATE,
        max_length: int = 1000,
        mean: float = -4.5,
        std: float = 2.5,
        padding_value: float = math.log(ENERGY_OFFSET),
        **kwargs,
    ):
        if sampling_rate != SAMPLING_RATE:
            raise ValueError(f"Expected a sampling_rate of {SAMPLING_RATE}, as PaSST has, got {sampling_rate!r:.40}.")
        options = {"max_length": max_length, "mean": mean, "std": std, "padding_value": padding_value}
        super().__init__(sampling_rate=sampling_rate, **options, **kwargs)

    @property
    def first_sample(self) -> int:
        return -(self.frame_length // 2)

    def num_samples(self, num_frames: int) -> int:
        # One more than the last frame reaches to: pre-emphasis takes two samples for each of its own.
        return (num_frames - 1) * self.frame_shift + self.frame_length // 2 + 1

    def max_samples(self, num_frames: int) -> int:
        return num_frames * self.frame_shift

    def num_frames(self, num_samples: int | torch.Tensor) -> int | torch.Tensor:
        return (num_samples - 1) // self.frame_shift + 1

    def mel_frequencies(self) -> torch.Tensor:
        return mel_bin_frequencies(self.sampling_rate, self.num_mel_bins, *LIMITS_HZ)

    def _fbank_together(self, waveforms: list[torch.Tensor]) -> list[torch.Tensor]:
        return [self._fbank(waveform) for waveform in waveforms]  # whose ends are mirrored

    def _fbank(self, waveforms: torch.Tensor) -> torch.Tensor:
        samples, half = waveforms.shape[-1], self.frame_length // 2
        if samples < self.frame_length:
            raise ValueError(f"Expected a clip of at least {self.frame_length} samples (25 ms), got {samples}.")
        waveforms = waveforms.to(torch.promote_types(waveforms.dtype, torch.float32))
        waveforms = waveforms[..., 1:] - PREEMPHASIS * waveforms[..., :-1]
        before, behind = waveforms[..., 1 : half + 1].flip(-1), waveforms[..., -half - 1 : -1].flip(-1)
        frames = torch.cat((before, waveforms, behind), dim=-1).unfold(-1, 2 * half, self.frame_shift)
        return log_mel(frames, torch.mul, _take_log, self.sampling_rate, self.num_mel_bins, *LIMITS_HZ)

    def to_dict(self) -> dict[str, Any]:
        """What preprocessor_config.json holds, with the name of this class."""
        return {**super().to_dict(), "feature_extractor_type": type(self).__name__}


def _take_log(energies: torch.Tensor) -> torch.Tensor:
    return energies.add_(ENERGY_OFFSET).log_()


__all__ = ["PaSSTFeatureExtractor"]
