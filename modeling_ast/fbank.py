"""Log-mel filter bank, compatible with Kaldi's, in plain torch.

The settings are those of AST and not options: frames of 25 ms every 10 ms, no dither, the mean of each frame removed,
pre-emphasis 0.97, a symmetric Hann window, a transform of the next power of two, power, triangles on Kaldi's mel scale
from 20 Hz to half the sampling rate, natural logarithm.

Source: `torchaudio.compliance.kaldi.fbank`, whose order of operations this keeps up to the transform. The order
matters: pre-emphasis of the waveform instead of each frame moves quiet bins by 3e-3.

What makes it fast, largest gain first: the power as the squares of the real and the imaginary part, where a magnitude
would take a root that is then squared; a few frames at a time, which stay in the processor's cache; no products with
the zeros of the filters; no records for gradients that nobody asks for.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache

import numpy as np
import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes

FRAME_LENGTH_MS = 25.0
FRAME_SHIFT_MS = 10.0
PREEMPHASIS = 0.97
LOW_FREQUENCY_HZ = 20.0
# The floor of the energies: the epsilon of float32, whatever the precision of the input. Silence is its logarithm,
# -15.942385. Source: Kaldi.
ENERGY_FLOOR = torch.finfo(torch.float32).eps
# Samples, with the transform's padding, that a processor works on at a time: 0.75 MiB of float32 for each step, and
# 384 frames at 16 kHz. More do not stay in an L2 cache of 2 MiB, less are more calls.
BLOCK_SAMPLES = 3 * 2**16
# Mel bins in one product: 32 or 16 at a time take a third of the time of all 128, 8 take longer again.
BAND_BINS = 32


def frame_length(sampling_rate: int) -> int:
    """Samples in one frame; a clip must be at least as long."""
    return int(sampling_rate * FRAME_LENGTH_MS * 0.001)


def frame_shift(sampling_rate: int) -> int:
    """Samples from the start of one frame to the start of the next."""
    return int(sampling_rate * FRAME_SHIFT_MS * 0.001)


def _mel(frequency: torch.Tensor | float) -> torch.Tensor | float:
    log = torch.log if isinstance(frequency, torch.Tensor) else math.log
    return 1127.0 * log(1.0 + frequency / 700.0)


@contextmanager
def _outside_of_modes() -> Iterator[None]:
    """For what is computed once and kept, as an array.

    A tensor would carry the mode (inference, tracing, a transform of torch.func, another default type) in which the
    first call happened to run into every later one.
    """
    with _disable_current_modes(), temporarily_clear_interpreter_stack():
        yield


@lru_cache(maxsize=32)
def mel_filters(
    sampling_rate: int, num_mel_bins: int, low: float = LOW_FREQUENCY_HZ, high: float | None = None
) -> np.ndarray:
    """Triangular filters, equally wide on the mel scale, from a low to a high frequency in Hz.

    At 16 kHz and 128 bins the fourth filter falls between two lines of the transform and is empty, so that bin is
    silent in every clip. Pretrained weights have learnt it that way; it stays.

    Returns:
        Array of shape (num_fft // 2 + 1, num_mel_bins); the last line of the transform, at half the sampling rate, has
        weight 0.
    """
    # Computed by torch, since numpy's logarithm differs in the last bit, which quiet bins would show.
    num_fft = _num_fft(sampling_rate)
    low, high = _mel(low), _mel(high or sampling_rate / 2)
    width = (high - low) / (num_mel_bins + 1)
    with _outside_of_modes():
        bins = torch.arange(num_mel_bins, device="cpu", dtype=torch.float32)
        left, center, right = low + bins * width, low + (bins + 1.0) * width, low + (bins + 2.0) * width
        lines = torch.arange(num_fft // 2, device="cpu", dtype=torch.float32)
        line = _mel(sampling_rate / num_fft * lines).unsqueeze(1)  # (num_fft // 2, 1)
        filters = torch.minimum((line - left) / (center - left), (right - line) / (right - center)).clamp(min=0.0)
        return torch.nn.functional.pad(filters, (0, 0, 0, 1)).numpy()


@lru_cache(maxsize=32)
def _mel_bands(sampling_rate: int, num_mel_bins: int, *limits: float) -> list[tuple[slice, np.ndarray]]:
    """The filters without most of their zeros, each line twice: for the squares of its real and imaginary part.

    Returns:
        For each `BAND_BINS` bins the rows of the doubled filters outside of which all of theirs are 0, and these rows,
        (rows, bins).
    """
    filters = mel_filters(sampling_rate, num_mel_bins, *limits).repeat(
        2, axis=0
    )  # (2 * (num_fft // 2 + 1), num_mel_bins)
    bands = []
    for first in range(0, num_mel_bins, BAND_BINS):
        band = filters[:, first : first + BAND_BINS]
        rows = np.flatnonzero(band.any(axis=1)).tolist() or [0]  # one row where all filters are empty
        rows = slice(rows[0], rows[-1] + 1)
        bands.append((rows, np.ascontiguousarray(band[rows])))
    return bands


@lru_cache(maxsize=32)
def _window(length: int, dtype: torch.dtype) -> np.ndarray:
    with _outside_of_modes():
        return torch.hann_window(length, periodic=False, device="cpu", dtype=dtype).numpy()


def mel_bin_frequencies(
    sampling_rate: int, num_mel_bins: int, low: float = LOW_FREQUENCY_HZ, high: float | None = None
) -> torch.Tensor:
    """The middle of each mel bin in Hz: (num_mel_bins,)."""
    low, high = _mel(low), _mel(high or sampling_rate / 2)
    mel = low + torch.arange(1, num_mel_bins + 1) * (high - low) / (num_mel_bins + 1)
    return 700.0 * ((mel / 1127.0).exp() - 1.0)


def _num_fft(sampling_rate: int) -> int:
    return 1 << (frame_length(sampling_rate) - 1).bit_length()


def fbank(waveform: torch.Tensor, sampling_rate: int = 16000, num_mel_bins: int = 128) -> torch.Tensor:
    """Log-mel spectrogram of one clip or of a batch of clips of one length, on the device of the input.

    Args:
        waveform: Tensor of shape (samples,) or (batch, samples), floating point, in [-1, 1]. float64 is computed in
            float64, everything else in float32, but for the products with the filters on a GPU, which are of float64.
        sampling_rate: In Hz.
        num_mel_bins: Number of mel bins.

    Returns:
        Tensor of shape (frames, num_mel_bins) or (batch, frames, num_mel_bins): natural logarithm of the energies,
        -15.942385 where there is none. Only whole frames count: 10 s at 16 kHz give 998, 5 s 498, 1 s 98.

    Raises:
        ValueError: The clip is shorter than one frame.
    """
    length = frame_length(sampling_rate)
    if waveform.shape[-1] < length:
        raise ValueError(
            f"Expected a clip of at least {length} samples (one frame of 25 ms at {sampling_rate} Hz), got "
            f"{waveform.shape[-1]}."
        )
    waveform = waveform.to(torch.promote_types(waveform.dtype, torch.float32))
    frames = waveform.unfold(-1, length, frame_shift(sampling_rate))  # (..., frames, length), a view
    return log_mel(frames, _window_frames, _take_log, sampling_rate, num_mel_bins)


def log_mel(
    frames: torch.Tensor,
    window_frames: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    take_log: Callable[[torch.Tensor], torch.Tensor],
    sampling_rate: int,
    num_mel_bins: int,
    *limits: float,
) -> torch.Tensor:
    """Frames to log-mel features, a few at a time where that is faster.

    Args:
        frames: Tensor of shape (..., frames, `frame_length`), float32 or float64.
        window_frames: Frames and a symmetric Hann window, (`frame_length`,), to new windowed frames.
        take_log: Energies (..., frames, num_mel_bins), which it may overwrite, to their logarithm.
        sampling_rate: In Hz.
        num_mel_bins: Number of mel bins.
        limits: Of the filters, low and high, in Hz; none means those of `mel_filters`.

    Returns:
        Tensor of shape (..., frames, num_mel_bins).
    """
    dtype, device, num_fft = frames.dtype, frames.device, _num_fft(sampling_rate)
    window = torch.from_numpy(_window(frames.shape[-1], dtype)).to(device)
    bands = _mel_bands(sampling_rate, num_mel_bins, *limits)
    # A recipe's `tf32` rounds float32 products on a GPU to ten bits, which moves a bin by about 1e-3; float64 stays.
    product_dtype = torch.float64 if device.type == "cuda" else dtype
    bands = [(rows, torch.from_numpy(filters).to(device, product_dtype)) for rows, filters in bands]

    def of_block(block: torch.Tensor) -> torch.Tensor:
        return take_log(_mel_energies(window_frames(block, window), num_fft, bands))

    with torch.autocast(device.type, enabled=False):  # products in half precision would lose the quiet bins
        # Whole where it pays (other devices) and where the number of blocks would become part of a graph.
        if device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return of_block(frames)
        num_blocks = math.ceil(math.prod(frames.shape[:-1]) * num_fft / BLOCK_SAMPLES)
        with nullcontext() if _is_differentiated(frames) else torch.inference_mode():
            blocks = [of_block(block) for block in frames.chunk(max(1, num_blocks), dim=-2)]
        return torch.cat(blocks, dim=-2)  # outside of the mode: a tensor like any other


def _is_differentiated(tensor: torch.Tensor) -> bool:
    """Or may be: of a tensor within vmap it is not known."""
    is_followed = tensor.requires_grad or forward_ad.unpack_dual(tensor).tangent is not None
    return is_followed or torch._C._are_functorch_transforms_active()


# In place below where the tensor is the function's own, and without names for what is done with, so that its memory,
# still in the cache, is the next step's.


def _window_frames(frames: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Without their mean, pre-emphasised, windowed."""
    frames = frames - frames.mean(dim=-1, keepdim=True)
    # The first sample of a frame has none before it, and stays as it is: the window is 0 there. Product and difference
    # are rounded one after the other, as in torchaudio; `sub(..., alpha=0.97)` would round only once.
    frames[..., 1:].sub_((frames * PREEMPHASIS)[..., :-1])
    return frames.mul_(window)


def _mel_energies(frames: torch.Tensor, num_fft: int, bands: list[tuple[slice, torch.Tensor]]) -> torch.Tensor:
    """Windowed frames (..., frames, length) to energies (..., frames, num_mel_bins)."""
    spectrum = torch.view_as_real(torch.fft.rfft(frames, n=num_fft))  # (..., num_fft // 2 + 1, 2)
    squares = spectrum.square_().flatten(-2)  # of real and imaginary parts in turn, which the filters add up
    products = [squares[..., rows].to(filters.dtype) @ filters for rows, filters in bands]
    return torch.cat(products, dim=-1).to(frames.dtype)


def _take_log(energies: torch.Tensor) -> torch.Tensor:
    return energies.clamp_(min=ENERGY_FLOOR).log_()
