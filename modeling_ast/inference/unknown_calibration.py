"""The distance above which a clip is of none of the labels, fitted on clips of the labels, and what it is worth."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

from modeling_ast import ASTForAudioClassification
from modeling_ast.data.intervals import Interval, metric_intervals, share_interval
from modeling_ast.data.labels import DataError
from modeling_ast.data.metrics import positive_labels
from modeling_ast.data.unknown import UNKNOWN, can_be_unknown
from modeling_ast.inference.sound_files import SoundFile
from modeling_ast.loading import ModelError

MAX_FOLDS = 5
CARD_TEXT = """
Beyond a distance of {threshold:.4f} from the mean of known sounds `modeling_ast` names a clip `unknown`, and no label;
Transformers alone gives the scores of the labels in any case. It was found so that of clips like the validation clips
{share:.2%} are refused at most. What that is worth is told of {split} clips, {how}:

{table}
"""


@dataclass(frozen=True)
class Described:
    """What a model makes of clips.

    Attributes:
        vectors: Of shape (clips, hidden_size), behind the layer norm of the head.
        right: Whether the best label is the clip's, booleans (clips,); of unknown clips `None`.
        groups: Of the clips, or `None` where each stands for itself.
    """

    vectors: np.ndarray
    right: np.ndarray | None = None
    groups: Sequence[str] | None = None


@dataclass(frozen=True)
class KnownSounds:
    """Where the vectors of known sounds lie: one normal distribution of all labels together.

    Attributes:
        mean: (hidden_size,).
        factor: (hidden_size, hidden_size), by which the spread is 1 in every direction.
    """

    mean: np.ndarray
    factor: np.ndarray

    @classmethod
    def fit(cls, vectors: np.ndarray) -> "KnownSounds":
        """The mean, and the covariance that few clips of many dimensions allow for.

        Raises:
            DataError: Clips that are all alike.

        Source: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004.
        """
        vectors = np.asarray(vectors, dtype=np.float64)
        variances, directions = np.linalg.eigh(LedoitWolf().fit(vectors).covariance_)
        if not variances[0] > 0:
            raise DataError("Expected clips that differ from one another, got vectors that are all alike.")
        return cls(vectors.mean(axis=0), (directions / np.sqrt(variances)).T)

    def measure(self, vectors: np.ndarray) -> np.ndarray:
        """What `ASTMLPHead.measure_distance` gives of clips: (clips,)."""
        return np.sqrt(np.square((vectors - self.mean) @ self.factor.T).mean(axis=1))


def fit_known_sounds(
    vectors: np.ndarray, share: float, groups: Sequence[str] | None = None
) -> tuple[KnownSounds, float]:
    """Where known sounds lie, and the distance beyond which no more than a share of other clips like these do.

    A clip is nearer to a mean that it had a part in. So the distance of each clip is told by the clips of other folds.
    Of n clips and one more each is the k-th farthest with the same probability, 1 / (n + 1), so that the one more is
    among the k farthest with k / (n + 1), which is at most the share. The threshold lies between two distances, so
    that a difference of rounding changes no decision; at the largest, where no clip may lie beyond it.

    Args:
        vectors: Of clips that have one of the labels, (clips, hidden_size).
        share: In (0, 1).
        groups: Of the clips, which no fold divides.

    Raises:
        DataError: Too few clips or groups: of a share of 5 % there have to be 19.

    Source: cross-conformal prediction, Vovk, "Cross-conformal predictors", 2015.
    """
    num_clips = len(vectors)
    rank = _rank(num_clips, share)
    distances = np.zeros(num_clips)
    for others, told in _fold(num_clips, groups):
        distances[told] = KnownSounds.fit(vectors[others]).measure(vectors[told])
    farthest = np.sort(distances)[::-1]
    return KnownSounds.fit(vectors), float((farthest[rank - 1] + farthest[max(0, rank - 2)]) / 2)


def _rank(num_clips: int, share: float) -> int:
    """How many of one more clip than these may lie beyond the threshold."""
    if (rank := int(share * (num_clips + 1) + 1e-9)) < 1:  # 20 times 0.05 is 1
        least = int(np.ceil(1 / share - 1e-9)) - 1
        raise DataError(
            f"Expected {least} clips or more to fit on, of which {share:.2%} are refused, got {num_clips}: take more "
            "(without test clips a quarter more), or a larger share."
        )
    return rank


def check_enough_clips(num_clips: int, share: float, groups: Sequence[str] | None, has_test: bool) -> None:
    """Check that there is enough to fit on, and to report on where there are no test clips.

    Args:
        num_clips: Of validation.
        share: As for `fit_known_sounds`.
        groups: Of the clips; `None` where each stands for itself.
        has_test: Whether other clips are reported on.

    Raises:
        DataError: Too few clips or groups.
    """
    parts = [np.arange(num_clips)]
    if not has_test:
        parts += [others for others, _ in _fold(num_clips, groups)]
    for part in parts:
        _rank(len(part), share)
        list(_fold(len(part), None if groups is None else np.asarray(groups)[part]))


def _fold(num_clips: int, groups: Sequence[str] | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    groups = np.random.default_rng(0).permutation(num_clips) if groups is None else np.asarray(groups, dtype=str)
    if (num_groups := len(np.unique(groups))) < 2:
        raise DataError(
            f"Expected clips of two groups or more, of three without test clips, to fit on, got {num_groups}: what is "
            "known of one is told by the others."
        )
    yield from GroupKFold(min(MAX_FOLDS, num_groups)).split(groups, groups=groups)


def find_right(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the best label of each clip is its own, booleans (clips,)."""
    return positive_labels(logits, labels)[np.arange(len(logits)), logits.argmax(axis=1)]


