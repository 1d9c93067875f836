"""Data sets packed into shards, to be streamed, passed on and read anywhere: Parquet files of encoded sounds.

Which clips a shard holds is known before it is written: its name says so, and what is whole need not be written again.
"""

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Audio, ClassLabel, Dataset, Features, List
from huggingface_hub import DatasetCard, DatasetCardData
from tqdm.auto import tqdm

from modeling_ast.audio import AUDIO_SUFFIXES, AudioError
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.clips import Clip, has_stretches, iterate_clips
from modeling_ast.data.decoding import BadClips
from modeling_ast.data.files import remove_unfinished, written_beside
from modeling_ast.data.labels import DataError
from modeling_ast.data.prepare import FLAC_RATES
from modeling_ast.data.shards import METADATA

CARD_NAME = "README.md"
# What clips become: how `soundfile` calls it, the ending of their names, and the rates in Hz that there are.
FORMATS = {
    "original": None,
    "flac": ("FLAC", "PCM_16", ".flac", FLAC_RATES),
    "wav": ("WAV", "PCM_16", ".wav", FLAC_RATES),
    "opus": ("OGG", "OPUS", ".opus", (8000, 12000, 16000, 24000, 48000)),
}
# A group of rows is what a stream reads at once, shuffles and shares among workers.
GROUP_CLIPS, GROUP_BYTES = 100, 2**24
SAMPLED_CLIPS = 64  # from which the size of all is told
ROWS_AT_ONCE = 20
MAX_CLIP_BYTES = 2**31 - 1 - GROUP_BYTES  # an array of Arrow's, which a group is read to, has less than 2 GiB


@dataclass(frozen=True)
class Packing:
    """How clips are packed.

    Args:
        format: One of `FORMATS`.
        sampling_rate: In Hz, of clips that are encoded anew.
        clips_per_shard: At most; `None` goes by `shard_bytes`.
        shard_bytes: Of a shard, about.
        seed: Of the order of training clips; all others keep theirs.
        num_workers: Clips that are encoded at once.

    Raises:
        ValueError: The format does not have the rate.
    """

    format: str = "original"
    sampling_rate: int = 16000
    clips_per_shard: int | None = None
    shard_bytes: int = 500_000_000
    seed: int = 0
    num_workers: int = 16

    def __post_init__(self):
        rates = FORMATS[self.format] and FORMATS[self.format][3]
        if rates and self.sampling_rate not in rates:
            known = f"{rates[0]} to {rates[-1]}" if isinstance(rates, range) else ", ".join(map(str, rates))
            raise ValueError(
                f"Expected a sampling_rate that {self.format} has ({known} Hz), got {self.sampling_rate}."
            )


@dataclass(frozen=True)
class PackedSplit:
    """What a split has become."""

    name: str
    clips: int
    shards: int
    num_bytes: int


def pack_splits(
    splits: AudioSplits,
    folder: Path,
    packing: Packing,
    bad_clips: BadClips,
    columns: tuple[str, str] = ("audio", "label"),
) -> list[PackedSplit]:
    """Write the shards of all splits, those that are not there yet, and a card that names them for the Hub.

    They get their names when all are whole, so that nobody reads a part for the whole.

    Args:
        splits: With all columns that are to be kept.
        folder: That is there, and into which no other process writes.
        packing: How.
        bad_clips: Where training clips are noted that cannot be decoded; they are left out.
        columns: What to call sounds and labels.

    Raises:
        DataError: The folder holds other Parquet files than such shards; or clips are stretches of files, and to be
            packed as they are.
        AudioError: A held-out clip cannot be decoded, or more training clips than the limit.
    """
    if packing.format == "original" and any(has_stretches(rows) for _, rows in splits):
        raise DataError(
            "Expected --format flac, wav or opus for stretches of recordings, got original, which packs files."
        )
    remove_unfinished(folder)
    rename, shards = _renaming(splits, packing), []
    for name, rows in splits:
        bad_ones = bad_clips if name == "train" and bad_clips.limit else None
        shards += _plan(name, rows, splits, packing, rename, bad_ones, columns)
    found = {path.name.removeprefix(".") for path in folder.glob("*.parquet")}  # hidden until all are whole
    if others := found - {shard.name for shard in shards}:
        raise DataError(
            f"{folder}: expected no Parquet files but those of this packing, found {sorted(others)[0]}. Choose "
            "another folder, or remove what is in it."
        )
    total = sum(len(shard.rows) for shard in shards)
    with (
        ThreadPool(packing.num_workers) as pool,
        tqdm(desc="Packing", unit="clip", total=total) as progress,
    ):
        for shard in shards:
            if shard.is_whole_in(folder):
                progress.update(len(shard.rows))
            else:
                shard.write(folder, pool, progress)
    for shard in shards:
        if (unfinished := folder / f".{shard.name}").is_file():
            unfinished.replace(folder / shard.name)
    packed = [_measure(folder, name, [shard.name for shard in shards if shard.split == name]) for name, _ in splits]
    if not (folder / CARD_NAME).is_file():
        _write_card(folder, packed, splits.label_names)
    return packed


