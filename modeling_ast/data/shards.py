"""Parquet files, tar archives (WebDataset) and lists of sound files (AudioFolder), from this disk, the Hub elsewhere.

`datasets` finds and reads them, without torchcodec: sounds are taken as they are in their files, before it would
encode or decode them.
"""

import io
import json
import lzma
import os
import re
import tarfile
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import (
    Audio,
    Dataset,
    DatasetBuilder,
    Features,
    IterableDataset,
    SplitGenerator,
    Value,
    load_dataset_builder,
)
from datasets.exceptions import DatasetGenerationError
from datasets.filesystems import EXTENSION_TO_COMPRESSION_FS_FILE_CLS
from datasets.fingerprint import Hasher
from datasets.utils.file_utils import xopen

from modeling_ast import __version__
from modeling_ast.audio import AUDIO_SUFFIXES
from modeling_ast.data.clip_tables import ClipCounts, refuse_parts, split_of, suffix_of
from modeling_ast.data.folders import FolderContents
from modeling_ast.data.labels import DataError

BUILDERS = ("webdataset", "audiofolder")  # of `datasets`, which would encode each sound
METADATA = b"modeling_ast"  # key of what the schema of a packed shard says of its split, as JSON
ENCODED = {"bytes": Value("binary"), "path": Value("string")}
# What builders of `datasets`, which read anything, raise at files that are not as they should be.
READING_ERRORS = (
    *(OSError, ValueError, TypeError, LookupError, RuntimeError, ImportError, EOFError),
    *(pa.ArrowException, tarfile.TarError, zlib.error, lzma.LZMAError, DatasetGenerationError),
)
MAX_UNPACKED_BYTES = 2**30  # of a compressed file, as of what is fetched: an hour and a half of stereo WAV
TOO_LARGE = f"expected at most {MAX_UNPACKED_BYTES:,} bytes when unpacked, got more."


def builder_of(found: FolderContents) -> str | None:
    """Which of the builders reads what lies in a folder, if one of them does."""
    if found.metadata and (found.are_classes or not found.parquet):
        return "audiofolder"
    return "webdataset" if found.archives and not found.sounds and not found.parquet else None


def is_address(name: str) -> bool:
    """Whether a data set is a pattern of files, or lies elsewhere than on this disk and is no name of the Hub's."""
    return "://" in name or (any(mark in name for mark in "*?[") and not Path(name).expanduser().exists())


def find_builder(name: str, path: Path, config_name: str | None, found: FolderContents | None) -> DatasetBuilder:
    """What `datasets` reads a data set with: a file or folder on this disk, an address, or a name of the Hub's.

    Args:
        name: Of the data set.
        path: Of the file or folder, where it is one.
        config_name: Of the Hub's.
        found: In the folder, where it is one.

    Raises:
        DataError: An address cannot be read or nothing is there, or a tar archive on this disk is cut off.
    """
    if suffix_of(path) == ".parquet" and path.is_file():
        return load_dataset_builder("parquet", data_files={"train": [str(path)]})
    if is_address(name):
        return _find_elsewhere(str(path) if "://" not in name else name)
    if found is None:
        return load_dataset_builder(name, config_name)
    own = builder_of(found)
    if own == "webdataset" and (cut := [each for each in found.archives if _is_cut(path / each)]):
        raise DataError(f"{path / cut[0]}: expected a whole tar archive, got one that is cut off before its end.")
    if own is not None:
        return load_dataset_builder(own, data_dir=str(path))
    # Of a folder with a card `datasets` knows the name alone, and would take what another one of that name had.
    with TemporaryDirectory() as no_cache:
        by_card = load_dataset_builder(str(path), cache_dir=no_cache)
    if by_card.name != "parquet":
        return load_dataset_builder(str(path))
    files = {split: list(files) for split, files in by_card.config.data_files.items()}
    return load_dataset_builder("parquet", data_files=files, features=by_card.info.features)


