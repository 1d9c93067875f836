"""Generated sounds: a small data set that needs no network, for demonstrations and tests.

Ten kinds of synthetic sounds, one second each. They are far easier to tell apart than recordings: what a model reaches
on them says that everything works, and nothing about how good it is.
"""

import math
import os
from pathlib import Path

import torch
from tqdm.auto import tqdm

from modeling_ast.data.files import new_folder

SAMPLING_RATE = 16000
NUM_SAMPLES = SAMPLING_RATE
CLIPS_PER_CLASS = {"train": 60, "validation": 10, "test": 20}
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _log_uniform(generator: torch.Generator, low: float, high: float) -> float:
    return math.exp(_uniform(generator, math.log(low), math.log(high)))


def _phase(frequency: torch.Tensor) -> torch.Tensor:
    """Phase of an oscillator whose frequency (Hz, one value a sample) changes."""
    return 2 * math.pi * torch.cumsum(frequency, dim=0) / SAMPLING_RATE


def _sound(kind: str, seconds: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One sound of a kind, at about full scale, without its onset and noise. `seconds` counts from 0."""
    noise = torch.randn(len(seconds), generator=generator)
    pitch = torch.full_like(seconds, _log_uniform(generator, 300, 1200))  # Hz
    rate = _uniform(generator, 4, 9)  # Hz, of whatever repeats
    length = seconds[-1] + 1 / SAMPLING_RATE
    if kind == "beeps":
        return torch.sin(_phase(pitch)) * ((seconds * rate) % 1 < 0.5)
    if kind == "bell":
        # Ratios of the partials of a struck bell. Source: the usual hum, prime, tierce, quint, nominal.
        partials = [torch.sin(_phase(pitch * ratio)) / ratio for ratio in (0.5, 1.0, 1.2, 1.5, 2.0, 2.7)]
        return torch.stack(partials).sum(0) / 3 * torch.exp(-seconds * _uniform(generator, 3, 6))
    if kind in ("chirp_up", "chirp_down"):
        octaves = _uniform(generator, 1.5, 3) * seconds / length
        return torch.sin(_phase(pitch * 2 ** (octaves if kind == "chirp_up" else -octaves)))
    if kind == "clicks":
        return noise.clamp(-1, 1) * torch.exp(-((seconds * rate) % 1) * 60)
    if kind == "drone":
        return 2 * ((_phase(pitch / 6) / (2 * math.pi)) % 1) - 1  # sawtooth of 50 to 200 Hz
    if kind == "noise":
        return noise / 3
    if kind == "siren":
        return torch.sin(_phase(pitch * 2 ** (0.7 * torch.sin(2 * math.pi * rate / 3 * seconds))))
    if kind == "steam":
        return torch.diff(noise, prepend=noise[:1]) / 4 * (seconds / length) ** 2  # high-passed, swelling
    if kind == "whistle":
        return torch.sin(_phase(3 * pitch)) + 0.05 * noise
    raise AssertionError(kind)


CLASSES = ("beeps", "bell", "chirp_down", "chirp_up", "clicks", "drone", "noise", "siren", "steam", "whistle")


def generate_clip(kind: str, generator: torch.Generator) -> torch.Tensor:
    """One clip with its own pitch, rate, loudness, background noise and onset.

    Args:
        kind: One of `CLASSES`.
        generator: Where the draws come from.

    Returns:
        float32 tensor of shape (16000,), one second at 16 kHz, in [-1, 1].
    """
    onset = int(_uniform(generator, 0, 0.4) * NUM_SAMPLES)
    seconds = torch.arange(NUM_SAMPLES - onset) / SAMPLING_RATE
    sound = _sound(kind, seconds, generator)
    fade = (seconds * 200).clamp(max=1) * (seconds.flip(0) * 200).clamp(max=1)  # 5 ms, against clicks at the ends
    clip = torch.zeros(NUM_SAMPLES)
    clip[onset:] = sound * fade * _log_uniform(generator, 0.05, 0.7)
    clip += torch.randn(NUM_SAMPLES, generator=generator) * _log_uniform(generator, 1e-4, 1e-2)
    return clip.clamp(-1, 1)


def synthetic_folder(seed: int = 0, cache_dir: str | os.PathLike | None = None) -> Path:
    """The data set as a folder of 16 kHz WAV files, written at the first call.

    A sub-folder a class, `validation_list.txt` and `testing_list.txt`: the layout of Speech Commands.

    Args:
        seed: Of all draws.
        cache_dir: Where data sets are kept; `None` means ~/.cache/modeling_ast, or below $XDG_CACHE_HOME.
    """
    if cache_dir is None:
        cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modeling_ast"
    folder = Path(cache_dir) / f"synthetic_v1_seed{seed}"
    if folder.is_dir():
        return folder
    try:
        with new_folder(folder) as unfinished:
            _write_clips(unfinished, torch.Generator().manual_seed(seed))
    except OSError:
        if not folder.is_dir():  # else another process was faster
            raise
    return folder


def _write_clips(folder: Path, generator: torch.Generator) -> None:
    import soundfile

    lists = {split: [] for split in LISTS}
    for kind in tqdm(CLASSES, desc="Generating sounds"):
        (folder / kind).mkdir()
        for split, count in CLIPS_PER_CLASS.items():
            for number in range(count):
                name = f"{kind}/{split}_{number:03d}.wav"
                soundfile.write(folder / name, generate_clip(kind, generator).numpy(), SAMPLING_RATE)
                if split in lists:
                    lists[split].append(name)
    for split, names in lists.items():
        (folder / LISTS[split]).write_text("\n".join(names) + "\n")
