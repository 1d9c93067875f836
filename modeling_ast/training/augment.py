"""Augmentation of one training clip: crop, mixup, gain of its waveform, masks of its features, roll and noise.

Every draw comes from a generator of the clip's own, which `clip_generator` seeds with the run's seed and the clip's
position in the order of training. So a draw depends neither on the number of processes and workers nor on where a run
was interrupted.
"""

import hashlib
from collections.abc import Sequence

import torch


def clip_generator(seed: int, position: int) -> torch.Generator:
    """The source of one clip's draws.

    Args:
        seed: Of the run.
        position: Of the clip among all clips of the run, counted on from epoch to epoch.
    """
    digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=8).digest()  # neighbours share no pattern
    return torch.Generator().manual_seed(int.from_bytes(digest))


def draw_crop(length: int, num_samples: int, generator: torch.Generator) -> slice:
    """A stretch of `num_samples` samples that starts anywhere in a clip; the whole clip where it is not longer."""
    spare = length - num_samples
    if spare <= 0:
        return slice(0, length)
    start = torch.randint(spare + 1, (), generator=generator).item()
    return slice(start, start + num_samples)


def draw_mixing_weight(alpha: float, generator: torch.Generator) -> float:
    """The anchor's weight in mixup, from Beta(alpha, alpha).

    Of 2 * alpha - 1 uniform numbers the alpha-th smallest has that distribution, where alpha is a whole number. For
    others it is the share of one of two Gamma(alpha) numbers in their sum; torch's own Beta takes no generator. A
    Gamma(alpha) number is a Gamma(alpha + 1) number times a uniform one to the power of 1 / alpha, and logarithms keep
    small ones from becoming 0.

    Source: Marsaglia and Tsang, "A Simple Method for Generating Gamma Variables" (2000), for torch's Gamma and the
        power.
    """
    if alpha == int(alpha):
        whole = int(alpha)
        return torch.rand(2 * whole - 1, generator=generator).sort().values[whole - 1].item()
    larger = torch.full((2,), alpha + 1, dtype=torch.float64)
    gamma = torch._standard_gamma(larger, generator=generator).log()
    uniform = torch.rand(2, dtype=torch.float64, generator=generator).log()
    return torch.sigmoid(gamma[0] - gamma[1] + (uniform[0] - uniform[1]) / alpha).item()


def mix(anchor: torch.Tensor, partner: torch.Tensor, weight: float) -> torch.Tensor:
    """Mixup of two waveforms: `weight` times the anchor and the rest of the partner, with the anchor's length.

    Args:
        anchor: Tensor of shape (samples,), of mean 0.
        partner: Tensor of shape (other samples,), of mean 0; padded with zeros at its end, or cut there.
        weight: In [0, 1].

    Source: Gong et al., AST (2021), after Tokozume et al., "Learning from Between-class Examples" (2018); the mean is
        removed once more, as in the original.
    """
    mixed = weight * anchor
    shared = min(anchor.shape[0], partner.shape[0])
    mixed[:shared] += (1 - weight) * partner[:shared]
    return mixed - mixed.mean()


def draw_gain(max_gain: float, generator: torch.Generator) -> float:
    """By what a waveform is multiplied, for a gain that is uniform in [-max_gain, max_gain] dB; 1 where that is 0.

    It is of the mixture: weights of mixup, which the labels take, so remain the clips' shares. AudioMAE amplifies each
    of both before, by -6 to 3.5 dB.
    """
    if max_gain == 0:
        return 1.0
    gain = (2 * torch.rand((), generator=generator).item() - 1) * max_gain
    return 10 ** (gain / 20)


def smooth_labels(labels: torch.Tensor, factor: float, num_labels: int, multi_label: bool) -> torch.Tensor:
    """Label smoothing, of soft labels as mixup makes them too.

    Args:
        labels: Class indices (batch,), or weights (batch, num_labels) in [0, 1].
        factor: Share of each label that is spread: over all labels where one is right, as torch's cross entropy does
            it; over yes and no, half to each, where a clip has several, whose binary cross entropy asks so of each.
        num_labels: Number of labels.
        multi_label: Whether a clip has several.

    Returns:
        Weights (batch, num_labels).

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2016).
    """
    weights = labels if labels.ndim == 2 else torch.nn.functional.one_hot(labels, num_labels)
    return (1 - factor) * weights + factor / (2 if multi_label else num_labels)


def draw_mask(size: int, max_width: int, generator: torch.Generator) -> slice:
    """A stretch of an axis, of frames or of mel bins, that is masked.

    Args:
        size: Of the axis.
        max_width: The width is uniform in [0, max_width), rounded down, and at most the axis; 0 draws nothing.
        generator: Of the clip.

    Source: the original's SpecAugment (torchaudio's FrequencyMasking and TimeMasking, once each).
    """
    if max_width == 0:
        return slice(0, 0)
    draws = torch.rand(2, generator=generator).tolist()
    width = min(draws[0] * max_width, size)
    start = int(draws[1] * (size - width))
    return slice(start, start + int(width))


def draw_noise(
    shape: Sequence[int], max_noise: float, generator: torch.Generator, original: bool = False
) -> torch.Tensor | None:
    """Uniform noise for every cell, of an amplitude drawn in [0, max_noise).

    Args:
        shape: Of a normalised spectrogram, (frames, mel bins).
        max_noise: 0 draws nothing.
        generator: Of the clip.
        original: Whether the noise lies above zero, as in the original, which so raises the mean too; else around it.

    Source: the original's Speech Commands recipe, with 0.1.
    """
    if max_noise == 0:
        return None
    amplitude = torch.rand((), generator=generator) * max_noise
    noise = torch.rand(tuple(shape), generator=generator)
    if not original:
        noise -= 0.5
    return noise.mul_(amplitude)


def draw_shift(max_frames: int, generator: torch.Generator) -> int:
    """A whole number of frames in [-max_frames, max_frames); 0 where that is 0.

    Source: the original's Speech Commands recipe, with 10 frames.
    """
    return int(torch.randint(-max_frames, max_frames, (), generator=generator)) if max_frames else 0


def roll(
    spectrogram: torch.Tensor, shift: int, frames: int, padding: float = 0.0, original: bool = False
) -> torch.Tensor:
    """Move a spectrogram in time.

    What leaves a clip that fills all frames at one end comes in at the other. Into a padded clip comes padding
    instead, so that its beginning does not end up behind its padding.

    Args:
        spectrogram: Tensor of shape (all frames, ...): of mel bins, or of what stands for a frame.
        shift: Frames; 0 leaves all as it is.
        frames: How many frames are the clip's; the rest is padding.
        padding: What padding holds.
        original: Whether all frames go round, padding included, as in the original.
    """
    if shift == 0:
        return spectrogram
    rolled = spectrogram.roll(shift, dims=0)
    if frames < len(spectrogram) and not original:
        came_round = slice(shift, None) if shift < 0 else slice(shift)
        rolled[came_round] = padding
    return rolled
