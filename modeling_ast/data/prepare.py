"""From what data sets are published as to a manifest: a CSV file of clips and labels, as `load_splits` reads it.

A manifest is a table with the columns `audio` (the absolute path of a clip), `label` (or labels), and perhaps a third,
`fold` or `split`.
"""

import dataclasses
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pandas
from tqdm.auto import tqdm

from modeling_ast.audio import AudioError, load_waveform, read_seconds
from modeling_ast.data.download import Archive, fetch, unpack
from modeling_ast.data.files import written_beside
from modeling_ast.data.folders import find_sounds
from modeling_ast.data.labels import DataError, find_control
from modeling_ast.data.lists import read_data_json, read_table
from modeling_ast.data.sources import load_splits
from modeling_ast.data.synthetic import LISTS

FLAC_RATES = range(100, 655351)  # Hz, that the format has
SAMPLING_RATE = 16000  # Hz, of the FLAC cache where nothing else is said
MIN_SECONDS = 0.025  # one frame of the features
ARCHIVES = {
    # Packed by GitHub when asked for: no checksum of the file lasts, those in it are compared, and its files counted.
    "esc50": Archive("ESC-50-master.zip", "https://github.com/karolpiczak/ESC-50/archive/master.zip", None, 2000),
    # Source: the checksum is torchaudio's (`torchaudio.datasets.SPEECHCOMMANDS`), the count that of the paper
    # (Warden, "Speech Commands", 2018): 105,829 words, and 6 background noises.
    "speech_commands": Archive(
        "speech_commands_v0.02.tar.gz",
        "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
        "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
        105829 + 6,
    ),
}


# ESC-50 and Speech Commands


def find_root(folder: Path, name: str) -> Path:
    """The folder that holds `name`: this one, or the first one in it that does, as archives are often packed.

    Raises:
        DataError: There is no such file.
    """
    roots = [root for root in (folder, *sorted(folder.glob("*/"))) if (root / name).exists()]
    if not roots:
        raise DataError(f"{folder}: expected {name} in it, found none.")
    return roots[0]


def obtain(data_set: str, unpacked: Path, source: Path | None = None, url: str | None = None) -> Path:
    """The folder of a published data set.

    Args:
        data_set: One of `ARCHIVES`.
        unpacked: Where its archive is unpacked, unless that was done before; the archive is fetched beside it.
        source: A local copy: a folder, which is taken where it lies, or the archive.
        url: Where to fetch the archive; its checksum stays the same.

    Raises:
        DataError: No such copy, or an archive that cannot be fetched or unpacked.
    """
    if source is not None and not source.exists():
        raise DataError(f"{source}: no such file or folder.")
    if source is not None:
        return source if source.is_dir() else unpack(source, unpacked)
    archive = ARCHIVES[data_set]
    if url:
        archive = dataclasses.replace(archive, url=url)
    if not unpacked.is_dir():
        unpack(fetch(archive, unpacked.parent), unpacked)
    expect_clips(unpacked, archive.num_clips)
    return unpacked


def expect_clips(folder: Path, expected: int) -> None:
    """Check that a folder holds as many sound files as its archive should.

    Raises:
        DataError: It holds another number.
    """
    if (found := sum(1 for _ in find_sounds(folder))) != expected:
        raise DataError(f"{folder}: expected {expected:,} sound files, found {found:,}. Delete it and run again.")


def read_esc50(root: Path) -> pandas.DataFrame:
    """Manifest with the folds of a folder like ESC-50, with `meta/esc50.csv` and `audio`.

    Raises:
        DataError: A value is missing, or a name leads elsewhere; and as from `read_table`.
    """
    path, folder = root / "meta" / "esc50.csv", os.path.realpath(root / "audio")
    manifest = read_table(path, ["filename", "category", "fold"], "../audio", max_missing=0).to_pandas()
    manifest.columns = ["audio", "label", "fold"]
    for audio, *cells in manifest.itertuples(index=False):
        if not all(cells) or find_control(cells):
            raise DataError(f"{path}: expected a category and a fold of {audio}, got {cells}.")
        # A name such as ../../x.wav would be read elsewhere, and its copy written elsewhere.
        if os.path.dirname(os.path.abspath(audio)) != folder:
            raise DataError(f"{path}: expected files of {folder}, got {audio}.")
    return manifest


def read_speech_commands(root: Path) -> pandas.DataFrame:
    """Manifest with the splits of a folder like Speech Commands: a sub-folder a word, and the two lists.

    Raises:
        DataError: A list is missing or names a file that is not there, or there are no clips.
    """
    for name in LISTS.values():
        if not (root / name).is_file():
            raise DataError(f"{root}: expected {name} in it, found none.")
    splits = load_splits(str(root))
    rows = [(row["audio"]["path"], splits.label_names[row["labels"]], split) for split, part in splits for row in part]
    return pandas.DataFrame(rows, columns=["audio", "label", "split"], dtype=object)


