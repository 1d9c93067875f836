"""An export whose graphs are compared with their model before its files are there."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.inference.agreement import (
    TOLERANCE,
    agreement_measure,
    compare,
    graph_function,
    logits_function,
    model_function,
)
from modeling_ast.inference.export import export_logits_onnx, export_onnx
from modeling_ast.inference.quantization import quantize_onnx
from modeling_ast.loading import ModelError


@contextmanager
def checked_export(
    model: ASTForAudioClassification,
    extractor: ASTFeatureExtractor,
    outputs: Mapping[str, Path],
    batches: Iterable[Sequence[np.ndarray]],
    padding: str,
    with_lengths: bool = False,
    standard_operators: bool = False,
    logits_alone: bool = False,
    num_threads: int = 1,
) -> Iterator[tuple[dict[str, dict[str, float]], str | None]]:
    """Export a model, and compare; the files are there once what is done with the comparison is done.

    Args:
        model: To export.
        extractor: Its feature extractor.
        outputs: Paths by the names of the graphs: `fp32`, and `int8` where one of 8 bits is wanted.
        batches: Of clips to compare on.
        padding: As for `export_onnx`, with `with_lengths` and `standard_operators`.
        logits_alone: Export from features to logits, as `export_logits_onnx` does.
        num_threads: Of the comparison.

    Yields:
        What `compare` gives for the `model` and each graph, and the name of the measure of agreement.

    Raises:
        ModelError: The graph does not give the model's scores. Nothing is written then.
    """
    outputs["fp32"].parent.mkdir(parents=True, exist_ok=True)
    unfinished = {name: path.with_suffix(f".{os.getpid()}.onnx") for name, path in outputs.items()}
    try:
        if logits_alone:
            export_logits_onnx(model, extractor, unfinished["fp32"], standard_operators)
            open_graph = partial(logits_function, extractor=extractor)
        else:
            export_onnx(model, extractor, unfinished["fp32"], padding, with_lengths, standard_operators)
            open_graph = graph_function
        if "int8" in outputs:
            quantize_onnx(unfinished["fp32"], unfinished["int8"])
        functions = {"model": model_function(model, extractor, padding)}
        functions |= {name: open_graph(path, num_threads=num_threads) for name, path in unfinished.items()}
        measure, agreement = agreement_measure(model.config) or (None, None)
        results = compare(functions, batches, agreement)
        yield results, measure
        difference = results["fp32"]["largest_difference"]
        if not difference <= TOLERANCE:  # nor NaN
            raise ModelError(
                f"Expected scores within {TOLERANCE} of the model's, got a difference of {difference:.2g}. Nothing is "
                "written."
            )
        for name, path in outputs.items():
            unfinished[name].replace(path)
    finally:
        for path in unfinished.values():
            path.unlink(missing_ok=True)
