"""ONNX graphs that run without torch and without this package: from waveforms to scores, features inside, or for
transformers.js from features to logits."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.data.scores import score_function, to_scores
from modeling_ast.data.unknown import can_be_unknown
from modeling_ast.feature_extraction_ast import PADDINGS
from modeling_ast.loading import ModelError
from modeling_ast.modeling_ast import eager_attention_forward

# The first with GELU as one operator; its Fourier transform (DFT-20) is in onnxruntime from 1.17 on.
# Source: onnxruntime's pull request 17821.
OPSET = 20
# Name of `attend_in_onnxruntime` among Transformers' attention implementations.
ATTENTION = "onnxruntime"
# Of weights in one file; the format ends at 2 GiB. Source: torch's own limit, behind which it writes a second file.
MAX_BYTES = 1536 * 1024**2


def attend_in_onnxruntime(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention as one operator of onnxruntime's own, for the exporter alone: outside of it, the result is zeros.

    Written out in ONNX operators, attention takes more than half of the time of an int8 graph: its weights, 70 MB a
    layer at base size, are written and read several times. This operator computes them in blocks that stay near the
    cores. With a mask it would not, and onnxruntime 1.20 gets masked batches wrong, so there attention is written out.
    ONNX's own `Attention` (opset 23) is slower in onnxruntime 1.32.

    Args:
        module: Of the attention; not used without a mask.
        query: Of shape (batch, heads, queries, head_dim).
        key: Of shape (batch, heads, tokens, head_dim).
        value: As `key`.
        attention_mask: Added to the products, (batch, 1, queries, tokens); `None` attends to all tokens.
        scaling: Factor of the products.
        kwargs: What else Transformers' interface has; a graph needs none of it.

    Returns:
        Tensor of shape (batch, queries, heads, head_dim), and the weights where there is a mask.
    """
    if attention_mask is not None:
        return eager_attention_forward(module, query, key, value, attention_mask, scaling)
    batch, heads, queries, head_dim = query.shape
    context = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        [tensor.transpose(1, 2).flatten(2) for tensor in (query, key, value)],  # (batch, tokens, hidden_size)
        {"num_heads": heads, "scale": scaling},
        dtype=query.dtype,
        shape=(batch, queries, heads * head_dim),
        version=1,
    )
    return context.unflatten(2, (heads, head_dim)), None


def transform_by_matrix(extractor: ASTFeatureExtractor) -> Callable:
    """`torch.fft.rfft` of the features as one product with a matrix, for the exporter.

    ONNX's `DFT` is rare: OpenVINO 2026.4 reads it and gives an empty result. The product is at least as fast in
    onnxruntime 1.32, and scores are as close.

    Args:
        extractor: Says the length of a frame, and so of its transform.

    Returns:
        For the exporter's table of translations: frames (..., num_fft) to (..., num_fft // 2 + 1, 2), real and
        imaginary parts. Only the first `frame_length` samples of a frame are looked at; behind them is padding.
    """
    length = extractor.frame_length
    num_fft = 1 << (length - 1).bit_length()
    lines = num_fft // 2 + 1
    # The product of sample and line modulo the period, so that the angles keep all their digits.
    angles = 2 * np.pi / num_fft * (np.outer(np.arange(length), np.arange(lines)) % num_fft)
    matrix = np.stack([np.cos(angles), -np.sin(angles)], axis=-1).reshape(length, 2 * lines).astype(np.float32)

    def translate(frames, dim, normalization: int, onesided: bool):
        from onnx import numpy_helper
        from onnxscript import opset20 as op

        begin, end, last = (op.Constant(value_ints=[index]) for index in (0, length, -1))
        spectrum = op.MatMul(op.Slice(frames, begin, end, last), op.Constant(value=numpy_helper.from_array(matrix)))
        return op.Reshape(spectrum, op.Constant(value_ints=[0, 0, lines, 2]))  # 0: as it is

    return translate


AttentionInterface.register(ATTENTION, attend_in_onnxruntime)
AttentionMaskInterface.register(ATTENTION, eager_mask)


