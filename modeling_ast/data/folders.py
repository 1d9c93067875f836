"""What lies below folders: sound files, each real folder once, and what is left out is said."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from modeling_ast.audio import AUDIO_SUFFIXES, CONVERTIBLE_SUFFIXES
from modeling_ast.data.labels import DataError

logger = logging.getLogger(__name__)


def find_sounds(folder: str | os.PathLike) -> Iterator[str]:
    """Paths of the sound files below a folder, in no order. Hidden ones are none, and each real folder counts once.

    What is left out by its ending, and which links were not followed, is logged when all are found.
    """
    left_out = Counter()
    for parent, names in _walk(folder):
        for name in names:
            if (suffix := os.path.splitext(name)[1].lower()) in AUDIO_SUFFIXES:
                yield os.path.join(parent, name)
            else:
                left_out[suffix] += 1
    warn_left_out(folder, left_out)


@dataclass
class FolderContents:
    """What lies below a folder: paths relative to it, sorted."""

    sounds: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)  # of an AudioFolder: lists that say what belongs to a file
    parquet: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # which may be label files of sounds beside them
    others: Counter[str] = field(default_factory=Counter)  # endings of all else that lies in a sub-folder

    @property
    def are_classes(self) -> bool:
        """Whether sounds lie in folders of classes, and are not some that lie beside Parquet files."""
        return bool(self.sounds) and (not self.parquet or len({os.path.dirname(path) for path in self.sounds}) > 1)


def look_into(folder: Path) -> FolderContents:
    """What lies below a folder, the hidden apart."""
    found, root = FolderContents(), os.path.join(folder, "")
    for parent, names in _walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            way, suffix = path.removeprefix(root), os.path.splitext(name)[1].lower()
            if suffix in AUDIO_SUFFIXES:
                found.sounds.append(way)
            elif _is_metadata(path):
                found.metadata.append(way)
            elif suffix == ".parquet":
                found.parquet.append(way)
            else:
                if suffix == ".tar":
                    found.archives.append(way)
                elif suffix == ".txt":
                    found.texts.append(way)
                if os.sep in way:  # lists and licences lie beside the folders of the classes
                    found.others[suffix] += 1
    for paths in (found.sounds, found.metadata, found.parquet, found.archives, found.texts):
        paths.sort()
    return found


def _is_metadata(path: str) -> bool:
    """Whether it is a list of an AudioFolder: https://huggingface.co/docs/datasets/audio_dataset."""
    import pyarrow as pa  # here, since `find_sounds` does without
    import pyarrow.parquet as pq

    name = os.path.basename(path)
    try:
        if name == "metadata.parquet":
            return any(column.endswith("file_name") for column in pq.read_schema(path).names)
        if name not in ("metadata.csv", "metadata.jsonl"):
            return False
        with open(path, "rb") as file:
            return b"file_name" in file.readline(1 << 20)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())}).") from error


def group_by_folder(paths: Iterable[str]) -> dict[str, list[str]]:
    """The paths by the folder that they begin with, and without it; those that begin with none are under ""."""
    groups = {}
    for path in paths:
        first, separator, rest = path.partition(os.sep)
        groups.setdefault(first if separator else "", []).append(rest or first)
    return groups


def visible(names: Iterable[str]) -> list[str]:
    """Names of what is not hidden: editors, version control, the Hub and macOS keep copies in what is."""
    return [name for name in names if not name.startswith(".") and name != "__MACOSX"]


def _walk(folder: str | os.PathLike) -> Iterator[tuple[str, list[str]]]:
    """Each real folder below, once, with the names of its files; hidden ones apart.

    What a folder holds itself comes before what links lead to, so that nothing counts as a part of a folder that
    merely has a link to it.
    """
    root = os.path.realpath(folder)
    # A link to a folder around this one would lead to all that lies beside it.
    seen, starts, passed_over = {root, *map(str, Path(root).parents)}, [os.fspath(folder)], []

    def note(error: OSError) -> None:
        passed_over.append(f"{error.filename} ({error.strerror})")

    for start in starts:
        if start != starts[0]:
            if (real := os.path.realpath(start)) in seen:
                passed_over.append(f"{start} (a link to {real})")
                continue
            seen.add(real)
        for parent, folders, names in os.walk(start, onerror=note):
            real, inside = os.path.realpath(parent), []
            for name in sorted(visible(folders)):
                path, real_path = os.path.join(parent, name), os.path.realpath(os.path.join(parent, name))
                if real_path != os.path.join(real, name):
                    starts.append(path)
                elif real_path in seen:
                    passed_over.append(path)
                else:
                    seen.add(real_path)
                    inside.append(name)
            folders[:] = inside
            yield parent, visible(names)
    if passed_over:
        logger.warning(
            f"{folder}: {len(passed_over)} folder(s) passed over, which are listed already, lie around it or cannot "
            f"be listed: {', '.join(passed_over[:3])}."
        )


def warn_left_out(folder: str | os.PathLike, suffixes: Counter[str]) -> None:
    """Say how many files are no sounds by their endings, and how those become some that could be."""
    if not suffixes:
        return
    counts, kinds = [], []
    for suffix, count in sorted(suffixes.items(), key=lambda item: (-item[1], item[0])):
        kind = ""
        if suffix in CONVERTIBLE_SUFFIXES:
            kind = f" ({CONVERTIBLE_SUFFIXES[suffix]})"
            kinds.append(suffix)
        counts.append(f"{count} {suffix or 'without an ending'}{kind}")
    line = f" What holds sound is to be converted: ffmpeg -i clip{kinds[0]} clip.wav" if kinds else ""
    logger.warning(
        f"{folder}: {suffixes.total()} file(s) are left out, by their endings no sounds that can be read: "
        f"{', '.join(counts)}.{line}"
    )
