"""`results.csv`, a line an epoch: the metrics of its model and of the mean of all predictions so far."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas

from modeling_ast.data.files import written_beside
from modeling_ast.data.metrics import compute_metrics
from modeling_ast.training.arguments import BEST_METRICS

RESULTS_NAME = "results.csv"
_STATE_NAME, _PREDICTIONS_NAME = "epoch_record.json", "mean_predictions.npy"


class RunRecord:
    """`results.csv` in the output folder, readable while the run goes on: a line an evaluation.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.rows: list[dict[str, float]] = []

    def add_row(self, row: dict[str, float]) -> None:
        """Write one more line, by the names of its columns."""
        self.rows.append(row)
        self._write()

    def save_state(self, checkpoint: str | Path) -> None:
        """Into a checkpoint's folder, so that a resumed run goes on with it."""
        (Path(checkpoint) / _STATE_NAME).write_text(json.dumps(self.rows), encoding="utf-8")

    def load_state(self, checkpoint: str | Path) -> None:
        """Go on with it, where the checkpoint brings one."""
        if not (Path(checkpoint) / _STATE_NAME).is_file():
            return
        self.rows = json.loads((Path(checkpoint) / _STATE_NAME).read_text(encoding="utf-8"))
        if self.rows:
            self._write()

    def _write(self) -> None:
        # Whoever reads meanwhile finds a whole file.
        with written_beside(self.folder / RESULTS_NAME) as unfinished:
            pandas.DataFrame(self.rows).to_csv(unfinished, index=False, lineterminator="\r\n")


class EpochRecord(RunRecord):
    """The record of a training with labels: the metrics of each epoch's model.

    Its columns: epoch, learning_rate (of the epoch's last update), train_loss (mean over the epoch, augmented),
    validation_loss (of logits), the metrics of this epoch's model, and the same with `cum_` for the mean of the
    probabilities of all epochs so far.

    Args:
        folder: Of the run.
        problem_type: Of the model.
        label_names: Of the labels, for warnings; `None` means `LABEL_0` and so on.

    Source: the original's result.csv; its losses were of other things (sigmoids of sigmoids, running averages).
    """

    def __init__(self, folder: str | Path, problem_type: str, label_names: Sequence[str] | None = None):
        super().__init__(folder)
        self.problem_type, self.label_names = problem_type, label_names
        self.mean_probabilities: np.ndarray | None = None

    def add(
        self, row: dict[str, float], measured: dict[str, float], probabilities: np.ndarray, labels: np.ndarray
    ) -> None:
        """Write one more line.

        Args:
            row: Epoch, rate and training loss, by the names of their columns.
            measured: The loss and the metrics of this epoch's model.
            probabilities: This epoch's, of shape (clips, num_labels).
            labels: Class indices (clips,) or multi-hot (clips, num_labels).
        """
        if self.mean_probabilities is None:
            self.mean_probabilities = np.zeros_like(probabilities, dtype=np.float64)
        self.mean_probabilities += (probabilities - self.mean_probabilities) / (len(self.rows) + 1)
        mean_metrics = compute_metrics(
            self.mean_probabilities, labels, self.problem_type, label_names=self.label_names
        )
        columns = {"validation_loss": measured["loss"]}
        for prefix, values in (("", measured), ("cum_", mean_metrics)):
            columns |= {prefix + name: values[name] for name in BEST_METRICS if name != "loss" and name in values}
        self.add_row({**row, **columns})

    def save_state(self, checkpoint: str | Path) -> None:
        """As the base class, and the mean."""
        super().save_state(checkpoint)
        if self.mean_probabilities is not None:
            np.save(Path(checkpoint) / _PREDICTIONS_NAME, self.mean_probabilities)

    def load_state(self, checkpoint: str | Path) -> None:
        """As the base class, and the mean."""
        super().load_state(checkpoint)
        if self.rows:
            self.mean_probabilities = np.load(Path(checkpoint) / _PREDICTIONS_NAME)
