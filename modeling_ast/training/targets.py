"""Targets: what teachers say of each view of a recipe, in memory-mapped files by position, and whose they are."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset

from modeling_ast import ASTFeatureExtractor
from modeling_ast.data.files import written_beside
from modeling_ast.data.functions import import_function, read_code
from modeling_ast.data.labels import DataError
from modeling_ast.data.recipes import RecipeError
from modeling_ast.training.arguments import Arguments
from modeling_ast.training.same_run import describe_rows

MAX_LABELS = 1 << 15  # whose numbers are int16
_DESCRIPTION_NAME = "teaching.json"
_KEYS = ("views", "label_names", "teachers", "top_k", "epochs", "positions_per_file")
_POSITIONS_IN_FILE = 8192  # at least, and whole updates: what a stop costs, and 10,000 files for 40 epochs of AudioSet


class TargetFile(NamedTuple):
    """A file of targets: those of consecutive positions within an epoch."""

    path: Path
    epoch: int  # from 0
    offset: int  # of its first position, in the epoch
    count: int


class TargetsFolder:
    """Targets of teachers for the positions of a recipe's first epochs, `epoch-00000-00000.npy` and so on.

    A file holds a row a position: `probability`, the best ones, float16, with their `label`, int16; or the teacher's
    embedding, float16. `teaching.json` tells what they belong to.

    Attributes:
        description: Of what: the `views` of the clips (`describe_views`), `label_names` and, with these, the
            `problem_type`, `teachers`, their `precision` where that is not float32, `top_k` (`None` of embeddings),
            `epochs` and `positions_per_file`.

    Args:
        folder: Of the files.
        description: As above, but for the last one.
    """

    def __init__(self, folder: str | Path, description: Mapping[str, Any]):
        self.folder = Path(folder)
        self.description = json.loads(json.dumps(description))
        update = self.description["views"]["global_batch_size"]
        self.description.setdefault("positions_per_file", -(-_POSITIONS_IN_FILE // update) * update)
        self._draws, self._size = self.description["views"]["draws_per_epoch"], self.description["positions_per_file"]
        self._opened: dict[tuple[int, int], np.ndarray] = {}

    @classmethod
    def load(cls, folder: str | Path) -> "TargetsFolder":
        """What a student is trained on.

        Raises:
            RecipeError: Not a folder of targets, or one that lacks some.
        """
        path = Path(folder) / _DESCRIPTION_NAME
        try:
            targets = cls(folder, TargetsFolder.load_description(path))
            missing = [file for file in targets.files() if not file.path.is_file()]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RecipeError(
                f"Expected teacher_targets to be a folder that modeling-ast teach has made, got {folder} "
                f"({type(error).__name__}: {error})."
            ) from error
        if missing:
            raise RecipeError(
                f"{folder} lacks {len(missing)} of {len(targets.files())} files of targets, such as "
                f"{missing[0].path.name}: let modeling-ast teach, which goes on where it was stopped, come to its end."
            )
        return targets

    @property
    def num_epochs(self) -> int:
        return self.description["epochs"]

    @property
    def gives_embeddings(self) -> bool:
        return self.description["top_k"] is None

    def files(self, num_epochs: int | None = None) -> list[TargetFile]:
        """All files of so many epochs, of all by default, in the order of positions, whether they are there or not."""
        num_epochs = self.num_epochs if num_epochs is None else num_epochs
        offsets = range(0, self._draws, self._size)
        return [
            TargetFile(
                self.folder / f"epoch-{epoch:05}-{number:05}.npy", epoch, offset, min(self._size, self._draws - offset)
            )
            for epoch in range(num_epochs)
            for number, offset in enumerate(offsets)
        ]

    def begin(self) -> None:
        """Write the description, where the folder has none; several processes may do so.

        Raises:
            DataError: It holds targets of something else.
        """
        path = self.folder / _DESCRIPTION_NAME
        if path.is_file():
            before = TargetsFolder.load_description(path)
            if "problem_type" in self.description:  # which earlier versions did not write
                before.setdefault("problem_type", self.description["problem_type"])
            if difference := describe_difference(before, self.description, "was taught before", "is given"):
                raise DataError(f"{self.folder} holds other targets: {difference}. Choose another --output.")
            if before["epochs"] >= self.num_epochs:
                self.description["epochs"] = before["epochs"]
                return
        with written_beside(path, durable=True) as unfinished:
            unfinished.write_text(json.dumps(self.description, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load_description(path: Path) -> dict[str, Any]:
        """
        Raises:
            DataError: It cannot be read.
        """
        try:
            description = json.loads(path.read_text(encoding="utf-8"))
            lacking = [key for key in _KEYS if key not in description]
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: expected the description of targets ({error}).") from error
        if lacking:
            raise DataError(f"{path}: expected the description of targets, but it lacks {', '.join(lacking)}.")
        return description

    def write(self, file: TargetFile, rows: np.ndarray) -> None:
        """A file, which gets its name when it is whole.

        Raises:
            DataError: Embeddings of another size than those of the first file.
        """
        first = self.files()[0].path
        if self.gives_embeddings and first.is_file() and rows.shape[1] != self.embedding_size:
            raise DataError(
                f"{first} holds embeddings of {self.embedding_size} numbers, and now came {rows.shape[1]}."
            )
        with written_beside(file.path, durable=True) as unfinished:
            np.save(unfinished, rows)

    def read(self, positions: Sequence[int]) -> np.ndarray:
        """The rows of some positions, which may lie in several files."""
        return np.stack([self._row(position) for position in positions])

    @property
    def embedding_size(self) -> int:
        return _open(self.files()[0].path).shape[1]

    @cached_property
    def embedding_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of each of an embedding's numbers over the first file, float32 (size,)."""
        rows = _open(self.files()[0].path).astype(np.float64)
        deviation = rows.std(axis=0)
        return rows.mean(axis=0).astype(np.float32), np.where(deviation > 0, deviation, 1).astype(np.float32)

    def embeddings(self, positions: Sequence[int]) -> torch.Tensor:
        """Those of some positions, each number less its mean, in its deviations: float32 (positions, size)."""
        mean, deviation = self.embedding_statistics
        return torch.from_numpy((self.read(positions).astype(np.float32) - mean) / deviation)

    def probabilities(self, positions: Sequence[int], multi_label: bool) -> torch.Tensor:
        """Those of all labels, float32 (positions, num_labels): see `spread_rest`."""
        rows = self.read(positions)
        values = torch.from_numpy(rows["probability"].astype(np.float32))
        labels = torch.from_numpy(rows["label"].astype(np.int64))
        return spread_rest(values, labels, len(self.description["label_names"]), multi_label)

    def _row(self, position: int) -> np.ndarray:
        epoch, offset = divmod(position, self._draws)
        number, row = divmod(offset, self._size)
        if (epoch, number) not in self._opened:
            if len(self._opened) > 3:  # a batch is of consecutive positions
                self._opened.clear()
            self._opened[epoch, number] = _open(self.folder / f"epoch-{epoch:05}-{number:05}.npy")
        return self._opened[epoch, number][row]


