"""Sound files in a folder a class, or in such folders below a folder a split."""

import logging
import os
import unicodedata
from pathlib import Path

from datasets import Dataset

from modeling_ast.audio import AUDIO_SUFFIXES
from modeling_ast.data.clip_tables import SPLITS, name_splits, split_of
from modeling_ast.data.folders import FolderContents, group_by_folder, visible, warn_left_out
from modeling_ast.data.labels import DataError, open_text
from modeling_ast.data.lists import ways_to_write
from modeling_ast.data.synthetic import LISTS

logger = logging.getLogger(__name__)


def read_class_folders(folder: Path, found: FolderContents, has_labels: bool = True) -> dict[str, Dataset]:
    """Sound files below a folder a class; the split from the lists of Speech Commands, or from a folder a split.

    Args:
        folder: Of them all.
        found: In it.
        has_labels: Whether its folders are classes; else they mean nothing, but for `train` beside other splits.

    Raises:
        DataError: The folders may be meant as splits or as classes, or they are neither.
    """
    if found.parquet:
        logger.warning(
            f"{folder}: the sounds in its folders are read, and not the {len(found.parquet)} Parquet file(s) beside "
            f"them, such as {found.parquet[0]}."
        )
    warn_left_out(folder, found.others)
    groups = dict.fromkeys(visible(entry.name for entry in os.scandir(folder) if entry.is_dir()), ())
    groups |= group_by_folder(found.sounds)
    split_folders = _find_split_folders(folder, groups) if has_labels else _find_split_names(folder, groups)
    read = _read_classes if has_labels else _read_all
    if not split_folders:
        return read(folder, groups, read_lists(folder))
    places = (folder, *(folder / name for name in split_folders.values()))
    if lists := [place / name for place in places for name in LISTS.values() if (place / name).is_file()]:
        raise DataError(f"{folder}: expected {lists[0]} or folders {', '.join(split_folders.values())}, got both.")
    return {
        split: read(folder / name, group_by_folder(groups[name]), {})["train"] for split, name in split_folders.items()
    }


def _find_split_folders(folder: Path, groups: dict[str, list[str]]) -> dict[str, str]:
    """The folder of each split; none where the folders are classes, one of which may be called `train` or `test`.

    A split holds folders of sounds; a class holds sounds. What lies beside splits is passed over.

    Args:
        folder: Of them all.
        groups: Its folders, each with the sounds below it.

    Raises:
        DataError: They may be meant as either.
    """
    named = [name for name in groups if split_of(name) is not None]
    beside = [name for name in groups if groups[name] and name not in named and not name.startswith("_") and name]
    nested = [name for name in named if groups[name] and all(os.sep in path for path in groups[name])]
    if not named or (beside and not nested and len(named) == 1):
        return {}
    splits = name_splits(folder, sorted(named))
    classes = {name for each in nested for name in group_by_folder(groups[each])}
    if beside and not ("train" in splits and len(nested) > 1 and classes.isdisjoint(beside)):
        raise DataError(
            f"{folder}: expected folders of splits or of classes, got what may be both, {', '.join(named)} beside "
            f"{', '.join(beside[:3])}. If {named[0]} is a split, move what is none elsewhere; if it is a class, "
            "put its sounds into no folders of their own, or list all clips in a CSV file."
        )
    _warn_passed_over(folder, groups, named)
    return {split: splits[split] for split in SPLITS if split in splits}


def _find_split_names(folder: Path, groups: dict[str, list[str]]) -> dict[str, str]:
    """The folder of each split, where there is one to train beside others; else folders mean nothing.

    Args:
        folder: Of them all.
        groups: Its folders, each with the sounds below it.

    Raises:
        DataError: Two folders of one split.
    """
    named = sorted(name for name in groups if groups[name] and split_of(name) is not None)
    if len(named) < 2 or "train" not in map(split_of, named):
        return {}
    splits = name_splits(folder, named)
    _warn_passed_over(folder, groups, named)
    return splits


