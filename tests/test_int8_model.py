"""Recordings are tagged by a graph in 8 bits as by the model, nearly."""

import json
import pickle

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_tiny_config, random_model

from modeling_ast import ASTFeatureExtractor
from modeling_ast.commands.tag import main
from modeling_ast.data.fingerprint import fingerprint_model
from modeling_ast.data.labels import DataError
from modeling_ast.inference import int8_model
from modeling_ast.inference.pipeline import audio_tagger
from modeling_ast.loading import ModelError

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 16000


def sound(seconds: float, seed: int) -> dict:
    """Noise that swells and fades."""
    samples = np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    swell = 10 ** (2 * np.sin(np.arange(len(samples)) / 2000) - 3)
    return {"array": (samples * swell).astype(np.float32), "sampling_rate": RATE}


# Shorter and longer than a window, and several windows with a shorter last one.
SOUNDS = [sound(seconds, seed) for seed, seconds in enumerate([0.2, 0.655, 1.0, 3.3])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    random_model(make_tiny_config(problem_type="multi_label_classification")).save_pretrained(folder)
    ASTFeatureExtractor(max_length=64, num_mel_bins=32, mean=-7.0, std=4.0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tagger(folder):
    tagger = audio_tagger(folder, device="cpu", top_k=None)
    tagger.compute_in("int8")
    return tagger


def scores(tagger, sounds, **options) -> list[np.ndarray]:
    return [result["timeline"].scores for result in tagger(sounds, return_timeline=True, **options)]


@pytest.mark.slow
def test_scores_are_nearly_those_of_the_model(folder, tagger):
    exact = scores(audio_tagger(folder, device="cpu", top_k=None), SOUNDS)
    found = scores(tagger, SOUNDS)
    assert [len(windows) for windows in found] == [len(windows) for windows in exact]
    differences = np.abs(np.concatenate(found) - np.concatenate(exact))
    assert 0 < differences.max() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"batch_size": 5}, {"batch_size": 2, "num_workers": 2}], ids=str)
def test_scores_depend_on_nothing_but_the_window(tagger, options):
    for alone, together in zip(scores(tagger, SOUNDS), scores(tagger, SOUNDS, **options), strict=True):
        np.testing.assert_array_equal(alone, together)


@pytest.mark.slow
def test_it_can_go_to_another_process(tagger):
    again = pickle.loads(pickle.dumps(tagger))
    np.testing.assert_array_equal(*(scores(each, SOUNDS[:1])[0] for each in (tagger, again)))


@pytest.mark.slow
def test_a_folder_is_tagged_in_8_bits_and_goes_on_in_no_other(folder, tagger, tmp_path):
    plain = audio_tagger(folder, device="cpu")
    fingerprint = fingerprint_model(plain.model, plain.feature_extractor)  # by which `calibrate` knows it
    for number, each in enumerate(SOUNDS):
        (tmp_path / "in").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "in" / f"{number}.wav", each["array"], RATE, subtype="FLOAT")
    argv = [str(tmp_path / "in"), "--model", str(folder), "--output_dir", str(tmp_path / "out"), "--dtype"]
    assert main([*argv, "int8", "--batch_size", "3"]) == 0
    for number, expected in enumerate(scores(tagger, SOUNDS)):
        table = np.loadtxt(tmp_path / "out" / "timelines" / "in" / f"{number}.wav.csv", delimiter=",", skiprows=1)
        np.testing.assert_allclose(table.reshape(len(expected), -1)[:, 2:], expected, atol=1e-6)
    assert main([*argv, "int8"]) == 0
    with pytest.raises(DataError, match="holds results of other settings: dtype was int8, is float32. Give another"):
        main([*argv, "float32"])
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["fingerprint"] == fingerprint


def test_what_8_bits_cannot_do_is_one_sentence(folder, monkeypatch):
    tagger = audio_tagger(folder, device="cpu")
    with pytest.raises(ModelError, match="Expected a model without unknown_threshold"):
        monkeypatch.setattr(int8_model, "can_be_unknown", lambda config: True)
        tagger.compute_in("int8")
    with pytest.raises(ModelError, match="Expected a model on the CPU for int8, got device meta"):
        tagger.model.to("meta")
        tagger.compute_in("int8")


def test_bfloat16_has_nearly_the_scores(folder):
    exact, half = (audio_tagger(folder, device="cpu") for _ in range(2))
    half.compute_in("bfloat16")
    assert half.model.dtype == torch.bfloat16
    np.testing.assert_allclose(*(np.concatenate(scores(each, SOUNDS)) for each in (exact, half)), atol=0.02)
