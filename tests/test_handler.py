"""What an Inference Endpoint answers: whole recordings, in every form that a request can have."""

import base64
import io

import numpy as np
import pytest
import soundfile
from conftest import make_tiny_config, random_model
from helpers import save_checkpoint

from modeling_ast import AudioError
from modeling_ast.inference.handler import EndpointHandler
from modeling_ast.inference.pipeline import audio_tagger

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = random_model(make_tiny_config(id2label={0: "rain", 1: "dog", 2: "sea"}, num_hidden_layers=1))
    return save_checkpoint(tmp_path_factory.mktemp("model"), model)


@pytest.fixture(scope="module")
def handler(folder):
    return EndpointHandler(str(folder))


def recording(seconds: float = 3, rate: int = 16000) -> np.ndarray:
    """Noise that becomes louder: the model hears 0.6 s, and what is behind them differs."""
    length = int(seconds * rate)
    noise = np.random.default_rng(0).standard_normal(length) * np.geomspace(1e-4, 0.3, length)
    return noise.astype(np.float32)


def wav(samples: np.ndarray, rate: int = 16000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


SOUND = recording()
FORMS = {
    "bytes": {"inputs": wav(SOUND)},
    "bytes_alone": wav(SOUND),
    "base64": {"inputs": in_base64(wav(SOUND)), "parameters": None},
    "data_url": {"inputs": "data:audio/wav;base64," + in_base64(wav(SOUND)), "parameters": {}},
    "array": {"inputs": {"array": SOUND.tolist(), "sampling_rate": 16000}},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_recording_is_heard_in_every_form_of_a_request(handler, folder, form):
    tags = handler(FORMS[form])
    expected = audio_tagger(folder, device="cpu")({"array": SOUND, "sampling_rate": 16000})
    assert [tag["label"] for tag in tags] == [tag["label"] for tag in expected]
    scores, whole = ([tag["score"] for tag in found] for found in (tags, expected))
    np.testing.assert_allclose(scores, whole, atol=1e-5)
    assert all(type(score) is float for score in scores)  # which JSON can write
    beginning = [tag["score"] for tag in handler({"inputs": wav(SOUND[:10000])})]
    assert np.abs(np.subtract(scores, beginning)).max() > 1e-4


def test_parameters_are_the_pipelines(handler):
    assert len(handler({"inputs": wav(SOUND), "parameters": {"top_k": 1}})) == 1
    raw = handler({"inputs": wav(SOUND), "parameters": {"function_to_apply": "none", "top_k": 3}})
    assert sum(tag["score"] for tag in raw) != pytest.approx(1)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ({}, AudioError, "a request .* got one without inputs"),
        ([1], AudioError, "a request .* got one without inputs"),
        ({"inputs": None}, AudioError, "a sound file .* got NoneType"),
        ({"inputs": [0.0, 0.1]}, AudioError, "sampling_rate.* got list"),
        ({"inputs": {"path": "/etc/hostname"}}, AudioError, "got dict"),
        ({"inputs": "/etc/hostname"}, AudioError, "cannot be decoded|in base64"),
        ({"inputs": "http://localhost/a.wav"}, AudioError, "Addresses are not fetched"),
        ({"inputs": b"no sound"}, AudioError, "cannot be decoded"),
        ({"inputs": {"array": ["a"], "sampling_rate": 16000}}, AudioError, "array of numbers"),
        ({"inputs": {"array": [0.0] * 800, "sampling_rate": "fast"}}, AudioError, "a sampling_rate in Hz"),
        ({"inputs": wav(SOUND), "parameters": [3]}, TypeError, "parameters by name, got list"),
        ({"inputs": wav(SOUND), "parameters": {"num_workers": 64}}, ValueError, "among top_k, .* got num_workers"),
        ({"inputs": wav(SOUND), "parameters": {"top_k": 0}}, ValueError, "top_k"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(handler, data, error, words):
    with pytest.raises(error, match=words) as raised:
        handler(data)
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises((OSError, ValueError), match="config.json|model.safetensors"):
        EndpointHandler(str(tmp_path))
