"""Long recordings made of known clips, with what is in them and when: to measure how well events are found."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from modeling_ast.fbank import frame_length, frame_shift

BACKGROUND = "background"
# A frame sounds if its level is within this of the clip's loudest one ...
RANGE_DB = 40.0
# ... and pauses of up to so many frames of 10 ms are part of the sound.
MAX_PAUSE_FRAMES = 50


def frame_levels(waveform: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Levels in dB relative to full scale of frames of 25 ms every 10 ms, at least -120.

    Args:
        waveform: Of shape (samples,), at least one frame.
        sampling_rate: In Hz.

    Returns:
        Tensor of shape (frames,).
    """
    frames = waveform.unfold(0, frame_length(sampling_rate), frame_shift(sampling_rate))
    return 10 * frames.square().mean(dim=1).clamp(min=1e-12).log10()


def sounding_frames(levels: torch.Tensor, threshold_db: float, max_pause_frames: int) -> list[tuple[int, int]]:
    """Stretches of frames, first and behind the last, with levels of at least a threshold; short pauses are closed.

    Args:
        levels: Of shape (frames,), in dB.
        threshold_db: In dB.
        max_pause_frames: Longest pause that is closed.
    """
    is_loud = np.concatenate(([False], (levels >= threshold_db).numpy(), [False]))
    starts, stops = np.flatnonzero(is_loud[1:] & ~is_loud[:-1]), np.flatnonzero(is_loud[:-1] & ~is_loud[1:])
    stretches = []
    for start, stop in zip(starts.tolist(), stops.tolist()):
        if stretches and start - stretches[-1][1] <= max_pause_frames:
            stretches[-1] = (stretches[-1][0], stop)
        else:
            stretches.append((start, stop))
    return stretches


def sounding_part(waveform: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """The longest stretch of a clip in which it sounds: what an event of the clip is.

    Clips are often padded with silence to one length, or hold the sound several times.

    Args:
        waveform: Of shape (samples,), at least 25 ms.
        sampling_rate: In Hz.
    """
    levels = frame_levels(waveform, sampling_rate)
    stretches = sounding_frames(levels, levels.max().item() - RANGE_DB, MAX_PAUSE_FRAMES)
    start, stop = max(stretches, key=lambda stretch: stretch[1] - stretch[0])
    shift = frame_shift(sampling_rate)
    return waveform[start * shift : (stop - 1) * shift + frame_length(sampling_rate)]


def set_level(waveform: torch.Tensor, level_db: float) -> torch.Tensor:
    """A waveform of another root mean square, in dB relative to full scale; peaks are kept within full scale.

    Args:
        waveform: Of shape (samples,).
        level_db: Below 0.
    """
    gain = 10 ** (level_db / 20) / waveform.square().mean().sqrt().clamp(min=1e-9)
    return waveform * min(gain.item(), 1 / waveform.abs().max().clamp(min=1e-9).item())


def background_noise(num_samples: int, generator: torch.Generator) -> torch.Tensor:
    """Steady noise with its own colour and level: nothing that happens.

    Its spectrum falls by 0 to 9 dB an octave (white to brown and beyond), its level is -60 to -25 dB of full scale.

    Args:
        num_samples: Of the result.
        generator: Of the draws.

    Returns:
        float32 tensor of shape (num_samples,).
    """
    decibels_per_octave, level = torch.rand(2, generator=generator).tolist()
    spectrum = torch.fft.rfft(torch.randn(num_samples, generator=generator))
    line = torch.arange(len(spectrum)).clamp(min=1)
    spectrum *= line ** (-9 * decibels_per_octave / (20 * math.log10(2)))
    spectrum[0] = 0
    return set_level(torch.fft.irfft(spectrum, n=num_samples), -60 + 35 * level)


def splice(
    sounds: Sequence[tuple[torch.Tensor, str]], sampling_rate: int, generator: torch.Generator
) -> tuple[torch.Tensor, list[tuple[str, int, int]]]:
    """A long recording of sounds, one after the other, with silence or noise between them.

    Between two sounds lie 1.5 to 4 s, by turns near-silence (the noise of a recorder, -70 dB) or steady noise that
    is often as loud as a sound. Sounds have levels of -35 to -15 dB and are faded in and out within 10 ms.

    Args:
        sounds: Waveforms (samples,) and their labels, in their order.
        sampling_rate: In Hz.
        generator: Of the draws.

    Returns:
        float32 tensor of shape (samples,), and label, first sample and sample behind the last of each sound.
    """
    pieces, events, position = [], [], 0

    def add(piece: torch.Tensor) -> None:
        nonlocal position
        pieces.append(piece)
        position += len(piece)

    def pause(is_noise: bool) -> torch.Tensor:
        seconds = 1.5 + 2.5 * torch.rand((), generator=generator).item()
        samples = round(seconds * sampling_rate)
        return _faded(background_noise(samples, generator), sampling_rate) if is_noise else torch.zeros(samples)

    for number, (waveform, label) in enumerate(sounds):
        add(pause(number % 2 == 1))
        level = -35 + 20 * torch.rand((), generator=generator).item()
        events.append((label, position, position + len(waveform)))
        add(_faded(set_level(waveform, level), sampling_rate))
    add(pause(len(sounds) % 2 == 1))
    recording = torch.cat(pieces)
    recording += 10 ** (-70 / 20) * torch.randn(len(recording), generator=generator)
    return recording.clamp(-1, 1), events


def _faded(waveform: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Within 10 ms at either end, against clicks that would give the seams away."""
    samples = min(frame_shift(sampling_rate), len(waveform) // 2)
    ramp = torch.ones(len(waveform))
    ramp[:samples] = torch.linspace(0, 1, samples)
    ramp[len(ramp) - samples :] = torch.linspace(1, 0, samples)
    return waveform * ramp
