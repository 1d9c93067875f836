"""What to listen to next in a store, and what the answers teach."""

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from modeling_ast.data.files import written_beside
from modeling_ast.data.labels import DataError, read_rows
from modeling_ast.data.scores import score_function, to_scores
from modeling_ast.inference.answers import AnswersList
from modeling_ast.inference.embedding_store import EmbeddingStore
from modeling_ast.inference.examples import Examples, find_examples, tells_apart
from modeling_ast.inference.linear_heads import Expectation, LinearHead, choose_head, normalize

# Of a larger store so many rows are drawn: each answer looks at all of them.
MAX_CANDIDATES = 20_000
ORDERS = ("uncertain", "different", "likely", "mixed", "random")
_MIXED = ("uncertain", "different", "likely")
_UNCERTAIN_SHARE = 0.05  # of the candidates, of which the one that is least like the others is asked
CURVE_NAME = "curve.csv"
CURVE_COLUMNS = ("labels", "metric", "value", "low", "high")


@dataclass(frozen=True)
class Question:
    """A stretch to listen to.

    Attributes:
        row: In the store.
        audio: Absolute path of the recording.
        start: In seconds.
        end: In seconds.
        proposal: The label that it may have; `None` where nothing was fitted yet.
        probability: Of that label; `None` likewise.
        order: Why it is asked: one of `ORDERS`.
    """

    row: int
    audio: str
    start: float
    end: float
    proposal: str | None
    probability: float | None
    order: str


