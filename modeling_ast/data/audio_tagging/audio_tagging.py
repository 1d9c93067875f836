"""The metrics of this package as an `evaluate.Metric`, which `evaluate.load` finds by its folder, offline.

Each import stands on its own line, for the scanner of `evaluate`.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from modeling_ast.data.metrics import compute_metrics

_DESCRIPTION = """
Metrics of audio classification and tagging: mAP, mean AUC, d', accuracy, macro and micro F1. Classes without positives
are left out of the means and counted.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: Probabilities, a list of num_labels floats a clip.
    references: A class index a clip, or a multi-hot list of num_labels zeros and ones. Of all clips the same.
    threshold: From which probability on F1 takes a label for predicted; with class indices the highest is.
    label_names: For the warning that names classes without positives.

Returns:
    mAP, mAUC, macro_f1, micro_f1, classes_without_positives; accuracy where every clip has exactly one label;
    d_prime where it is finite.

Examples:
    >>> from modeling_ast.data.metrics import AUDIO_TAGGING_METRIC
    >>> metric = evaluate.load(AUDIO_TAGGING_METRIC)
    >>> metric.add_batch(predictions=[[0.9, 0.6], [0.2, 0.4]], references=[[1, 0], [0, 1]])
    >>> metric.compute()["mAP"]
    0.75
"""

_CITATION = """
@inproceedings{gong2021ast,
  author = {Gong, Yuan and Chung, Yu-An and Glass, James},
  title = {{AST}: Audio Spectrogram Transformer},
  booktitle = {Interspeech},
  year = {2021}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class AudioTagging(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        # float64, so that what passes through is what was given: a rounded score may be a tie.
        probabilities = datasets.Sequence(datasets.Value("float64"))
        multi_hot, index = datasets.Sequence(datasets.Value("float64")), datasets.Value("int64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=[
                datasets.Features({"predictions": probabilities, "references": references})
                for references in (multi_hot, index)
            ],
            reference_urls=["https://arxiv.org/abs/2104.01778"],
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        references: Sequence[Sequence[float]] | Sequence[int],
        threshold: float = 0.5,
        label_names: Sequence[str] | None = None,
    ) -> dict[str, float]:
        references = np.asarray(references)
        problem_type = "single_label_classification" if references.ndim == 1 else "multi_label_classification"
        return compute_metrics(np.asarray(predictions), references, problem_type, threshold, label_names)
