"""The exported graph gives the model's scores: any batch, any length, and where there is no torch."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_tiny_config, random_model
from helpers import write_sound

from modeling_ast import ASTFeatureExtractor, AudioError
from modeling_ast.commands import export as export_script
from modeling_ast.commands.command_options import CommandError
from modeling_ast.data.labels import DataError
from modeling_ast.inference import checked_export
from modeling_ast.inference.agreement import (
    agreement_measure,
    compare,
    comparison_table,
    graph_function,
    int8_warnings,
    model_function,
    read_clips,
)
from modeling_ast.inference.export import check_for_transformers_js, export_logits_onnx, export_onnx
from modeling_ast.inference.quantization import quantize_onnx
from modeling_ast.loading import ModelError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx.reference")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.usefixtures("one_thread")

SCRIPT = Path(__file__).resolve().parents[1] / "modeling_ast" / "commands" / "export.py"
MULTI, SINGLE = "multi_label_classification", "single_label_classification"


def make_pair(sampling_rate: int = 16000, padding: str = "longest", **config):
    """A tiny model and a feature extractor that fits it."""
    config = make_tiny_config(**{"problem_type": MULTI, "num_hidden_layers": 1, **config})
    extractor = ASTFeatureExtractor(
        sampling_rate=sampling_rate, num_mel_bins=config.num_mel_bins, max_length=config.max_length, padding=padding
    )
    return random_model(config), extractor


def sounds(num_clips: int, length: int, seed: int = 0) -> list[np.ndarray]:
    """Noise that fades by 60 dB, so that there are loud bins and quiet ones."""
    noise = np.random.default_rng(seed).standard_normal((num_clips, length)) * np.geomspace(0.3, 3e-4, length)
    return list(noise.astype(np.float32))


def expected_scores(model, extractor, clips, **padding) -> np.ndarray:
    """What model and feature extractor give, each clip alone."""
    functions = {MULTI: torch.sigmoid, "regression": lambda x: x}
    function = functions.get(model.config.problem_type, lambda x: x.softmax(dim=-1))
    with torch.inference_mode():
        return torch.cat(
            [function(model(**extractor(clip, return_tensors="pt", **padding)).logits) for clip in clips]
        ).numpy()


def lengths_around(extractor: ASTFeatureExtractor, count: int, seed: int) -> list[int]:
    """One window, one patch and around it, the model's length and around it, and random ones up to three times as
    much; in samples."""
    fixed = [extractor.num_samples(frames) for frames in (1, 15, 16, 17, extractor.max_length)]
    at = fixed[-1]
    drawn = np.random.default_rng(seed).integers(extractor.frame_length, 3 * at, count)
    return [*fixed, at - 1, at + 1, *map(int, drawn)]


def run_script(*arguments) -> dict:
    return export_script.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model that hears clips at their own length, in a folder, and its graphs as the script writes them."""
    folder = tmp_path_factory.mktemp("exported")
    model, extractor = make_pair(id2label=dict(enumerate(["dog", "rain", "Kuckuck, häufig", "sea waves"])))
    model.config.thresholds = {"rain": 0.25, "a label of an earlier head": 0.5}
    model.save_pretrained(folder / "model")
    extractor.save_pretrained(folder / "model")
    results = run_script(folder / "model", folder / "ast.onnx", "--int8")
    return folder, model, extractor, results


# The scores


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_scores_are_those_of_the_model_at_any_length_and_in_any_batch(exported, batch_size):
    folder, model, extractor, _ = exported
    graph = graph_function(folder / "ast.onnx", num_threads=1)
    lengths = lengths_around(extractor, 6, seed=batch_size)
    assert min(lengths) < extractor.num_samples(extractor.max_length) < max(lengths)
    for length in lengths:
        clips = sounds(batch_size, length, seed=length)
        np.testing.assert_allclose(graph(clips), expected_scores(model, extractor, clips), atol=1e-5, err_msg=length)