@contextmanager
def captured_vectors(model: ASTForAudioClassification, are_asked: bool = True) -> Iterator[list[np.ndarray]]:
    """Vectors behind the layer norm of the head, a batch each, of all that the model takes meanwhile, if asked for."""
    vectors: list[np.ndarray] = []
    if not are_asked:  # of a million clips they are gigabytes
        yield vectors
        return
    hook = model.classifier.layernorm.register_forward_hook(
        lambda module, inputs, output: vectors.append(output.float().cpu().numpy())
    )
    try:
        yield vectors
    finally:
        hook.remove()


def find_unknown(model: ASTForAudioClassification, vectors: Sequence[np.ndarray]) -> np.ndarray | None:
    """Which clips are of none of a model's labels, booleans (clips,); `None` where it tells of none.

    Args:
        model: Which took the clips.
        vectors: As from `captured_vectors`.
    """
    if not can_be_unknown(model.config):
        return None
    head = model.classifier
    sounds = KnownSounds(*(each.float().cpu().numpy() for each in (head.known_mean, head.known_factor)))
    return sounds.measure(np.concatenate(vectors)) > model.config.unknown_threshold


def refusal_metrics(
    is_unknown: np.ndarray, right: np.ndarray, groups: Sequence[str] | None
) -> tuple[dict[str, float], dict[str, Interval]]:
    """What share of clips with one of the labels is refused, and the accuracy of the others, with their intervals."""
    named_groups = None if groups is None else np.asarray(groups)[~is_unknown]
    parts = {"refused": (is_unknown, groups), "accuracy_of_named": (right[~is_unknown], named_groups)}
    metrics = {name: float(np.mean(flags)) for name, (flags, _) in parts.items() if len(flags)}
    intervals = {name: share_interval(*part) for name, part in parts.items()}
    return metrics, {name: interval for name, interval in intervals.items() if interval is not None}


def check_can_refuse(model: ASTForAudioClassification) -> None:
    """Check that a model can tell clips of none of its labels.

    Raises:
        ModelError: A model of several labels a clip, or with a label for them.
    """
    if model.config.problem_type != "single_label_classification":
        raise ModelError(
            "Expected a model with one label a clip for --unknown, got one with several: where none of them reaches "
            "its threshold it names none, and a sound that it does not know may be beside one that it knows."
        )
    if UNKNOWN in model.config.label2id:
        raise ModelError(f"Expected a model without a label {UNKNOWN!r} for --unknown: this one has learnt it.")


