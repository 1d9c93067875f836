"""Text in pictures: fonts for any script, and no name taken for mathematics."""

import logging
import unicodedata
from functools import cache

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

logger = logging.getLogger(__name__)

# Families that have many scripts, and are looked into first.
_LARGE = ("noto", "unicode", "unifont", "cjk", "wenquanyi", "droid", "gothic", "hei", "ming", "song")
# Marks that turn the direction of all that follows.
_TURNS = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])
_VARIANTS = {chr(code) for code in range(0xFE00, 0xFE10)}  # say how the character before is drawn
_WARNED: set[str] = set()  # characters that no font has, once that was told


def drawable(text: str, longest: int, number: int | None = None) -> str:
    """Text that can be drawn: one line of characters that a font has, cut in its middle.

    Args:
        text: Whatever people call a label or a file.
        longest: So many characters.
        number: Of the label in the model; it stands for a name that no font has. Of other texts such characters are
            escaped.
    """
    text = " ".join(text.encode("utf-8", "backslashreplace").decode().translate(_TURNS).split())
    missing = {character for character in text if _family(character) is None}
    seen = {each for each in missing if unicodedata.category(each) not in ("Cc", "Cf") and each not in _VARIANTS}
    if seen:
        _warn_once(seen)
        if number is not None:
            return f"label {number}"
    for character in missing:
        is_invisible = unicodedata.category(character) == "Cf" or character in _VARIANTS
        text = text.replace(character, "" if is_invisible else character.encode("unicode_escape").decode())
    return cut(text, longest)


def cut(text: str, longest: int) -> str:
    """At most so many characters: the beginning and the end."""
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


def letter(figure: Figure) -> None:
    """Make every text of a figure text, in fonts that have its characters.

    Called once all is drawn: a setting of the process would hold for other figures, too, and not for other threads.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        if families := sorted({family for character in text.get_text() if (family := _family(character))}):
            text.set_fontfamily([*text.get_fontfamily(), *families])


@cache
def _family(character: str) -> str | None:
    """The family of an installed font that has a character; "" of the usual one, `None` where none has it."""
    if character.isascii():
        return "" if character.isprintable() else None
    if ord(character) in _characters(font_manager.findfont(font_manager.FontProperties())):
        return ""
    return next((family for family, path in _fonts() if ord(character) in _characters(path)), None)


@cache
def _fonts() -> list[tuple[str, str]]:
    """Families and paths of the installed fonts, the most promising first."""
    manager = font_manager.fontManager
    # Its list may be older than a font.
    for path in sorted(set(font_manager.findSystemFonts()) - {font.fname for font in manager.ttflist}):
        try:
            manager.addfont(path)
        except (OSError, RuntimeError, NotImplementedError):  # no font, or one of dots
            continue
    fonts = [font for font in manager.ttflist if "last resort" not in font.name.lower()]  # which is boxes alone

    def promise(font) -> tuple[bool, bool, bool]:
        is_large = any(name in font.name.lower() for name in _LARGE)
        return not is_large, font.style != "normal", str(font.weight) not in ("400", "normal", "regular")

    return [(font.name, font.fname) for font in sorted(fonts, key=promise)]


@cache
def _characters(path: str) -> frozenset[int]:
    return frozenset(FT2Font(path).get_charmap())


def _warn_once(characters: set[str]) -> None:
    if not _WARNED:
        logger.warning(
            f"No installed font has {cut(''.join(sorted(characters)), 20)}: in pictures, labels with such characters "
            "are called by their numbers in the model (id2label of config.json), and other texts have codes in their "
            "place. A font that has them, such as Noto, mends that."
        )
    _WARNED.update(characters)
