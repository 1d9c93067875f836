"""There is one way to load a model: whole, finite, fitting, and without running what its folder brings."""

import builtins
import json
from pathlib import Path

import pytest
import torch
from conftest import make_tiny_config, random_model
from helpers import save_checkpoint
from safetensors.torch import load_file, save_file

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification, ASTModel
from modeling_ast.inference.embeddings import audio_embedder
from modeling_ast.inference.pipeline import audio_tagger
from modeling_ast.loading import ModelError, load_model

WAYS = {
    "load_model": load_model,
    "audio_tagger": lambda folder: audio_tagger(folder, device="cpu"),
    "audio_embedder": lambda folder: audio_embedder(folder, device="cpu"),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_checkpoint(tmp_path / "model", random_model(make_tiny_config()))


def change_json(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def drop_a_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["audio_spectrogram_transformer.layernorm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def put_nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["audio_spectrogram_transformer.layernorm.weight"][0] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def put_integers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.dense.weight"] = tensors["classifier.dense.weight"].to(torch.int32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def put_complex(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.dense.weight"] = tensors["classifier.dense.weight"].to(torch.complex64)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def put_integers_into_a_pickle(folder: Path) -> None:
    put_integers(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    drop_weights(folder)


def put_integers_into_one_of_several_files(folder: Path) -> None:
    put_integers(folder)
    files = {"one.safetensors": {}, "other.safetensors": {}}
    for number, (key, tensor) in enumerate(load_file(folder / "model.safetensors").items()):
        list(files.values())[number % 2][key] = tensor
    for file, tensors in files.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    weight_map = {key: file for file, tensors in files.items() for key in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    drop_weights(folder)


def put_other_bins(folder: Path) -> None:
    ASTFeatureExtractor(num_mel_bins=64, max_length=64).save_pretrained(folder)


def drop_extractor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (drop_weights, "model.safetensors"),
        (drop_a_weight, "weights are missing, such as"),
        (put_nan, "Expected finite numbers in the weights"),
        (put_integers, "floating-point weights in .*, got classifier.dense.weight of type I32"),
        (put_integers_into_a_pickle, "floating-point weights in .*, got classifier.dense.weight of type int32"),
        (put_integers_into_one_of_several_files, "floating-point .*, got classifier.dense.weight of type I32"),
        (put_complex, "floating-point weights in .*, got classifier.dense.weight of type C64"),
        (put_other_bins, "32 mel bins, got one with 64"),
        (drop_extractor, "feature extractor"),
    ],
)
def test_no_way_to_load_a_model_takes_one_that_is_not_whole(folder, way, damage, words):
    damage(folder)
    with pytest.raises(ModelError, match=f"^{folder} cannot be used: .*{words}"):
        WAYS[way](folder)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_code_that_a_folder_brings_is_not_run_and_nobody_is_asked(folder, tmp_path, monkeypatch, way, file):
    marker = tmp_path / "ran"
    (folder / "planted.py").write_text(f"open({str(marker)!r}, 'w')\nclass Planted:\n    pass\n")
    kinds = ["AutoConfig", "AutoModel", "AutoModelForAudioClassification", "AutoFeatureExtractor"]
    change_json(folder / file, auto_map={kind: "planted.Planted" for kind in kinds}, feature_extractor_type="Planted")
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("asked on standard input"))
    WAYS[way](folder)
    assert not marker.exists()


def test_code_that_a_folder_brings_is_asked_for_where_the_call_trusts_it(folder, monkeypatch):
    trusted = []

    def from_pretrained(name, trust_remote_code, **options):
        trusted.append(trust_remote_code)
        return ASTForAudioClassification.from_pretrained(name, **options)

    monkeypatch.setattr("modeling_ast.loading.AutoModelForAudioClassification.from_pretrained", from_pretrained)
    audio_tagger(folder, device="cpu", trust_remote_code=True)
    assert trusted == [True]


def test_a_model_without_a_head_gives_embeddings_and_no_labels(folder, tmp_path):
    body, _ = load_model(folder, ASTModel)
    body.save_pretrained(tmp_path / "body")
    ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(tmp_path / "body")
    assert audio_embedder(tmp_path / "body", device="cpu").model.num_parameters() == body.num_parameters()
    with pytest.raises(ModelError, match="weights are missing, such as classifier"):
        audio_tagger(tmp_path / "body")
