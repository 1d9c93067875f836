"""Label files beside recordings, of Audacity and of Raven: which stretch of which recording has which label."""

import csv
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value

from modeling_ast.data.clip_tables import Stretches, Table
from modeling_ast.data.folders import FolderContents, look_into
from modeling_ast.data.labels import DataError, name_some, open_text
from modeling_ast.data.recipes import DataArguments

logger = logging.getLogger(__name__)

# Raven's own columns; others, such as one of labels, are the user's.
_SELECTION, _BEGIN, _END = "Selection", "Begin Time (s)", "End Time (s)"
_FILE, _OFFSET = "Begin File", "File Offset (s)"


@dataclass(frozen=True)
class Annotation:
    """What somebody marked in a recording.

    Attributes:
        start: In seconds.
        end: Above the start.
        label: May be empty.
        line: Of the file.
        recording: Name of the sound file, where the table says it.
    """

    start: float
    end: float
    label: str
    line: int
    recording: str | None = None


def annotation_kind(path: Path) -> str | None:
    """Whose label file this is by its first line, "audacity" or "raven"; `None` of other text, and of an empty file.

    Raises:
        DataError: As from `open_text`.
    """
    with open_text(path) as file:
        line = next((line for line in file if line.strip()), "")
    cells = [cell.strip() for cell in line.rstrip("\r\n").split("\t")]
    if {_BEGIN, _END} <= set(cells):
        return "raven"
    is_region = len(cells) in (2, 3) and all(_to_number(cell) is not None for cell in cells[:2])
    return "audacity" if is_region else None


def read_annotations(path: Path, label_column: str | None) -> list[Annotation]:
    """What a label file says; nothing, of an empty one.

    Args:
        path: A label track as Audacity exports it (start, end and label, with tabs between; the frequencies of
            spectral selections are passed over), or a selection table of Raven.
        label_column: Of Raven's table, where the user has the labels; `None` where they do not matter.

    Raises:
        DataError: Another file, a column that is not there, times that are none, or a label for a point in time.

    Source: https://manual.audacityteam.org/man/importing_and_exporting_labels.html, and Raven Pro's manual, "Selection
        tables".
    """
    if (kind := annotation_kind(path)) is None:
        if path.stat().st_size and path.read_bytes().strip():
            raise DataError(f"{path}: expected labels of Audacity (start, end, label), or a selection table of Raven.")
        return []
    with open_text(path) as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        lines = [(rows.line_num, [cell.strip() for cell in row]) for row in rows if any(cell.strip() for cell in row)]
    if kind == "audacity":
        regions = (row for row in lines if row[1][0] != "\\")  # which begins the frequencies of the region above
        return [_check(path, line, *cells[:2], " ".join(cells[2:3])) for line, cells in regions]
    return list(_read_selections(path, lines, label_column))


def _read_selections(path: Path, lines: list[tuple[int, list[str]]], label_column: str | None) -> Iterator[Annotation]:
    (_, names), *rows = lines
    if label_column is not None and label_column not in names:
        raise DataError(
            f"{path}: expected a column {label_column!r} with labels, got {', '.join(names)}. Name it by "
            "label_column_name."
        )
    seen = set()  # a selection has a line for each view
    for line, cells in rows:
        row = dict(zip(names, cells))
        start, end, recording = row.get(_BEGIN, ""), row.get(_END, ""), row.get(_FILE) or None
        selection = row.get(_SELECTION), recording, start, end
        if selection[0] and selection in seen:
            continue
        seen.add(selection)
        found = _check(path, line, start, end, row.get(label_column or "", ""), recording)
        if recording is not None and _OFFSET in names:  # then times are those of all files one behind the other
            if (offset := _to_number(row.get(_OFFSET, ""))) is None:
                raise DataError(f"{path}, line {line}: expected seconds in {_OFFSET!r}, got {row.get(_OFFSET)!r}.")
            found = Annotation(offset, offset + found.end - found.start, found.label, line, recording)
        yield found


def _check(path: Path, line: int, start: str, end: str, label: str, recording: str | None = None) -> Annotation:
    times = _to_number(start), _to_number(end)
    if None in times:
        raise DataError(f"{path}, line {line}: expected a start and an end in seconds, got {start!r} and {end!r}.")
    if times[1] <= times[0]:
        raise DataError(
            f"{path}, line {line}: expected an end behind the start of {times[0]:g} s, got {times[1]:g} s. A point in "
            "time holds no sound."
        )
    return Annotation(*times, label, line, recording)


def _to_number(text: str) -> float | None:
    """Seconds, also with a decimal comma."""
    try:
        seconds = float(text.replace(",", "."))
    except ValueError:
        return None
    return seconds if 0 <= seconds < np.inf else None


