"""Sound files of every format come out as mono float32 at one rate, and broken ones as one kind of error."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from modeling_ast import AudioError, load_waveform

# Name of the file, subtype (None: the format's own) and the largest error that its coding may cost.
FORMATS = [
    ("tone.wav", "PCM_16", 1e-4),
    ("tone.wav", "PCM_24", 1e-6),
    ("tone.wav", "FLOAT", 1e-6),
    ("tone.wav", "PCM_U8", 0.02),
    ("tone.flac", None, 1e-4),
    ("tone.ogg", None, 0.05),
    ("tone.mp3", None, 0.05),
]


def tone(seconds: float = 1.0, sampling_rate: int = 16000, frequency: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * sampling_rate)) / sampling_rate)


def noise(num_samples: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal(num_samples)


def sources(path: Path) -> list[Path | str | bytes]:
    return [path, str(path), path.read_bytes()]


@pytest.mark.parametrize("name, subtype, tolerance", FORMATS)
def test_every_format_is_decoded_from_path_and_bytes(tmp_path, name, subtype, tolerance):
    soundfile.write(tmp_path / name, tone(), 16000, subtype=subtype)
    for source in sources(tmp_path / name):
        waveform = load_waveform(source)
        assert waveform.dtype == torch.float32 and waveform.shape == (16000,)
        inner = slice(1000, -1000)  # lossy coders ring at the ends
        np.testing.assert_allclose(waveform[inner], tone()[inner], atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ["stereo.wav", "stereo.flac"])
def test_channels_are_averaged(tmp_path, name):
    left, right = tone(frequency=440), tone(frequency=660)
    soundfile.write(tmp_path / name, np.stack((left, right), axis=1), 16000)
    np.testing.assert_allclose(load_waveform(tmp_path / name), (left + right) / 2, atol=1e-4, rtol=0)


@pytest.mark.parametrize("file_rate, sampling_rate", [(44100, 16000), (8000, 16000), (16000, 22050)])
def test_resampling_keeps_frequency_and_duration(tmp_path, file_rate, sampling_rate):
    soundfile.write(tmp_path / "tone.wav", tone(2.0, file_rate, frequency=1000.0), file_rate)
    waveform = load_waveform(tmp_path / "tone.wav", sampling_rate=sampling_rate)
    assert waveform.dtype == torch.float32 and waveform.shape == (2 * sampling_rate,)
    spectrum = torch.fft.rfft(waveform).abs()  # lines 0.5 Hz apart
    assert spectrum.argmax() == 2000
    inner = slice(sampling_rate // 4, -sampling_rate // 4)
    np.testing.assert_allclose(waveform[inner], tone(2.0, sampling_rate, 1000.0)[inner], atol=5e-3, rtol=0)


@pytest.mark.parametrize("declared_bytes", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000], ids=hex)
def test_wav_of_a_program_that_did_not_know_the_length_is_read_whole(tmp_path, declared_bytes):
    """0x7FFFF000 is what SoX writes into a pipe, 0xFFFFFFFF ffmpeg."""
    path = tmp_path / "stream.wav"
    soundfile.write(path, tone(), 16000, subtype="PCM_16")
    content = path.read_bytes()
    size = content.index(b"data") + 4
    path.write_bytes(content[:size] + declared_bytes.to_bytes(4, "little") + content[size + 4 :])
    for source in sources(path):
        np.testing.assert_allclose(load_waveform(source), tone(), atol=1e-4, rtol=0)


# Errors


def make_missing(path: Path) -> None:
    pass


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def make_random(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def make_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("name", ["clip.wav", "clip.flac", "clip.ogg", "clip.mp3"])
@pytest.mark.parametrize(
    "make, words",
    [
        (make_missing, "no such file"),
        (make_folder, "no such file"),
        (make_empty, "cannot be decoded"),
        (make_random, "cannot be decoded|holds no samples"),
    ],
)
def test_what_is_no_sound_file_is_one_error_with_its_path(tmp_path, name, make, words):
    path = tmp_path / name
    make(path)
    for source in (path, str(path)):
        with pytest.raises(AudioError, match=words) as error:
            load_waveform(source)
        assert str(path) in str(error.value)


def test_file_without_samples_is_an_error(tmp_path):
    path = tmp_path / "none.wav"
    soundfile.write(path, np.zeros(0), 16000)
    with pytest.raises(AudioError, match="none.wav: holds no samples"):
        load_waveform(path)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.01])
@pytest.mark.parametrize("name, subtype", [(name, subtype) for name, subtype, _ in FORMATS] + [("tone.ogg", "OPUS")])
def test_truncated_file_is_an_error_with_its_path(tmp_path, name, subtype, share):
    path = tmp_path / name
    soundfile.write(path, noise(64000), 16000, subtype=subtype)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(AudioError) as error:
        load_waveform(path)
    assert str(path) in str(error.value)
    with pytest.raises(AudioError, match="row 7"):
        load_waveform(path.read_bytes(), name="row 7")


@pytest.mark.slow
def test_broken_torchaudio_is_one_sentence_and_only_where_it_is_needed(tmp_path):
    """torchaudio raises at import when it does not match torch; files at the right rate do not need it."""
    package = tmp_path / "torchaudio"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('PyTorch and torchaudio: different CUDA versions')\n")
    soundfile.write(tmp_path / "16k.wav", tone(), 16000)
    soundfile.write(tmp_path / "44k.wav", tone(1.0, 44100), 44100)
    program = (
        "from modeling_ast import load_waveform\n"
        "print(len(load_waveform('16k.wav')))\n"
        "try:\n    load_waveform('44k.wav')\nexcept ImportError as error:\n    print(error)\n"
    )
    repository = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(repository)))}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    num_samples, *message = result.stdout.splitlines()
    assert num_samples == "16000"
    assert len(message) == 1 and "torchaudio" in message[0] and torch.__version__ in message[0]
    assert "pip install 'torch>=2.11,<2.15' 'torchaudio>=2.11,<2.12'" in message[0]


@pytest.mark.parametrize("name, words", [(None, "<bytes>"), ("row 7", "row 7")])
def test_broken_bytes_are_an_error_that_says_which(name, words):
    with pytest.raises(AudioError, match=f"{words}: cannot be decoded"):
        load_waveform(b"not a sound", name=name)
