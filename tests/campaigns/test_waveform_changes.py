"""Changes of waveforms do what their names say, and repeat."""

import numpy as np
import pytest
from waveform_changes import everything, filters, noise, speed

RATE = 16000
TONE = np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE).astype(np.float32)


def drawn(change, seed: int, waveform: np.ndarray = TONE) -> np.ndarray:
    np.random.seed(seed)
    return change(waveform, RATE)


@pytest.mark.parametrize("change", [speed, filters, noise, everything])
def test_draws_repeat_and_differ(change):
    first, again, other = drawn(change, 1), drawn(change, 1), drawn(change, 2)
    assert first.dtype == np.float32 and np.isfinite(first).all()
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.isfinite(drawn(change, 3, np.zeros(400, np.float32))).all()  # silence, as short as a clip may be


def test_a_faster_tone_is_higher_and_shorter():
    for seed in range(5):
        changed = drawn(speed, seed)
        peak = np.abs(np.fft.rfft(changed)).argmax() * RATE / len(changed)
        assert peak == pytest.approx(500 * RATE / len(changed), rel=0.01)


def test_noise_and_filters_stay_within_their_decibels():
    for seed in range(5):
        ratio = 10 * np.log10(np.mean(TONE**2) / np.mean((drawn(noise, seed) - TONE) ** 2))
        assert 5 <= ratio <= 40.1
        assert abs(10 * np.log10(np.mean(drawn(filters, seed) ** 2) / np.mean(TONE**2))) <= 12.1
