"""Augmentation of training clips: masks before normalisation, roll after it.

Every draw comes from torch, so that one seed reproduces a run.
"""

import torch


def mask(spectrograms: torch.Tensor, dim: int, max_width: int, value: float = 0.0) -> torch.Tensor:
    """Mask one stretch of each spectrogram, drawn anew for each.

    Args:
        spectrograms: Tensor of shape (batch, frames, mel bins), not normalised yet.
        dim: 1 masks frames, 2 masks mel bins.
        max_width: The width is uniform in [0, max_width), rounded down, and at most the axis; 0 leaves all as it is.
        value: What masked cells hold: 0.0, as in padding.

    Source: the original's SpecAugment (torchaudio's FrequencyMasking and TimeMasking, once each).
    """
    if max_width == 0:
        return spectrograms
    batch_size, size = spectrograms.shape[0], spectrograms.shape[dim]
    width = (torch.rand(batch_size) * max_width).clamp(max=size)
    start = (torch.rand(batch_size) * (size - width)).floor()
    position = torch.arange(size)
    masked = (position >= start[:, None]) & (position < (start + width.floor())[:, None])  # (batch, size)
    masked = masked.unsqueeze(2 if dim == 1 else 1).to(spectrograms.device)
    return spectrograms.masked_fill(masked, value)


def roll(spectrograms: torch.Tensor, max_frames: int) -> torch.Tensor:
    """Roll each spectrogram in time, circularly, by a whole number of frames in [-max_frames, max_frames).

    Args:
        spectrograms: Tensor of shape (batch, frames, mel bins).
        max_frames: 0 leaves all as it is.

    Source: the original's Speech Commands recipe, with 10 frames.
    """
    if max_frames == 0:
        return spectrograms
    shifts = torch.randint(-max_frames, max_frames, (len(spectrograms),)).tolist()
    return torch.stack([clip.roll(shift, dims=0) for clip, shift in zip(spectrograms, shifts)])