def test_scores_of_real_clips_are_those_of_the_model(exported, shared_data):
    """Decoded OGG, whose bins above the codec's limit are almost empty: there logarithms differ the most."""
    folder, model, extractor, _ = exported
    graph = graph_function(folder / "ast.onnx", num_threads=1)
    for path in sorted((shared_data / "esc10" / "audio").iterdir())[::80]:
        samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
        clip = samples.mean(axis=1)
        np.testing.assert_allclose(graph([clip]), expected_scores(model, extractor, [clip]), atol=1e-4)


@pytest.mark.slow
def test_padding_and_lengths_are_those_of_the_feature_extractor(tmp_path):
    """With lengths and "max_length" padding: short clips are padded, long ones cut, behind a clip all is ignored."""
    model, extractor = make_pair(
        sampling_rate=8000, padding="max_length", problem_type=SINGLE, frequency_stride=16, time_stride=8
    )
    export_onnx(model, extractor, tmp_path / "ast.onnx", with_lengths=True)
    session = onnxruntime.InferenceSession(tmp_path / "ast.onnx")
    lengths = lengths_around(extractor, 5, seed=0)
    clips = [sounds(1, length, seed=length)[0] for length in lengths]
    for first in range(0, len(clips), 4):
        some = clips[first : first + 4]
        batch = np.stack([np.append(clip, np.ones(max(lengths) - len(clip), np.float32)) for clip in some])
        inputs = {"waveform": batch, "num_samples": np.array([len(clip) for clip in some])}
        (scores,) = session.run(["scores"], inputs)
        np.testing.assert_allclose(scores, expected_scores(model, extractor, some), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("padding", "with_lengths", "sampling_rate", "config"),
    [
        ("longest", True, 16000, {"num_mel_bins": 128, "problem_type": SINGLE, "num_hidden_layers": 2}),
        ("max_length", False, 16000, {"num_mel_bins": 64, "problem_type": None, "frequency_stride": 16}),
        ("max_length", False, 8000, {"problem_type": "regression", "num_labels": 1, "time_stride": 16}),
        ("longest", True, 22050, {"max_length": 100, "time_stride": 7, "frequency_stride": 3}),
        ("max_length", False, 22050, {"max_length": 100, "time_stride": 7, "frequency_stride": 3}),
        ("longest", True, 44100, {"num_mel_bins": 40, "max_length": 30, "patch_size": 8, "qkv_bias": False}),
    ],
)
def test_scores_are_those_of_every_kind_of_model(padding, with_lengths, sampling_rate, config, tmp_path):
    # The feature extractor's own padding is the other one, which the argument has to win over.
    model, extractor = make_pair(sampling_rate, padding="max_length" if padding == "longest" else "longest", **config)
    export_onnx(model, extractor, tmp_path / "ast.onnx", padding, with_lengths)
    onnx.checker.check_model(tmp_path / "ast.onnx", full_check=True)
    graph = graph_function(tmp_path / "ast.onnx", num_threads=1)
    lengths = lengths_around(extractor, 12, seed=1)
    generator = np.random.default_rng(2)
    for length in lengths:
        own = generator.integers(extractor.frame_length, length + 1, generator.integers(1, 5))
        own[0] = length
        clips = [
            clip[:n]
            for clip, n in zip(sounds(len(own), length, seed=length), own if with_lengths else own * 0 + length)
        ]
        found, expected = graph(clips), expected_scores(model, extractor, clips, padding=padding)
        np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=length)


@pytest.mark.slow
def test_half_precision_weights_are_exported_in_float32(tmp_path):
    half, extractor = make_pair()
    half.bfloat16()
    export_onnx(half, extractor, tmp_path / "ast.onnx")
    assert half.dtype == torch.bfloat16
    types = {
        onnx.TensorProto.DataType.Name(weight.data_type)
        for weight in onnx.load(tmp_path / "ast.onnx").graph.initializer
    }
    assert "FLOAT" in types and types.isdisjoint({"BFLOAT16", "FLOAT16", "DOUBLE"})
    clips = sounds(2, 9000)
    found = graph_function(tmp_path / "ast.onnx", num_threads=1)(clips)
    np.testing.assert_allclose(found, expected_scores(half.float(), extractor, clips), atol=1e-5)