class Review:
    """Questions and answers about a store; several visitors may be asked at once, each something else.

    Answers are in the list alone, and on the disk before the next question. What was skipped is forgotten at the end.

    Attributes:
        label_names: That were answered, or are expected to be.
        curve: What was expected after how many labels, rows of `CURVE_COLUMNS`; `None` for the ends of an interval
            that could not be told.
        head: Of the last fit; `None` before.
        expected: What to expect of it; `None` where that cannot be told.
        examples: That it was fitted on.

    Args:
        store: Of windows or clips.
        labels: The list.
        label_names: Those to begin with.
        epsilon: Of the layer norm in the model's classifier.
        problem_type: Of the head.
        order: What is asked first: "uncertain", what the head can tell least; "different", what is least like all
            that was asked before; "likely", what most likely has the label that was found least; "mixed", these in
            turn; "random". The first needed the fewest answers in tests/campaigns ("Few labels"). Before a head is
            fitted, "mixed", "uncertain" and "likely" ask for what is different.
        curve_path: Table that the curve is kept in; `None` keeps it in memory.
        seed: Of what is random.

    Raises:
        DataError: A list or a curve that cannot be used.
    """

    def __init__(
        self,
        store: EmbeddingStore,
        labels: str | os.PathLike,
        label_names: Iterable[str] = (),
        epsilon: float = 1e-12,
        problem_type: str = "multi_label_classification",
        order: str = "uncertain",
        curve_path: Path | None = None,
        seed: int = 0,
    ):
        self.store, self.answers, self.problem_type, self.order = store, AnswersList(labels), problem_type, order
        self.curve_path, self._epsilon = curve_path, epsilon
        self._lock, self._generator = RLock(), np.random.default_rng(seed)
        count = min(MAX_CANDIDATES, len(store))
        self._rows = np.sort(self._generator.choice(len(store), count, replace=False))
        self._features = normalize(store.vectors(self._rows), epsilon).astype(np.float32)
        self._directions = self._features - self._features.mean(axis=0)
        self._directions /= np.maximum(np.linalg.norm(self._directions, axis=1, keepdims=True), 1e-12)
        self._paths = np.array([store.find(name) for name in store.names], object)
        self._is_free = np.ones(count, bool)
        self._likeness = np.full(count, -1.0, np.float32)  # to what is most like it of all that was asked
        self._open: dict[str, tuple[int, Question]] = {}  # what each visitor listens to, with its place
        self._history: dict[str, list[tuple[int, Question, str]]] = {}  # and answered, with the lines of the list
        self._num_asked, self._probabilities = 0, None
        self.head: LinearHead | None = None
        self.expected: Expectation | None = None
        self.examples: Examples | None = None
        self.curve = _read_curve(curve_path)
        known = self.answers.read()
        self.label_names = sorted({*label_names, *(label for each in known for label in each.labels)})
        for stretch in known:
            self._take(stretch.audio, stretch.start, stretch.end)

    @property
    def num_labels(self) -> int:
        """Stretches in the list."""
        return len(self.answers.read())

    def ask(self, visitor: str = "") -> Question | None:
        """What a visitor listens to: what they were given, or else the next one; `None` where nothing is left."""
        with self._lock:
            if visitor not in self._open:
                free = np.flatnonzero(self._is_free)
                if not len(free):
                    return None
                self._give(visitor, *self._choose(free))
            return self._open[visitor][1]

    def answer(self, row: int, labels: Sequence[str] | None, visitor: str = "") -> bool:
        """What a visitor says of what they listen to.

        Args:
            row: That it is about: an answer to something else is none.
            labels: All that it has; empty means none, and `None` that nothing is said.
            visitor: Who says it.

        Returns:
            Whether it was an answer to what they were asked.

        Raises:
            DataError: Not one label, where each stretch has one.
        """
        with self._lock:
            if visitor not in self._open or self._open[visitor][1].row != row:
                return False
            if labels is not None and self.problem_type == "single_label_classification" and len(labels) != 1:
                raise DataError(f"Expected one label, since each stretch has one, got {len(labels)}.")
            place, question = self._open[visitor]
            lines = ""
            if labels is not None:
                lines = self.answers.append(question.audio, question.start, question.end, labels)
                self.label_names += [name for name in labels if name not in self.label_names]  # whose keys stay
            del self._open[visitor]
            self._take(question.audio, question.start, question.end)
            self._history.setdefault(visitor, []).append((place, question, lines))
            return True

    def undo(self, visitor: str = "") -> bool:
        """Take back a visitor's last answer, and ask the same again; whether there was one.

        Raises:
            DataError: The list tells of it, but no longer as it was written.
        """
        with self._lock:
            if not self._history.get(visitor):
                return False
            place, question, lines = self._history[visitor][-1]
            stretch = question.audio, question.start, question.end
            if lines and not self.answers.remove(lines) and self.answers.tells_of(*stretch):
                raise DataError(
                    f"{self.answers.path} was changed, and has the last answer in another form: take it back there."
                )
            self._history[visitor].pop()
            self._release(visitor)
            self._open[visitor] = place, question
            return True

    def leave(self, visitor: str) -> None:
        """Let others be asked what a visitor was asked and did not answer."""
        with self._lock:
            self._release(visitor)
            self._history.pop(visitor, None)

    def fit(self) -> bool:
        """Fit a head on all answers, and note what to expect; whether there is enough to tell apart."""
        stretches = self.answers.read()
        if not tells_apart(stretches):
            return False
        with self._lock:
            examples = find_examples(self.store, stretches, str(self.answers.path), self.problem_type)
            features = normalize(self.store.vectors(examples.rows), self._epsilon)
            self.head, self.expected = choose_head(features, examples)
            self.examples, expected = examples, self.expected
            self._probabilities = to_scores(self.head.logits(self._features), score_function(self.problem_type))
            if expected is not None:
                told = {"labels": len(stretches), **expected.summary()}
                point = {name: told[name] for name in CURVE_COLUMNS}
                self.curve = [each for each in self.curve if each["labels"] != len(stretches)] + [point]
                _write_curve(self.curve_path, self.curve)
            return True

    def _give(self, visitor: str, place: int, order: str) -> None:
        row = int(self._rows[place])
        proposal = probability = None
        if self._probabilities is not None:
            column = self._probabilities[place]
            label = int(column.argmax())
            if order == "likely":
                label = self._scarcest()
            elif order == "uncertain" and self.problem_type == "multi_label_classification":
                label = int(np.abs(column - 0.5).argmin())  # for which it was chosen
            proposal, probability = self.examples.label_names[label], float(column[label])
        audio = self._paths[self.store.recordings[row]]
        stretch = audio, float(self.store.starts[row]), float(self.store.ends[row])
        self._open[visitor] = place, Question(row, *stretch, proposal, probability, order)
        self._is_free[place] = False
        self._num_asked += 1

    def _choose(self, free: np.ndarray) -> tuple[int, str]:
        """Which of the free candidates comes next, and why."""
        order = _MIXED[self._num_asked % len(_MIXED)] if self.order == "mixed" else self.order
        if order == "random":
            return int(self._generator.choice(free)), order
        if order == "different" or self._probabilities is None:
            return int(free[self._likeness[free].argmin()]), "different"
        probabilities = self._probabilities[free]
        if order == "likely":
            return int(free[probabilities[:, self._scarcest()].argmax()]), order
        if self.problem_type == "single_label_classification":
            best = np.sort(probabilities, axis=1)
            doubt = best[:, -2] - best[:, -1]
        else:
            doubt = -np.abs(probabilities - 0.5).min(axis=1)
        count = max(1, round(_UNCERTAIN_SHARE * len(free)))
        uncertain = free[np.argsort(-doubt, kind="stable")[:count]]
        return int(uncertain[self._likeness[uncertain].argmin()]), order

    def _scarcest(self) -> int:
        return int(self.examples.truth.sum(axis=0).argmin())

    def _take(self, audio: str, start: float, end: float) -> None:
        """Ask no more of a stretch, nor first of what is like it."""
        own = np.flatnonzero(self._paths[self.store.recordings[self._rows]] == audio)
        starts, ends = self.store.starts[self._rows[own]], self.store.ends[self._rows[own]]
        overlaps = np.minimum(ends, end) - np.maximum(starts, start)
        taken = own[overlaps > (ends - starts) / 2]
        self._is_free[taken] = False
        for place in taken:
            np.maximum(self._likeness, self._directions @ self._directions[place], out=self._likeness)

    def _release(self, visitor: str) -> None:
        if visitor in self._open:
            self._is_free[self._open.pop(visitor)[0]] = True


def _read_curve(path: Path | None) -> list[dict[str, Any]]:
    """The points of an earlier review.

    Raises:
        DataError: Something else in its place.
    """
    if path is None or not path.exists():
        return []
    (_, names), *rows = [*read_rows(path)] or [(0, [])]
    try:
        if tuple(names) != CURVE_COLUMNS:
            raise ValueError(f"got {', '.join(names)}")
        return [
            dict(zip(names, (int(cells[0]), cells[1], *(float(cell) if cell else None for cell in cells[2:]))))
            for _, cells in rows
        ]
    except ValueError as error:
        raise DataError(f"{path}: expected the columns {', '.join(CURVE_COLUMNS)} ({error}).") from error


def _write_curve(path: Path | None, curve: Sequence[dict[str, Any]]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(path) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, CURVE_COLUMNS)
            writer.writeheader()
            writer.writerows(curve)
