"""What a stranger made: files meant to break, mislead or take over are refused in one sentence, and nothing is run."""

import csv
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from conftest import make_tiny_config, random_model
from helpers import contents, read_csv, save_checkpoint
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save
from test_conversion import IN_NAME, load, original_weights

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.data import download
from modeling_ast.data.labels import DataError, read_label_table
from modeling_ast.data.model_arguments import ModelArguments
from modeling_ast.data.prepare import read_all_seconds, read_esc50, read_segments
from modeling_ast.data.recipes import RecipeError, read_recipe
from modeling_ast.data.sources import load_splits
from modeling_ast.inference.page import find_examples
from modeling_ast.inference.pipeline import audio_tagger
from modeling_ast.inference.sound_files import SoundFile
from modeling_ast.inference.tags_folder import TagsFolder
from modeling_ast.inference.timeline import Timeline
from modeling_ast.loading import ModelError
from modeling_ast.training.arguments import parse_arguments
from modeling_ast.training.building import build_model_and_extractor

ROOT = Path(__file__).resolve().parents[1]
BODY = "audio_spectrogram_transformer."
QUERY = BODY + "encoder.layer.0.attention.attention.query.weight"
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:torch.quantize", "ignore:Duplicate name"),
]


class Payload:
    """Pickles as a call that makes a folder."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def torch_bytes(content, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def one_sentence(message: str) -> bool:
    """Whether a message can be read, and does nothing to a terminal."""
    return len(message) < 1200 and not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", message)


# Weights of the original, which `convert_checkpoint.py` and a recipe take


def packed(content: bytes) -> bytes:
    """The same ZIP file with its zeros packed, of which PyTorch writes none."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return file.getvalue()


def view_of_one(*shape: int) -> torch.Tensor:
    """A number that says to be many."""
    return torch.zeros(1).expand(shape)


PROJECTION = "module.v.blocks.0.attn.proj.weight"
MATRIX = original_weights()[PROJECTION]
ORIGINALS = {
    "whole numbers": ({PROJECTION: MATRIX.long()}, "expected floating-point numbers, got torch.int64"),
    "complex numbers": (
        {PROJECTION: MATRIX.to(torch.complex64)},
        "expected floating-point numbers, got torch.complex64",
    ),
    "NaN": ({PROJECTION: MATRIX / 0 * 0}, "finite numbers .* got NaN or infinite .*output.dense.weight"),
    "infinity": ({PROJECTION: MATRIX / 0}, "finite numbers in the weights"),
    "sparse": ({PROJECTION: MATRIX.to_sparse()}, "expected a dictionary of tensors"),
    "without data": ({PROJECTION: MATRIX.to("meta")}, "expected a dictionary of tensors"),
    "quantized": (
        {PROJECTION: torch.quantize_per_tensor(MATRIX, 0.1, 0, torch.qint8)},
        "not a weight file|expected a dictionary of tensors",
    ),
    "a name that is a number": ({5: torch.zeros(1)}, "expected a dictionary of tensors"),
    "transposed": ({PROJECTION: torch.zeros(7, 3)}, r"expected shape \(128, 128\), got \(7, 3\)"),
    "uneven query, key, value": ({"module.v.blocks.0.attn.qkv.weight": torch.zeros(7, 128)}, "expected shape"),
    "a single number": ({"module.v.cls_token": torch.zeros(())}, "got the single number module.v.cls_token"),
    "a head that is a number": ({"module.mlp_head.1.weight": torch.zeros(())}, "the single number"),
    "flat positions": ({"module.v.pos_embed": torch.zeros(5)}, "position_embeddings with 3 axes"),
    "flat kernels": ({"module.v.patch_embed.proj.weight": torch.zeros(5)}, "projection.weight with 4 axes"),
    "no MLP": ({"module.v.blocks.0.mlp.fc1.weight": torch.zeros(0, 128)}, "intermediate_size of at least 1, got 0"),
    "40 GB in a few bytes": ({PROJECTION: view_of_one(10**5, 10**5)}, r"claim 40,00\d,\d+,\d+ bytes, the file has"),
    "a head of 10^8 labels": ({"module.mlp_head.1.weight": view_of_one(10**8, 128)}, "claim .* bytes"),
    "a layer number of a billion": (
        {"module.v.blocks.999999999.norm1.weight": torch.zeros(128)},
        "not used: blocks.999999999.norm1.weight",
    ),
    "9,999 layers": ({"module.v.blocks.9998.norm1.weight": torch.zeros(128)}, "num_hidden_layers of at most 1,000"),
    "thousands of foreign names": ({f"module.v.x{i}": torch.zeros(1) for i in range(3000)}, "and 2980 more"),
}


@pytest.mark.parametrize("weights, words", ORIGINALS.values(), ids=ORIGINALS)
def test_original_weights_that_do_not_fit_are_refused(tmp_path, weights, words):
    torch.save({**original_weights(), **weights}, tmp_path / IN_NAME)
    with pytest.raises((ValueError, StrictDataclassError), match=words):
        load(tmp_path / IN_NAME)