def _open(path: Path) -> np.ndarray:
    """
    Raises:
        DataError: A damaged file.
    """
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:  # the last one of an empty file
        raise DataError(
            f"{path} cannot be read ({error}): remove it, and let modeling-ast teach write it again."
        ) from error


def best(probabilities: torch.Tensor, top_k: int) -> np.ndarray:
    """Rows of a file: the best probabilities of each clip (batch, num_labels), the highest first, and their labels."""
    values, labels = probabilities.topk(min(top_k, probabilities.shape[1]))
    rows = np.empty(len(values), [("probability", "<f2", values.shape[1:]), ("label", "<i2", values.shape[1:])])
    rows["probability"], rows["label"] = values.cpu().numpy(), labels.cpu().numpy()
    return rows


def spread_rest(values: torch.Tensor, labels: torch.Tensor, num_labels: int, multi_label: bool) -> torch.Tensor:
    """Probabilities of all labels, of which the best ones are known.

    Args:
        values: The best ones, (clips, k).
        labels: Whose they are, (clips, k).
        num_labels: Of all labels.
        multi_label: Whether each has a probability of its own. Then the others get the lowest known one divided by
            how many they are; else equal shares of what the known ones leave of 1.

    Returns:
        Tensor of shape (clips, num_labels).

    Source: Dinkel et al., "CED: Consistent ensemble distillation for audio tagging" (2023), and its code, for several
        labels.
    """
    others = num_labels - values.shape[1]
    rest = values.min(dim=1).values if multi_label else (1 - values.sum(dim=1)).clamp(min=0)
    full = (rest / max(1, others)).unsqueeze(1).repeat(1, num_labels)
    return full.scatter(1, labels, values)


def describe_views(
    arguments: Arguments, extractor: ASTFeatureExtractor, rows: Dataset, draws_per_epoch: int, global_batch_size: int
) -> dict[str, Any]:
    """All that a view depends on: clips, their order, and what is done to each; no more, and what is not default.

    Args:
        arguments: Of the recipe.
        extractor: Of the student.
        rows: Its training clips, not decoded.
        draws_per_epoch: Clips that an epoch takes.
        global_batch_size: Clips that an update takes.
    """
    _, data_args, augment_args, training_args = arguments
    others = {
        each.name: value
        for each in dataclasses.fields(augment_args)
        if (value := getattr(augment_args, each.name)) != each.default
    }
    features = ("sampling_rate", "num_mel_bins", "max_length", "padding", "padding_value")
    if augment_args.max_noise:  # which is added to normalised features
        features += ("do_normalize", "std")
    if (transform := augment_args.waveform_transform) is not None:  # another code under the same name is another
        import_function(transform, "waveform_transform")
        others["waveform_transform"] = f"{transform} ({hashlib.sha256(read_code(transform)).hexdigest()[:12]})"
    if training_args.samples_per_epoch is not None:  # also of as many as there are clips
        others["samples_per_epoch"] = training_args.samples_per_epoch
    return {
        "train": describe_rows(rows),
        "ignore_length": data_args.ignore_length,
        "seed": training_args.seed,
        "data_seed": training_args.order_seed,
        "global_batch_size": global_batch_size,
        "draws_per_epoch": draws_per_epoch,
        "class_balanced_sampling": training_args.class_balanced_sampling,
        "feature_extractor": type(extractor).__name__,
        **{name: getattr(extractor, name) for name in features},
        **others,
    }


def describe_difference(before: Mapping[str, Any], now: Mapping[str, Any], was: str, is_now: str) -> str:
    """What two descriptions say otherwise, but for the number of epochs; nothing where they agree."""
    pairs = []
    for key, one, other in _pairs(before, now):
        if key == "views":
            pairs += _pairs(one or {}, other or {})
        elif key != "epochs":
            pairs.append((key, one, other))
    return "; ".join(
        f"{key}: {_shown(one)} {was}, {_shown(other)} {is_now}" for key, one, other in pairs if one != other
    )


def _pairs(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    return ((key, before.get(key), now.get(key)) for key in before | now)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} ({', '.join(map(_shown, value[:3]))}{', ...' if len(value) > 3 else ''})"
    return "nothing" if value is None else str(value)
