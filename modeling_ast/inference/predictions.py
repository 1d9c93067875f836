"""Predictions for the clips of a data set, and figures of each label where they are known."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from modeling_ast import ASTFeatureExtractor, ASTForAudioClassification
from modeling_ast.data.classifiers import label_order
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.collating import ASTDataCollator
from modeling_ast.data.decoding import decode
from modeling_ast.data.labels import DataError, plain
from modeling_ast.data.metrics import multi_hot, per_class_metrics, positive_labels
from modeling_ast.data.processes import gather_values, own_share, together
from modeling_ast.data.recipes import BatchArguments
from modeling_ast.inference.timeline import DEFAULT_THRESHOLD

logger = logging.getLogger(__name__)

# Keys of a recipe that have an effect where clips are predicted, besides those that say where the rows come from ...
KEYS = frozenset(("per_device_eval_batch_size", "dataloader_num_workers"))
# ... and those of the latter that have none.
WITHOUT = frozenset(("validation_fraction", "max_train_samples", "streaming"))
CLASS_COLUMNS = ("label", "clips", "predicted", "precision", "recall", "F1", "AP", "AUC")


def choose_rows(splits: AudioSplits, split: str | None, source: str) -> dict[str, Dataset]:
    """The rows of a data set to predict, by split; those of data without splits are called "all".

    Args:
        splits: The data set.
        split: The one that is wanted; `None` means all.
        source: What the data set is called, for messages.

    Raises:
        DataError: There is no such split.
    """
    available = dict(splits)
    if available.keys() == {"train"}:
        available = {"all": splits.train}
    if split is not None and split not in available:
        got = "clips without splits" if "all" in available else ", ".join(available)
        raise DataError(
            f"{source}: expected clips of the split {split}, got {got}. Of a list --split_column_name says which "
            "column names it; without --split all clips are taken."
        )
    chosen = available if split is None else {split: available[split]}
    sizes = ", ".join(f"{len(rows)} of {name}" for name, rows in chosen.items())
    of_splits = "" if "all" in chosen else f" ({sizes})"
    logger.info(f"{source}: {sum(map(len, chosen.values()))} clips{of_splits}, {len(splits.label_names)} labels")
    return chosen


def predict(
    model: ASTForAudioClassification,
    extractor: ASTFeatureExtractor,
    rows: Dataset,
    splits: AudioSplits,
    multi_label: bool,
    batch_args: BatchArguments,
    description: str,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The logits of clips and their labels, on a GPU where there is one.

    Processes that have joined take a share of the clips each, in the batches of a single one, and get the logits of
    all; all of them have to call it together.

    Args:
        model: With these labels, in any order.
        extractor: Its feature extractor.
        rows: Of the splits, not decoded yet.
        splits: The data set.
        multi_label: Whether the rows hold lists of labels.
        batch_args: How the clips are read.
        description: In front of the progress bar.

    Returns:
        Logits, float32 (clips, num_labels), in the order of the names; and class indices, or multi-hot labels, or
        `None` of clips without labels.

    Raises:
        ValueError: The model has other labels.
        AudioError: A clip that cannot be decoded.
    """
    order, num_labels = label_order(model.config.id2label, splits.label_names), len(splits.label_names)
    labels = None
    if "labels" in rows.column_names:
        labels = multi_hot(rows["labels"], num_labels) if multi_label else np.array(rows["labels"])
    first, last = own_share(len(rows), batch_args.per_device_eval_batch_size)
    rows = rows.select(range(first, last))

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    batches = DataLoader(
        decode(rows, extractor.sampling_rate, ignore_length=splits.ignore_length),
        batch_size=batch_args.per_device_eval_batch_size,
        num_workers=batch_args.dataloader_num_workers,
        collate_fn=partial(_collate, collator=ASTDataCollator(extractor, num_labels, multi_label)),
    )
    logits, num_cut = [np.zeros((0, num_labels), np.float32)], 0
    with together(), torch.inference_mode():
        for batch, of_batch in tqdm(batches, desc=description, disable=first > 0):
            num_cut += of_batch
            inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
            logits.append(model(**inputs).logits.float().cpu().numpy())
    if num_cut := sum(gather_values(num_cut)):
        logger.warning(
            f"{num_cut} clip(s) are longer than the model's {extractor.seconds(extractor.max_length):.3g} s, of which "
            "the beginning alone is heard: `modeling-ast tag` hears all of a recording."
        )
    return np.concatenate(gather_values(np.concatenate(logits)))[:, order], labels


def _collate(rows: list[dict[str, Any]], collator: ASTDataCollator) -> tuple[dict[str, torch.Tensor], int]:
    """A batch, and how many of its clips are cut."""
    longest = collator.extractor.max_samples(collator.extractor.max_length)
    return collator(rows), sum(len(row["waveform"]) > longest for row in rows)


def label_thresholds(label_names: Sequence[str], thresholds: Mapping[str, float] | None) -> np.ndarray:
    """The score from which on each label counts as present: the one fitted to the model, else 0.5. (num_labels,)"""
    return np.array([(thresholds or {}).get(name, DEFAULT_THRESHOLD) for name in label_names])


def class_figures(
    probabilities: np.ndarray, decisions: np.ndarray, labels: np.ndarray, label_names: Sequence[str]
) -> list[dict[str, Any]]:
    """`CLASS_COLUMNS` of each label; `None` for what cannot be told.

    Args:
        probabilities: Of shape (clips, num_labels).
        decisions: As from `decide`.
        labels: Class indices or multi-hot.
        label_names: Of the columns.

    Raises:
        DivergedError, ValueError: As from `per_class_metrics`.
    """
    positives = positive_labels(probabilities, labels)
    hits, named, present = (each.sum(axis=0) for each in (decisions & positives, decisions, positives))
    rows = []
    for known, hit, predicted, clips in zip(
        per_class_metrics(probabilities, labels, label_names), hits.tolist(), named.tolist(), present.tolist()
    ):
        rows.append(
            {
                "label": known["label"],
                "clips": clips,
                "predicted": predicted,
                "precision": hit / predicted if predicted else None,
                "recall": hit / clips if clips else None,
                "F1": 2 * hit / (predicted + clips) if clips else None,
                "AP": known["AP"],
                "AUC": known["AUC"],
            }
        )
    return rows


def class_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What `class_figures` gives as a table to print."""
    table = pandas.DataFrame(rows).astype(dict.fromkeys(CLASS_COLUMNS[3:], float))  # also where all are `None`
    table = table.set_index("label").rename(index=plain).rename_axis(None)
    return table.to_string(float_format="{:.4g}".format, na_rep="")
