"""The clips of which a model says something else than their labels, the most confident first, to be looked into."""

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

import numpy as np
import pandas
from datasets import Dataset

from modeling_ast.data.clips import Clip
from modeling_ast.data.metrics import positive_labels
from modeling_ast.data.predictions import write_predictions
from modeling_ast.inference.sound_pages import as_text, player, write_page

MISTAKES_NAME, PAGE_NAME, SOUNDS_NAME = "mistakes.csv", "mistakes.html", "mistakes_sounds"
MAX_PLAYED = 200  # mistakes on the page; the table has all


def find_mistakes(
    probabilities: np.ndarray, decisions: np.ndarray, positives: np.ndarray, problem_type: str
) -> tuple[np.ndarray, np.ndarray]:
    """Which clips are mistaken, the most confident mistake first, and how confident each is.

    Args:
        probabilities: Of shape (clips, num_labels).
        decisions: As from `decide`.
        positives: The labels of the clips, booleans of that shape.
        problem_type: Of the model.

    Returns:
        Numbers of clips and, of each, the probability of the label that it is wrongly given; of several labels a clip
        the highest of those, or of what a label that was missed leaves of 1.
    """
    wrongly_named, missed = decisions & ~positives, positives & ~decisions
    confidence = np.where(wrongly_named, probabilities, 0).max(axis=1)
    if problem_type != "single_label_classification":
        confidence = np.maximum(confidence, np.where(missed, 1 - probabilities, 0).max(axis=1))
    is_mistaken = (wrongly_named | missed).any(axis=1)
    order = np.argsort(-confidence, kind="stable")
    order = order[is_mistaken[order]]
    return order, confidence[order]


def write_mistakes(
    folder: Path,
    clips: pandas.DataFrame,
    rows: Dataset,
    probabilities: np.ndarray,
    decisions: np.ndarray,
    labels: np.ndarray,
    label_names: Sequence[str],
    problem_type: str,
    title: str,
    summary: Iterable[str],
) -> int:
    """Write `mistakes.csv`, the rows of `predictions.csv` that are mistakes, and a page on which these can be played.

    Players play the files where they are; sounds that are in a table come into `mistakes_sounds`.

    Args:
        folder: For the files.
        clips: As from `list_clips`.
        rows: The clips, not decoded.
        probabilities: Of shape (clips, num_labels).
        decisions: As from `decide`.
        labels: Class indices or multi-hot.
        label_names: Of the columns.
        problem_type: Of the model.
        title: Of the page.
        summary: Lines of text below it, whose columns are kept.

    Returns:
        How many mistakes there are.
    """
    positives = positive_labels(probabilities, labels)
    order, confidence = find_mistakes(probabilities, decisions, positives, problem_type)
    listed = clips.iloc[order].reset_index(drop=True)
    arrays = (each[order] for each in (probabilities, decisions, labels))
    write_predictions(folder / MISTAKES_NAME, listed.assign(confidence=confidence), *arrays, label_names)
    shutil.rmtree(folder / SOUNDS_NAME, ignore_errors=True)  # of an evaluation before
    items = []
    for place, number in enumerate(order[:MAX_PLAYED].tolist()):
        said, true = (_describe(each[number], probabilities[number], label_names) for each in (decisions, positives))
        row = listed.iloc[place]
        where = " ".join(filter(None, [row.get("group"), row["split"]]))
        sound = _player(folder, Clip(rows[number]["audio"]), place)
        items.append(f"<li><b>{said}</b>, is <b>{true}</b><br>{as_text(row['path'])} <small>{as_text(where)}</small>")
        items[-1] += f"{sound}</li>"
    words = [f"{len(order)} of {len(clips)} clips are mistaken, the most confident mistake first."]
    if len(order) > MAX_PLAYED:
        words = [f"{words[0]} Here are {MAX_PLAYED}; {MISTAKES_NAME} has all."]
    lines = "\n".join(map(as_text, summary))
    head = [f"<pre>{lines}</pre>", f"<p>{as_text(*words)}</p>"]
    write_page(folder / PAGE_NAME, title, [*head, "<ol>", *items, "</ol>"])
    return len(order)


def _describe(named: np.ndarray, probabilities: np.ndarray, label_names: Sequence[str]) -> str:
    labels = sorted(np.flatnonzero(named), key=lambda label: -probabilities[label])
    return ", ".join(f"{as_text(label_names[label])} {probabilities[label]:.2f}" for label in labels) or "none"


def _player(folder: Path, clip: Clip, place: int) -> str:
    """Of the file, or of one that is written; nothing where neither can be."""
    if clip.content is not None:
        path = folder / SOUNDS_NAME / f"{place + 1:03}{PurePath(clip.path or '').suffix}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(clip.content)
    elif clip.path is not None and os.path.exists(clip.path):
        path = clip.path
    else:
        return ""
    return player(os.path.relpath(os.path.realpath(path), folder.resolve()), clip.start, clip.end)
