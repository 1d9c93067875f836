"""A folder of results over many recordings: a journal, so that a run can stop anywhere and go on, under settings."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from modeling_ast.data.files import remove_unfinished, written_beside
from modeling_ast.data.labels import DataError
from modeling_ast.data.locks import claimed
from modeling_ast.data.parts import Part, running_parts
from modeling_ast.inference.journal import Entry, Journal, journal_files, parse
from modeling_ast.inference.sound_files import SoundFile

UNDIVIDED = Part()


class ResultsFolder(ABC):
    """Results of one model under one set of settings, in a folder that remembers them.

    A line of its journal says what came of a recording, with its `stamp`; one that cannot be used has an `error` in
    place of all else. Who writes such a folder says in a subclass what else is in a line, and what is made of them.

    Attributes:
        option: Of the command, by which the folder is chosen.
        unit: What a recording is called.
        list_name: What a line lists of a recording, whose rows are counted.

    Args:
        path: Of the folder; it is made where there is none.
        settings: All that the results depend on besides the recordings, as JSON holds it: under `model` and
            `fingerprint` the model's name and what tells whether it is the same.
        overwrite: Whether to delete the results that are there, and nothing else.
        part: Of a divided run, which this process does. It gets a journal of its own until `finish` joins them all.
            `None` only reads what is there, and changes nothing.

    Raises:
        DataError: The folder holds results with other settings, or something else in their place.
    """

    option, unit, list_name = "--output_dir", "file", ""

    def __init__(
        self,
        path: str | os.PathLike,
        settings: Mapping[str, Any],
        overwrite: bool = False,
        part: Part | None = UNDIVIDED,
    ):
        self.path, self.part = Path(path), part
        self.settings_path = self.path / "settings.json"
        self.settings = json.loads(json.dumps(settings))
        remedy = f"Give another {self.option}, or --overwrite to delete them and begin anew."
        if part is None:
            self.journal = Journal(self.path, part, self.list_name, self.is_result, remedy)
            return
        with self._joining():
            remove_unfinished(self.path)  # which no other part writes meanwhile
            if overwrite:
                self._delete()
            if self.settings_path.exists():
                self._check_settings(remedy)
            elif journal_files(self.path):
                raise DataError(f"{self.path} holds results without their settings. {remedy}")
            else:
                write_text(self.settings_path, json.dumps(self.settings, indent=2) + "\n")
            self.journal = Journal(self.path, part, self.list_name, self.is_result, remedy)

    @property
    def entries(self) -> dict[str, Entry]:
        """What is known of each recording, by its path."""
        return self.journal.entries

    @abstractmethod
    def is_result(self, entry: Mapping[str, Any]) -> bool:
        """Whether a line, with a path and without an error, is one that is written here."""

    @abstractmethod
    def write_tables(self, files: Sequence[SoundFile]) -> None:
        """Write what is made of the lines of all parts.

        Args:
            files: Of the run, with all its parts.
        """

    def pending(self, files: Sequence[SoundFile], retry: bool = False) -> list[SoundFile]:
        """Those of this part that have no results yet.

        Args:
            files: Of the run, with all its parts.
            retry: Whether those that were broken are tried again.
        """
        return [file for file in files if self.part.includes(file.path) and not self._is_known(file, retry)]

    def add_error(self, file: SoundFile, message: str) -> None:
        """Write why a file cannot be used."""
        self.journal.append({"path": file.path, "error": message, "stamp": file.stamp})

    def finish(self, files: Sequence[SoundFile]) -> tuple[bool, list[SoundFile]]:
        """Join what the parts have written, and write the tables of all, if nothing is missing and no part at work.

        Args:
            files: Of the run, with all its parts.

        Returns:
            Whether that was done, and the files that have no results yet. Where another part is at work, it does this
            at its end.
        """
        with self._joining():
            self.journal.read()
            missing = [file for file in files if not self._is_known(file)]
            if missing or running_parts(self.path, self.part):
                return False, missing
            self.journal.join()
            missing = [file for file in files if not self._is_known(file)]
            if not missing:
                self.write_tables(files)
        return not missing, missing

    def _is_known(self, file: SoundFile, retry: bool = False) -> bool:
        entry = self.entries.get(file.path)
        return entry is not None and entry.stamp == tuple(file.stamp) and not (retry and entry.has_error)

    def _joining(self) -> AbstractContextManager[None]:
        """While it is entered, no other part reads or changes files that it does not write alone."""
        return claimed(self.path, None, "_joining")

    def _check_settings(self, remedy: str) -> None:
        before, settings = parse(self.settings_path.read_bytes()), self.settings
        if before is None:
            raise DataError(f"{self.settings_path}: not the settings of results. {remedy}")
        names = [name for name in settings | before if before.get(name) != settings.get(name)]
        # A model may have moved, and may have changed in its place.
        if "fingerprint" not in names:
            names = [name for name in names if name != "model"]
        elif "model" in names:
            names.remove("fingerprint")
        differences = [
            f"{settings['model']} has changed"
            if name == "fingerprint"
            else f"{name} was {_show(before.get(name))}, is {_show(settings.get(name))}"
            for name in names
        ]
        if differences:
            raise DataError(f"{self.path} holds results of other settings: {'; '.join(differences)}. {remedy}")

    def _delete(self) -> None:
        for path in (*journal_files(self.path), self.settings_path):
            path.unlink(missing_ok=True)


def _show(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "nothing"
    return "not given" if value is None else str(value)


def write_text(path: Path, text: str) -> None:
    """Write a file; names of files in the text may hold bytes that are no UTF-8."""
    with written_beside(in_folder(path)) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def in_folder(path: Path) -> Path:
    """The path, whose folder is there now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
