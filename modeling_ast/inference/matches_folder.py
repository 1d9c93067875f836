"""What a search found, as a table and as a page with players, in a folder."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from modeling_ast.data.files import written_beside
from modeling_ast.data.labels import DataError, read_rows
from modeling_ast.inference.embedding_store import EmbeddingStore
from modeling_ast.inference.search import Match, Stretch
from modeling_ast.inference.sound_pages import as_text, player, to_clock, write_page

TABLE_NAME, PAGE_NAME = "matches.csv", "index.html"
_COLUMNS = ("audio", "start", "end", "similarity")


def write_matches(output: Path, store: EmbeddingStore, matches: Sequence[Match], asked: Stretch) -> None:
    """Write `matches.csv` and `index.html`, whose players play the recordings where they are.

    The columns of the table are audio (the path from the table), start and end in seconds, and similarity: with a
    column of labels it is a list of labelled stretches.

    Args:
        output: Folder.
        store: That was searched.
        matches: The best first.
        asked: What was looked for.

    Raises:
        DataError: A table with further columns is there, such as one that was labelled.
    """
    output.mkdir(parents=True, exist_ok=True)
    table = output / TABLE_NAME
    if table.is_file() and tuple(next(iter(read_rows(table)), (0, _COLUMNS))[1]) != _COLUMNS:
        raise DataError(f"{table} has columns of your own, which a new search would replace: choose another --output.")
    found = [os.path.relpath(store.find(match.path), output.resolve()) for match in matches]
    with (
        written_beside(table) as unfinished,
        open(unfinished, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for path, match in zip(found, matches):
            writer.writerow((path, f"{match.start:.10g}", f"{match.end:.10g}", f"{match.similarity:.4f}"))
    items = [
        f"<li>{as_text(match.path)}, {to_clock(match.start)} to {to_clock(match.end)} "
        f"<small>{match.similarity:.3f}</small>{player(path, match.start, match.end)}</li>"
        for path, match in zip(found, matches)
    ]
    title = f"Like {Path(asked.audio).name}, {to_clock(asked.start)} to {to_clock(asked.end)}"
    words = as_text(f"Of {len(store):,} stretches in {store.path}. The number is the cosine.")
    source = player(os.path.relpath(asked.audio, output.resolve()), asked.start, asked.end)
    head = [f"<p>{source}</p>", f"<p><small>{words}</small></p>"]
    write_page(output / PAGE_NAME, title, [*head, "<ol>", *items, "</ol>"])