# AudioSet


def clip_id(name: str) -> str:
    """The YouTube id in the name of a clip without its ending, or the name where there is none.

    Files are called by the id (11 characters), perhaps with a Y before it, and where the clip starts and ends after
    it: `--4gqARaEJE`, `Y--4gqARaEJE`, `--4gqARaEJE_0.000`, `Y--4gqARaEJE_0_10000`.
    """
    match = re.fullmatch(r"Y?([\w-]{11})(?:_\d+(?:\.\d+)?){0,2}", name, re.ASCII)
    return match[1] if match else name


def read_segments(path: Path) -> list[tuple[str, str]]:
    """Id and labels (mids with a comma between) of each segment of a CSV file of Google's.

    The columns are YTID, start_seconds, end_seconds, positive_labels. Where a spreadsheet has mangled the quotes of
    the fourth, and spread it over several, it is read all the same: everything there that looks like a mid.

    Raises:
        DataError: A line without the first three columns, or without a label.
    """
    segments = []
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            first, *columns = (column.strip(' "\t\r\n') for column in line.split(",", 3))
            if not line.strip(' ",\t\r\n') or first.startswith("#") or first.upper() == "YTID":
                continue
            mids = re.findall(r"/[a-z]+/[0-9a-z_]+", columns[2]) if len(columns) == 3 else []
            if not (mids and all(re.fullmatch(r"\d+(\.\d+)?", seconds) for seconds in columns[:2])):
                raise DataError(
                    f"{path}, line {number}: expected an id, start, end and labels such as /m/09x0r, got "
                    f"{line.strip()!r}."
                )
            segments.append((first, ",".join(mids)))
    if not segments:
        raise DataError(f"{path}: holds no segments.")
    return segments


def read_json_segments(path: Path) -> list[tuple[str, str]]:
    """Id and labels of each entry of a data file in the original's format; the id is that in the name of the file.

    Raises:
        DataError: See `read_data_json`.
    """
    return [(clip_id(Path(entry["wav"]).stem), entry["labels"]) for entry in read_data_json(path)]


