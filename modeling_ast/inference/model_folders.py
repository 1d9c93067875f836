"""The folder of a model that was changed without training: the model, and what was found out about it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.data.files import new_folder, write_json


@contextmanager
def new_model_folder(
    folder: Path,
    model: ASTForAudioClassification,
    extractor: ASTFeatureExtractor,
    results_name: str,
    results: Mapping[str, Any],
) -> Iterator[Path]:
    """Write a model and what was found, and let more be added before the folder gets its place.

    Args:
        folder: New, or empty.
        model: To be saved.
        extractor: Of its features.
        results_name: Of the file of results.
        results: What JSON holds.
    """
    with new_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        extractor.save_pretrained(unfinished)
        write_json(unfinished / results_name, results)
        yield unfinished
