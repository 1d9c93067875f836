"""A folder of results of tagging: lines, tables, and what each recording gets of its own."""

import csv
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from modeling_ast import ASTFeatureExtractor, AudioError
from modeling_ast.data.files import written_beside
from modeling_ast.data.labels import DataError, plain
from modeling_ast.data.parts import Part
from modeling_ast.inference.journal import journal_files, parse
from modeling_ast.inference.recordings import read_recording
from modeling_ast.inference.results_folder import UNDIVIDED, ResultsFolder, in_folder, write_text
from modeling_ast.inference.sound_files import SoundFile
from modeling_ast.inference.timeline import Event, Timeline, audacity_labels, is_number, read_timeline
from modeling_ast.loading import as_model_error

logger = logging.getLogger(__name__)

# What a line lists of a recording, and what each row of a list says.
_LISTS = {"tags": ("label", "score"), "events": ("label", "start", "end", "score")}
# What can be written of each recording, in a folder each.
_FOLDERS = {"csv": ("timelines", ".csv"), "audacity": ("audacity", ".txt"), "png": ("pictures", ".png")}
# The lines of `results.jsonl` are always written.
FORMATS = ("jsonl", "parquet", *_FOLDERS)


def import_for(formats: Sequence[str]) -> None:
    """Import what formats are written with, or say at once, by an ImportError, that it is missing."""
    if "png" in formats:
        import modeling_ast.inference.plots  # noqa: F401 - matplotlib
    if "parquet" in formats:
        import modeling_ast.inference.parquet_tables  # noqa: F401 - pyarrow


