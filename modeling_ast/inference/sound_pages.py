"""Pages that need no network and no server: text, and players of recordings where these are."""

import os
from collections.abc import Iterable
from html import escape
from pathlib import Path
from urllib.parse import quote

from modeling_ast.data.clips import name_clip
from modeling_ast.data.files import written_beside
from modeling_ast.data.labels import plain

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{font: 16px/1.4 system-ui, sans-serif; max-width: 60rem; margin: 1rem auto; padding: 0 1rem;
      overflow-wrap: anywhere}}
li {{margin: 0.8rem 0}}
audio {{display: block; width: 100%; max-width: 30rem; margin-top: 0.2rem}}
td, th {{padding: 0.1rem 1rem 0.1rem 0; text-align: left}}
small {{opacity: 0.7}}
pre {{white-space: pre-wrap}}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def write_page(path: Path, title: str, parts: Iterable[str]) -> None:
    """A page.

    Args:
        path: Of the file.
        title: As text.
        parts: What follows it, in HTML.
    """
    with written_beside(path) as unfinished:
        text = _PAGE.format(title=as_text(title), body="\n".join(parts))
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")


def as_text(text: str) -> str:
    """For HTML, whatever people call a file or a label."""
    return escape(plain(text))


def player(path: str, start: float | None = None, end: float | None = None) -> str:
    """A player of a file, or of a stretch of it.

    Args:
        path: Of the file, from the page's folder.
        start: Of the stretch, in seconds; `None` means the beginning of the file.
        end: Of the stretch; `None` means the end of the file.
    """
    source = name_clip(quote(os.fsencode(path)), start, end)
    return f'<audio controls preload="none" src="{source}"></audio>'


def to_clock(seconds: float) -> str:
    """As 1:02.50, with hours where there are some."""
    hours, rest = divmod(round(seconds, 2), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours:.0f}:{minutes:02.0f}:{rest:05.2f}" if hours else f"{minutes:.0f}:{rest:05.2f}"