class WaveformClassifier(nn.Module):
    """Feature extractor, model and scores as one module: what the graph computes.

    The log-mel filter bank is `modeling_ast.fbank.fbank` itself: the exporter turns its frames into ONNX operators,
    and its Fourier transform into a product with a matrix. Fitting the length is written once more, since
    `ASTFeatureExtractor.fit_length` goes through a list of clips, and a graph cannot.

    Args:
        model: In evaluation mode.
        extractor: Of the model.
        padding: "max_length" or "longest", as in the feature extractor.
    """

    def __init__(self, model: ASTForAudioClassification, extractor: ASTFeatureExtractor, padding: str):
        super().__init__()
        self.model, self.extractor, self.padding = model, extractor, padding

    def forward(self, waveform: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            waveform: float32 of shape (batch, samples), at the extractor's rate, in [-1, 1]; one window or more.
            lengths: int64 of shape (batch,): how many samples are each clip's own, one window or more; what
                stands behind them does not matter. `None` takes all.

        Returns:
            Tensor of shape (batch, num_labels).
        """
        extractor = self.extractor
        if self.padding == "max_length":  # what would be cut off anyway; of an hour the features would fill gigabytes
            samples = torch.sym_min(waveform.shape[1], extractor.num_samples(extractor.max_length))
            waveform = waveform.narrow(1, 0, samples)  # of a slice's length, torch 2.11's exporter would know nothing
        spectrogram = extractor.fbank(waveform)  # (batch, frames, mel bins)
        # Padded by a fixed number of frames and then cut, which holds for any number without a branch.
        if self.padding == "max_length":
            length = room = extractor.max_length
        else:
            length, room = torch.sym_max(spectrogram.shape[1], extractor.min_length), extractor.min_length
        spectrogram = F.pad(spectrogram, (0, 0, 0, room), value=extractor.padding_value).narrow(1, 0, length)
        attention_mask = None
        if lengths is not None:
            own = extractor.num_frames(lengths)  # frames of each clip
            frame = torch.arange(length)
            is_own = (frame < own.unsqueeze(1)).unsqueeze(2)
            spectrogram = torch.where(is_own, spectrogram, extractor.padding_value)
            if self.padding == "longest":
                attention_mask = (frame < own.clamp(min=extractor.min_length).unsqueeze(1)).long()
        if extractor.do_normalize:
            spectrogram = extractor.normalize(spectrogram)
        logits = self.model(spectrogram, attention_mask=attention_mask, return_dict=True).logits
        return to_scores(logits, score_function(self.model.config.problem_type))


def export_onnx(
    model: ASTForAudioClassification,
    extractor: ASTFeatureExtractor,
    path: str | os.PathLike,
    padding: str | None = None,
    with_lengths: bool = False,
    standard_operators: bool = False,
) -> None:
    """Write a model, its features and its scores as one graph, in float32.

    Input `waveform`, float32 (batch, samples); output `scores`, float32 (batch, num_labels): sigmoids or a softmax by
    the model's problem type. Batch and samples can be any, from one window of 25 ms up. The graph's metadata say what
    else is needed to use it: `labels` (JSON list, in the order of the columns), `sampling_rate` (Hz), `problem_type`,
    `score_function`, `padding`, `min_samples`, under "max_length" padding `max_samples` (what lies behind is cut off),
    and `thresholds` (JSON, by label) where the model has some.

    Args:
        model: Left as it is.
        extractor: Of the model.
        path: File to write.
        padding: "max_length" pads or cuts each clip to the extractor's `max_length`; "longest" takes it at its own
            length. `None` means the extractor's own, with which scores equal the pipeline's.
        with_lengths: Whether there is a second input, `num_samples`, int64 (batch,), for clips of different lengths
            in one batch: each gets the scores that it gets alone.
        standard_operators: Write attention out in ONNX's own operators, for other runtimes than onnxruntime.

    Raises:
        ModelError: More than 1.5 GiB of weights, a feature extractor that does not fit the model, or lengths beside
            one whose frames reach over the ends of a clip.
        ValueError: Another word for `padding`.
        ImportError: onnx, onnxscript or onnxruntime is not installed.
    """
    require_onnx()
    padding = extractor.padding if padding is None else padding
    if padding not in PADDINGS:
        raise ValueError(f"Expected padding to be one of {', '.join(PADDINGS)}, got {padding!r}.")
    if with_lengths and extractor.first_sample:
        raise ModelError(
            f"Expected clips of one length in a batch, got with_lengths: {type(extractor).__name__} mirrors a clip at "
            "its end, which a graph does for the end of the batch alone."
        )
    classifier = WaveformClassifier(_prepare(model, standard_operators), extractor, padding).eval()
    shortest = extractor.frame_length
    _try(classifier, torch.zeros(1, shortest))
    example = extractor.num_samples(extractor.max_length)
    inputs = {"waveform": torch.zeros(2, example)}
    shapes = {"waveform": {0: torch.export.Dim("batch"), 1: torch.export.Dim("samples", min=shortest)}}
    if with_lengths:
        inputs["num_samples"] = torch.full((2,), example)
        shapes["num_samples"] = {0: torch.export.Dim.AUTO}  # the same, which the exporter finds out
    program = torch.onnx.export(
        classifier,
        tuple(inputs.values()),
        dynamo=True,
        dynamic_shapes=tuple(shapes.values()),
        input_names=list(inputs),
        output_names=["scores"],
        opset_version=OPSET,
        custom_translation_table={torch.ops.aten._fft_r2c.default: transform_by_matrix(extractor)},
        verbose=False,
    )
    program.model.metadata_props.update(_metadata(model, extractor, padding))
    _save(program, path)


def _prepare(model: ASTForAudioClassification, standard_operators: bool) -> ASTForAudioClassification:
    """A copy in float32 whose attention the exporter can write.

    Raises:
        ModelError: More weights than fit in one file.
    """
    if (size := 4 * model.num_parameters()) > MAX_BYTES:
        raise ModelError(f"Expected at most {MAX_BYTES / 1024**3} GiB of float32 weights, got {size / 1024**3:.1f}.")
    model = copy.deepcopy(model).float().cpu().eval()
    model.set_attn_implementation("eager" if standard_operators else ATTENTION)
    return model


def _try(module: nn.Module, inputs: torch.Tensor) -> None:
    """The model's own checks; out of the exporter they could not be understood.

    Raises:
        ModelError: The feature extractor is another model's.
    """
    try:
        with torch.inference_mode():
            module(inputs)
    except ValueError as error:
        raise ModelError(f"Expected a feature extractor that fits the model. {error}") from error


def _save(program: torch.onnx.ONNXProgram, path: str | os.PathLike) -> None:
    for node in program.model.graph.all_nodes():  # stack traces, with the paths of this machine
        node.metadata_props.clear()
    program.save(path)


def _metadata(model: ASTForAudioClassification, extractor: ASTFeatureExtractor, padding: str) -> dict[str, str]:
    config, rate = model.config, extractor.sampling_rate
    labels = [config.id2label[index] for index in range(config.num_labels)]
    metadata = {
        "labels": json.dumps(labels),
        "sampling_rate": str(rate),
        "problem_type": str(config.problem_type),
        "score_function": score_function(config.problem_type),
        "padding": padding,
        "min_samples": str(extractor.frame_length),
    }
    if padding == "max_length":
        metadata["max_samples"] = str(extractor.num_samples(extractor.max_length))
    if config.thresholds:
        metadata["thresholds"] = json.dumps(
            {label: config.thresholds[label] for label in labels if label in config.thresholds}
        )
    return metadata


class FeatureClassifier(nn.Module):
    """Features (batch, frames, mel bins) to logits (batch, num_labels), as pipelines and transformers.js call a graph.

    Args:
        model: In evaluation mode.
    """

    def __init__(self, model: ASTForAudioClassification):
        super().__init__()
        self.model = model

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        return self.model(input_values, return_dict=True).logits


def export_logits_onnx(
    model: ASTForAudioClassification,
    extractor: ASTFeatureExtractor,
    path: str | os.PathLike,
    standard_operators: bool = False,
) -> None:
    """Write a model as a graph in float32 for what computes features and scores itself: a pipeline, transformers.js.

    Input `input_values`, float32 (batch, frames, num_mel_bins) of one patch or more; output `logits`, float32 (batch,
    num_labels).

    Args:
        model: Left as it is.
        extractor: Of the model.
        path: File to write.
        standard_operators: As in `export_onnx`.

    Raises:
        ModelError: More than 1.5 GiB of weights, or a feature extractor that does not fit the model.
        ImportError: onnx, onnxscript or onnxruntime is not installed.
    """
    require_onnx()
    classifier = FeatureClassifier(_prepare(model, standard_operators)).eval()
    features = torch.zeros(2, extractor.max_length, extractor.num_mel_bins)
    _try(classifier, features)
    program = torch.onnx.export(
        classifier,
        (features,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch"), 1: torch.export.Dim("frames", min=extractor.min_length)},),
        input_names=["input_values"],
        output_names=["logits"],
        opset_version=OPSET,
        verbose=False,
    )
    _save(program, path)


def model_warnings(name: str, config: ASTConfig) -> list[str]:
    """What a graph's scores leave open of a model, in a sentence each."""
    warnings = []
    if config.problem_type is None:
        warnings.append(
            f"{name} does not say its problem_type: its scores are a softmax, as in pipelines. For several "
            "labels a clip write multi_label_classification into its config.json."
        )
    if can_be_unknown(config):
        warnings.append(f"{name} calls some sounds unknown: what is exported gives scores of its labels in any case.")
    return warnings


def check_for_transformers_js(
    model: ASTForAudioClassification, extractor: ASTFeatureExtractor, padding: str | None = None
) -> None:
    """Refuse what transformers.js would ignore, and give other scores without a word.

    Args:
        model: To export.
        extractor: Of the model.
        padding: As in `export_onnx`.

    Raises:
        ModelError: Another rate than 16 kHz, clips at their own length, a padding value, or scores that are no
            softmax.

    Source: transformers.js 4.3.2, `ASTFeatureExtractor` and `AudioClassificationPipeline`.
    """
    instead = "Export the graph that has the features inside instead (without --transformers_js), for onnxruntime-web."
    if extractor.sampling_rate != 16000:
        raise ModelError(
            f"Expected a model at 16000 Hz, got {extractor.sampling_rate}: transformers.js cuts its frames for 16000 "
            f"Hz alone. {instead}"
        )
    if (function := score_function(model.config.problem_type)) != "softmax":
        kind = {"sigmoid": "sigmoids", "none": "plain values"}[function]
        raise ModelError(
            f"Expected a model with one label a clip, got {model.config.problem_type}: its scores are {kind}, but the "
            f"pipeline of transformers.js computes a softmax of every model. {instead}"
        )
    if (padding or extractor.padding) != "max_length":
        raise ModelError(
            "Expected padding max_length, got longest: transformers.js pads or cuts every clip to max_length. Give "
            f"--padding max_length where that is wanted. {instead}"
        )
    if extractor.padding_value != 0:
        raise ModelError(
            f"Expected padding_value 0, got {extractor.padding_value}: transformers.js pads with 0. {instead}"
        )


def save_transformers_js_config(
    model: ASTForAudioClassification, extractor: ASTFeatureExtractor, folder: str | os.PathLike
) -> None:
    """Write the `config.json` and the `preprocessor_config.json` that transformers.js looks for.

    The second names the type of the extractor, without which transformers.js takes no folder. (With it, Transformers
    in Python finds its own class of that name instead of ours, which is why our folders leave it out.)

    Args:
        model: Whose labels and sizes are written.
        extractor: Of the model.
        folder: Where to write; it must exist.
    """
    model.config.save_pretrained(folder)
    settings = {**extractor.to_dict(), "feature_extractor_type": "ASTFeatureExtractor", "padding": "max_length"}
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (Path(folder) / "preprocessor_config.json").write_text(text, encoding="utf-8")


def require_onnx() -> None:
    """Raise one understandable error where a package that the export needs is missing.

    Raises:
        ImportError: With the command that mends it.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"The export needs onnx, onnxscript and onnxruntime ({error}): pip install 'modeling_ast[onnx]'"
        ) from error


def open_graph(graph: str | os.PathLike | bytes, num_threads: int):
    """An onnxruntime session that computes a graph, a file or its bytes, on so many threads of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    # Its threads wait for work by spinning, for a while after each run too, where they take the cores from torch:
    # features of the next clip, and the next model, then take up to twice as long.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