# The file


def test_graph_is_valid_and_says_how_to_use_it(exported):
    folder, _, extractor, _ = exported
    for name in ("ast.onnx", "ast.int8.onnx"):
        onnx.checker.check_model(folder / name)
        session = onnxruntime.InferenceSession(folder / name)
        metadata = session.get_modelmeta().custom_metadata_map
        assert json.loads(metadata["labels"]) == ["dog", "rain", "Kuckuck, häufig", "sea waves"]
        assert json.loads(metadata["thresholds"]) == {"rain": 0.25}
        assert (metadata["problem_type"], metadata["score_function"]) == (MULTI, "sigmoid")
        assert (metadata["padding"], metadata["min_samples"]) == ("longest", "400")
        assert metadata["sampling_rate"] == "16000" and "max_samples" not in metadata
        (waveform,), (scores,) = session.get_inputs(), session.get_outputs()
        assert (waveform.name, waveform.shape, waveform.type) == ("waveform", ["batch", "samples"], "tensor(float)")
        assert (scores.name, scores.shape, scores.type) == ("scores", ["batch", 4], "tensor(float)")


def test_graph_holds_no_paths_of_this_machine(exported):
    folder = exported[0]
    for name in ("ast.onnx", "ast.int8.onnx"):
        content = (folder / name).read_bytes()
        assert b"modeling_ast.py" not in content and b"site-packages" not in content


def test_script_leaves_nothing_but_what_it_names(exported):
    folder, _, _, results = exported
    assert {path.name for path in folder.iterdir()} == {"model", "ast.onnx", "ast.int8.onnx"}
    assert list(results) == ["model", "fp32", "int8"]
    assert results["fp32"]["largest_difference"] < 1e-5 and results["fp32"]["agreement"] == 1


def test_graph_runs_where_torch_cannot_be_imported(exported, tmp_path):
    """The lines in the script's help, in a process of their own, on a sound file."""
    folder, model, extractor, _ = exported
    lines = re.search(r"(    import json\n.*?)\n\n\S", SCRIPT.read_text(encoding="utf-8"), re.DOTALL).group(1)
    blocker = """
        import sys

        class Blocker:
            def find_spec(name, path=None, target=None):
                if name.partition(".")[0] in ("torch", "transformers", "modeling_ast"):
                    raise ImportError(name + " is blocked")

        sys.meta_path.insert(0, Blocker)
        try:
            import torch
        except ImportError:
            pass
        else:
            sys.exit("torch could be imported")
    """
    stereo = np.stack(sounds(2, 20000), axis=1)
    soundfile.write(tmp_path / "clip.wav", stereo, 16000, subtype="FLOAT")
    (tmp_path / "model.onnx").symlink_to(folder / "ast.onnx")
    code = textwrap.dedent(blocker) + textwrap.dedent(lines) + "\nprint(*scores[0].tolist())\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    *best, scores = done.stdout.splitlines()
    expected = expected_scores(model, extractor, [stereo.mean(axis=1)])[0]
    np.testing.assert_allclose(np.array(scores.split(), float), expected, atol=1e-4)
    assert [line.split("  ")[1] for line in best] == [model.config.id2label[i] for i in expected.argsort()[::-1][:3]]


# Other runtimes


@pytest.fixture(scope="module")
def portable(tmp_path_factory):
    """A model and its graphs without onnxruntime's own operators."""
    folder = tmp_path_factory.mktemp("portable")
    model, extractor = make_pair()
    export_onnx(model, extractor, folder / "ast.onnx", standard_operators=True)
    quantize_onnx(folder / "ast.onnx", folder / "ast.int8.onnx")
    return folder, model, extractor


