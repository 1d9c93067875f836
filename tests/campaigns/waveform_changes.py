"""Changes of training waveforms, to ask what each gives: `--waveform_transform waveform_changes:NAME`.

This folder has to be in PYTHONPATH. Three quarters to five quarters of the speed moves a voice by five semitones down
to four up. Draws are from numpy's own generator, which training seeds for each clip.
"""

import numpy as np
from scipy.fft import next_fast_len
from scipy.signal import resample

SPEEDS = (0.75, 1.25)
FILTER_DB, FILTER_EDGES = 12.0, (60, 125, 250, 500, 1000, 2000, 4000, 8000)  # either way; Hz, an octave apart
NOISE_DB = (5.0, 40.0)  # signal to noise


def speed(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Faster and higher, or slower and lower."""
    padded = _pad(waveform)
    length = next_fast_len(round(len(padded) / np.random.uniform(*SPEEDS)))
    return resample(padded, length)[: round(len(waveform) * length / len(padded))].astype(np.float32)


def filters(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """A drawn gain at each octave, and lines between them, as other rooms and microphones have."""
    gains = np.random.uniform(-FILTER_DB, FILTER_DB, len(FILTER_EDGES))
    padded = _pad(waveform)
    frequencies = np.fft.rfftfreq(len(padded), 1 / sampling_rate)
    decibels = np.interp(np.log(np.maximum(frequencies, 1)), np.log(FILTER_EDGES), gains)
    changed = np.fft.irfft(np.fft.rfft(padded) * 10 ** (decibels / 20), len(padded))
    return changed[: len(waveform)].astype(np.float32)


def noise(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """White to brown noise, 5 to 40 dB below the sound."""
    white = np.random.standard_normal(len(_pad(waveform)))
    spectrum = np.fft.rfft(white)
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** np.random.uniform(0, 1)
    drawn = np.fft.irfft(spectrum, len(white))[: len(waveform)]
    level = np.sqrt(np.mean(waveform**2)) * 10 ** (-np.random.uniform(*NOISE_DB) / 20)
    return (waveform + drawn * (level / max(np.sqrt(np.mean(drawn**2)), 1e-12))).astype(np.float32)


def everything(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """All three."""
    for change in (speed, filters, noise):
        waveform = change(waveform, sampling_rate)
    return waveform


def _pad(waveform: np.ndarray) -> np.ndarray:
    """With silence up to a length that is transformed fast, which a prime one is not."""
    return np.pad(waveform, (0, next_fast_len(len(waveform)) - len(waveform)))
