"""What a search found, as a table and as a page with players, in a folder."""

import csv
import html
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from modeling_ast.data.files import written_beside
from modeling_ast.data.labels import plain
from modeling_ast.inference.embedding_store import EmbeddingStore
from modeling_ast.inference.search import Match, Stretch

TABLE_NAME, PAGE_NAME = "matches.csv", "index.html"
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{font: 16px/1.4 system-ui, sans-serif; max-width: 60rem; margin: 1rem auto; padding: 0 1rem}}
li {{margin: 0.8rem 0; overflow-wrap: anywhere}}
audio {{display: block; width: 100%; max-width: 30rem; margin-top: 0.2rem}}
small {{opacity: 0.7}}
</style>
<h1>{title}</h1>
<p>{asked}</p>
<p><small>{words}</small></p>
<ol>
{matches}
</ol>
</html>
"""


def write_matches(output: Path, store: EmbeddingStore, matches: Sequence[Match], asked: Stretch) -> None:
    """Write `matches.csv` and `index.html`, whose players play the recordings where they are.

    The columns of the table are audio (the path from the table), start and end in seconds, and similarity: with a
    column of labels it is a list of labelled stretches.

    Args:
        output: Folder.
        store: That was searched.
        matches: The best first.
        asked: What was looked for.
    """
    output.mkdir(parents=True, exist_ok=True)
    found = [os.path.relpath(store.find(match.path), output.resolve()) for match in matches]
    with (
        written_beside(output / TABLE_NAME) as unfinished,
        open(unfinished, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(("audio", "start", "end", "similarity"))
        for path, match in zip(found, matches):
            writer.writerow((path, f"{match.start:g}", f"{match.end:g}", f"{match.similarity:.4f}"))
    items = [
        f"<li>{html.escape(plain(match.path))}, {_to_clock(match.start)} to {_to_clock(match.end)} "
        f"<small>{match.similarity:.3f}</small>{_player(path, match.start, match.end)}</li>"
        for path, match in zip(found, matches)
    ]
    name = plain(Path(asked.audio).name)
    source = os.path.relpath(asked.audio, output.resolve())
    page = _PAGE.format(
        title=html.escape(f"Like {name}, {_to_clock(asked.start)} to {_to_clock(asked.end)}"),
        asked=_player(source, asked.start, asked.end),
        words=html.escape(f"Of {len(store):,} stretches in {plain(str(store.path))}. The number is the cosine."),
        matches="\n".join(items),
    )
    with written_beside(output / PAGE_NAME) as unfinished:
        unfinished.write_text(page, encoding="utf-8", errors="backslashreplace")


def _player(path: str, start: float, end: float) -> str:
    """A player of a stretch of a file.

    Source: W3C Media Fragments URI 1.0, temporal dimension.
    """
    return f'<audio controls preload="none" src="{quote(os.fsencode(path))}#t={start:.3f},{end:.3f}"></audio>'


def _to_clock(seconds: float) -> str:
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours:.0f}:{minutes:02.0f}:{rest:05.2f}" if hours else f"{minutes:.0f}:{rest:05.2f}"
