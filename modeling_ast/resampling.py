"""Sampling rates: a waveform at another one, whole or in pieces that arrive, as torchaudio gives it."""

import math
from functools import lru_cache

import torch

# So many numbers torchaudio's filter may have: it has some 70,000 for 44.1 kHz to 16 kHz, but hundreds of millions
# for 22,051 Hz, which has no divisor in common with 16 kHz.
MAX_FILTER_SIZE = 2**22
WEIGHTS_AT_ONCE = 2**20  # of filters that are made where they are needed, some tables of so many float64 at a time
FILTERS_AT_ONCE = 16  # in one matrix product: more are longer together, fewer are more products


def resample(waveform: torch.Tensor, source_rate: int, target_rate: int) -> torch.Tensor:
    """What `torchaudio.functional.resample` gives for a waveform (samples,), faster and for any pair of rates.

    Raises:
        ImportError: torchaudio is needed and cannot be loaded.
    """
    if source_rate == target_rate:
        return waveform
    divisor = math.gcd(source_rate, target_rate)
    source, target = source_rate // divisor, target_rate // divisor
    if source * target > MAX_FILTER_SIZE:
        return _resample_any(waveform, source, target)
    resampler = _torchaudio_resampler(source, target)
    if target == 1:
        return resampler(waveform)
    # torchaudio multiplies all of `source` samples by each of the `target` filters, which are zero but for a few.
    padded = torch.nn.functional.pad(waveform, (resampler.width, resampler.width + source))
    num_units = len(waveform) // source + 1
    outputs = []
    for first, weights in _filter_bands(source, target):
        windows = padded[first:].unfold(0, len(weights), source)[:num_units]  # (units, samples)
        outputs.append(windows @ weights)  # (units, filters)
    return torch.cat(outputs, dim=1).flatten()[: -(-len(waveform) * target // source)]


def resampled_length(num_samples: int, source_rate: int, target_rate: int) -> int:
    """How many samples `resample` makes of so many."""
    return -(-num_samples * target_rate // source_rate)


def find_origin(wanted: slice, source_rate: int, target_rate: int) -> tuple[slice, int]:
    """The samples on which some resampled ones depend, and where the latter begin when these alone are resampled.

    Args:
        wanted: First and end of the resampled ones; the end of what they depend on may lie behind all samples.
        source_rate: In Hz.
        target_rate: In Hz.
    """
    stream = StreamResampler(source_rate, target_rate)
    if stream.source == stream.target:
        return wanted, 0
    unit = max(0, wanted.start // stream.target - stream.context)  # whole ones, for the same filters
    end = -(-wanted.stop // stream.target) * stream.source + stream.reach
    return slice(unit * stream.source, end), wanted.start - unit * stream.target


@lru_cache(maxsize=8)
def _torchaudio_resampler(source: int, target: int) -> torch.nn.Module:
    """torchaudio's resampling, with its filters made once and not for each clip."""
    require_torchaudio()
    from torchaudio.transforms import Resample

    with torch.device("cpu"), torch.inference_mode(False):  # whatever the mode of the first call
        return Resample(source, target, dtype=torch.float32)


@lru_cache(maxsize=8)
def _filter_bands(source: int, target: int) -> list[tuple[int, torch.Tensor]]:
    """The filters, some neighbours at a time, where they are not zero.

    Returns:
        The first sample that some filters reach, and their weights (samples, filters).
    """
    bands = []
    with torch.inference_mode(False):
        for filters in _torchaudio_resampler(source, target).kernel.squeeze(1).split(FILTERS_AT_ONCE):
            reached = (filters.abs() > 1e-9).any(dim=0).nonzero()  # what is less changes no float32 sum
            first, last = reached[0].item(), reached[-1].item()
            bands.append((first, filters[:, first : last + 1].t().contiguous()))
    return bands


def _resample_any(waveform: torch.Tensor, source: int, target: int) -> torch.Tensor:
    """What torchaudio gives (`sinc_interp_hann`), with the filter of each sample made where it is needed.

    Args:
        waveform: Of shape (samples,).
        source: Rate of it, over the greatest common divisor of the rates.
        target: Rate of the result, likewise.
    """
    cutoff = 0.99 * min(source, target)
    width = math.ceil(6 * source / cutoff)  # samples that the filter reaches to either side
    offsets = torch.arange(-width, width + 1)
    windows = torch.nn.functional.pad(waveform, (width, width)).unfold(0, len(offsets), 1)
    outputs = []
    for numbers in torch.arange(-(-len(waveform) * target // source)).split(max(1, WEIGHTS_AT_ONCE // len(offsets))):
        nearest, remainder = numbers * source // target, numbers * source % target
        time = (offsets - remainder.double().unsqueeze(1) / target) / source * cutoff  # (outputs, offsets)
        weights = torch.sinc(time) * (time.clamp(-6, 6) * math.pi / 12).cos().square() * cutoff / source
        outputs.append((windows[nearest] * weights.float()).sum(dim=1))
    return torch.cat(outputs)


class StreamResampler:
    """A mono waveform that arrives in pieces, at another rate: together what resampling it as a whole gives.

    Args:
        source_rate: Of what arrives, in Hz.
        target_rate: Of what comes out, in Hz.
    """

    def __init__(self, source_rate: int, target_rate: int):
        divisor = math.gcd(source_rate, target_rate)
        # `source` samples become `target` samples, which depend on `reach` more on either side.
        self.source, self.target = source_rate // divisor, target_rate // divisor
        # Source: torchaudio.functional.resample, lowpass_filter_width 6 and rolloff 0.99.
        self.reach = math.ceil(6 * self.source / (0.99 * min(self.source, self.target)))
        self.context = math.ceil(self.reach / self.source)  # in units of `source` samples
        self.kept = torch.zeros(0)  # what later output depends on
        self.num_before = 0  # units of it that have been put out

    def push(self, waveform: torch.Tensor) -> torch.Tensor:
        """The samples that the piece completes; perhaps none.

        Args:
            waveform: Of shape (samples,).
        """
        if self.source == self.target:
            return waveform
        self.kept = torch.cat((self.kept, waveform))
        num_units = (len(self.kept) - self.reach) // self.source
        if num_units <= self.num_before:
            return waveform.new_zeros(0)
        output = self._resample()[self.num_before * self.target : num_units * self.target]
        first = max(0, num_units - self.context)
        self.kept, self.num_before = self.kept[first * self.source :].clone(), num_units - first
        return output

    def finish(self) -> torch.Tensor:
        """The samples that are still out when nothing more arrives."""
        output = self._resample()[self.num_before * self.target :] if len(self.kept) else self.kept
        self.kept, self.num_before = torch.zeros(0), 0
        return output

    def _resample(self) -> torch.Tensor:
        return resample(self.kept, self.source, self.target)


def require_torchaudio() -> None:
    """Raise one understandable error where torchaudio is missing or does not match torch.

    PyPI's torchaudio declares no requirement, so pip installs pairs that cannot be loaded; and Transformers, which
    finds the package but not that it is broken, then fails in places that do not name it.

    Raises:
        ImportError: With what is installed and the command that mends it.
    """
    try:
        import torchaudio.functional  # noqa: F401
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        from importlib.metadata import PackageNotFoundError, version

        try:
            installed = f"torchaudio {version('torchaudio')} cannot be loaded with torch {torch.__version__}"
        except PackageNotFoundError:
            installed = f"torchaudio is not installed beside torch {torch.__version__}"
        raise ImportError(
            f"{installed}; install a pair that matches: pip install 'torch>=2.11,<2.15' 'torchaudio>=2.11,<2.12'"
        ) from error