@dataclass(frozen=True)
class Encoder:
    """A clip to the bytes of a sound file.

    Args:
        packing: How.
        ignore_length: As for `load_waveform`.
    """

    packing: Packing
    ignore_length: bool = False

    def __call__(self, audio: dict[str, Any] | None) -> bytes | AudioError:
        """The error is returned where the clip cannot be decoded, which is found out in any case."""
        clip = Clip(audio)
        try:
            content = self._encode(clip)
        except AudioError as error:
            return error
        if len(content) > MAX_CLIP_BYTES:
            return AudioError(f"{clip.name or 'a clip'}: {len(content)} bytes are too many for a row of Parquet.")
        return content

    def _encode(self, clip: Clip) -> bytes:
        if self.packing.format == "original":
            clip.read_samples(self.ignore_length)
            return clip.content or Path(clip.path).read_bytes()
        import soundfile

        container, subtype, _, _ = FORMATS[self.packing.format]
        waveform = clip.load(self.packing.sampling_rate, self.ignore_length).clamp(-1, 1)
        if subtype == "PCM_16":  # which libsndfile would scale by 32767 in WAV, and by 32768 in FLAC
            waveform = (waveform * 32768).round_().clamp_(max=32767).to(torch.int16)
        content = io.BytesIO()
        soundfile.write(content, waveform.numpy(), self.packing.sampling_rate, format=container, subtype=subtype)
        return content.getvalue()


@dataclass(frozen=True)
class Shard:
    """One file, and what goes into it: rows with `audio` and columns as the file calls them, in their order."""

    split: str
    name: str
    rows: Dataset
    schema: pa.Schema
    encode: Encoder
    rename: Callable[[str | None], str | None]
    bad_clips: BadClips | None

    def is_whole_in(self, folder: Path) -> bool:
        """
        Raises:
            DataError: There is such a file that holds other clips, or the same ones otherwise.
        """
        paths = [path for path in (folder / self.name, folder / f".{self.name}") if path.is_file()]
        for path in paths:
            try:
                metadata = pq.read_schema(path).metadata
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())}). Remove it.") from error
            if metadata != self.schema.metadata:
                raise DataError(
                    f"{path}: expected a shard of this packing, found one of other clips, labels or settings. Choose "
                    "another folder, or remove what is in this one."
                )
        return bool(paths)

    def write(self, folder: Path, pool: ThreadPool, progress: tqdm) -> None:
        with (
            written_beside(folder / f".{self.name}", durable=True) as unfinished,
            # Sounds are compressed already, and no two of them are the same.
            pq.ParquetWriter(
                unfinished, self.schema, compression="none", use_dictionary=False, write_statistics=False
            ) as writer,
        ):
            group = []
            for row in self._encoded_rows(pool, progress):
                group.append(row)
                if len(group) >= GROUP_CLIPS or sum(each.nbytes for each in group) >= GROUP_BYTES:
                    writer.write_table(pa.concat_tables(group).combine_chunks())
                    group = []
            if group:
                writer.write_table(pa.concat_tables(group).combine_chunks())

    def _encoded_rows(self, pool: ThreadPool, progress: tqdm) -> Iterator[pa.Table]:
        """Each row as a table of its own, without those that cannot be decoded."""
        rows, (audio_column, *others) = self.rows.with_format("arrow"), self.schema.names
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            audios = part["audio"].to_pylist()
            for number, content in enumerate(pool.map(self.encode, audios)):
                progress.update()
                if isinstance(content, AudioError):
                    if self.bad_clips is None:
                        raise content
                    self.bad_clips.add(audios[number], content)
                    continue
                path = self.rename(Clip(audios[number]).name)
                row = part.slice(number, 1)
                columns = {audio_column: [{"bytes": content, "path": path}]}
                columns |= {name: row[name] if name in row.column_names else [None] for name in others}
                yield pa.table(columns, schema=self.schema)


def _plan(
    split: str,
    rows: Dataset,
    splits: AudioSplits,
    packing: Packing,
    rename: Callable[[str | None], str | None],
    bad_clips: BadClips | None,
    columns: tuple[str, str],
) -> list[Shard]:
    """The shards of a split, which depend on its clips and the settings alone."""
    if split == "train":
        rows = rows.select(torch.randperm(len(rows), generator=torch.Generator().manual_seed(packing.seed)).numpy())
    encode = Encoder(packing, splits.ignore_length)
    clips_per_shard = packing.clips_per_shard or _clips_per_shard(rows, encode, packing)
    count = math.ceil(len(rows) / clips_per_shard)
    ends = np.linspace(0, len(rows), count + 1).round().astype(int)
    digest, counts, without_labels = hashlib.sha256(), np.zeros(len(splits.label_names), int), 0
    for paths, labels in _describe(rows):
        flat = labels
        if pa.types.is_list(labels.type) or pa.types.is_large_list(labels.type):
            flat, without_labels = labels.flatten(), without_labels + (labels.value_lengths().to_numpy() == 0).sum()
        counts += np.bincount(flat.to_numpy(zero_copy_only=False), minlength=len(counts))
        digest.update(json.dumps([list(map(rename, paths)), labels.to_pylist()]).encode())
    features = _features(splits, packing, columns)
    of_split = {
        **{"split": split, "clips": len(rows), "label_counts": counts.tolist()},
        **{"format": packing.format, "seed": packing.seed, "digest": digest.hexdigest()},
    }
    if without_labels and splits.label_names:
        of_split["without_labels"] = int(without_labels)
    schema = features.arrow_schema
    schema = schema.with_metadata({**schema.metadata, METADATA: json.dumps(of_split).encode()})
    if splits.label_names and columns[1] != "labels":
        rows = rows.rename_column("labels", columns[1])
    return [
        Shard(
            *(split, f"{split}-{number:05}-of-{count:05}.parquet", rows.select(range(start, end))),
            *(schema, encode, rename, bad_clips),
        )
        for number, (start, end) in enumerate(zip(ends[:-1], ends[1:]))
    ]


