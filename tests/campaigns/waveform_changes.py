"""Changes of training waveforms, to ask what each gives: `--waveform_transform waveform_changes:NAME`.

This folder has to be in PYTHONPATH. Three quarters to five quarters of the speed moves a voice by five semitones down
to four up. Draws are from numpy's own generator, which training seeds for each clip.
"""

import numpy as np
from scipy.signal import resample

SPEEDS = (0.75, 1.25)
FILTER_DB, FILTER_EDGES = 12.0, (60, 125, 250, 500, 1000, 2000, 4000, 8000)  # either way; Hz, an octave apart
NOISE_DB = (5.0, 40.0)  # signal to noise


def speed(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Faster and higher, or slower and lower."""
    faster = np.random.uniform(*SPEEDS)
    return resample(waveform, round(len(waveform) / faster)).astype(np.float32)


def filters(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """A drawn gain at each octave, and lines between them, as other rooms and microphones have."""
    gains = np.random.uniform(-FILTER_DB, FILTER_DB, len(FILTER_EDGES))
    spectrum = np.fft.rfft(waveform)
    frequencies = np.fft.rfftfreq(len(waveform), 1 / sampling_rate)
    decibels = np.interp(np.log(np.maximum(frequencies, 1)), np.log(FILTER_EDGES), gains)
    return np.fft.irfft(spectrum * 10 ** (decibels / 20), len(waveform)).astype(np.float32)


def noise(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """White to brown noise, 5 to 40 dB below the sound."""
    spectrum = np.fft.rfft(np.random.standard_normal(len(waveform)))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** np.random.uniform(0, 1)
    drawn = np.fft.irfft(spectrum, len(waveform))
    level = np.sqrt(np.mean(waveform**2)) * 10 ** (-np.random.uniform(*NOISE_DB) / 20)
    return (waveform + drawn * (level / max(np.sqrt(np.mean(drawn**2)), 1e-12))).astype(np.float32)


def everything(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """All three."""
    for change in (speed, filters, noise):
        waveform = change(waveform, sampling_rate)
    return waveform