def calibrate_unknown(
    model: ASTForAudioClassification, known: Mapping[str, Described], share: float, unknown: Described | None = None
) -> dict[str, Any]:
    """Fit on validation clips, put what was found into the model, and tell what it refuses.

    Args:
        model: Whose head and configuration change; its logits stay.
        known: Clips with one of the labels: `validation`, and `test` where there are some, which are reported on.
            Otherwise each fold of the validation clips is, by what was fitted on the others.
        share: Of the clips of the labels that may be refused, in (0, 1).
        unknown: Clips with none of them, where there are some to report on.

    Returns:
        The threshold, and what was measured, with intervals of 95 %, as JSON holds it.

    Raises:
        DataError: As from `check_enough_clips` and `fit_known_sounds`.
    """
    fitted_on, split = known["validation"], "test" if "test" in known else "validation"
    sounds, threshold = fit_known_sounds(fitted_on.vectors, share, fitted_on.groups)
    told = known[split]
    if split == "test":
        distances = sounds.measure(told.vectors)
        is_refused = distances > threshold
    else:
        distances, is_refused = np.zeros(len(told.vectors)), np.zeros(len(told.vectors), bool)
        for others, part in _fold(len(told.vectors), told.groups):
            of_others = None if told.groups is None else np.asarray(told.groups)[others]
            own_sounds, own_threshold = fit_known_sounds(told.vectors[others], share, of_others)
            distances[part] = own_sounds.measure(told.vectors[part])
            is_refused[part] = distances[part] > own_threshold
    model.learn_known_sounds(torch.from_numpy(sounds.mean), torch.from_numpy(sounds.factor), threshold)
    metrics, intervals = refusal_metrics(is_refused, told.right, told.groups)
    numbers = {"refused": len(is_refused), "accuracy_of_named": int((~is_refused).sum())}
    results = {
        **{"threshold": threshold, "share": share, "clips": len(fitted_on.vectors), "split": split},
        **{name: _describe(number, metrics.get(name), intervals.get(name)) for name, number in numbers.items()},
        "accuracy": _describe_share(told.right, told.groups),
    }
    if unknown is not None:
        unknown_distances = sounds.measure(unknown.vectors)
        results["unknown_refused"] = _describe_share(unknown_distances > threshold)
        results["auroc"] = _describe_area(distances, unknown_distances, told.groups)
    return results


def _describe_share(flags: np.ndarray, groups: Sequence[str] | None = None) -> dict[str, Any]:
    return _describe(len(flags), float(np.mean(flags)), share_interval(flags, groups))


def _describe_area(known: np.ndarray, unknown: np.ndarray, groups: Sequence[str] | None) -> dict[str, Any]:
    """The AUROC, whose interval takes each unknown clip for a group of its own."""
    is_unknown = np.repeat([0, 1], [len(known), len(unknown)])
    distances = np.concatenate([known, unknown])
    area = float(roc_auc_score(is_unknown, distances))
    if groups is not None:
        groups = [*(f"known {group}" for group in groups), *(f"unknown {place}" for place in range(len(unknown)))]
    columns = distances[:, None], is_unknown[:, None]
    intervals = metric_intervals({"mAUC": area}, *columns, "multi_label_classification", groups=groups)
    return _describe(len(distances), area, intervals.get("mAUC"))


def _describe(num_clips: int, value: float | None, interval: Interval | None) -> dict[str, Any]:
    return {"clips": num_clips, "value": value, "interval": interval and [interval.low, interval.high]}


def unknown_rows(files: Sequence[SoundFile]) -> Dataset:
    """Sound files of none of the labels as rows to predict, of which the labels say nothing."""
    audio = [{"path": file.path, "bytes": None} for file in files]
    return Dataset.from_dict({"audio": audio, "labels": [0] * len(audio)})


def unknown_table(results: Mapping[str, Any]) -> str:
    """What `calibrate_unknown` gives, in Markdown."""
    rows = {
        "refused": f"refused of {results['split']} clips of the labels",
        "accuracy": "accuracy of all of these",
        "accuracy_of_named": "accuracy of those that are not refused",
        "unknown_refused": "refused of clips of none of the labels",
        "auroc": "AUROC of the distance, between both",
    }
    lines = ["| | clips | value | 95 % interval |", "|---|---|---|---|"]
    for name, words in rows.items():
        if (row := results.get(name)) is not None:
            value = "" if row["value"] is None else f"{row['value']:.4f}"
            interval = "" if row["interval"] is None else "{:.4f} to {:.4f}".format(*row["interval"])
            lines.append(f"| {words} | {row['clips']} | {value} | {interval} |")
    return "\n".join(lines)


def describe_unknown(results: Mapping[str, Any]) -> str:
    """What a card says of it."""
    how = "on which nothing was fitted"
    if results["split"] == "validation":
        how = "each by what was fitted on others of them"
    numbers = {name: results[name] for name in ("threshold", "share", "split")}
    return CARD_TEXT.format(**numbers, how=how, table=unknown_table(results))