def _clips_per_shard(rows: Dataset, encode: Encoder, packing: Packing) -> int:
    """By the size of the first ones, which is told anew, and the same, where packing goes on."""
    with ThreadPool(packing.num_workers) as pool:
        contents = pool.map(encode, rows[:SAMPLED_CLIPS]["audio"])
    sizes = [len(content) for content in contents if not isinstance(content, AudioError)]
    return max(1, packing.shard_bytes * len(sizes) // sum(sizes)) if sizes else len(rows)


def _describe(rows: Dataset) -> Iterator[tuple[list[str | None], pa.Array]]:
    """Names and labels, of clips without any empty lists, some rows at a time, and not the sounds."""
    own = [name for name in ("labels",) if name in rows.column_names]
    clips, columns = iterate_clips(rows), rows.select_columns(own or ["audio"]).with_format("arrow")
    for start in range(0, len(rows), 100_000):
        names = [clip.name for clip in islice(clips, 100_000)]
        no_labels = pa.array([[]] * len(names), pa.list_(pa.int64()))
        labels = columns[start : start + len(names)]["labels"].combine_chunks() if own else no_labels
        yield names, labels


def _renaming(splits: AudioSplits, packing: Packing) -> Callable[[str | None], str | None]:
    """What clips are called: their paths from the folder that all lie in, which is of no use elsewhere."""
    ends = []  # of each part: the folder that two paths share, all between them share
    for paths, _ in chain.from_iterable(_describe(rows) for _, rows in splits):
        if named := list(filter(None, paths)):
            ends += [min(named), max(named)]
    folder = os.path.commonprefix(ends).rpartition("/")[0]
    suffix = FORMATS[packing.format] and FORMATS[packing.format][2]

    def rename(path: str | None) -> str | None:
        if not path:
            return None
        name, mark, times = path.removeprefix(f"{folder}/").partition("#t=")
        stem, own = os.path.splitext(name)
        return (name if suffix is None or own.lower() not in AUDIO_SUFFIXES else stem) + mark + times + (suffix or "")

    return rename


def _features(splits: AudioSplits, packing: Packing, columns: tuple[str, str]) -> Features:
    """Columns of all shards: sounds, labels, and what else the training clips have that no other split contradicts."""
    own = {columns[0]: Audio(sampling_rate=None if packing.format == "original" else packing.sampling_rate)}
    if splits.label_names:
        label = ClassLabel(names=splits.label_names)
        own[columns[1]] = List(label) if isinstance(splits.train.features["labels"], List) else label
    others = {name: feature for name, feature in splits.train.features.items() if name not in ("audio", "labels")}
    others = {
        name: feature
        for name, feature in others.items()
        if name not in columns and all(rows.features.get(name, feature) == feature for _, rows in splits)
    }
    return Features({**own, **others})


def _measure(folder: Path, split: str, names: Sequence[str]) -> PackedSplit:
    clips = sum(pq.read_metadata(folder / name).num_rows for name in names)
    return PackedSplit(split, clips, len(names), sum((folder / name).stat().st_size for name in names))


def _write_card(folder: Path, packed: Sequence[PackedSplit], label_names: Sequence[str]) -> None:
    """A card by which the Hub and `datasets` know the splits."""
    files = [{"split": each.name, "path": f"{each.name}-*.parquet"} for each in packed]
    data = DatasetCardData(
        configs=[{"config_name": "default", "data_files": files}], task_categories=["audio-classification"]
    )
    rows = "\n".join(f"| {each.name} | {each.clips:,} | {each.shards:,} | {each.num_bytes:,} |" for each in packed)
    kind = f"of {len(label_names)} labels" if label_names else "without labels"
    text = (
        f"# {folder.absolute().name}\n\nSounds {kind}, in the form of a sound file each.\n\n"
        f"| split | clips | shards | bytes |\n|---|---|---|---|\n{rows}\n"
    )
    with written_beside(folder / CARD_NAME) as unfinished:
        unfinished.write_text(str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{text}")), encoding="utf-8")