class TagsFolder(ResultsFolder):
    """Results of tagging in a folder.

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
            `None` only reads what is there, and changes nothing.

    Raises:
        DataError: The folder holds results with other settings, or something else in their place.
    """

    list_name = "events"

    def __init__(
        self,
        path: str | os.PathLike,
        settings: Mapping[str, Any],
        formats: Sequence[str],
        overwrite: bool = False,
        part: Part | None = UNDIVIDED,
    ):
        self.formats = [name for name in _FOLDERS if name in formats]
        self._tables = [Path(path) / f"{name}.csv" for name in _LISTS]
        self._parquet = Path(path) / "tags.parquet"
        # A table that is there is kept up with the lines, from which it can be had at any time.
        self._has_parquet = "parquet" in formats or (self._parquet.exists() and not overwrite)
        import_for(["parquet"] if self._has_parquet else [])
        self._inside = {}  # whether a folder, its links followed, lies in that of its format
        super().__init__(path, {**settings, "formats": self.formats}, overwrite, part)

    @classmethod
    def reopen(cls, path: str | os.PathLike, read_only: bool = False) -> "TagsFolder":
        """The results in a folder, under the settings that they have.

        Args:
            path: Of the folder.
            read_only: Whether nothing in it is to be changed.

        Raises:
            DataError: No results, or something else in their place.
        """
        try:
            settings = json.loads((Path(path) / "settings.json").read_bytes())
            formats = settings.pop("formats")
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise DataError(f"{path} holds no results whose events could be found again.") from error
        return cls(path, settings, formats, part=None if read_only else UNDIVIDED)

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
        places, numbers = {}, {}  # what was taken stays so: of a name no number is tried twice
        for file in files:
            entry = self.entries.get(file.path)
            place = entry and entry.place
            if place is None:
                number = numbers.get(file.place, 1)
                while (place := _numbered(file.place, number)).casefold() in taken:
                    number += 1
                numbers[file.place] = number + 1
            taken.add(place.casefold())
            places[file.path] = place
        return [replace(file, place=places[file.path]) for file in super().pending(files, retry)]

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
            timeline.write_csv(in_folder(self.output_path(file.place, "csv")))
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
            ModelError: A model that is not there any longer, whose feature extractor a picture needs.
        """
        settings = parse(self.settings_path.read_bytes()) or {}
        if settings.get("thresholds") is None or "csv" not in self.formats:
            raise DataError(f"{self.path} holds no timelines that events could be found in (--formats csv).")
        extractor = None
        if "png" in self.formats:
            import modeling_ast.inference.plots  # noqa: F401 - or say at once that matplotlib is missing

            extractor = self._load_extractor()
        # The lines, with all that can go wrong in options and timelines, come first, and then what is made of them.
        self.journal.replace(self._with_events(settings, options))
        write_text(self.settings_path, json.dumps({**settings, **options}, indent=2, allow_nan=False) + "\n")
        self.settings |= options
        self.write_tables()
        for line in self.journal.lines() if {"audacity", "png"} & set(self.formats) else ():
            if "error" not in line:
                timeline = self._read_timeline(line["place"], settings) if extractor else None
                events = [Event(**row) for row in line["events"]]
                try:
                    self._write_events(line["path"], line["place"], timeline, events, extractor, ignore_length=True)
                except AudioError as error:
                    logger.warning(f"{plain(str(error))} Its picture is the one of before.")

    def results(self) -> Iterator[tuple[dict[str, Any], Timeline | None]]:
        """The line of each recording that could be tagged, by path, and its timeline where those are kept.

        Raises:
            DataError: A timeline that is not there, or is none.
        """
        for line in self.journal.lines():
            if "error" not in line:
                try:
                    timeline = None
                    if "csv" in self.formats:
                        timeline = self._read_timeline(line["place"], self.settings)
                except (ValueError, OSError) as error:
                    what = f"the timeline of {line['path']}"
                    raise DataError(f"{self.path}: {what} cannot be read ({error}).") from error
                yield line, timeline

    def why_silent(self) -> str | None:
        """A sentence with the highest score, where no recording has an event; `None` elsewhere, or without timelines.

        Raises:
            DataError: As from `results`.
        """
        if (
            self.part.count > 1
            or self.settings["thresholds"] is None
            or any(entry.num_rows for entry in self.entries.values())
        ):
            return None
        best = {}
        for _, timeline in self.results():
            if timeline is not None and len(timeline.scores):
                own = zip(timeline.label_names, timeline.scores.max(axis=0).tolist())
                best |= {name: max(score, best.get(name, 0.0)) for name, score in own}
        heard = {name: score for name, score in best.items() if name not in self.settings["ignore"]}
        if not heard:
            return None
        label = max(heard, key=heard.get)
        return (
            f"The highest score is {heard[label]:.3g}, of {plain(label)}: --events_only with another --threshold or "
            "--min_seconds looks for events anew."
        )

    def draw_beside_truth(self, truth: Mapping[str, Sequence[Event]], folder: Path) -> None:
        """Draw recordings with what is annotated in them, into `pictures/` of a folder.

        Args:
            truth: What is annotated, by the path of the recording as the results have it.
            folder: For the pictures.

        Raises:
            DataError: Results without timelines.
            AudioError: A recording that cannot be read any longer.
            ModelError: A model that is not there any longer, whose feature extractor a picture needs.
        """
        from modeling_ast.inference.figures import may_fail
        from modeling_ast.inference.plots import plot_timeline

        if "csv" not in self.formats:
            raise DataError(f"{self.path} holds no timelines that could be drawn (--formats csv).")
        extractor = self._load_extractor()
        for line, timeline in self.results():
            if (annotated := truth.get(line["path"])) is not None:
                picture = in_folder(folder / "pictures" / f"{line['place']}.png")
                pieces, events = read_recording(line["path"], extractor.sampling_rate, True), line["events"]
                with may_fail(picture):
                    found = [Event(**row) for row in events]
                    plot_timeline(pieces, extractor, timeline, found, picture, line["path"], annotated)

    def _load_extractor(self) -> ASTFeatureExtractor:
        with as_model_error(self.settings["model"]):
            return ASTFeatureExtractor.from_pretrained(self.settings["model"])

    def _with_events(self, settings: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The lines, with the events that are in the timelines by other options."""
        for line in self.journal.lines():
            if "error" not in line:
                try:
                    timeline = self._read_timeline(line["place"], settings)
                    line["events"] = _to_rows(timeline.find_events(**options))
                except (ValueError, OSError) as error:  # of a timeline that is not there, or of the options
                    raise DataError(str(error)) from error
            yield line

    def _read_timeline(self, place: str, settings: Mapping[str, Any]) -> Timeline:
        return read_timeline(self.output_path(place, "csv"), settings["sampling_rate"], settings["thresholds"])

    def _write_events(
        self,
        path: str,
        place: str,
        timeline: Timeline | None,
        events: Sequence[Event],
        extractor: ASTFeatureExtractor | None,
        ignore_length: bool,
    ) -> None:
        if "audacity" in self.formats:
            write_text(self.output_path(place, "audacity"), audacity_labels(events))
        if "png" in self.formats:
            from modeling_ast.inference.figures import may_fail
            from modeling_ast.inference.plots import plot_timeline

            pieces = read_recording(path, extractor.sampling_rate, ignore_length)
            picture = self.output_path(place, "png")
            with may_fail(picture):
                plot_timeline(pieces, extractor, timeline, events, in_folder(picture), title=path)

    def add_error(self, file: SoundFile, message: str) -> None:
        """Write why a file cannot be used; what it gave before it changed is deleted."""
        self._delete_outputs(file.place)
        super().add_error(file, message)

    def output_path(self, place: str, format: str) -> Path:
        """Where the timeline (csv), the events (audacity) or the picture (png) of a file is, by its place."""
        folder, suffix = _FOLDERS[format]
        return self.path / folder / (place + suffix)

    def write_tables(self, files: Sequence[SoundFile] = ()) -> None:
        """`tags.csv` and `events.csv`, where csv is wanted, and `tags.parquet` of all lines."""
        with ExitStack() as stack:
            writers = {}
            for table, (name, columns) in zip(self._tables, _LISTS.items()) if "csv" in self.formats else ():
                unfinished = stack.enter_context(written_beside(table))
                # Names of files may hold bytes that are no UTF-8.
                file = open(unfinished, "w", encoding="utf-8", errors="backslashreplace", newline="")
                writers[name] = csv.writer(stack.enter_context(file))
                writers[name].writerow(["path", *columns])
            for line in self.journal.lines() if writers else ():
                for name, writer in writers.items():
                    rows = line.get(name, ())
                    writer.writerows([line["path"], *(row[column] for column in _LISTS[name])] for row in rows)
        if self._has_parquet:
            from modeling_ast.inference.parquet_tables import write_tags

            write_tags(self._parquet, self.journal.lines(), self.settings)

    def is_result(self, entry: Mapping[str, Any]) -> bool:
        """Whether a line is one that is written here, with nothing in it that leads out of the folder."""
        if not is_number(entry.get("seconds")) or not self._is_place(entry.get("place")):
            return False
        return all(
            isinstance(entry.get(name), list)
            and all(isinstance(row, dict) and row.keys() == set(columns) for row in entry[name])
            for name, columns in _LISTS.items()
        )

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

    def _delete(self) -> None:
        for journal in journal_files(self.path):
            with open(journal, "rb") as file:
                for entry in filter(None, map(parse, file)):
                    # A file of somebody else's lies elsewhere, whatever a line says.
                    if self._is_place(entry.get("place")):
                        self._delete_outputs(entry["place"])
        for path in (*self._tables, self._parquet):
            path.unlink(missing_ok=True)
        super()._delete()

    def _delete_outputs(self, place: str) -> None:
        for format in _FOLDERS:
            self.output_path(place, format).unlink(missing_ok=True)


def _to_rows(events: Sequence[Event]) -> list[dict[str, Any]]:
    return [
        {key: value if key == "label" else round(value, 6) for key, value in asdict(event).items()} for event in events
    ]


def _numbered(place: str, number: int) -> str:
    """A place of the same kind: of `street/a.wav` itself (1), `street-2/a.wav`, `street-3/a.wav`, ..."""
    if number == 1:
        return place
    first, *rest = Path(place).parts
    return Path(Path(first).with_stem(f"{Path(first).stem}-{number}"), *rest).as_posix()