@pytest.mark.slow
def test_with_standard_operators_alone_any_runtime_gives_the_scores(portable):
    """ONNX's own evaluator knows ONNX's operators alone."""
    folder, model, extractor = portable
    for name, tolerance in (("ast.onnx", 1e-5), ("ast.int8.onnx", 1e-3)):
        operators = {(node.domain, node.op_type) for node in onnx.load(folder / name).graph.node}
        assert {domain for domain, _ in operators} == {""} and ("", "DFT") not in operators
        evaluator = onnx.reference.ReferenceEvaluator(str(folder / name))
        graph = graph_function(folder / name, num_threads=1)
        for length in (400, 5000, 12345):
            clips = sounds(2, length)
            (found,) = evaluator.run(["scores"], {"waveform": np.stack(clips)})
            np.testing.assert_allclose(found, graph(clips), atol=tolerance)
            if name == "ast.onnx":
                np.testing.assert_allclose(found, expected_scores(model, extractor, clips), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("folder_of", ["exported", "portable"])
def test_openvino_gives_the_scores(folder_of, request):
    openvino = pytest.importorskip("openvino")
    folder, model, extractor, *_ = request.getfixturevalue(folder_of)
    # Where the processor has bf16, OpenVINO computes in it unless told not to, and the features drown in the rounding.
    graph = openvino.Core().compile_model(folder / "ast.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for length in (400, 5000, 12345):
        clips = sounds(2, length)
        expected = expected_scores(model, extractor, clips)
        np.testing.assert_allclose(graph(np.stack(clips))["scores"], expected, atol=1e-4)


@pytest.fixture(scope="module")
def for_transformers_js(tmp_path_factory):
    """A model that transformers.js can take, and the folder that the script writes for it."""
    folder = tmp_path_factory.mktemp("for_transformers_js")
    model, extractor = make_pair(padding="max_length", problem_type=SINGLE, max_length=48)
    model.save_pretrained(folder / "model")
    extractor.save_pretrained(folder / "model")
    results = run_script(folder / "model", folder / "js", "--transformers_js")
    return folder, model, extractor, results


@pytest.mark.slow
def test_folder_for_transformers_js_holds_what_it_looks_for(for_transformers_js):
    folder, model, extractor, results = for_transformers_js
    names = {str(path.relative_to(folder / "js")) for path in (folder / "js").rglob("*") if path.is_file()}
    assert names == {"config.json", "preprocessor_config.json", "onnx/model.onnx", "onnx/model_quantized.onnx"}
    config, settings = (
        json.loads((folder / "js" / name).read_text()) for name in sorted(names)[:1] + sorted(names)[3:]
    )
    assert config["model_type"] == "audio-spectrogram-transformer"
    assert len(config["id2label"]) == model.config.num_labels
    assert settings["feature_extractor_type"] == "ASTFeatureExtractor"
    for key in ("mean", "std", "max_length", "num_mel_bins", "sampling_rate", "do_normalize"):
        assert settings[key] == getattr(extractor, key)
    assert results["fp32"]["largest_difference"] < 1e-5 and "int8" in results
    session = onnxruntime.InferenceSession(folder / "js" / "onnx" / "model.onnx")
    features = extractor(sounds(3, 5000), sampling_rate=16000, return_tensors="pt")
    (logits,) = session.run(["logits"], {"input_values": features["input_values"].numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(logits, model(features["input_values"]).logits.numpy(), atol=1e-5)


@pytest.mark.slow
def test_transformers_js_gives_the_scores(for_transformers_js, tmp_path):
    """Where node has the package: in the folder that NODE_PATH names."""
    package = Path(os.environ.get("NODE_PATH", "")) / "@huggingface" / "transformers"
    if shutil.which("node") is None or not (package / "package.json").is_file():
        pytest.skip("needs node, and NODE_PATH with @huggingface/transformers")
    folder, model, extractor, _ = for_transformers_js
    clips = [sounds(1, length, seed=length)[0] for length in (400, 5000, 7777, 12345)]  # padded, and cut
    for index, clip in enumerate(clips):
        clip.tofile(tmp_path / f"{index}.f32")
    code = f"""
        import fs from "node:fs";
        import {{ env, pipeline }} from "{package.resolve()}/dist/transformers.node.mjs";
        env.allowRemoteModels = false;
        env.localModelPath = "{folder}";
        const classify = await pipeline("audio-classification", "js", {{ dtype: "fp32" }});
        for (let index = 0; index < {len(clips)}; ++index) {{
            const bytes = new Uint8Array(fs.readFileSync(`{tmp_path}/${{index}}.f32`));
            console.log(JSON.stringify(await classify(new Float32Array(bytes.buffer), {{ top_k: 100 }})));
        }}
    """
    (tmp_path / "run.mjs").write_text(textwrap.dedent(code))
    done = subprocess.run(["node", tmp_path / "run.mjs"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line, scores in zip(done.stdout.splitlines(), expected_scores(model, extractor, clips), strict=True):
        found = {tag["label"]: tag["score"] for tag in json.loads(line)}
        np.testing.assert_allclose([found[model.config.id2label[i]] for i in range(len(scores))], scores, atol=1e-4)


@pytest.mark.parametrize(
    ("model_options", "extractor_options", "padding", "words"),
    [
        (
            {"problem_type": MULTI},
            {},
            None,
            "one label a clip, got multi_label_classification: its scores are sigmoids",
        ),
        ({"problem_type": "regression", "num_labels": 1}, {}, None, "got regression: its scores are plain values"),
        ({}, {"sampling_rate": 8000}, None, "a model at 16000 Hz, got 8000"),
        ({}, {"padding": "longest"}, None, "padding max_length, got longest"),
        ({}, {}, "longest", "padding max_length, got longest"),
        ({}, {"padding_value": -3.0}, None, "padding_value 0, got -3.0"),
        ({}, {}, None, None),
        ({"problem_type": None}, {"padding": "longest"}, "max_length", None),
    ],
)
def test_what_transformers_js_would_ignore_is_refused(model_options, extractor_options, padding, words):
    model, _ = make_pair(**{"problem_type": SINGLE, **model_options})
    extractor = ASTFeatureExtractor(**{"max_length": 64, "num_mel_bins": 32, **extractor_options})
    if words is None:
        check_for_transformers_js(model, extractor, padding)
        return
    with pytest.raises(ModelError, match=words) as raised:
        check_for_transformers_js(model, extractor, padding)
    assert "\n" not in str(raised.value)


def test_graph_of_logits_needs_an_extractor_that_fits(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="Expected a feature extractor that fits the model.*32 mel bins"):
        export_logits_onnx(make_pair()[0], ASTFeatureExtractor(num_mel_bins=64), tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match="pip install"):
        export_logits_onnx(*make_pair(), tmp_path / "model.onnx")


# 8 bits


def test_int8_has_linear_layers_in_8_bits_and_features_in_float32(exported):
    folder, model, extractor, _ = exported
    names = {
        name: [node.op_type for node in onnx.load(folder / name).graph.node] for name in ("ast.onnx", "ast.int8.onnx")
    }
    small = names["ast.int8.onnx"]
    assert small.count("MatMulInteger") == 6 * model.config.num_hidden_layers + 1  # the head too
    assert all(name.count("MultiHeadAttention") == model.config.num_hidden_layers for name in names.values())
    assert "MatMul" in small[: small.index("Conv")] and "MatMulInteger" not in small[: small.index("Conv")]
    clips = sounds(3, 20000)
    found = graph_function(folder / "ast.int8.onnx", num_threads=1)(clips)
    difference = np.abs(found - expected_scores(model, extractor, clips)).max()
    assert 1e-6 < difference < 0.03


def integer_weights(path: Path) -> list[np.ndarray]:
    """Of each integer product of a graph, (inputs, outputs)."""
    graph = onnx.load(path).graph
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return [weights[node.input[1]] for node in graph.node if node.op_type == "MatMulInteger"]


def test_int8_weights_leave_no_sum_that_a_processor_without_vnni_cuts_off(exported):
    """It adds two products of an unsigned byte and a weight in 16 bits, whichever rows its kernel pairs."""
    for weights in integer_weights(exported[0] / "ast.int8.onnx"):
        assert weights.dtype == np.int8 and weights.any()
        largest = np.sort(255 * weights.astype(np.int64), axis=0)
        assert (largest[-2:].sum(axis=0) < 2**15).all() and (largest[:2].sum(axis=0) >= -(2**15)).all()


INTEGER_PRODUCTS = """
import sys
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

pairs = np.load(sys.argv[1])
for index in range(len(pairs) // 2):
    inputs, weights = pairs[f"inputs{index}"], pairs[f"weights{index}"]
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["inputs", "weights"], ["products"])], "product",
        [helper.make_tensor_value_info("inputs", TensorProto.UINT8, inputs.shape)],
        [helper.make_tensor_value_info("products", TensorProto.INT32, None)],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["products"], {"inputs": inputs})
    expected = inputs.astype(np.int32) @ weights.astype(np.int32)
    assert np.array_equal(found, expected), f"{(found != expected).mean():.1%} of the sums are wrong"
"""


# The second is a processor with AVX2 alone, imitated by qemu's user mode; onnxruntime asks the processor itself.
@pytest.mark.parametrize(
    "processor", [[], pytest.param(["qemu-x86_64", "-cpu", "Haswell"], id="avx2", marks=pytest.mark.slow)]
)
def test_int8_products_are_exact_whatever_the_inputs(exported, processor, tmp_path):
    if processor and shutil.which(processor[0]) is None:
        pytest.skip(f"needs {processor[0]}, of Debian's package qemu-user")
    generator, pairs = np.random.default_rng(0), {}
    for index, weights in enumerate(integer_weights(exported[0] / "ast.int8.onnx")):
        # For some outputs the largest input wherever the weight is positive, or negative: no sum can be further out.
        extremes = [255 * (weights[:, column] * sign > 0) for column in range(4) for sign in (1, -1)]
        random = generator.integers(0, 256, (8, len(weights)))
        full = np.full((1, len(weights)), 255)
        pairs[f"inputs{index}"] = np.concatenate([extremes, random, full]).astype(np.uint8)
        pairs[f"weights{index}"] = weights
    np.savez(tmp_path / "pairs.npz", **pairs)
    command = [*processor, sys.executable, "-c", INTEGER_PRODUCTS, tmp_path / "pairs.npz"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_int8_of_a_larger_model_agrees_on_real_clips_and_is_smaller(shared_data, tmp_path):
    model, extractor = make_pair(
        num_mel_bins=128, max_length=498, hidden_size=192, intermediate_size=768, num_hidden_layers=4, num_labels=10
    )
    export_onnx(model, extractor, tmp_path / "fp32.onnx")
    quantize_onnx(tmp_path / "fp32.onnx", tmp_path / "int8.onnx")
    assert (tmp_path / "int8.onnx").stat().st_size < 0.5 * (tmp_path / "fp32.onnx").stat().st_size
    paths = sorted((shared_data / "fsdd").glob("*/*.wav"))[::100]
    clips = [soundfile.read(path, dtype="float32")[0] for path in paths]
    functions = {"model": model_function(model, extractor, "longest")}
    functions |= {name: graph_function(tmp_path / f"{name}.onnx", 1) for name in ("fp32", "int8")}
    results = compare(functions, [[clip] for clip in clips], agreement_measure(model.config)[1])
    assert results["fp32"]["largest_difference"] < 1e-4 and results["fp32"]["agreement"] == 1
    assert results["int8"]["agreement"] >= 0.8


# What is compared


def test_comparison_counts_differences_and_equal_best_labels():
    batches = [[np.zeros(1)], [np.ones(1), np.full(1, 2.0)]]
    table = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])

    def look_up(offset):
        return lambda clips: np.stack([table[int(clip[0])] + offset * (clip[0] == 2) for clip in clips])

    _, agreement = agreement_measure(make_tiny_config(problem_type=SINGLE, num_labels=2))
    results = compare({"model": look_up(0), "graph": look_up(np.array([-0.3, 0.0]))}, iter(batches), agreement)
    assert results["graph"]["largest_difference"] == pytest.approx(0.3)
    assert results["graph"]["agreement"] == pytest.approx(2 / 3)
    assert results["model"] == {**results["model"], "largest_difference": 0, "agreement": 1}


def test_answers_of_several_labels_are_those_at_the_thresholds():
    """Not the best label, and not what both leave out, which is most of what there is."""
    config = make_tiny_config(problem_type=MULTI, id2label={0: "dog", 1: "rain", 2: "sea"})
    expected = np.array([[0.9, 0.3, 0.1], [0.1, 0.6, 0.1]])
    found = np.array([[0.7, 0.6, 0.1], [0.1, 0.2, 0.2]])
    name, agreement = agreement_measure(config)
    assert name == "equal decisions"
    assert agreement(expected, expected) == agreement(0 * expected, 0 * expected) == 1
    assert agreement(expected, found) == pytest.approx(1 / 3)  # dog by both; rain by one of them in either clip
    config.thresholds = {"rain": 0.25, "a label of an earlier head": 0.5}
    assert agreement_measure(config)[1](expected, found) == pytest.approx(2 / 3)
    config.problem_type = "regression"
    assert agreement_measure(config) is None
    results = compare({"model": lambda clips: np.zeros((1, 3))}, [[np.zeros(1)]], None)
    assert "agreement" not in results["model"]


@pytest.mark.parametrize(
    ("problem_type", "agreement", "speed", "words"),
    [
        (SINGLE, 0.985, 1.2, "int8: equal top-1 98.5% on 80 sound files, below 99%"),
        (MULTI, 0.747, 1.2, "int8: equal decisions 74.7% on 80 sound files, below 99%"),
        (MULTI, float("nan"), 1.2, "int8: equal decisions nan%"),
        (SINGLE, 1.0, 0.94, "int8: 0.94 times the speed of fp32 on this machine"),
        ("regression", None, 0.94, "int8: 0.94 times the speed"),
        (SINGLE, 0.99, 1.0, None),
        ("regression", None, 1.2, None),
    ],
)
def test_int8_that_answers_otherwise_or_is_slower_is_warned_of(problem_type, agreement, speed, words):
    name, _ = agreement_measure(make_tiny_config(problem_type=problem_type)) or (None, None)
    row = {"largest_difference": 0.0} if agreement is None else {"largest_difference": 0.0, "agreement": agreement}
    results = {kind: {**row, "clips_per_second": 10.0 * factor} for kind, factor in (("fp32", 1), ("int8", speed))}
    table, warnings = comparison_table(results, name), int8_warnings(results, "80 sound files", name)
    assert (name or "largest difference") in table and f"{speed:.2f}x" in table
    assert len(warnings) == (words is not None) and all(words in warning for warning in warnings)


# Errors


@pytest.fixture
def stub_export(monkeypatch, exported):
    """The export without its work: the file is a copy of one that is there."""

    def write(graph: str):
        def export(model, extractor, path, *options):
            Path(path).write_bytes((exported[0] / graph).read_bytes())

        monkeypatch.setattr(checked_export, "export_onnx", export)

    return write


def test_graph_with_other_scores_is_an_error_and_not_written(exported, stub_export, tmp_path):
    folder = exported[0]
    stub_export("ast.int8.onnx")
    with pytest.raises(ModelError, match=r"within 0.001 of the model's, got a difference of \S+. Nothing is written"):
        run_script(folder / "model", tmp_path / "ast.onnx")
    assert not list(tmp_path.iterdir())


def test_script_compares_on_the_sound_files_given(exported, stub_export, tmp_path, capsys):
    folder = exported[0]
    stub_export("ast.onnx")
    (tmp_path / "sounds").mkdir()
    for index, rate in enumerate((16000, 8000)):
        soundfile.write(tmp_path / "sounds" / f"{index}.wav", sounds(1, 9000)[0], rate)
    results = run_script(folder / "model", tmp_path / "out" / "ast.onnx", "--check", tmp_path / "sounds")
    assert results["fp32"]["largest_difference"] < 1e-5
    assert "Compared on 2 sound files, 1 thread(s)" in capsys.readouterr().out
    assert (tmp_path / "out" / "ast.onnx").is_file()


def test_sound_files_are_compared_in_batches_of_two_lengths_where_a_graph_takes_them(tmp_path):
    paths = [write_sound(tmp_path / f"{number}.wav", np.zeros(8000 + number)) for number in range(3)]
    batches = [[len(clip) for clip in batch] for batch in read_clips(paths, ASTFeatureExtractor(), True)]
    assert batches == [[8000, 8001], [8002]]
    assert [len(batch) for batch in read_clips(paths, ASTFeatureExtractor(), False)] == [1, 1, 1]


def test_checks_that_cannot_be_made_are_errors(exported, stub_export, tmp_path):
    folder = exported[0]
    stub_export("ast.onnx")
    (tmp_path / "empty").mkdir()
    for name, words in (("empty", "No sound files .*empty, nor below"), ("missing.wav", "no such file or folder")):
        with pytest.raises(DataError, match=words):
            run_script(folder / "model", tmp_path / "ast.onnx", "--check", tmp_path / name)
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 16000)
    with pytest.raises(AudioError, match="short.wav: expected at least 25 ms of sound, got 100 samples"):
        run_script(folder / "model", tmp_path / "ast.onnx", "--check", tmp_path / "short.wav")
    (tmp_path / "broken.wav").write_text("no sound")
    with pytest.raises(AudioError, match="broken.wav: cannot be decoded"):
        run_script(folder / "model", tmp_path / "ast.onnx", "--check", tmp_path / "broken.wav")
    assert not list(tmp_path.glob("*.onnx"))


def test_bad_arguments_are_refused(exported, tmp_path, capsys):
    folder = exported[0]
    for arguments, words in (
        ([folder / "model", tmp_path / "ast.pt"], "a file ending in .onnx, got"),
        ([folder / "model", tmp_path / "ast.onnx", "--padding", "left"], "invalid choice: 'left'"),
        ([folder / "model", tmp_path / "js", "--transformers_js", "--with_lengths"], "one clip at a time"),
        ([folder / "model", folder / "model", "--transformers_js"], "not a file or a model's own folder, got"),
    ):
        with pytest.raises(SystemExit):
            run_script(*arguments)
        assert words in capsys.readouterr().err
    with pytest.raises(CommandError, match="num_threads of at least 1, got 0"):
        run_script(folder / "model", tmp_path / "ast.onnx", "--num_threads", 0)
    with pytest.raises(ModelError, match="nowhere cannot be used"):
        run_script(tmp_path / "nowhere", tmp_path / "ast.onnx")


def test_feature_extractor_of_another_model_is_refused(tmp_path):
    model, _ = make_pair()
    with pytest.raises(ModelError, match="Expected a feature extractor that fits the model.*32 mel bins"):
        export_onnx(model, ASTFeatureExtractor(num_mel_bins=64), tmp_path / "ast.onnx")
    with pytest.raises(ModelError, match="fits the model.*less than one patch of 16 frames"):
        export_onnx(model, ASTFeatureExtractor(num_mel_bins=32, min_length=8), tmp_path / "ast.onnx", "longest")


def test_padding_is_one_of_two_words(tmp_path):
    with pytest.raises(ValueError, match="Expected padding to be one of max_length, longest, got True"):
        export_onnx(*make_pair(), tmp_path / "ast.onnx", padding=True)


def test_too_many_weights_for_one_file_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("modeling_ast.inference.export.MAX_BYTES", 2**15)
    with pytest.raises(ModelError, match="GiB of float32 weights, got"):
        export_onnx(*make_pair(), tmp_path / "ast.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_package_is_named(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    words = rf"onnxruntime \(.*{package}.*\): pip install 'modeling_ast\[onnx\]'"
    with pytest.raises(ImportError, match=words):
        export_onnx(*make_pair(), tmp_path / "ast.onnx")
    with pytest.raises(ImportError, match=words):
        quantize_onnx(tmp_path / "ast.onnx", tmp_path / "int8.onnx")
    with pytest.raises(ImportError, match=words):
        run_script(tmp_path / "model", tmp_path / "ast.onnx")
