"""Labels of clips, as data write them, to the numbers of a model's outputs, without an object a clip."""

import ast
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset

from modeling_ast.data.clip_tables import Table, filter_rows, find_distinct, to_lists
from modeling_ast.data.labels import DataError, composed, find_control, name_some, read_label_table

logger = logging.getLogger(__name__)


@dataclass
class Labels:
    """The labels of each clip: `lengths[i]` of the `codes` belong to clip i, and a code is a number of `names`."""

    names: list[str]
    codes: np.ndarray
    lengths: np.ndarray

    def clip_of(self, code: int) -> int:
        """The first clip with that label."""
        return int(np.searchsorted(np.cumsum(self.lengths), np.argmax(self.codes == code), side="right"))


def class_names(feature: Any) -> list[str] | None:
    """Names of the classes of a label column, or of a column of lists of labels, if the data set tells them."""
    feature = getattr(feature, "feature", feature)  # of a list: what it is a list of
    return feature.names if isinstance(feature, ClassLabel) else None


def label_name(value: Any, names: list[str] | None) -> str | None:
    """What a label is called, as data have it: a name, or a class index, perhaps of a name; `None` where it is none.

    Args:
        value: As it stands in the data.
        names: Of the classes, where the data tell them.
    """
    # -1 is what data sets on the Hub write where a label is not told; as an index it would be the last class.
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value in ("", "-1", -1):
        return None
    if names is None or isinstance(value, str):
        return composed(str(value))
    return composed(names[value]) if 0 <= value < len(names) else None


def is_name(text: str) -> bool:
    """Whether a cell with it is the name of one label, and neither none nor a list of some."""
    return label_name(text, None) is not None and not _LIST.fullmatch(text)


