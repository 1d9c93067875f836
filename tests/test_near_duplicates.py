"""Near-duplicates across splits are found, and nothing else is taken for one."""

import io

import numpy as np
import pytest
import soundfile
import torch
from helpers import write_sound

from modeling_ast import ASTFeatureExtractor, load_waveform
from modeling_ast.data import label_checks
from modeling_ast.data.examination import Examination
from modeling_ast.data.label_checks import check_duplicates
from modeling_ast.data.near_duplicates import find_near_duplicates, read_spectrum
from modeling_ast.data.sources import load_splits

EXTRACTOR = ASTFeatureExtractor()
TRAIN, TEST = frozenset(["train"]), frozenset(["test"])


def as_mp3(waveform: torch.Tensor) -> torch.Tensor:
    file = io.BytesIO()
    soundfile.write(file, waveform.numpy(), 16000, format="MP3")
    return load_waveform(file.getvalue())


WAYS = {
    "gain": lambda waveform: 0.3 * waveform,
    "cut": lambda waveform: waveform[800:],  # 50 ms
    "late": lambda waveform: torch.cat([torch.zeros(800), waveform]),
    "mp3": as_mp3,
}


def make_sounds(count: int, seed: int = 0) -> list[torch.Tensor]:
    """Words of a machine: noise in bands that change every 60 ms, each with a rhythm of its own."""
    rng, sounds = np.random.default_rng(seed), []
    for _ in range(count):
        times = np.arange(16000) / 16000
        waveform = 0.002 * rng.normal(size=16000)
        for begin in np.arange(0, 1, 0.06):
            is_now = (times >= begin) & (times < begin + 0.06)
            waveform[is_now] += rng.uniform(0, 0.4) ** 2 * np.sin(2 * np.pi * rng.uniform(150, 2000) * times[is_now])
        sounds.append(torch.from_numpy(waveform).float())
    return sounds


@pytest.mark.parametrize("way", WAYS)
def test_planted_near_duplicates_are_found_and_nothing_else(way):
    sounds = make_sounds(40)
    changed = [WAYS[way](sound) for sound in sounds[:8]]
    spectra = [read_spectrum(sound, EXTRACTOR) for sound in (*sounds, *changed)]
    found = set(find_near_duplicates(spectra, [TRAIN] * 40 + [TEST] * 8))
    assert found == {(number, 40 + number) for number in range(8)}


def test_what_is_on_one_side_or_is_like_itself_always_is_none():
    (sound,) = make_sounds(1)
    tone = torch.sin(torch.arange(16000) * 0.3)
    spectra = [read_spectrum(each, EXTRACTOR) for each in (sound, 0.5 * sound, tone, 0.5 * tone)]
    assert list(find_near_duplicates(spectra[:2], [TRAIN, TRAIN])) == []
    assert list(find_near_duplicates(spectra[:2], [TRAIN, TEST])) == [(0, 1)]
    assert list(find_near_duplicates(spectra[2:], [TRAIN, TEST])) == []
    assert list(find_near_duplicates([], [])) == []


def test_the_doctor_names_both_clips_and_their_splits(tmp_path, monkeypatch):
    for number, sound in enumerate(make_sounds(6)):
        write_sound(tmp_path / "ab"[number % 2] / f"{number}.wav", sound)
    held_out = tmp_path / "a" / "again.wav"
    write_sound(held_out, 0.4 * make_sounds(6)[0])
    (tmp_path / "testing_list.txt").write_text("a/again.wav\n")
    splits = load_splits(str(tmp_path))
    clips = [each for each in Examination(dict(splits), EXTRACTOR, {})]
    (found,) = check_duplicates(clips, ["a", "b"])
    assert (found.level, found.check) == ("warning", "near-duplicates")
    (line,) = found.clips
    assert str(tmp_path / "a" / "0.wav") in line and f"{held_out} (test)" in line
    monkeypatch.setattr(label_checks, "MAX_CLIPS", 3)  # what is held out is among them
    assert "among 3 of 7 clips alone" in [found.seen for found in check_duplicates(clips, ["a", "b"])][0]


@pytest.mark.slow
@pytest.mark.parametrize("data", ["fsdd", "esc10"])
def test_real_recordings_hold_none_and_those_that_are_planted_are_found(shared_data, data):
    """Each in five random sides; and 15 of them once more in each way, of which one may be missed."""
    files = sorted((shared_data / data).rglob("*.wav" if data == "fsdd" else "*.ogg"))
    waveforms = [load_waveform(file) for file in files]
    spectra = [read_spectrum(each, EXTRACTOR) for each in waveforms]
    rng = np.random.default_rng(0)
    sides = [frozenset([str(side)]) for side in rng.integers(0, 5, len(files))]
    assert list(find_near_duplicates(spectra, sides)) == []
    planted = rng.permutation(len(files))[:15]
    for way, change in WAYS.items():
        changed = [read_spectrum(change(waveforms[number]), EXTRACTOR) for number in planted]
        found = set(find_near_duplicates(spectra + changed, [TRAIN] * len(files) + [TEST] * len(planted)))
        expected = {(number, len(files) + place) for place, number in enumerate(planted.tolist())}
        assert found <= expected and len(found) >= len(expected) - 2, way
