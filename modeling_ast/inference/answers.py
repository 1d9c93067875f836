"""A list of labelled stretches that is written answer by answer."""

import csv
import io
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from modeling_ast.data.files import written_beside
from modeling_ast.data.label_columns import is_name
from modeling_ast.data.labels import DataError, plain
from modeling_ast.data.truth import LabelledStretch, read_labelled_stretches

COLUMNS = ("audio", "start", "end", "label")


class AnswersList:
    """The file of a list: each answer is on the disk when `append` returns.

    Args:
        path: Of the list, which ends in `.csv`; it is made with the first answer. It may have further columns, which
            stay empty.

    Raises:
        DataError: A list that cannot be used, or that no rows can be added to.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(os.path.realpath(path))  # a link stays one
        self._columns, self._version, self._known = list(COLUMNS), None, []
        self._read_columns()
        self.read()

    def read(self) -> list[LabelledStretch]:
        """What the list says, which somebody else may have changed."""
        if not self._has_rows_or_header() or len(self.path.read_bytes().splitlines()) < 2:
            return []
        state = self.path.stat()
        version = state.st_ino, state.st_mtime_ns, state.st_size
        if self._version != version:
            self._known, self._version = read_labelled_stretches(str(self.path)), version
        return self._known

    def append(self, audio: str, start: float, end: float, labels: Sequence[str]) -> str:
        """Add what is known of a stretch, and return the lines that were added.

        Raises:
            DataError: A label with a comma in it.
        """
        return self._write([LabelledStretch(audio, start, end, tuple(labels))])

    def extend(self, stretches: Iterable[LabelledStretch]) -> int:
        """Add what is known of stretches of which the list says nothing, and return how many these were.

        Raises:
            DataError: As from `append`.
        """
        known = {self._place(each) for each in self.read()}
        new = [each for each in stretches if self._place(each) not in known]
        if new:
            self._write(new)
        return len(new)

    def remove(self, lines: str) -> bool:
        """Take back what `append` added last of these lines; whether they are there, as they were written."""
        self._version = None
        content = self.path.read_bytes().decode("utf-8", "surrogateescape") if self.path.exists() else ""
        for end in ("\n", "\r\n", "\r"):  # spreadsheets have their own
            added = lines.replace("\n", end)
            at = (end + content).rfind(end + added)  # of a line's start: "1.wav" also ends "11.wav"
            if at >= 0:
                with written_beside(self.path, durable=True) as unfinished:
                    rest = content[:at] + content[at + len(added) :]
                    unfinished.write_bytes(rest.encode("utf-8", "surrogateescape"))
                return True
        return False

    def tells_of(self, audio: str, start: float, end: float) -> bool:
        """Whether the list has the stretch."""
        place = self._place(LabelledStretch(audio, start, end, ()))
        return any(self._place(each) == place for each in self.read())

    def _write(self, stretches: Sequence[LabelledStretch]) -> str:
        if wrong := next((label for each in stretches for label in each.labels if "," in label), None):
            raise DataError(f"{self.path}: commas stand between labels in it, and are in none, got {plain(wrong)!r}.")
        if wrong := next((label for each in stretches for label in each.labels if not is_name(label)), None):
            raise DataError(f"Expected labels that are words, got {plain(wrong)!r}.")
        self._version = None
        self._read_columns()
        lines = self._format(
            [dict(zip(COLUMNS, (*self._place(each), label))) for each in stretches for label in each.labels or [""]]
        )
        start_of_file = "" if self._has_rows_or_header() else self._header()
        with open(self.path, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) not in (b"\n", b"\r"):  # a list whose last line has no end
                    start_of_file = "\n"
            file.write((start_of_file + lines).encode())
            file.flush()
            os.fsync(file.fileno())
        return lines

    def _place(self, stretch: LabelledStretch) -> tuple[str, str, str]:
        """Recording, start and end, as the list writes them."""
        folder = self.path.absolute().parent.resolve()
        return os.path.relpath(stretch.audio, folder), _to_text(stretch.start), _to_text(stretch.end)

    def _read_columns(self) -> None:
        """Of the list as it is now, which somebody may have written anew in another form."""
        if self._has_rows_or_header():
            try:
                text = self.path.read_bytes().decode("utf-8-sig")
                self._columns = [name.strip() for name in next(csv.reader(io.StringIO(text, newline="")), [])]
                if missing := set(COLUMNS) - set(self._columns):
                    raise ValueError(f"no column {min(missing)}")
            except ValueError as error:  # of other letters too
                raise DataError(
                    f"{self.path}: expected a list in UTF-8 with commas and the columns {', '.join(COLUMNS)}, which "
                    f"answers can be added to, got another ({error})."
                ) from error

    def _has_rows_or_header(self) -> bool:
        return self.path.exists() and self.path.stat().st_size > 0

    def _format(self, rows: Sequence[dict[str, str]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, restval="", lineterminator="\n").writerows(rows)
        return text.getvalue()

    def _header(self) -> str:
        return ",".join(self._columns) + "\n"


def _to_text(seconds: float) -> str:
    return "" if math.isinf(seconds) else f"{seconds:.6f}".rstrip("0").rstrip(".")
