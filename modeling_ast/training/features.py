"""Waveforms of a training batch to what the model takes: by data workers, or on the device where the model is.

What is done to spectrograms is drawn where the clips are read, from their generators, and done where the spectrograms
are computed: both ways have the same draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from modeling_ast import ASTFeatureExtractor
from modeling_ast.training.arguments import AugmentArguments
from modeling_ast.training.augment import draw_mask, draw_noise, draw_shift, roll


@dataclass(frozen=True)
class SpectrogramDraws:
    """What is done to the spectrogram of a clip.

    Attributes:
        frames: Of the clip, without padding.
        length: Of what comes out, in frames.
        bin_masks: Stretches of mel bins that are masked.
        frame_masks: Stretches of frames that are masked.
        shift: By so many frames it is moved.
    """

    frames: int
    length: int
    bin_masks: tuple[slice, ...] = ()
    frame_masks: tuple[slice, ...] = ()
    shift: int = 0


class AugmentedFeatures:
    """Spectrograms of a training batch, masked, normalised, rolled and with noise, as the model takes them.

    Where clips keep their own length, masks and rolls of frames shrink with it.

    Args:
        extractor: Whose features the model is to learn.
        augment: What is done.

    Source: Park et al., "SpecAugment on Large Scale Datasets" (2020), for time masks in proportion to the length.
    """

    def __init__(self, extractor: ASTFeatureExtractor, augment: AugmentArguments):
        self.extractor, self.augment = extractor, augment

    def draw(self, num_samples: int, generator: torch.Generator) -> tuple[SpectrogramDraws, torch.Tensor | None]:
        """What is done to a clip of so many samples, and the noise that is added, (length, num_mel_bins)."""
        extractor, augment = self.extractor, self.augment
        frames, length = min(extractor.num_frames(num_samples), extractor.max_length), extractor.max_length
        if extractor.padding == "longest":
            length = min(max(frames, extractor.min_length), length)
        share = length / extractor.max_length  # 1 where all are padded
        widest = round(share * augment.time_mask_frames)
        draws = SpectrogramDraws(
            frames,
            length,
            tuple(
                draw_mask(extractor.num_mel_bins, augment.freq_mask_bins, generator)
                for _ in range(augment.num_freq_masks)
            ),
            tuple(draw_mask(length, widest, generator) for _ in range(augment.num_time_masks)),
            draw_shift(round(share * augment.roll_frames), generator),
        )
        shape = length, extractor.num_mel_bins
        return draws, draw_noise(shape, augment.max_noise, generator, augment.original_noise_and_roll)

    @torch.no_grad()
    def compute(
        self,
        waveforms: Sequence[torch.Tensor],
        draws: Sequence[SpectrogramDraws],
        noises: Sequence[torch.Tensor | None],
    ) -> dict[str, torch.Tensor]:
        """On the device of the waveforms.

        Args:
            waveforms: Checked, each of shape (samples,).
            draws: Of each.
            noises: Likewise; `None` adds nothing.

        Returns:
            `input_values` (batch, frames, num_mel_bins) and, where the padding is "longest", `attention_mask`.
        """
        extractor, fill = self.extractor, self.extractor.padding_value
        spectrograms = extractor.fbank(list(waveforms), extractor.max_length)
        padding = extractor.normalize(torch.tensor(fill)).item() if extractor.do_normalize else fill
        original, features = self.augment.original_noise_and_roll, []
        for spectrogram, own, noise in zip(spectrograms, draws, noises):
            (full,) = extractor.fit_length([spectrogram], extractor.max_length)  # (frames, num_mel_bins), a new one
            for stretch in own.bin_masks:
                full[:, stretch] = fill
            for stretch in own.frame_masks:
                full[stretch] = fill
            if extractor.do_normalize:
                full = extractor.normalize(full)
            # The other way round than in the original, for noise on the padding that comes in; otherwise the same.
            full = roll(full, own.shift, own.frames, padding, original)
            features.append(full if noise is None else full + noise)
        batch = {"input_values": pad_sequence(features, batch_first=True, padding_value=padding)}
        if extractor.padding == "longest":
            batch["attention_mask"] = extractor.mask_frames(features, batch["input_values"].shape[1])
        return batch

    def hand_over(
        self,
        waveforms: Sequence[torch.Tensor],
        draws: Sequence[SpectrogramDraws],
        noises: Sequence[torch.Tensor | None],
    ) -> dict[str, Any]:
        """What `compute_handed_over` takes, in a few tensors: a data worker hands over each in a file of its own.

        Args:
            waveforms: As for `compute`, and likewise the others.

        Returns:
            `waveforms` (batch, samples), no longer than they are heard, the `num_samples` and the `draws` of each and,
            where there is some, `noise` (batch, frames, num_mel_bins).
        """
        extractor = self.extractor
        longest = max(extractor.num_samples(extractor.max_length), extractor.frame_length)
        waveforms = [waveform[:longest] for waveform in waveforms]
        batch = {"waveforms": pad_sequence(waveforms, batch_first=True)}
        batch |= {"num_samples": [len(waveform) for waveform in waveforms], "draws": list(draws)}
        if noises[0] is not None:
            batch["noise"] = pad_sequence(list(noises), batch_first=True)
        return batch

    def compute_handed_over(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The features of what `hand_over` gave, on the device on which that is, in its place."""
        others = dict(batch)
        waveforms, lengths, draws = (others.pop(name) for name in ("waveforms", "num_samples", "draws"))
        noises = [None] * len(draws)
        if (noise := others.pop("noise", None)) is not None:
            noises = [own[: each.length] for own, each in zip(noise, draws)]
        waveforms = [waveform[:length] for waveform, length in zip(waveforms, lengths)]
        return {**self.compute(waveforms, draws, noises), **others}