def _find_elsewhere(address: str) -> DatasetBuilder:
    """Of files in any file system that fsspec knows, by a pattern, or in and below a folder."""
    try:
        disk, place = fsspec.core.url_to_fs(address)
        fixed = re.split(r"[*?[]", place)[0]
        paths = disk.find(place) if fixed == place else disk.glob(place)
    except Exception as error:  # each file system has its own, such as botocore's for want of keys
        raise DataError(f"{address}: cannot be read ({describe_cause(error)}).") from error
    paths = sorted(path for path in paths if not re.search(r"(^|/)\.", path[len(fixed) :]))
    for suffix, builder in ((".parquet", "parquet"), (".tar", "webdataset")):
        if files := [path for path in paths if suffix_of(path) == suffix]:
            is_local = "file" in (disk.protocol if isinstance(disk.protocol, tuple) else (disk.protocol,))
            files = files if is_local else [disk.unstrip_protocol(path) for path in files]
            return load_dataset_builder(builder, data_files=_group_by_split(files))
    raise DataError(f"{address}: expected Parquet files or tar archives, found none.")


def _group_by_split(files: list[str]) -> dict[str, list[str]]:
    """By names as the Hub's are, `train-00000-of-00012.parquet`, or by those of folders, `train/0000.parquet`."""
    groups = {}
    for file in files:
        folder, name = file.rpartition("/")[::2]
        split = re.sub(r"(-\d+-of-\d+)?(-[0-9a-f]{16})?\.\w+$|[-_.]?\d*\.\w+$", "", name)
        groups.setdefault(split or folder.rpartition("/")[2], []).append(file)
    return groups if len(groups) > 1 or split_of(next(iter(groups))) else {"train": files}


def without_others(builder: DatasetBuilder, splits: Mapping[str, str]) -> DatasetBuilder:
    """Of Parquet files, those of some splits alone, which are thousands of times as much elsewhere.

    Args:
        builder: Of all of them.
        splits: Which are wanted, as of `name_splits`.
    """
    files, wanted = builder.config.data_files, {name for each in splits.values() for name in each.split("+")}
    if builder.name != "parquet" or "train" not in splits or not wanted < files.keys():
        return builder
    files = {name: list(files[name]) for name in files if name in wanted}
    return load_dataset_builder("parquet", data_files=files, features=builder.info.features)


def read_clip_counts(builder: DatasetBuilder, splits: Sequence[str]) -> ClipCounts | None:
    """What packed shards say of some splits together, in the order of their classes; `None` of any other data.

    Raises:
        OSError, ValueError: A shard cannot be read.
    """
    counts = []
    for split in splits if builder.name == "parquet" else ():
        with xopen(builder.config.data_files[split][0], "rb") as file:
            metadata = (pq.read_schema(file).metadata or {}).get(METADATA)
        if metadata is None:
            return None
        counts.append(json.loads(metadata))
    if not counts:
        return None
    of_labels = np.sum([each["label_counts"] for each in counts], axis=0)
    return ClipCounts(
        sum(each["clips"] for each in counts), of_labels, sum(each.get("without_labels", 0) for each in counts)
    )


def _is_cut(archive: Path) -> bool:
    """Whether a tar archive lacks the zeros at its end, without which clips are missing that nobody misses."""
    with open(archive, "rb") as file:
        if file.read(512)[257:262] != b"ustar":  # compressed, or none at all
            return False
        file.seek(-512, os.SEEK_END)
        return any(file.read())


def open_sound_streams(builder: DatasetBuilder, source: str) -> dict[str, IterableDataset]:
    """The streams of all splits, with `{"bytes", "path"}` for each sound and columns `json.key` for what JSON holds.

    Args:
        builder: One of `BUILDERS`.
        source: The data set.

    Raises:
        DataError: A list of sound files has columns that say which part of a file is a clip.
    """
    builder._split_generators = partial(_split_with_limit, builder._split_generators)
    # What a stream goes through while clips train: broken files are to be a sentence there too.
    builder._generate_examples = partial(_read_examples, builder._generate_examples)
    return {split: _as_encoded(stream, source) for split, stream in builder.as_streaming_dataset().items()}


def _split_with_limit(split: Callable, manager: Any) -> list[SplitGenerator]:
    """The splits of a builder, which looks into its archives for them too, and reads no bombs."""
    iter_archive = manager.iter_archive
    manager.iter_archive = lambda archive: _Members(iter_archive(archive))
    return split(manager)


class _Members:
    """The files of an archive, none of which unpacks to more than the limit."""

    def __init__(self, archive: Iterable[tuple[str, BinaryIO]]):
        self.archive = archive

    def __iter__(self) -> Iterator[tuple[str, BinaryIO]]:
        for name, file in self.archive:
            unpack = EXTENSION_TO_COMPRESSION_FS_FILE_CLS.get(suffix_of(name))
            if unpack is not None:
                file = io.BytesIO(file.read())
                _check_unpacked(name, unpack(file, mode="rb"))
                file.seek(0)
            yield name, file


