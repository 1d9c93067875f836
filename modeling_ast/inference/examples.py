"""What is known of a store's rows: the labels of the stretches of recordings that they lie in."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from modeling_ast.data.labels import DataError, name_some, plain
from modeling_ast.data.truth import LabelledStretch
from modeling_ast.inference.embedding_store import EmbeddingStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examples:
    """Rows of a store whose labels are known. A row that several stretches share is there for each of them.

    Attributes:
        label_names: In the order of names.
        rows: In the store, int64 (rows,).
        stretches: Of each row the stretch that it lies in, int64 (rows,).
        targets: Which row has which label, booleans (rows, num_labels).
        truth: Which stretch has which label, booleans (stretches, num_labels): where a clip may have several, those
            of at least half of its rows, also by other stretches.
        groups: Of each stretch what is held out together, integers (stretches,).
        problem_type: "single_label_classification" or "multi_label_classification".
    """

    label_names: list[str]
    rows: np.ndarray
    stretches: np.ndarray
    targets: np.ndarray
    truth: np.ndarray
    groups: np.ndarray
    problem_type: str

    @property
    def weights(self) -> np.ndarray:
        """How much each row counts: all those of a stretch together 1."""
        return 1 / np.bincount(self.stretches)[self.stretches]

    def average(self, values: np.ndarray) -> np.ndarray:
        """The mean over the rows of each stretch of some values (rows, num_labels)."""
        sums = np.zeros(self.truth.shape)
        np.add.at(sums, self.stretches, values * self.weights[:, None])
        return sums

    def num_groups_a_label(self) -> int:
        """In how many groups the label is that is in the fewest; where a clip may have several, also not is."""
        is_single = self.problem_type == "single_label_classification"
        sides = [self.truth] if is_single else [self.truth, ~self.truth]
        return min(len(np.unique(self.groups[column])) for side in sides for column in side.T)


def find_examples(
    store: EmbeddingStore, stretches: Sequence[LabelledStretch], source: str, problem_type: str | None = None
) -> Examples:
    """Look up labelled stretches in a store.

    A stretch that is a row, as the answers of a review are, is that row alone, and no other stretch has a say in it;
    one whose rows are all such is left out. Else a row belongs to a stretch if it has at least half of it, or the
    stretch half of the row.

    Args:
        store: Of the recordings.
        stretches: What is known.
        source: What says so, for messages.
        problem_type: `None` means a single label if every stretch has exactly one of several, else several labels.

    Raises:
        DataError: Labels that leave nothing to tell apart, or do not fit the problem type; a recording or a stretch
            that the store does not have.
    """
    known, label_names = store.rows_by_recording(), sorted({label for each in stretches for label in each.labels})
    counts = {len(each.labels) for each in stretches}
    if problem_type is None:
        problem_type = "single_label_classification" if counts == {1} else "multi_label_classification"
        if others := [each for each in stretches if len(each.labels) != 1]:
            logger.info(
                f"Several labels a clip: {len(others)} of {len(stretches)} stretches have several or none, such as "
                f"{plain(others[0].audio)} from {others[0].start:g} s with {len(others[0].labels)}."
            )
    if problem_type == "single_label_classification" and counts != {1}:
        raise DataError(f"{source}: expected one label a stretch with {problem_type}, got {max(counts - {1})} of one.")
    if not tells_apart(stretches):
        got = f"{label_names[0]} alone" if label_names else "none"
        raise DataError(f"{source}: expected two labels, or stretches with one and without (label empty), got {got}.")
    missing = sorted({each.audio for each in stretches} - known.keys())
    if moved := store.find_moved(missing):
        names = name_some(sorted(moved))
        logger.warning(f"{len(moved)} recording(s) are taken for moved ones of the same names: {names}.")
        known |= {path: store.rows_of(number) for path, number in moved.items()}
    if missing := [path for path in missing if path not in moved]:
        raise DataError(
            f"{source}: {len(missing)} of its recordings are not in {store.path}, such as {plain(missing[0])}. Embed "
            "them too."
        )
    found = [_rows_of(store, known[each.audio], each, source) for each in stretches]
    truth = np.array([[name in each.labels for name in label_names] for each in stretches])
    owners = np.repeat(np.arange(len(found)), [len(rows) for rows, _ in found])
    rows, groups = np.concatenate([rows for rows, _ in found]), _group(stretches, truth, label_names)
    is_answer = np.array([is_row for _, is_row in found])[owners]
    has_say = is_answer | ~np.isin(rows, rows[is_answer])
    kept, owners = np.unique(owners[has_say], return_inverse=True)
    rows, truth, groups = rows[has_say], truth[kept], groups[kept]
    examples = Examples(label_names, rows, owners, truth[owners], truth, groups, problem_type)
    if problem_type == "single_label_classification":
        return examples
    union = np.zeros((rows.max() + 1, len(label_names)), bool)  # of a row that stretches share, the labels of all
    np.logical_or.at(union, rows, examples.targets)
    examples = replace(examples, targets=union[rows])
    return replace(examples, truth=examples.average(examples.targets) > 0.5 - 1e-9)


def tells_apart(stretches: Sequence[LabelledStretch]) -> bool:
    """Whether some have other labels than others."""
    return len({frozenset(each.labels) for each in stretches}) > 1


def _rows_of(
    store: EmbeddingStore, rows: np.ndarray, stretch: LabelledStretch, source: str
) -> tuple[np.ndarray, bool]:
    """The rows that belong to a stretch, and whether it is one of them as it is."""
    starts, ends = store.starts[rows], store.ends[rows]
    end = min(stretch.end, ends.max())
    # Rows of a whole recording begin with it, and end with it.
    if not starts.min() and stretch.start < end and 2 * (end - stretch.start) < stretch.end - stretch.start < np.inf:
        raise DataError(
            f"{source}: expected stretches of {plain(stretch.audio)}, which has {ends.max():.2f} s, got one from "
            f"{stretch.start:g} s to {stretch.end:g} s."
        )
    is_row = (np.abs(starts - stretch.start) < 1e-3) & (np.abs(ends - end) < 1e-3)
    if is_row.any():
        return rows[is_row], True
    overlaps = np.minimum(ends, end) - np.maximum(starts, stretch.start)
    lengths = ends - starts
    needed = lengths if store.settings["level"] == "clip" else np.minimum(lengths, end - stretch.start)
    found = rows[(overlaps > 0) & (overlaps >= needed / 2 - 1e-6)]
    if not len(found):
        reason = "which it does not reach" if overlaps.max() <= 0 else "which is less than half of its rows"
        raise DataError(
            f"{source}: {store.path} has no row of {plain(stretch.audio)} from {stretch.start:g} s to {stretch.end:g} "
            f"s, {reason}. Rows of windows are made by --level window."
        )
    return found, False


def _group(stretches: Sequence[LabelledStretch], truth: np.ndarray, label_names: Sequence[str]) -> np.ndarray:
    """What is held out together: the groups that are given, or else recordings, or, if need be, stretches."""
    if stretches[0].group is not None:
        groups = np.unique([each.group for each in stretches], return_inverse=True)[1]
        if alone := _find_alone(groups, truth, label_names):
            logger.warning(f"In one group alone, of which no other one can tell what to expect: {name_some(alone)}.")
        return groups
    recordings = np.unique([each.audio for each in stretches], return_inverse=True)[1]
    if alone := _find_alone(recordings, truth, label_names):
        logger.warning(
            f"In one recording alone: {name_some(alone)}. So stretches are held out in place of recordings, which "
            "flatters what is expected, if anything is: label a second recording of each."
        )
        return np.arange(len(stretches))
    return recordings


def _find_alone(groups: np.ndarray, truth: np.ndarray, label_names: Sequence[str]) -> list[str]:
    return [name for name, column in zip(label_names, truth.T) if len(np.unique(groups[column])) == 1]