def test_weights_that_are_packed_are_refused_before_they_are_unpacked(tmp_path):
    content = packed(torch_bytes({**original_weights(), PROJECTION: torch.zeros(3000, 3000)}))
    (tmp_path / IN_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot|can be read safely \(its tensors claim [\d,]+ bytes, the file has"):
        load(tmp_path / IN_NAME)


def test_refusal_of_a_pickle_does_not_advise_to_run_it(tmp_path):
    torch.save({**original_weights(), "x": Payload(tmp_path / "trace")}, tmp_path / IN_NAME)
    with pytest.raises(ValueError, match="read safely .not a pickle of tensors alone.*nothing in it was run") as error:
        load(tmp_path / IN_NAME)
    assert "weights_only" not in str(error.value) and not (tmp_path / "trace").exists()


# A folder of a model, which every other script takes


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, bytes]:
    """Files of a tiny model."""
    return contents(save_checkpoint(tmp_path_factory.mktemp("model"), random_model(make_tiny_config())))


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    (tmp_path / "model").mkdir()
    for name, content in saved.items():
        (tmp_path / "model" / name).write_bytes(content)
    return tmp_path / "model"


def refusal(folder: Path) -> str:
    """What is said of a model."""
    with pytest.raises(ModelError) as error:
        audio_tagger(folder, device="cpu")
    message = str(error.value)
    assert message.startswith(f"{folder} cannot be used: ") and one_sentence(message) and "\n" not in message
    return message


def refusal_in_training(folder: Path) -> str:
    """What a run that is to begin with the model says of it."""
    labels = [f"LABEL_{index}" for index in range(5)]
    with pytest.raises(RecipeError) as error:
        build_model_and_extractor(ModelArguments(str(folder)), labels)
    message = str(error.value)
    assert message.startswith(f"{folder} cannot be used: ") and one_sentence(message) and "\n" not in message
    return message


def safetensors_with(content: bytes, **changes) -> bytes:
    """With another header for one tensor."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header[QUERY].update(changes)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


SAFETENSORS = {
    "nothing": (lambda content: b"", "header too small"),
    "half": (lambda content: content[: len(content) // 2], "not fully covered"),
    "a web page": (lambda content: b"<!DOCTYPE html><html>quota exceeded</html>", "header"),
    "a header of 4 EB": (lambda content: struct.pack("<Q", 2**62) + content[8:], "header too large"),
    "a header of 99 MB": (lambda content: struct.pack("<Q", 99_000_000) + content[8:], "invalid header length"),
    "a shape of 10^12": (lambda content: safetensors_with(content, shape=[10**12]), "invalid shape"),
    "a shape that overflows": (lambda content: safetensors_with(content, shape=[2**32, 2**32]), "overflow"),
    "offsets beyond the end": (lambda content: safetensors_with(content, data_offsets=[0, 10**15]), "offset"),
    "offsets that overlap": (lambda content: safetensors_with(content, data_offsets=[0, 4]), "offset"),
    "an unknown type": (lambda content: safetensors_with(content, dtype="X9"), "unknown variant"),
    "lists within lists": (lambda content: struct.pack("<Q", 90_000) + b"[" * 90_000, "invalid JSON"),
}


@pytest.mark.parametrize("change, words", SAFETENSORS.values(), ids=SAFETENSORS)
def test_broken_safetensors_are_refused(folder, change, words):
    weights = folder / "model.safetensors"
    weights.write_bytes(change(weights.read_bytes()))
    assert words in refusal(folder) and words in refusal_in_training(folder)


OTHER_WEIGHTS = {
    "another shape": (lambda tensor: tensor[:5].contiguous(), "other shapes than their configuration says"),
    "no numbers": (lambda tensor: tensor[:0].contiguous(), "other shapes"),
    "NaN": (lambda tensor: tensor / 0 * 0, "Expected finite numbers .* such as .*query.weight"),
    "infinity": (lambda tensor: tensor / 0, "Expected finite numbers"),
    "missing": (lambda tensor: None, "missing, such as .*query.weight"),
}


@pytest.mark.parametrize("change, words", OTHER_WEIGHTS.values(), ids=OTHER_WEIGHTS)
def test_weights_that_are_no_model_of_the_configuration_are_refused(folder, change, words):
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: change(tensor) if name == QUERY else tensor for name, tensor in tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    assert re.search(words, refusal(folder)) and re.search(words, refusal_in_training(folder))


PICKLES = {
    "a call": lambda tensors, trace: torch_bytes({**tensors, "x": Payload(trace)}),
    "a call alone": lambda tensors, trace: pickle.dumps(Payload(trace)),
    "a call in the old format": lambda tensors, trace: torch_bytes(
        {**tensors, "x": Payload(trace)}, _use_new_zipfile_serialization=False
    ),
    "a whole model": lambda tensors, trace: torch_bytes(torch.nn.Linear(2, 2)),
    "a list": lambda tensors, trace: torch_bytes([1]),
    "half": lambda tensors, trace: torch_bytes(tensors)[:2000],
    "nothing": lambda tensors, trace: b"",
    "a text of 2 GB": lambda tensors, trace: b"\x80\x02" + b"X\xff\xff\xff\x7f",
    "a name that is a number": lambda tensors, trace: torch_bytes({5: torch.zeros(1)}),
    "without data": lambda tensors, trace: torch_bytes({**tensors, QUERY: tensors[QUERY].to("meta")}),
    "40 GB in a few bytes": lambda tensors, trace: torch_bytes({**tensors, QUERY: view_of_one(10**5, 10**5)}),
}


@pytest.mark.parametrize("dump", PICKLES.values(), ids=PICKLES)
def test_pickled_weights_of_a_folder_run_nothing(folder, tmp_path, dump):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(dump(tensors, tmp_path / "trace"))
    assert "weights_only" not in refusal(folder) and "weights_only" not in refusal_in_training(folder)
    assert not (tmp_path / "trace").exists()


CONFIGS = {
    "width": ({"hidden_size": 10**9}, "at most 2,000,000,000 parameters"),
    "a number of 30 digits": ({"hidden_size": 10**30}, "at most 2,000,000,000 parameters"),
    "frames": ({"max_length": 10**9}, "at most 2,000,000,000 parameters.*max_length 1000000000"),
    "mel bins": ({"num_mel_bins": 10**9}, "at most 2,000,000,000 parameters"),
    "patches": ({"patch_size": 10**6, "max_length": 10**6, "num_mel_bins": 10**6}, "at most 2,000,000,000 parameters"),
    "MLP": ({"intermediate_size": 10**12}, "at most 2,000,000,000 parameters"),
    "layers": ({"num_hidden_layers": 10**6}, "num_hidden_layers of at most 1,000, got 1000000"),
    "labels": ({"id2label": None, "num_labels": 10**8}, "num_labels of 1 to 1,000,000, got 100000000"),
    "labels in words": ({"id2label": None, "num_labels": "five"}, "num_labels of 1 to 1,000,000, got 'five'"),
    "negative labels": ({"id2label": None, "num_labels": -1}, "num_labels of 1 to 1,000,000, got -1"),
    "negative": ({"hidden_size": -4}, "hidden_size of at least 1, got -4"),
    "text": ({"hidden_size": "32"}, "expected int, got str"),
    "truth": ({"num_hidden_layers": True}, "expected int, got bool"),
    "nested": ({"hidden_size": {"a": [1]}}, "expected int, got dict"),
    "NaN": ({"layer_norm_eps": float("nan")}, "layer_norm_eps above 0, got nan"),
    "infinity": ({"layer_norm_eps": float("inf")}, "layer_norm_eps above 0, got inf"),
    "an endless spread": ({"initializer_range": float("inf")}, "initializer_range above 0, got inf"),
    "a list of labels": ({"id2label": ["a"] * 5}, "id2label to be label names by index, got list"),
    "no labels": ({"id2label": {}}, "id2label with 1 to 1,000,000 labels, got 0"),
    "labels without numbers": ({"id2label": {"a": "b"}}, "keys of id2label to be 0 to 0, got 'a'"),
    "labels with a gap": ({"id2label": {"0": "a", "7": "b"}}, "keys of id2label to be 0 to 1, got '7'"),
    "labels that are no text": ({"id2label": {"0": "a", "1": ["b"]}}, "names in id2label to be text, got .'b'"),
    "half a character": ({"id2label": {"0": "a", "1": "\ud800"}}, "names in id2label to be text"),
    "an activation that is code": ({"hidden_act": "__import__('os')"}, "hidden_act"),
    "thresholds": ({"thresholds": {"a": "b"}}, "thresholds"),
    "a type of numbers": ({"dtype": "system"}, "system"),
    "a name of a method": ({"to_dict": 1}, "not callable"),
    "somebody's kernel": ({"attn_implementation": "somebody/kernel"}, "kernel"),
    "somebody's quantization": ({"quantization_config": 5}, "to_dict"),
}


@pytest.mark.parametrize("changes, words", CONFIGS.values(), ids=CONFIGS)
def test_configurations_with_absurd_values_are_refused_at_once(folder, changes, words):
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    if config["id2label"] is None:
        del config["id2label"], config["label2id"]
    (folder / "config.json").write_text(json.dumps(config))
    start = time.process_time()
    assert re.search(words, refusal(folder))
    assert time.process_time() - start < 2


CONFIG_FILES = {
    "a list": b"[1, 2]",
    "a text": b'"x"',
    "null": b"null",
    "nothing": b"",
    "half": b'{"model_type": ',
    "UTF-16": '{"hidden_size": 32}'.encode("utf-16"),
    "a BOM": b'\xef\xbb\xbf{"hidden_size": 32}',
    "lists within lists": b"[" * 100_000,
    "a number of 10,000 digits": b'{"hidden_size": ' + b"9" * 10_000 + b"}",
    "another size behind": b'{"hidden_size": 32, "hidden_size": 1000000000}',
}


@pytest.mark.parametrize("content", CONFIG_FILES.values(), ids=CONFIG_FILES)
def test_configuration_files_that_are_none_are_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    refusal(folder)


def test_code_that_a_configuration_names_is_not_run(folder, tmp_path):
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'trace')!r})\nclass Evil: pass\n")
    for name in ("config.json", "preprocessor_config.json"):
        content = json.loads((folder / name).read_text())
        names = ("AutoConfig", "AutoModelForAudioClassification", "AutoFeatureExtractor")
        (folder / name).write_text(json.dumps({**content, "auto_map": {each: "evil.Evil" for each in names}}))
    assert isinstance(audio_tagger(folder, device="cpu").model, ASTForAudioClassification)
    assert not (tmp_path / "trace").exists()


def test_no_script_trusts_remote_code():
    paths = [*(ROOT / "modeling_ast").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    calls = [line for path in paths for line in path.read_text().splitlines() if "trust_remote_code=" in line]
    # What is left says it to people who load a model with its code, or hands on what they say in their own call.
    known = ("trust_remote_code=False", "trust_remote_code=is_trusted", "`", "help=")
    assert all(any(words in line for words in known) for line in calls), calls


def test_sizes_of_published_models_are_far_from_the_limits():
    assert ASTConfig.from_size("base384", num_labels=527).num_hidden_layers == 12
    ASTConfig(
        hidden_size=2048, num_hidden_layers=32, num_attention_heads=32, intermediate_size=8192, max_length=10_000
    )


# Archives


def zip_of(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def tar_of(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, mode: str = "w:gz", link: str = "") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(content), link
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def zip_with_method(number: int) -> bytes:
    content = bytearray(zip_of(("a.wav", b"x")))
    content[8] = content[content.index(b"PK\x01\x02") + 10] = number
    return bytes(content)


def zip_that_needs_a_password() -> bytes:
    content = bytearray(zip_of(("a.wav", b"x")))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


ARCHIVES = {
    "zip of a folder in a file": (lambda: zip_of(("a", b"x"), ("a/b.wav", b"y")), "cannot be unpacked"),
    "tar of a folder in a file": (lambda: tar_of(("a", b"x"), ("a/b.wav", b"y")), "cannot be unpacked"),
    "zip of a long name": (lambda: zip_of(("n" * 300, b"x")), "cannot be unpacked .*too long"),
    "tar of a device": (lambda: tar_of(("a", b""), kind=tarfile.CHRTYPE), "is a special file"),
    "tar of a hard link to the outside": (
        lambda: tar_of(("a", b""), kind=tarfile.LNKTYPE, link="../b"),
        "would link to .* outside the destination",
    ),
    "zip with a password": (zip_that_needs_a_password, "cannot be unpacked.*(password|encrypted)"),
    "zip of an unknown method": (lambda: zip_with_method(77), "cannot be unpacked.*compression"),
    "half a tar.xz": (lambda: tar_of(("a", os.urandom(10_000)), mode="w:xz")[:5000], "cannot be unpacked"),
    "half a tar.bz2": (lambda: tar_of(("a", os.urandom(9_000)), mode="w:bz2")[:5000], "cannot be unpacked"),
    "half a tar": (lambda: tar_of(("a", os.urandom(10_000)), mode="w:")[:5000], "cannot be unpacked"),
}


@pytest.mark.parametrize("make, words", ARCHIVES.values(), ids=ARCHIVES)
def test_archives_that_could_harm_are_refused_and_leave_nothing(tmp_path, make, words):
    (tmp_path / "archive").write_bytes(make())
    with pytest.raises(DataError, match=words) as error:
        download.unpack(tmp_path / "archive", tmp_path / "data" / "here")
    assert one_sentence(str(error.value))
    assert [path.name for path in tmp_path.rglob("*") if path.name not in ("archive", "data")] == []


def test_archive_within_an_archive_stays_packed(tmp_path):
    (tmp_path / "archive").write_bytes(zip_of(("b.zip", zip_of(("../evil", b"x")))))
    folder = download.unpack(tmp_path / "archive", tmp_path / "here")
    assert [path.name for path in folder.iterdir()] == ["b.zip"]


# Label tables

HEADER = b"index,mid,display_name\n"
LABEL_TABLES = {
    "a NUL byte": (HEADER + b"0,/m/a,a\0b\n", r"line 2: expected names without control characters, got 'a\\x00b'"),
    "an escape sequence": (HEADER + b"0,/m/a,\x1b[31m\n", "line 2: expected names without control characters"),
    "a line end in a name": (HEADER + b'0,/m/a,"x\ny"\n', "line 3: expected names without control characters"),
    "a column twice": (b"index,mid,display_name,mid\n0,a,b,c\n", "the column mid is there twice"),
    "a comma without quotes": (HEADER + b"0,/m/a,Hum, low\n", "line 2: expected 3 columns, got 4. Cells with a comma"),
    "too few columns": (HEADER + b"0\n", "line 2: expected 3 columns, got 1"),
    "bars": (b"index|mid|display_name\n0|a|b\n", r"index is missing in index\|mid\|display_name"),
    "an index of 5,000 digits": (HEADER + b"9" * 5000 + b",a,b\n", "line 2: expected an index of 0 or more, got '999"),
    "an index in other digits": (HEADER + "٣,a,b\n".encode(), "line 2: expected an index of 0 or more"),
    "a fraction": (HEADER + b"0.0,a,b\n", "line 2: expected an index of 0 or more, got '0.0'"),
    "a name of 200 kB": (HEADER + b"0,a," + b"x" * 200_000, "line 2: not CSV .field larger"),
    "quotes that stay open": (HEADER + b'0,a,"b\n', "line 2: not CSV .unexpected end"),
    "half of UTF-16": ("index,mid,display_name\n0,a,b\n".encode("utf-16")[:-1], "not UTF-16"),
    "another encoding in the last line": (
        HEADER + b"".join(b"%d,m%d,n%d\n" % (i, i, i) for i in range(5000)) + b"5000,m,caf\x81\n",
        "line 5002: not UTF-8 nor cp1252",
    ),
    "zeros": (bytes(5000), "index is missing in "),
    "nothing": (b"", "an empty file"),
}


@pytest.mark.parametrize("content, words", LABEL_TABLES.values(), ids=LABEL_TABLES)
def test_label_tables_that_are_none_are_refused_with_the_line(tmp_path, content, words):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=f"labels.csv.*{words}") as error:
        read_label_table(tmp_path / "labels.csv")
    assert one_sentence(str(error.value))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_marks_change_no_table_and_no_recipe(tmp_path, end, mark):
    (tmp_path / "labels.csv").write_bytes(mark + (HEADER + b"0,/m/a,a\n1,/m/b,b\n").replace(b"\n", end))
    assert read_label_table(tmp_path / "labels.csv").names == ["a", "b"]
    (tmp_path / "recipe.yaml").write_bytes(mark + b"seed: 1\nmean: 2\n".replace(b"\n", end))
    assert read_recipe(tmp_path / "recipe.yaml") == ["--seed=1", "--mean=2"]


# Recipes

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
RECIPES = {
    "an object": ("seed: !!python/object/apply:os.mkdir [TRACE]\n", "line 1: expected a value without a tag for seed"),
    "a name of Python's": ("seed: !!python/name:os.system\n", "line 1: expected a value"),
    "a recipe that is an object": ("!!python/object/apply:os.mkdir [TRACE]\n", "expected lines of the form"),
    "a key that is an object": ("!!python/object/apply:os.mkdir [TRACE]: 1\n", "expected the name of a key"),
    "a tag that does nothing": ("seed: !!int 5\n", "line 1: expected a value without a tag for seed"),
    "a billion laughs": (LAUGHS, "line 2: expected a value, or a list of values, for a1"),
    "a list in itself": ("mean: &a [*a]\n", "line 1: expected a value, or a list of values, for mean"),
    "a key twice": ("seed: 1\nseed: 2\n", "line 2: seed is there twice"),
    "a list": ("- seed\n- 1\n", "expected lines of the form `key: value`"),
    "a list for a key": ("[a, b]: 1\n", "line 1: expected the name of a key"),
    "a table for a key": ("? {a: b}\n: 1\n", "line 1: expected the name of a key"),
    "a key with its value": ("run_name=a: b\n", "line 1: expected the name of a key before the colon"),
    "keys within a key": ("'seed=3 --do_train': 1\n", "line 1: expected the name of a key"),
    "keys within a list": ("label_names: [a, --do_train]\n", "line 1: expected values for label_names, got a key"),
    "tabs": ("seed: 1\n\tmean: 3\n", r"not YAML \(line 2: found character '\\t' that cannot start any token\)"),
    "quotes that stay open": ('seed: "1\n', "not YAML .line 2: found unexpected end of stream"),
    "two recipes": ("seed: 1\n---\nseed: 2\n", "not YAML .line 2: but found another document"),
    "lists within lists": ("[" * 50_000, "got lists within lists"),
    "tables within tables": ("{a: " * 5_000, "got lists within lists"),
    "a NUL byte": ("seed: 1\0\n", "not YAML .*special characters are not allowed"),
    "50 MB": ("# " + "x" * 50_000_000, "at most 1,048,576 bytes"),
    "nothing": ("", "expected lines of the form"),
    "UTF-16": ("seed: 1\n".encode("utf-16"), "not YAML .*can't decode byte"),
    "an escape sequence": ("seed: \x1b[31m\n", "not YAML .*special characters"),
    "an escape sequence in YAML's words": ('seed: "\\e[31m"\n', r"seed.*\\x1b\[31m"),
}


@pytest.mark.parametrize("text, words", RECIPES.values(), ids=RECIPES)
def test_recipes_that_are_none_are_refused_and_make_nothing(tmp_path, text, words):
    path = tmp_path / "recipe.yaml"
    trace = str(tmp_path / "trace")
    path.write_bytes(text if isinstance(text, bytes) else text.replace("TRACE", trace).encode())
    start = time.process_time()
    with pytest.raises(RecipeError, match=words) as error:
        parse_arguments([str(path), "--output_dir=x", "--dataset_name=synthetic", "--model_name_or_path=tiny224"])
    assert one_sentence(str(error.value)) and not Path(trace).exists()
    assert time.process_time() - start < 5


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs a file without end")
def test_recipe_without_end_is_refused():
    with pytest.raises(RecipeError, match="at most 1,048,576 bytes, got a longer file"):
        read_recipe("/dev/zero")


# Manifests


@pytest.fixture
def clips(tmp_path) -> Path:
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, np.zeros(1600, np.float32), 16000)
    return tmp_path


COLUMNS = b"audio,label\n"
GOOD_ROWS = b"a.wav,x\nb.wav,y\n" * 3
CSV_FILES = {
    "a NUL byte in a label": (COLUMNS + b"a.wav,x\0\nb.wav,y\n", r"row 1 .*without control characters, got 'x\\x00'"),
    "an escape sequence": (COLUMNS + b"b.wav,y\na.wav,\x1b[31m\n", r"row 2 .*got '\\x1b\[31m'"),
    "a NUL byte in a path": (COLUMNS + b"a\0.wav,x\nb.wav,y\n", "1 of 2 files are not there, such as row 1"),
    "a column twice": (b"audio,label,label\na.wav,x,y\n", "the column 'label' is there 2 times"),
    "too few columns": (COLUMNS + GOOD_ROWS + b"a.wav\n", "line 8: expected 2 columns, got 1"),
    "too many columns": (COLUMNS + b"a.wav,x,y\n", "line 2: expected 2 columns, got 3"),
    "quotes that stay open": (
        COLUMNS + b'"a.wav,x\n' + GOOD_ROWS * 20_000,
        "line 2: not CSV .field larger than field limit",
    ),
    "another encoding in the last line": (
        COLUMNS + "a.wav,é\n".encode() + GOOD_ROWS * 20_000 + b"a.wav,caf\xe9\n",
        "line 120003: not UTF-8, as others are",
    ),
    "half of UTF-16": ("audio,label\na.wav,x\n".encode("utf-16")[:-1], "not UTF-16"),
    "no label": (COLUMNS + b"a.wav,\nb.wav,y\n", "row 1 .*expected one label a clip in 'label', got ''"),
    "no path": (COLUMNS + b",x\nb.wav,y\n", "1 of 2 files are not there, such as row 1"),
    "a folder for a clip": (COLUMNS + b".,x\nb.wav,y\n", "1 of 2 files are not there, such as row 1"),
    "a path of 100 kB": (COLUMNS + b"n" * 100_000 + b",x\nb.wav,y\n", "1 of 2 files are not there"),
    "bars": (b"audio|label\na.wav|x\n", r"expected a column 'audio', got audio\|label"),
    "100,000 columns": (b",".join(b"c%d" % i for i in range(100_000)) + b"\n", "expected a column 'audio', got c0, "),
    "an escape sequence for a column": (b"\x1b[31m,b\n1,2\n", r"expected a column 'audio', got \\x1b\[31m"),
    "zeros": (bytes(5000), "expected a column 'audio'"),
    "nothing": (b"", "expected a column 'audio', got none"),
    "no rows": (COLUMNS, "holds no rows"),
}


@pytest.mark.parametrize("content, words", CSV_FILES.values(), ids=CSV_FILES)
def test_csv_manifests_that_are_none_are_refused_with_the_line(clips, content, words):
    (clips / "clips.csv").write_bytes(content)
    with pytest.raises(DataError, match=f"clips.csv.*{words}") as error:
        load_splits(str(clips / "clips.csv"))
    assert one_sentence(str(error.value))


def test_a_label_that_the_table_does_not_hold_is_named_with_its_row(clips):
    (clips / "clips.csv").write_bytes(COLUMNS + GOOD_ROWS + b"a.wav,<b>z</b>\n")
    (clips / "labels.csv").write_bytes(HEADER + b"0,x,x\n1,y,y\n")
    with pytest.raises(
        DataError, match=r"clips.csv, row 7 \(.*a.wav\): the label '<b>z</b>' is not in the label table"
    ):
        load_splits(str(clips / "clips.csv"), label_file=str(clips / "labels.csv"))


def entries(*pairs: tuple[str, str]) -> str:
    """Good entries, and others behind them."""
    return json.dumps({"data": [{"wav": wav, "labels": labels} for wav, labels in (("a.wav", "x"), *pairs)]})


JSON_FILES = {
    "a key twice": ('{"data": [{"wav": "a.wav", "wav": "b.wav", "labels": "x"}]}', "a key is there twice"),
    "data twice": ('{"data": [], "data": [{"wav": "a.wav", "labels": "x"}]}', "a key is there twice"),
    "half a character in a path": (entries(("a\ud800", "x")), "entry 2: expected wav and labels"),
    "half a character in a label": (entries(("a.wav", "\ud800")), "entry 2: expected wav and labels"),
    "an escape sequence": (entries(("b.wav", "\x1b[31m")), r"entry 2 .*got '\\x1b\[31m'"),
    "a NUL byte in a path": (entries(("a\0.wav", "x")), "1 of 2 files are not there, such as entry 2"),
    "lists within lists": ("[" * 200_000, "not JSON that can be read .maximum recursion"),
    "tables within tables": ('{"a":' * 200_000, "not JSON that can be read .maximum recursion"),
    "a number of 10,000 digits": ('{"data": ' + "9" * 10_000 + "}", "not JSON that can be read"),
    "a number for labels": (
        '{"data": [{"wav": "a.wav", "labels": 5}]}',
        "entry 1: expected wav and labels, both text",
    ),
    "an entry of a megabyte": (json.dumps({"data": ["x" * 10**6]}), "entry 1: expected wav and labels"),
    "a list": ("[1]", "expected the format of the original"),
    "null": ("null", "expected the format of the original"),
    "NaN": ('{"data": NaN}', "expected the format of the original"),
    "half": ('{"data": [{"wav": "a.wav", "labels": "x"},\n{"wav":', "line 2: not JSON"),
    "half of UTF-16": ('{"data": []}'.encode("utf-16")[:-1], "not UTF-16"),
    "nothing": ("", "line 1: not JSON"),
}


@pytest.mark.parametrize("text, words", JSON_FILES.values(), ids=JSON_FILES)
def test_json_manifests_that_are_none_are_refused_with_the_entry(clips, text, words):
    (clips / "clips.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=f"clips.json.*{words}") as error:
        load_splits(str(clips / "clips.json"), audio_dir=".")
    assert one_sentence(str(error.value))


SOUNDS = [{"bytes": b"", "path": "a"}] * 4
TABLES = {
    "numbers for sounds": ({"audio": [1, 2], "label": ["x", "y"]}, "expected sounds in 'audio', got .*int64"),
    "no sounds": ({"x": [1]}, "expected a column 'audio', got x"),
    "no rows": ({"audio": SOUNDS[:0], "label": []}, "cannot be read as Parquet|expected clips"),
    "a label that is missing": ({"audio": SOUNDS[:2], "label": ["x", None]}, "row 2: expected one label a clip"),
    "fractions": ({"audio": SOUNDS[:2], "label": [1.5, float("nan")]}, "text or whole numbers in 'label', got double"),
    "tables for labels": ({"audio": SOUNDS[:2], "label": [{"a": 1}, {"a": 2}]}, "text or whole numbers in 'label'"),
    "lists of lists": ({"audio": SOUNDS[:2], "label": [[["x"]], [["y"]]]}, "text or whole numbers in 'label'"),
    "bytes": ({"audio": SOUNDS[:2], "label": [b"x", b"\xff"]}, "text or whole numbers in 'label', got binary"),
}


@pytest.mark.parametrize("columns, words", TABLES.values(), ids=TABLES)
def test_parquet_tables_of_other_things_are_refused(tmp_path, columns, words):
    pq.write_table(pa.table(columns), tmp_path / "clips.parquet")
    with pytest.raises(DataError, match=f"clips.parquet.*{words}") as error:
        load_splits(str(tmp_path / "clips.parquet"))
    assert one_sentence(str(error.value))


@pytest.mark.parametrize("content", [b"", b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1", b"PAR1"], ids=len)
def test_broken_parquet_is_refused(tmp_path, content):
    (tmp_path / "clips.parquet").write_bytes(content)
    with pytest.raises(DataError, match="clips.parquet: cannot be read as Parquet"):
        load_splits(str(tmp_path / "clips.parquet"))


ESC50 = b"filename,fold,category\n"
ESC50_TABLES = {
    "a way out": (ESC50 + b"../../secret.wav,1,dog\n", "expected files of .*/audio, got .*secret.wav"),
    "an absolute path": (ESC50 + b"/etc/passwd,1,dog\n", "expected files of .*/audio, got /etc/passwd"),
    "another encoding": (ESC50 + b"a.wav,1,dog\na.wav,1,\x81\n", "line 3: not UTF-8 nor cp1252"),
    "a NUL byte": (ESC50 + b"a.wav,1,d\0g\n", "expected a category and a fold of"),
    "too few columns": (ESC50 + b"a.wav\n", "line 2: expected 3 columns, got 1"),
    "too many columns": (ESC50 + b"a.wav,1,dog,x\n", "line 2: expected 3 columns, got 4"),
    "a name of 200 kB": (ESC50 + b"x" * 200_000 + b",1,dog\n", "line 2: not CSV"),
    "no rows": (ESC50, "holds no rows"),
    "nothing": (b"", "expected a column 'filename', got none"),
}


@pytest.mark.parametrize("content, words", ESC50_TABLES.values(), ids=ESC50_TABLES)
def test_table_of_esc50_names_files_of_its_own_alone(tmp_path, content, words):
    for name in ("esc50/meta", "esc50/audio"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("secret.wav", "esc50/audio/a.wav"):
        soundfile.write(tmp_path / name, np.zeros(1600, np.float32), 16000)
    (tmp_path / "esc50" / "meta" / "esc50.csv").write_bytes(content)
    with pytest.raises(DataError, match=f"esc50.csv.*{words}") as error:
        read_esc50(tmp_path / "esc50")
    assert one_sentence(str(error.value))


LISTS = {
    "another encoding": (b"cat/a.wav\n\x81\n", "validation_list.txt, line 2: not UTF-8"),
    "half of UTF-16": ("cat/a.wav\n".encode("utf-16")[:-1], "validation_list.txt: not UTF-16"),
    "a NUL byte": (b"cat/a\0.wav\n", r"line 1: no file 'cat/a\\x00.wav'"),
    "a path of 100 kB": (b"n" * 100_000 + b"\n", "validation_list.txt, line 1: no file 'nnn"),
    "a way out": (b"../a.wav\n", "held out by a list, but no sound file of a class: ../a.wav"),
}


@pytest.mark.parametrize("content, words", LISTS.values(), ids=LISTS)
def test_lists_of_held_out_clips_are_refused_with_the_line(tmp_path, content, words):
    for name in ("a.wav", "words/cat/a.wav", "words/dog/a.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / name, np.zeros(1600, np.float32), 16000)
    (tmp_path / "words" / "validation_list.txt").write_bytes(content)
    with pytest.raises(DataError, match=words) as error:
        load_splits(str(tmp_path / "words"))
    assert one_sentence(str(error.value))


def test_a_segment_of_megabytes_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "segments.csv").write_bytes(b"x" * 10_000_000)
    with pytest.raises(DataError, match="segments.csv, line 1: expected an id, start, end and labels") as error:
        read_segments(tmp_path / "segments.csv")
    assert one_sentence(str(error.value))


def test_journal_that_a_failure_filled_with_zeros_is_read_on(clips):
    sound = str(clips / "a.wav")
    (clips / "journal").write_bytes(f"0.25\t{clips / 'b.wav'}\n".encode() + bytes(99) + b"\t" + sound.encode() + b"\n")
    assert read_all_seconds([sound, str(clips / "b.wav")], clips / "journal", num_workers=1) == [0.1, 0.25]


# What is written can be read back


LABELS = [
    "</script><script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    'q"uo,te\nline\ttab\rcr',
    "\x1b[31mred\0",
    "$x$ <b>",
]


def test_names_and_labels_come_back_equal_from_every_file(tmp_path):
    timeline = Timeline(np.arange(6) * 16000, np.eye(5, dtype=np.float32), LABELS, 16000)
    folder = TagsFolder(tmp_path, {"model": "m", "fingerprint": "f"}, ["csv", "audacity"])
    names = ["=1+1.wav", 'a,b"c"\n\r\x1b[31m.wav', "<img src=x onerror=alert(1)>.wav", "\u202egnp.wav", "-rf.wav"]
    sounds = [SoundFile(name, f"place{number}", [number, number]) for number, name in enumerate(names)]
    for sound in sounds:
        tags = [{"label": label, "score": 0.5} for label in LABELS]
        folder.add(sound, tags, timeline.find_events(0.5), timeline, ASTFeatureExtractor())
    folder.write_tables()
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == names
    assert all([tag["label"] for tag in line["tags"]] == LABELS for line in lines)
    for table in ("tags.csv", "events.csv"):
        rows = read_csv(tmp_path / table)
        assert [(row["path"], row["label"]) for row in rows] == [
            (name, label) for name in sorted(names) for label in LABELS
        ]
    for sound in sounds:
        with open(tmp_path / "timelines" / f"{sound.place}.csv", newline="", encoding="utf-8") as file:
            assert next(csv.reader(file)) == ["start", "end", *LABELS]
        track = (tmp_path / "audacity" / f"{sound.place}.txt").read_bytes().decode().split("\n")[:-1]
        columns = [line.split("\t") for line in track]
        assert [(float(start), float(end)) for start, end, _ in columns] == [(i, i + 1) for i in range(5)]
        assert [label for *_, label in columns] == [" ".join(label.split()) for label in LABELS]


# Memory, and folders of runs


@pytest.mark.slow
def test_a_small_file_takes_little_memory(saved, tmp_path):
    """Each in a process of its own, which may take a gigabyte more than it has once all is imported."""
    files = {
        IN_NAME: torch_bytes({**original_weights(), PROJECTION: view_of_one(10**5, 10**5)}),
        "packed_8_12_0.pth": packed(torch_bytes({**original_weights(), PROJECTION: torch.zeros(2**14, 2**14)})),
        "text_8_12_0.pth": b"\x80\x02X\xff\xff\xff\x7f",
        "recipe.yaml": LAUGHS.encode(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    config = json.loads(saved["config.json"])
    for key, value in {"num_hidden_layers": 10**6, "max_length": 10**9, "num_labels": 10**8}.items():
        folder = tmp_path / key
        folder.mkdir()
        for name, content in saved.items():
            (folder / name).write_bytes(content)
        changed = {**config, key: value}
        if key == "num_labels":
            del changed["id2label"], changed["label2id"]
        (folder / "config.json").write_text(json.dumps(changed))
        if key == "max_length":  # what the weights lack would be made
            (folder / "model.safetensors").write_bytes(save({}, metadata={"format": "pt"}))
    code = """
import resource, sys
from pathlib import Path
from modeling_ast import load_original_checkpoint
from modeling_ast.data.recipes import read_recipe
from modeling_ast.inference.pipeline import audio_tagger

path = Path(sys.argv[1])
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, taken + 2**30))
read = {".pth": load_original_checkpoint, ".yaml": read_recipe, "": audio_tagger}[path.suffix]
try:
    read(str(path))