def index_clips(folder: Path) -> dict[str, list[str]]:
    """Absolute paths of the sound files below a folder, by `clip_id`; the first is the first by name.

    Raises:
        DataError: There is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder.")
    clips = defaultdict(list)
    for path in tqdm(find_sounds(folder.resolve()), desc="Listing clips", unit=" files"):
        clips[clip_id(os.path.splitext(os.path.basename(path))[0])].append(path)
    for paths in clips.values():
        paths.sort()
    return clips


def read_all_seconds(paths: list[str], journal: Path, num_workers: int) -> list[float | str]:
    """`read_seconds` of each file, or why it has none. The run after an interruption goes on from there.

    Args:
        paths: Of the files.
        journal: File to note in what is read, until all is.
        num_workers: Files that are read at once.
    """
    known = _read_journal(journal) if journal.is_file() else {}
    journal.parent.mkdir(parents=True, exist_ok=True)
    unknown = [path for path in paths if path not in known]
    with open(journal, "a", encoding="utf-8", errors="surrogateescape") as file:
        file.write("\n")  # the last line may have been cut
        for seconds, path in zip(in_threads(_seconds_or_reason, unknown, "Checking clips", num_workers), unknown):
            known[path] = seconds
            if not isinstance(seconds, str):  # what could not be read may be mended by then
                file.write(f"{seconds}\t{path}\n")
    journal.unlink()
    return [known[path] for path in paths]


def _seconds_or_reason(path: str) -> float | str:
    try:
        return read_seconds(path)
    except AudioError as error:
        return " ".join(str(error).split())


def _read_journal(journal: Path) -> dict[str, float | str]:
    with open(journal, encoding="utf-8", errors="surrogateescape") as file:
        pairs = (line.rstrip("\n").partition("\t") for line in file)
        # What a failure of the machine left of a line is no number, and its file is read again.
        return {path: float(seconds) for seconds, _, path in pairs if path and re.fullmatch(r"\d+\.[\de+-]+", seconds)}


def match_clips(
    segments: list[tuple[str, str]],
    clips: dict[str, list[str]],
    journal: Path,
    min_seconds: float = MIN_SECONDS,
    num_workers: int = 16,
) -> tuple[pandas.DataFrame, list[tuple[str, str, str]]]:
    """The segments whose clip is there, readable and long enough, and the others.

    Args:
        segments: Id and labels of each.
        clips: See `index_clips`.
        journal: See `read_all_seconds`.
        min_seconds: Shorter clips are left out.
        num_workers: Clips that are read at once.

    Returns:
        The manifest; and id, path and reason ("missing", "unreadable: ...", "too short: ...") of what is not in it.
    """
    found = [(name, clips[name][0], labels) for name, labels in segments if name in clips]
    left_out = [(name, "", "missing") for name, _ in segments if name not in clips]
    rows = []
    for (name, path, labels), seconds in zip(
        found, read_all_seconds([path for _, path, _ in found], journal, num_workers)
    ):
        if isinstance(seconds, str):
            left_out.append((name, path, f"unreadable: {seconds}"))
        elif seconds < min_seconds:
            left_out.append((name, path, f"too short: {seconds:.3f} s"))
        else:
            rows.append((path, labels))
    return pandas.DataFrame(rows, columns=["audio", "label"], dtype=object), left_out


# FLAC cache


def cache_clips(
    manifest: pandas.DataFrame, root: Path, cache: Path, num_workers: int, sampling_rate: int
) -> tuple[pandas.DataFrame, list[tuple[str, AudioError]]]:
    """Write each clip once as mono FLAC of 16 bits; what is there already is taken.

    Args:
        manifest: Of clips below `root`.
        root: The cache has the same folders below itself.
        cache: Its folder.
        num_workers: Clips that are converted at once.
        sampling_rate: Of the cache, in Hz.

    Returns:
        The manifest of the clips in the cache; and path and reason of those that cannot be read, and are not in it.

    Raises:
        DataError: Two clips differ in their ending alone, and would be the same file; or the cache has another rate.
    """
    paths = manifest["audio"].tolist()
    # Not resolved: a clip may be a link to a file elsewhere.
    targets = [str(cache.resolve() / Path(os.path.relpath(path, root)).with_suffix(".flac")) for path in paths]
    sources = {}
    for path, target in zip(paths, targets):
        if sources.setdefault(target, path) != path:
            raise DataError(f"{path} and {sources[target]} would be the same file of the cache, {target}.")
    cache_one = partial(_cache_one, sampling_rate)
    cached = list(in_threads(cache_one, list(zip(paths, targets)), "Writing FLAC", num_workers))
    broken = [(path, each) for path, each in zip(paths, cached) if isinstance(each, AudioError)]
    is_whole = [not isinstance(each, AudioError) for each in cached]
    return manifest.assign(audio=cached)[is_whole], broken


def _cache_one(sampling_rate: int, pair: tuple[str, str]) -> str | AudioError:
    import soundfile

    path, target = pair
    with suppress(soundfile.LibsndfileError):  # what is not there, or damaged, is written
        if (rate := soundfile.info(target).samplerate) == sampling_rate:
            return target
        raise DataError(
            f"{target} is there already, with {rate} Hz, where {sampling_rate} Hz are asked for. Choose another "
            "folder for this rate, or remove that one."
        )
    try:
        waveform = load_waveform(path, sampling_rate)
    except AudioError as error:
        return error
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with written_beside(target) as unfinished:
        soundfile.write(unfinished, waveform.clamp(-1, 1).numpy(), sampling_rate, format="FLAC", subtype="PCM_16")
    return target


def in_threads(function: Callable, items: Sequence, description: str, num_workers: int) -> Iterable[Any]:
    """Results in the order of the items, a few at a time: for millions, a future each would take gigabytes."""
    with ThreadPool(num_workers) as pool:
        yield from tqdm(pool.imap(function, items, chunksize=16), desc=description, total=len(items))


# What is written and said


def write_csv(path: Path, table: pandas.DataFrame) -> None:
    """Write a table at once: a file that is there is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(path) as unfinished:
        table.to_csv(unfinished, index=False, lineterminator="\n")


def write_manifest(path: Path, manifest: pandas.DataFrame) -> None:
    """Write a manifest. Paths of clips below its folder are relative to it, so that both can be moved together."""
    folder = os.path.join(os.path.realpath(path.parent), "")
    write_csv(path, manifest.assign(audio=manifest["audio"].str.removeprefix(folder)))


def summarize(manifest: pandas.DataFrame, separator: str | None = None) -> str:
    """Clips and labels of each split or fold, and clips of each label.

    Args:
        manifest: What to count.
        separator: Between the labels of a clip; `None` where it has one.
    """
    parts = pandas.Series("all", manifest.index)
    if len(manifest.columns) > 2:
        parts = manifest.columns[2] + " " + manifest.iloc[:, 2]
    labels = (manifest["label"].str.split(separator) if separator else manifest["label"]).explode()
    num_clips, lines = parts.value_counts(), []
    for name, of_part in labels.groupby(parts, sort=False):
        counts = of_part.value_counts()
        least, most = counts.min(), counts.max()
        each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        lines.append(f"  {name}: {num_clips[name]:,} clips of {len(counts):,} labels, {each} clips each")
    counts = [f"{label} {count:,}" for label, count in Counter(labels).most_common()]
    if len(counts) > 50:
        lines += [f"  most: {', '.join(counts[:5])}", f"  fewest: {', '.join(counts[-5:])}"]
    else:
        lines.append(f"  {', '.join(counts)}")
    return "\n".join(lines)
