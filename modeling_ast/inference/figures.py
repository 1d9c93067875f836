"""Figures of matplotlib: made, lettered and written in one way."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib.figure import Figure  # the object interface needs no display

from modeling_ast.audio import AudioError
from modeling_ast.data.files import written_beside
from modeling_ast.inference.lettering import drawable, letter

logger = logging.getLogger(__name__)

# Characters of a name, and of a title, that are drawn; a longer one is cut in its middle.
MAX_NAME, MAX_TITLE = 40, 80


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches."""
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure into a picture file, whose suffix chooses the format."""
    letter(figure)
    with written_beside(path) as unfinished:
        figure.savefig(unfinished, dpi=120)


@contextmanager
def may_fail(path: str | os.PathLike) -> Iterator[None]:
    """Around the drawing of a picture that is no more than an extra: a fault is told in one sentence, and no end.

    Args:
        path: Of the picture.

    Raises:
        AudioError: A recording cannot be read any longer, which is no fault of the picture.
    """
    try:
        yield
    except AudioError:
        raise
    except Exception as error:  # whatever it is, the results are worth more
        reason = drawable(str(error), 200) or type(error).__name__
        logger.warning(f"{os.fspath(path)} cannot be drawn ({reason}); all else goes on.")
