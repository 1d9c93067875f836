"""Sound files: the one place that reads them."""

import io
import os
import re
from pathlib import Path

import torch


class AudioError(ValueError):
    """A sound file that is missing, broken or not decodable. The message holds its name and the decoder's words."""


def load_waveform(
    source: str | os.PathLike | bytes, sampling_rate: int = 16000, name: str | None = None
) -> torch.Tensor:
    """Read a sound file into a mono waveform at one rate.

    WAV, FLAC, OGG and MP3, decoded by libsndfile (no ffmpeg, no torchcodec); channels averaged; resampled with
    `torchaudio.functional.resample` where the file has another rate.

    Args:
        source: Path of a file, or its bytes.
        sampling_rate: Of the result, in Hz.
        name: What to call the file in errors; `None` means the path.

    Returns:
        float32 tensor of shape (samples,), in [-1, 1] up to the ringing of the resampling filter.

    Raises:
        AudioError: The file is missing, empty, truncated or not decodable.
        ImportError: torchaudio is needed for resampling and cannot be loaded.
    """
    return to_waveform(*read_samples(source, name), sampling_rate)


def read_samples(source: str | os.PathLike | bytes, name: str | None = None) -> tuple[torch.Tensor, int]:
    """Read a sound file as it is.

    Args:
        source: Path of a file, or its bytes.
        name: What to call the file in errors; `None` means the path.

    Returns:
        float32 tensor of shape (samples, channels), and the sampling rate in Hz.

    Raises:
        AudioError: The file is missing, empty, truncated or not decodable.
    """
    import soundfile

    name = name or ("<bytes>" if isinstance(source, bytes) else os.fspath(source))
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise AudioError(f"{name}: no such file.")
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)) as file:
            samples, file_rate = file.read(dtype="float32", always_2d=True), file.samplerate
            # libsndfile takes the last whole page of an OGG file for its end, and says so in its log only.
            is_cut = re.search(r"^Ogg ?: (Last page lacks|Junk after)", file.extra_info, re.MULTILINE)
            missing = _missing_share(file, len(samples))
    except (soundfile.SoundFileError, OSError, ValueError, MemoryError) as error:
        raise AudioError(f"{name}: cannot be decoded ({error}). Readable are WAV, FLAC, OGG and MP3.") from error
    if len(samples) == 0:
        raise AudioError(f"{name}: holds no samples.")
    if is_cut or missing > 0.01:
        raise AudioError(f"{name}: truncated, the file ends before the audio that it declares.")
    return torch.from_numpy(samples), file_rate


def to_waveform(samples: torch.Tensor, file_rate: int, sampling_rate: int) -> torch.Tensor:
    """What `read_samples` gives, its channels averaged, at another rate: a tensor of shape (samples,).

    Raises:
        ImportError: torchaudio is needed for resampling and cannot be loaded.
    """
    waveform = samples.mean(dim=1)  # (samples, channels) -> (samples,)
    if file_rate != sampling_rate:
        require_torchaudio()
        from torchaudio.functional import resample

        waveform = resample(waveform, file_rate, sampling_rate)
    return waveform


def _missing_share(file, num_samples: int) -> float:
    """Share of the declared audio that is not in the file, in [0, 1). Decoders stop early without a word."""
    declared = file.frames
    # libsndfile corrects the length of a WAV file that is cut off, and says so in its log only. Programs that do not
    # know the length in advance declare about 2 or 4 GiB (SoX 0x7ffff000, rounded down to a block).
    if match := re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE):
        declared_bytes, found_bytes = map(int, match.groups())
        return max(0.0, 1 - found_bytes / declared_bytes) if 0 < declared_bytes < 0x7FFF0000 else 0.0
    return max(0.0, 1 - num_samples / declared) if declared else 0.0


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
