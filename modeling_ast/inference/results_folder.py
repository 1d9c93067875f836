"""A folder of results of tagging: a journal, so that a run can stop anywhere and go on, and tables and timelines."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from modeling_ast import ASTFeatureExtractor
from modeling_ast.data.files import written_beside
from modeling_ast.data.labels import DataError
from modeling_ast.data.locks import claimed
from modeling_ast.inference.journal import MEND, TABLES, Entry, Journal, journal_files, parse
from modeling_ast.inference.parts import Part, running_parts
from modeling_ast.inference.recordings import read_recording
from modeling_ast.inference.sound_files import SoundFile
from modeling_ast.inference.timeline import Event, Timeline, audacity_labels, read_timeline
from modeling_ast.loading import as_model_error

# What can be written. There is a folder for each but the lines of `results.jsonl`, which always are.
_FOLDERS = {"csv": ("timelines", ".csv"), "audacity": ("audacity", ".txt"), "png": ("pictures", ".png")}
FORMATS = ("jsonl", *_FOLDERS)
_UNDIVIDED = Part()


class ResultsFolder:
    """Results of one model under one set of settings, in a folder that remembers them.

    `results.jsonl` gets a line for a file once its other results are written, with scores to six digits and times in
    seconds:

        {"path", "seconds", "tags": [{"label", "score"}], "events": [{"label", "start", "end", "score"}],
         "place", "stamp"}, or {"path", "error", "stamp"}

    `place` is what the file's own results are called in `timelines/`, `audacity/` and `pictures/`, without their
    suffix; a line whose place leads out of these folders is refused. `stamp` is the file's size in bytes and its time
    of change in nanoseconds: with another one it is another file, to be tagged anew. Of several lines of a path the
    last counts. Paths are kept exactly, whatever bytes they hold; the UTF-8 tables show other bytes as `\\udcXX`.

    Args:
        path: Of the folder; it is made where there is none.
        settings: All that the results depend on besides the recordings, as JSON holds it: under `model` and
            `fingerprint` the model's name and what tells whether it is the same.
        formats: Some of `FORMATS`.
        overwrite: Whether to delete the results that are there, and nothing else.
        part: Of a divided run, which this process does. It gets a journal of its own until `finish` joins them all.

    Raises:
        DataError: The folder holds results with other settings, or something else in their place.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        settings: Mapping[str, Any],
        formats: Sequence[str],
        overwrite: bool = False,
        part: Part = _UNDIVIDED,
    ):
        self.path, self.formats, self.part = Path(path), [name for name in _FOLDERS if name in formats], part
        self.settings_path = self.path / "settings.json"
        self._inside = {}  # whether a folder, its links followed, lies in that of its format
        settings = {**settings, "formats": self.formats}
        with self._joining():
            if overwrite:
                self._delete()
            if self.settings_path.exists():
                self._check_settings(settings)
            elif journal_files(self.path):
                raise DataError(f"{self.path} holds results without their settings. {MEND}")
            else:
                _write(self.settings_path, json.dumps(settings, indent=2) + "\n")
            self.journal = Journal(self.path, part, self._is_place)

    @property
    def entries(self) -> dict[str, Entry]:
        """What is known of each recording, by its path."""
        return self.journal.entries

    @classmethod
    def reopen(cls, path: str | os.PathLike) -> "ResultsFolder":
        """The results in a folder, under the settings that they have.

        Raises:
            DataError: No results, or something else in their place.
        """
        try:
            settings = json.loads((Path(path) / "settings.json").read_bytes())
            formats = settings.pop("formats")
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise DataError(f"{path} holds no results whose events could be found again.") from error
        return cls(path, settings, formats)

    def pending(self, files: Sequence[SoundFile], retry: bool = False) -> list[SoundFile]:
        """Those of this part that have no results yet, in places that no other file has.

        Places are given to the files of all parts, in their order: so every part gives the same ones, whatever the
        others have written meanwhile.

        Args:
            files: Of the run, with all its parts.
            retry: Whether those that were broken are tried again.
        """
        # Without regard to case: some file systems have none.
        taken = {entry.place.casefold() for entry in self.entries.values() if entry.place}
        pending, numbers = [], {}  # what was taken stays so: of a name no number is tried twice
        for file in files:
            entry = self.entries.get(file.path)
            place = entry and entry.place
            if place is None:
                number = numbers.get(file.place, 1)
                while (place := _numbered(file.place, number)).casefold() in taken:
                    number += 1
                numbers[file.place] = number + 1
            taken.add(place.casefold())
            is_done = entry and entry.stamp == tuple(file.stamp) and not (retry and entry.place is None)
            if self.part.includes(file.path) and not is_done:
                pending.append(replace(file, place=place))
        return pending

    def add(
        self,
        file: SoundFile,
        tags: Sequence[Mapping[str, Any]],
        events: Sequence[Event],
        timeline: Timeline,
        extractor: ASTFeatureExtractor,
        ignore_length: bool = False,
    ) -> None:
        """Write the results of a file.

        Args:
            file: As `pending` gives it.
            tags: `[{"label": ..., "score": ...}, ...]`.
            events: As `Timeline.find_events` gives them.
            timeline: Of the recording.
            extractor: For the spectrogram in the picture.
            ignore_length: As for `load_waveform`, likewise.

        Raises:
            AudioError: The file, which is read once more for the picture, cannot be used any longer.
        """
        if "csv" in self.formats:
            timeline.write_csv(_in_folder(self.output_path(file.place, "csv")))
        self._write_events(file.path, file.place, timeline, events, extractor, ignore_length)
        self.journal.append(
            {
                "path": file.path,
                "seconds": round(timeline.seconds, 6),
                "tags": [{"label": tag["label"], "score": round(tag["score"], 6)} for tag in tags],
                "events": _to_rows(events),
                "place": file.place,
                "stamp": file.stamp,
            }
        )

    def find_again(self, options: Mapping[str, Any]) -> None:
        """Find the events of all recordings anew, in their saved timelines; no recording is read for it.

        Args:
            options: Of `Timeline.find_events`; they take the place of those in the settings.

        Raises:
            DataError: Results without events or timelines, or options that cannot work.
            AudioError: A recording that cannot be read any longer, which a picture needs.
            ModelError: A model that is not there any longer, whose feature extractor a picture needs.
        """
        settings = parse(self.settings_path.read_bytes()) or {}
        if settings.get("thresholds") is None or "csv" not in self.formats:
            raise DataError(f"{self.path} holds no timelines that events could be found in (--formats csv).")
        extractor = None
        if "png" in self.formats:
            import modeling_ast.inference.plots  # noqa: F401 - or say at once that matplotlib is missing

            with as_model_error(settings["model"]):
                extractor = ASTFeatureExtractor.from_pretrained(settings["model"])
        found = {}
        for path, entry in self.entries.items():
            if entry.place is not None:
                try:
                    table = self.output_path(entry.place, "csv")
                    timeline = read_timeline(table, settings["sampling_rate"], settings["thresholds"])
                    found[path] = timeline, timeline.find_events(**options)
                except (ValueError, OSError) as error:  # of a timeline that is not there, or of the options
                    raise DataError(str(error)) from error
        for path, (timeline, events) in found.items():
            place = self.entries[path].place
            self._write_events(path, place, timeline, events, extractor, ignore_length=True)  # it was read
        events_of = {path: _to_rows(events) for path, (_, events) in found.items()}
        self.journal.replace(
            {**line, "events": events_of[line["path"]]} if "error" not in line else line
            for line in self.journal.lines()
        )
        _write(self.settings_path, json.dumps({**settings, **options}, indent=2, allow_nan=False) + "\n")
        self.write_tables()

    def _write_events(
        self,
        path: str,
        place: str,
        timeline: Timeline,
        events: Sequence[Event],
        extractor: ASTFeatureExtractor | None,
        ignore_length: bool,
    ) -> None:
        if "audacity" in self.formats:
            _write(self.output_path(place, "audacity"), audacity_labels(events))
        if "png" in self.formats:
            from modeling_ast.inference.figures import may_fail
            from modeling_ast.inference.plots import plot_timeline

            pieces = read_recording(path, extractor.sampling_rate, ignore_length)
            picture = self.output_path(place, "png")
            with may_fail(picture):
                plot_timeline(pieces, extractor, timeline, events, _in_folder(picture), title=path)

    def add_error(self, file: SoundFile, message: str) -> None:
        """Write why a file cannot be used; what it gave before it changed is deleted."""
        self._delete_outputs(file.place)
        self.journal.append({"path": file.path, "error": message, "stamp": file.stamp})

    def output_path(self, place: str, format: str) -> Path:
        """Where the timeline (csv), the events (audacity) or the picture (png) of a file is, by its place."""
        folder, suffix = _FOLDERS[format]
        return self.path / folder / (place + suffix)

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
            is_whole = not missing and not running_parts(self.path, self.part)
            if is_whole:
                self.write_tables()
                self.journal.join()
        return is_whole, missing

    def _is_known(self, file: SoundFile) -> bool:
        entry = self.entries.get(file.path)
        return entry is not None and entry.stamp == tuple(file.stamp)

    def _joining(self) -> AbstractContextManager[None]:
        """While it is entered, no other part reads or changes files that it does not write alone."""
        return claimed(self.path, None, "_joining")

    def write_tables(self) -> None:
        """`tags.csv` and `events.csv` where csv is wanted, from all lines of `results.jsonl`."""
        with ExitStack() as stack:
            writers = {}
            for name, columns in TABLES.items() if "csv" in self.formats else ():
                unfinished = stack.enter_context(written_beside(self.path / f"{name}.csv"))
                # Names of files may hold bytes that are no UTF-8.
                table = open(unfinished, "w", encoding="utf-8", errors="backslashreplace", newline="")
                writers[name] = csv.writer(stack.enter_context(table))
                writers[name].writerow(["path", *columns])
            for line in self.journal.lines() if writers else ():
                for name, writer in writers.items():
                    rows = line.get(name, ())
                    writer.writerows([line["path"], *(row[column] for column in TABLES[name])] for row in rows)

    def _is_place(self, place: Any) -> bool:
        """Whether it names files in the folders of the formats, also where links lie in them."""
        if not isinstance(place, str) or "\0" in place or not Path(place).name or ".." in Path(place).parts:
            return False
        return all(self._is_inside(self.output_path(place, format).parent, format) for format in _FOLDERS)

    def _is_inside(self, parent: Path, format: str) -> bool:
        if parent not in self._inside:  # the places of a hundred thousand files are in few folders
            folder = Path(os.path.realpath(self.path), _FOLDERS[format][0])
            self._inside[parent] = Path(os.path.realpath(parent)).is_relative_to(folder)
        return self._inside[parent]

    def _check_settings(self, settings: dict[str, Any]) -> None:
        before = parse(self.settings_path.read_bytes())
        if before is None:
            raise DataError(f"{self.settings_path}: not the settings of results. {MEND}")
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
            raise DataError(f"{self.path} holds results of other settings: {'; '.join(differences)}. {MEND}")

    def _delete(self) -> None:
        journals = journal_files(self.path)
        for journal in journals:
            for line in journal.read_bytes().split(b"\n"):
                entry = parse(line) or {}
                if self._is_place(
                    entry.get("place")
                ):  # a file of somebody else's lies elsewhere, whatever a line says
                    self._delete_outputs(entry["place"])
        for path in (*journals, self.settings_path, *(self.path / f"{name}.csv" for name in TABLES)):
            path.unlink(missing_ok=True)

    def _delete_outputs(self, place: str) -> None:
        for format in _FOLDERS:
            self.output_path(place, format).unlink(missing_ok=True)


def _to_rows(events: Sequence[Event]) -> list[dict[str, Any]]:
    return [
        {key: value if key == "label" else round(value, 6) for key, value in asdict(event).items()} for event in events
    ]


def _show(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "nothing"
    return "not given" if value is None else str(value)


def _numbered(place: str, number: int) -> str:
    """A place of the same kind: of `street/a.wav` itself (1), `street-2/a.wav`, `street-3/a.wav`, ..."""
    if number == 1:
        return place
    first, *rest = Path(place).parts
    return Path(Path(first).with_stem(f"{Path(first).stem}-{number}"), *rest).as_posix()


def _write(path: Path, text: str) -> None:
    with written_beside(_in_folder(path)) as unfinished:  # names of files may hold bytes that are no UTF-8
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def _in_folder(path: Path) -> Path:
    """The path, whose folder is there now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