def is_annotated(path: Path, args: DataArguments, found: FolderContents | None = None) -> bool:
    """Whether label files say what is where in recordings: those of a folder by the first that holds something.

    Args:
        path: Of a folder, or of a file.
        args: A table of Raven is also read as a list, by the name of its column of files.
        found: In the folder.
    """
    if found is None:
        is_text = path.suffix.lower() == ".txt" and path.is_file()
        return is_text and args.audio_column_name == "audio" and annotation_kind(path) is not None
    sounds = _by_folder(found.sounds)
    for text in found.texts:
        is_beside = _find_recording(text, sounds) is not None
        kind = annotation_kind(path / text)
        if kind == "raven" or (kind and is_beside):
            return True
        if is_beside and (path / text).stat().st_size:
            return False  # what is said in a sound, for example
    return False


def refuse_near_annotations(folder: Path, found: FolderContents) -> None:
    """Say what is missing in a folder of no classes with label files that are none, or lie alone.

    Args:
        folder: That is not annotated.
        found: In it.

    Raises:
        DataError: There is such a file.
    """
    if any(os.sep in sound for sound in found.sounds):
        return
    sounds = _by_folder(found.sounds)
    for text in found.texts:
        path, is_beside = folder / text, _find_recording(text, sounds) is not None
        kind = annotation_kind(path)
        if is_beside and kind is None and path.stat().st_size:
            raise DataError(
                f"{path}, beside a sound of its name: expected start, end and label with tabs between, as Audacity "
                "writes them, or a selection table of Raven."
            )
        if kind is not None and not is_beside:
            raise DataError(
                f"{path}: expected a recording of its name beside it, got none. Put label files beside their "
                "recordings, or name these in a list with the columns audio, start, end and label."
            )


def read_annotated(
    path: Path, label_column: str, source: str, has_labels: bool = True, found: FolderContents | None = None
) -> Table:
    """The annotated stretches of the recordings in a folder and those below it, or of one label file.

    Args:
        path: Of the folder, with recordings and, beside each that was looked through, a label file that begins with
            its name (`a.txt` or `a.Table.1.selections.txt` for `a.wav`; an empty one says that there is nothing in
            it); or of one such file. Tables of Raven that name their files may be called otherwise.
        label_column: As for `read_annotations`.
        source: What to call it.
        has_labels: Whether the labels matter.
        found: In the folder.

    Raises:
        DataError: As from `read_annotations`; no annotation in all of them, or one of a recording that is not there.
    """
    folder = path if path.is_dir() else path.parent
    found = found or look_into(folder)
    texts, sounds = found.texts if path.is_dir() else [path.name], _by_folder(found.sounds)
    known, rows, unmarked, kinds = set(found.sounds), [], set(), set()
    for text in texts:
        recording, kind = _find_recording(text, sounds), annotation_kind(folder / text)
        if recording is None and path.is_dir() and kind != "raven":
            continue  # a README
        kinds.add(kind)
        unmarked |= {recording} - {None}
        for each in read_annotations(folder / text, label_column if has_labels else None):
            own = recording if each.recording is None else os.path.join(os.path.dirname(text), each.recording)
            if own not in known:
                name = each.recording or "of its name"
                raise DataError(f"{folder / text}, line {each.line}: expected a recording {name} beside it, got none.")
            rows.append((own, each))
    if not rows:
        raise DataError(f"{source}: expected annotations, got none in {len(texts)} label files.")
    marked = {own for own, _ in rows}
    if path.is_dir() and (others := sorted(known - marked - unmarked)):
        logger.warning(f"{source}: {len(others)} recording(s) without a label file are left out: {name_some(others)}.")
    columns = {"audio": [os.path.join(folder, own) for own, _ in rows], "label": [each.label for _, each in rows]}
    starts, ends = (np.array([getattr(each, name) for _, each in rows]) for name in ("start", "end"))
    nothing_in = tuple(os.path.join(folder, own) for own in sorted(unmarked - marked))
    return Table(
        Dataset.from_dict(columns, features=Features({"audio": Value("string"), "label": Value("string")})),
        source,
        label_column="label" if has_labels else None,
        unit="annotation",
        has_columns="raven" in kinds,
        has_separators=False,  # a line has a label, which may be "Domestic animals, pets"
        stretches=Stretches(starts, ends, nothing_in),
    )


def _by_folder(paths: Iterable[str]) -> dict[str, list[str]]:
    folders = {}
    for path in paths:
        parent, name = os.path.split(path)
        folders.setdefault(parent, []).append(name)
    return folders


def _find_recording(text: str, sounds: Mapping[str, list[str]]) -> str | None:
    """The sound whose name, with or without its ending, a label file's begins with; the longest such name."""
    parent, base = os.path.split(text)
    names = [name for name in sounds.get(parent, ()) if base.startswith((name + ".", os.path.splitext(name)[0] + "."))]
    return os.path.join(parent, max(names, key=len)) if names else None