def read_labels(table: Table, separator: str, multi_label: bool) -> Labels:
    written = values = table.column(table.label_column)
    is_text = pa.types.is_string(written.type) or pa.types.is_large_string(written.type)
    has_separators = multi_label if table.has_separators is None else table.has_separators
    if is_text and (lists := _parse_lists(table, written)) is not None:
        values = lists
    elif is_text and (multi_label or has_separators):
        values = _split_text(written, separator if has_separators else None)
    lengths = np.ones(len(values), np.int64)
    if any(is_one(values.type) for is_one in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
        lengths = pc.list_value_length(values).fill_null(0).to_numpy().astype(np.int64)
        values = pc.list_flatten(values)
    if pa.types.is_null(values.type):  # what a column without anything in it is
        values = values.cast(pa.string())
    if multi_label and values.null_count:  # which say as little as an empty text
        owners, is_label = np.repeat(np.arange(len(lengths)), lengths), values.is_valid()
        lengths = np.bincount(owners[is_label.to_numpy(zero_copy_only=False)], minlength=len(lengths))
        values = values.filter(is_label)
    kind = values.type
    if not any(is_one(kind) for is_one in (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)):
        raise DataError(f"{table.source}: expected text or whole numbers in {table.label_column!r}, got {kind}.")
    found, codes = find_distinct(values)
    names = class_names(table.rows.features[table.label_column])
    found = [label_name(value, names) for value in found]
    is_missing = written.is_null().to_numpy(zero_copy_only=False)
    wrong = np.zeros(len(lengths), bool) if multi_label else is_missing | (lengths != 1)
    wrong[np.repeat(np.arange(len(lengths)), lengths)[np.array([name is None for name in found], bool)[codes]]] = True
    if wrong.any():
        number, expected = int(np.argmax(wrong)), "labels" if multi_label else "one label a clip"
        raise DataError(
            f"{table.where(number)}: expected {expected} in {table.label_column!r}, got {written[number].as_py()!r}."
        )
    # Two classes by their indices are a clip's labels as well; what all rows of a data set have are vectors.
    least = (2, 2) if table.is_whole else (1, 3)  # rows, values of each
    is_multi_hot = len(lengths) >= least[0] and lengths[0] >= least[1] and (lengths == lengths[0]).all() and not names
    if is_multi_hot and set(found) <= {"0", "1"}:
        raise DataError(
            f"{table.source}: expected lists of labels in {table.label_column!r}, got what looks like multi-hot "
            "vectors."
        )
    labels = Labels(found, codes, lengths)
    if (wrong := find_control(found)) is not None:
        where = table.where(labels.clip_of(found.index(wrong)))
        raise DataError(f"{where}: expected labels without control characters, got {wrong!r}.")
    return labels


def _split_text(column: pa.Array, separator: str | None) -> pa.Array:
    """Lists of what stands between the separators, or of all of a text, without spaces around and empty ones."""
    lists = to_lists(column, np.ones(len(column), int)) if separator is None else pc.split_pattern(column, separator)
    texts, owners = pc.utf8_trim_whitespace(pc.list_flatten(lists)), pc.list_parent_indices(lists)
    is_label = pc.not_equal(texts, "")
    lengths = np.bincount(owners.filter(is_label).to_numpy(), minlength=len(column))
    return to_lists(texts.filter(is_label), lengths)


# A list as a program writes it into a cell: of text in quotes, or of numbers. "[noise]" is a label.
_LIST = re.compile(r"""\[\s*(['"].*['"]|[\d.][\d.,\s]*)?,?\s*\]""", re.DOTALL)


def _parse_lists(table: Table, column: pa.Array) -> pa.Array | None:
    """Lists of labels from a column of such lists as text, and `None` for any other column."""
    if not pc.any(pc.starts_with(column, "[")).as_py():
        return None
    texts, codes = find_distinct(column)
    if not any(_LIST.fullmatch(text) for text in texts if text):
        return None
    lists = [_parse_list(text) if text else [] for text in texts]
    if None in lists:
        wrong = lists.index(None)
        raise DataError(
            f"{table.where(np.argmax(codes == wrong))}: expected a list of labels in {table.label_column!r} as in "
            f"other rows, such as ['dog', 'cat'], got {texts[wrong]!r}."
        )
    return pa.array(lists, pa.list_(pa.string())).take(pa.array(codes))


def _parse_list(text: str) -> list[str] | None:
    """As JSON or Python writes it."""
    try:
        found = json.loads(text)
    except ValueError:
        if re.search(r"""['"]\s*['"]""", text):  # of NumPy, without commas: Python would make one text of all
            return None
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    is_list = isinstance(found, list) and all(isinstance(item, (str, int)) for item in found)
    return [str(item).strip() for item in found] if is_list else None


def find_label_names(table: Table, labels: Iterable[Labels], multi_label: bool) -> list[str]:
    names = class_names(table.rows.features[table.label_column])
    if names is None:
        # Class indices without names keep their order.
        found = {name for split in labels for name in split.names}
        names = sorted(found, key=lambda name: (int(name), name) if name.isdecimal() else (float("inf"), name))
    if len(names) < (1 if multi_label else 2):  # one label is there or not, if clips may be without
        wanted = "a label" if multi_label else "at least two labels"
        raise DataError(
            f"{table.source}: expected {wanted} in {table.label_column!r}, got {', '.join(names) or 'none'}."
        )
    return names


@dataclass(frozen=True)
class LabelIndex:
    """Which label has which number.

    Args:
        names: The labels, in the order of their numbers.
        numbers: The number of each way in which data may write a label.
        place: Where the labels stand, for the sentence about one that does not.
    """

    names: list[str]
    numbers: dict[str, int]
    place: str

    def describe_unknown(self, name: str, where: str) -> str:
        return f"{where}: the label {name!r} is not {self.place}."


def index_labels(names: list[str] | None, label_file: str | None, source: str) -> LabelIndex:
    """Number the labels of a data set to train on: as a label table has them, or else by their order.

    Args:
        names: Needed without a label table.
        label_file: As `read_label_table` takes it.
        source: The data set.
    """
    if label_file is None:
        numbers = {composed(name): number for number, name in enumerate(names)}
        return LabelIndex(names, numbers, f"among those of {source}")
    table = read_label_table(label_file)
    return LabelIndex(table.names, table.index_of(), f"in the label table {label_file}")


def index_model_labels(model_labels: Sequence[str], label_file: str | None) -> LabelIndex:
    """Number the labels of a trained model by its outputs; a label table tells in which other ways data write them."""
    numbers = {composed(name): number for number, name in enumerate(model_labels)}
    if label_file is not None:
        table = read_label_table(label_file)
        ways = {way: composed(table.names[number]) for way, number in table.index_of().items()}
        numbers = {way: numbers[name] for way, name in ways.items() if name in numbers}
    return LabelIndex(list(model_labels), numbers, "among those of the model")


def refuse_unknown(labels: dict[str, Labels], index: LabelIndex, tables: dict[str, Table]) -> None:
    """
    Raises:
        DataError: A label that has no number.
    """
    for split, each in labels.items():
        for code, name in enumerate(each.names):
            if name not in index.numbers:
                raise DataError(index.describe_unknown(name, tables[split].where(each.clip_of(code))))


def report_unknown(
    labels: dict[str, Labels], index: LabelIndex, tables: dict[str, Table], source: str, leave_out: bool
) -> None:
    """Say which labels the model does not know.

    Raises:
        DataError: There are some, and they are not to be left out.
    """
    unknown, first, num_clips = set(), None, 0
    for split, each in labels.items():
        is_unknown = np.array([name not in index.numbers for name in each.names], bool)[each.codes]
        clips = np.unique(np.repeat(np.arange(len(each.lengths)), each.lengths)[is_unknown])
        unknown |= {each.names[code] for code in np.unique(each.codes[is_unknown])}
        if len(clips):
            first, num_clips = first or tables[split].where(clips[0]), num_clips + len(clips)
    if not unknown:
        return
    what = f"{source}: {num_clips} clips have labels that the model does not know ({name_some(sorted(unknown))})"
    if not leave_out:
        raise DataError(f"{what}, such as {first}. Rename them, or leave them out: --leave_out_unknown_labels true.")
    logger.warning(f"{what}: left out.")


def number_labels(labels: Labels, index: LabelIndex, multi_label: bool) -> pa.Array:
    """The number of each clip's label, -1 for an unknown one; or with `multi_label` a list of those that are known."""
    numbers = np.array([index.numbers.get(name, -1) for name in labels.names], np.int64)[labels.codes]
    if not multi_label:
        return pa.array(numbers)
    is_known = numbers >= 0
    owners = np.repeat(np.arange(len(labels.lengths)), labels.lengths)
    return to_lists(pa.array(numbers[is_known]), np.bincount(owners[is_known], minlength=len(labels.lengths)))


def leave_out_unlabelled(rows: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Training clips, and of the held-out splits those that have labels to compare scores with."""
    left_out = [split for split, part in rows.items() if split != "train" and "labels" not in part.features]
    for split in left_out:
        logger.warning(f"{source}: the {split} clips, which have no labels, are not evaluated.")
    return {split: part for split, part in rows.items() if split not in left_out}


def keep_known(rows: Dataset) -> Dataset:
    numbers = rows.select_columns(["labels"]).with_format("arrow")[:]["labels"].combine_chunks()
    if not pa.types.is_integer(numbers.type):  # lists, of which an empty one is an answer too
        return rows
    is_known = numbers.to_numpy() >= 0
    return rows if is_known.all() else filter_rows(rows, is_known)