except Exception as error:
    assert not isinstance(error.__cause__, MemoryError) or path.name.startswith("text"), error
    print("refused", type(error).__name__)
"""
    for path in sorted(tmp_path.iterdir()):
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=ROOT, timeout=100
        )
        assert re.search("refused (ValueError|ModelError|DataError|RecipeError)", done.stdout), (path, done.stderr)


@pytest.mark.slow
def test_folder_of_a_run_that_is_continued_runs_nothing(tmp_path):
    from modeling_ast.commands import train as run_audio_classification

    argv = ["--dataset_name=synthetic", "--max_train_samples=16", "--max_eval_samples=16", "--linear_baseline=false"]
    argv += ["--num_train_epochs=2", "--weight_average_start=1", "--output_dir", str(tmp_path / "run")]
    argv = [str(ROOT / "configs" / "demo.yaml"), *argv, "--overwrite_output_dir=false", "--save_total_limit=2"]
    run_audio_classification.main(argv)
    (tmp_path / "run" / "trainer_state.json").unlink()  # which says that the training has ended
    checkpoint, trace = tmp_path / "run" / "checkpoint-1", tmp_path / "trace"
    pickles = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "epoch_loss.pt", "training_args.bin")
    for name in (*pickles, "mean_predictions.npy"):
        good = (checkpoint / name).read_bytes()
        if name in pickles:
            torch.save({"x": Payload(trace)}, checkpoint / name)
        else:
            np.save(checkpoint / name, np.array([Payload(trace)], dtype=object), allow_pickle=True)
        try:
            run_audio_classification.main([*argv, "--resume_from_checkpoint", str(checkpoint)])
        except RecipeError as error:
            assert f"{checkpoint} cannot be continued from (" in str(error) and "weights_only" not in str(error)
        else:
            assert name == "training_args.bin"  # which nobody reads
        assert not trace.exists(), name
        (checkpoint / name).write_bytes(good)


@pytest.mark.slow
def test_long_tables_take_time_and_memory_by_their_length(tmp_path):
    import resource

    soundfile.write(tmp_path / "a.wav", np.zeros(1600, np.float32), 16000)
    lines = 200_000
    with open(tmp_path / "clips.csv", "w") as file:
        file.write("audio,label\n")
        file.writelines(f"a.wav,label {number % 500}\n" for number in range(lines))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    splits = load_splits(str(tmp_path / "clips.csv"), validation_file=str(tmp_path / "clips.csv"))
    assert len(splits.train) == lines and len(splits.label_names) == 500
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10  # KiB: 1 kB a line, of both files


# The page


def test_examples_with_names_that_cannot_be_shown_do_not_keep_all_from_the_page(tmp_path, capsys):
    for name in (b"<b>good<b>.wav", b"\xff latin.wav", b"red\x1b[31m.wav"):
        soundfile.write(tmp_path / "sound.wav", np.zeros(1600, np.float32), 16000)
        os.rename(tmp_path / "sound.wav", os.path.join(os.fsencode(tmp_path), name))
    assert [path.name for path in find_examples(tmp_path)] == ["<b>good<b>.wav"]
    told = capsys.readouterr().err
    assert r"\udcff latin.wav is no example" in told and r"red\x1b[31m.wav is no example" in told


@pytest.mark.slow
def test_page_shows_names_and_messages_as_text(folder, tmp_path):
    pytest.importorskip("gradio")
    from modeling_ast.inference import page_layout
    from modeling_ast.inference.page import Tagger

    tagger = Tagger(audio_tagger(folder, device="cpu"), tmp_path)
    for name in (b"<img src=x onerror=alert(1)>.wav", b"\xff\x1b[31m.wav", b"n" * 251 + b".wav"):
        path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
        soundfile.write(tmp_path / "sound.flac", 0.1 * np.ones(16000, np.float32), 16000)
        (tmp_path / "sound.flac").rename(path)
        status = page_layout.show(tagger, tagger.tag(path, {}))[1]
        status.encode()
        assert "<img" not in status and one_sentence(status)
    message = page_layout.show_nothing("<script>alert(1)</script>\x1b[31m\udcff", is_error=True)[1]
    assert message == r'<p class="error">&lt;script&gt;alert(1)&lt;/script&gt;\x1b[31m\udcff</p>'