def _warn_passed_over(folder: Path, groups: dict[str, list[str]], named: list[str]) -> None:
    """Say what lies beside the folders of splits."""
    folders = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    if others := sorted((folders | groups.keys()) - set(named)):
        counts = [
            f"{name or 'files'} ({len(groups[name])} of sounds)" if groups.get(name) else name for name in others
        ]
        logger.warning(f"{folder}: beside {', '.join(named)}, passed over as no split: {', '.join(counts)}.")


def _read_classes(folder: Path, groups: dict[str, list[str]], held_out: dict[str, str]) -> dict[str, Dataset]:
    files = {split: {"audio": [], "label": []} for split in SPLITS}
    for name, paths in sorted(groups.items()):
        if name.startswith("_"):  # such as the _background_noise_ of Speech Commands
            logger.warning(f"{folder / name} is not taken for a class: its name starts with '_'.")
            continue
        if name == "":
            logger.warning(
                f"{folder}: {len(paths)} sound file(s) in no class folder are left out, such as {paths[0]}."
            )
            continue
        if not paths:
            logger.warning(f"{folder / name} holds no sound files ({', '.join(AUDIO_SUFFIXES)}), and is no class.")
        for path in paths:
            split = files[held_out.pop(os.path.join(name, path), "train")]
            split["audio"].append(os.path.join(folder, name, path))
            # Some systems write an accent into its letter, others beside it.
            split["label"].append(unicodedata.normalize("NFC", name))
    if held_out:
        raise DataError(
            f"{folder}: held out by a list, but no sound file of a class: {', '.join(list(held_out)[:3])}."
        )
    if not any(columns["audio"] for columns in files.values()):
        hint = " Sounds without labels are read with unlabelled: true." if groups.get("") else ""
        raise DataError(
            f"{folder}: expected a sub-folder a class with sound files ({', '.join(AUDIO_SUFFIXES)}) in it, found "
            f"none.{hint}"
        )
    return _to_tables(folder, files)


def _read_all(folder: Path, groups: dict[str, list[str]], held_out: dict[str, str]) -> dict[str, Dataset]:
    """All sounds below a folder, without labels."""
    files = {split: {"audio": []} for split in SPLITS}
    for name, paths in sorted(groups.items()):
        for path in paths:
            split = held_out.pop(os.path.join(name, path), "train")
            files[split]["audio"].append(os.path.join(folder, name, path))
    if held_out:
        raise DataError(f"{folder}: held out by a list, but no sound file: {', '.join(list(held_out)[:3])}.")
    if not any(columns["audio"] for columns in files.values()):
        raise DataError(f"{folder}: expected sound files ({', '.join(AUDIO_SUFFIXES)}), found none.")
    return _to_tables(folder, files)


def _to_tables(folder: Path, files: dict[str, dict[str, list[str]]]) -> dict[str, Dataset]:
    try:
        return {split: Dataset.from_dict(columns) for split, columns in files.items() if columns["audio"]}
    except UnicodeEncodeError as error:
        raise DataError(f"{folder}: expected names of files and folders in UTF-8, got {error.object!r}.") from error


def read_lists(folder: Path) -> dict[str, str]:
    """Split of each clip that `validation_list.txt` and `testing_list.txt` of a folder hold out, by relative path.

    Raises:
        DataError: A list names a file that is not there, or cannot be read (`open_text`).
    """
    held_out = {}
    for split, list_name in LISTS.items():
        if (path := folder / list_name).is_file():
            with open_text(path) as file:
                for number, line in enumerate(file, start=1):
                    if name := line.strip():
                        ways = (way for way in ways_to_write(name) if os.path.isfile(folder / way))
                        if (way := next(ways, None)) is None:
                            raise DataError(f"{path}, line {number}: no file {name!r}.")
                        held_out[os.path.normpath(way)] = split
    return held_out
