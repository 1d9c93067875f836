"""Two models on the clips that both predicted: what they differ by, and whether that is more than chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas

from modeling_ast.data.intervals import Difference, metric_differences
from modeling_ast.data.labels import DataError
from modeling_ast.data.metrics import METRICS
from modeling_ast.data.predictions import (
    PREDICTIONS_NAME,
    label_names_of,
    named_labels,
    probabilities_of,
    read_predictions,
)

REPORTED = ("test", "validation")  # of a run, the first that it has


@dataclass
class Comparison:
    """What two models say of the same clips.

    Args:
        clips: How many both predicted.
        alone: How many the first and the second predicted alone.
        groups: Of the clips; `None` where they are in none.
        differences: By metric.
        table: The clips of which they say something else, or of which one alone is right: `path`, `truth`,
            `first` and `second` (what each names), `first_right` and `second_right`.
    """

    clips: int
    alone: tuple[int, int]
    groups: int | None
    differences: dict[str, Difference]
    table: pandas.DataFrame


def find_predictions(run: Path, split: str | None) -> list[Path]:
    """The tables of a run, of its folds, or of an evaluation.

    Args:
        run: A folder, or such a table.
        split: Which clips of a run; `None` means those of test or, without any, of validation.

    Raises:
        DataError: There is none, or a split of a table is asked for.
    """
    if run.is_file():
        if split is not None:
            raise DataError(f"Expected the folder of a run, of which split chooses a table, got the table {run}.")
        return [run]
    splits = REPORTED if split is None else (split,)
    for folders in ([run], sorted(run.glob("fold_*"))):
        for name in (*(f"predictions_{each}.csv" for each in splits), *([PREDICTIONS_NAME] if split is None else [])):
            if found := [folder / name for folder in folders if (folder / name).is_file()]:
                if len(found) < len(folders):
                    missing = next(folder for folder in folders if folder / name not in found)
                    raise DataError(f"{missing}: expected {name} as in the other folds, got none. Is it finished?")
                return found
    names = " or ".join(f"predictions_{each}.csv" for each in splits)
    raise DataError(
        f"{run}: expected {names}, of a run or of its folds, or the {PREDICTIONS_NAME} of an evaluation, found none. "
        f"`modeling-ast evaluate` makes one of any model."
    )


def compare(first: Sequence[Path], second: Sequence[Path]) -> Comparison:
    """
    Raises:
        DataError: Tables that cannot be read, clips that stand twice or have no path, other labels, another truth of a
            clip, or no clip in both.
    """
    tables = [_read_all(paths) for paths in (first, second)]
    names = label_names_of(tables[0])
    if set(names) != set(others := label_names_of(tables[1])):
        raise DataError(
            f"Expected the same labels in {first[0]} and {second[0]}, got {len(names)} and {len(others)}, such as "
            f"{sorted(set(names) ^ set(others))[0]!r} in one alone."
        )
    common = tables[0].index.intersection(tables[1].index, sort=False)
    if empty := next((paths for table, paths in zip(tables, (first, second)) if table.empty), None):
        raise DataError(f"{empty[0]}: expected predictions of clips, got none.")
    if common.empty:
        raise DataError(f"Expected clips that both predicted, got none: {first[0]} and {second[0]} have other paths.")
    alone = len(tables[0]) - len(common), len(tables[1]) - len(common)
    tables = [table.loc[common] for table in tables]
    positives, other = (named_labels(table["truth"], names) for table in tables)
    if (differs := (positives != other).any(axis=1)).any():
        row = int(differs.argmax())
        raise DataError(
            f"Expected one truth of a clip, got {tables[0]['truth'].iloc[row]!r} and {tables[1]['truth'].iloc[row]!r} "
            f"of {common[row]}."
        )
    decisions = [named_labels(table["prediction"], names) for table in tables]
    grouped = [table["group"].to_numpy() for table in tables if "group" in table]
    if len(grouped) == 2 and (differs := grouped[0] != grouped[1]).any():
        row = int(differs.argmax())
        raise DataError(
            f"Expected one group of a clip, got {grouped[0][row]!r} and {grouped[1][row]!r} of {common[row]}: "
            "evaluate both by the same groups."
        )
    groups = grouped[0] if grouped else None
    models = [(probabilities_of(table, names), named) for table, named in zip(tables, decisions)]
    right = [(named == positives).all(axis=1) for named in decisions]
    clips = tables[0].reset_index()[["path", "truth"]]
    clips["first"], clips["second"] = (table["prediction"].to_numpy() for table in tables)
    clips["first_right"], clips["second_right"] = right
    return Comparison(
        clips=len(common),
        alone=alone,
        groups=None if groups is None else len(set(groups)),
        differences=metric_differences(models, positives, groups),
        table=clips[(decisions[0] != decisions[1]).any(axis=1)],
    )


def difference_lines(differences: Mapping[str, Difference]) -> list[str]:
    """A line of text each: the metric of both models, the second less the first, its interval, and what that says."""
    lines = []
    for name, found in differences.items():
        line = f"{METRICS[name][0]:<10} {found.first:8.4f} {found.second:8.4f} {found.second - found.first:+8.4f}"
        if found.interval is not None:
            chance = "more than chance" if found.is_more_than_chance else "may be chance"
            line += f"  {found.interval.low:+.4f} to {found.interval.high:+.4f}: {chance}"
        lines.append(line)
    return lines


def _read_all(paths: Sequence[Path]) -> pandas.DataFrame:
    """The tables of some folds as one, by what tells clips apart."""
    table = pandas.concat([read_predictions(path) for path in paths], ignore_index=True)
    table = table.set_index("path")
    if "" in table.index:
        raise DataError(f"{paths[0]}: expected a path of every clip, by which it is found again, got none of some.")
    if (twice := table.index.duplicated()).any():
        raise DataError(f"{paths[0]}: expected every clip once, got {table.index[int(np.argmax(twice))]} twice.")
    return table