def _check_unpacked(name: str, file: BinaryIO) -> None:
    """
    Raises:
        DataError: There is more in it than the limit.
    """
    size = 0
    while part := file.read(2**20):
        if (size := size + len(part)) > MAX_UNPACKED_BYTES:
            raise DataError(f"{name}: {TOO_LARGE}")


def _read_examples(read: Callable, **files: Any) -> Iterator[tuple]:
    try:
        yield from read(**files)
    except READING_ERRORS as error:
        places = next((value for value in files.values() if isinstance(value, list) and value), [])
        named = ", ".join(str(place) for place in places[:3] if isinstance(place, str))
        raise DataError(f"{named or 'a sound'}: cannot be read ({describe_cause(error)}).") from error


def _as_encoded(stream: IterableDataset, source: str) -> IterableDataset:
    sounds = [name for name, feature in stream.features.items() if isinstance(feature, Audio)]
    written = ENCODED
    if "__key__" not in stream.features:  # of an archive; a list has paths, of files that may hold other clips too
        refuse_parts(source, set(stream.features))
        written = Value("string")
    for name in sounds:
        stream = stream.cast_column(name, written)
    # As `wav.gz`, which `datasets` has unpacked and does not take for a sound.
    sounds += [name for name in stream.features if _is_packed_sound(name)]
    features = Features()
    for name, feature in stream.features.items():
        is_json = isinstance(feature, dict) and name not in sounds
        parts = {f"{name}.{key}": part for key, part in feature.items()} if is_json else {name: feature}
        features |= {key: ENCODED if key in sounds else part for key, part in parts.items()}
    to_row = partial(_to_row, sounds=sounds, names=list(features))
    return stream.map(to_row, remove_columns=list(stream.features), features=Features(features))


def _is_packed_sound(column: str) -> bool:
    sound, packed = Path(f"_.{column.lower()}").suffixes[-2:] if "." in column else ("", "")
    return sound in AUDIO_SUFFIXES and packed in EXTENSION_TO_COMPRESSION_FS_FILE_CLS


def _to_row(row: dict[str, Any], sounds: list[str], names: list[str]) -> dict[str, Any]:
    found = {}
    for name in names:
        own, _, key = name.partition(".") if name not in row else (name, "", "")
        value = (row[own] or {}).get(key) if key else row[own]
        if name in sounds and isinstance(value, (str, bytes)):
            value = _read(value) if isinstance(value, str) else {"bytes": value, "path": None}
        found[name] = value
    return found


def _read(path: str) -> dict[str, Any]:
    """A sound on this disk stays there."""
    if os.path.isfile(path):
        return {"bytes": None, "path": path}
    try:
        with xopen(path, "rb") as file:
            content = file.read(MAX_UNPACKED_BYTES + 1)
    except (OSError, ValueError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())}).") from error
    if len(content) > MAX_UNPACKED_BYTES:
        raise DataError(f"{path}: {TOO_LARGE}")
    return {"bytes": content, "path": path}


def keep(stream: IterableDataset, source: str, version: str | None) -> Dataset:
    """All rows of a stream, on disk, in the cache of `datasets`.

    Args:
        stream: Of them.
        source: The data set.
        version: Tells these rows from all others, so that they are found there again; `None` writes them anew, since
            `datasets` does not notice by itself that files have changed.

    Raises:
        DataError: A row that cannot be read.
    """
    try:
        fingerprint = Hasher.hash(uuid.uuid4().hex if version is None else version)
        kwargs = {"features": stream.features, "gen_kwargs": {"stream": stream}, "fingerprint": fingerprint}
        return Dataset.from_generator(_rows, **kwargs)
    except READING_ERRORS as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from error
        raise DataError(f"{source}: cannot be read ({describe_cause(error)}).") from error


def _rows(stream: IterableDataset) -> Iterator[dict[str, Any]]:
    yield from stream


def version_of(builder: DatasetBuilder) -> str | None:
    """Tells files in this state from all others; `None` where what they lie on does not tell when they change."""
    is_known = all(all(files.origin_metadata) for files in builder.config.data_files.values())
    return f"{__version__}\n{builder.cache_dir}" if is_known else None


def describe_cause(error: Exception) -> str:
    """What was raised, or what `datasets` hides behind it, on one line."""
    cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
    return " ".join(str(cause).split()) or type(cause).__name__
