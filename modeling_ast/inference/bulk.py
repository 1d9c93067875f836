"""Many recordings through a pipeline into a folder of results, and what is said of it."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from modeling_ast.audio import AudioError
from modeling_ast.data.labels import plain
from modeling_ast.data.parts import Part, part_of
from modeling_ast.inference.pipeline import ASTAudioClassificationPipeline
from modeling_ast.inference.results_folder import ResultsFolder
from modeling_ast.inference.sound_files import SoundFile


def run_pending(
    pipeline: ASTAudioClassificationPipeline,
    folder: ResultsFolder,
    files: Sequence[SoundFile],
    pending: Sequence[SoundFile],
    recordings: Iterable[Any],
    add: Callable[[SoundFile, Any], None],
    doing: str,
    **options: Any,
) -> None:
    """Run recordings through a pipeline, write what comes of each, and say how fast that was.

    Args:
        pipeline: Whichever.
        folder: Of the results; it gets the errors.
        files: Of the run, with all its parts.
        pending: Those to do, as the folder gives them.
        recordings: The same, as the pipeline takes them: an iterator or a data set.
        add: Writes the result of a file. An `AudioError` of it is the file's.
        doing: What is done, for the progress bar.
        options: Of the pipeline.
    """
    started = time.perf_counter()
    num_files = sum(folder.part.includes(file.path) for file in files)
    results = pipeline(recordings, on_error="return", **options)
    num_done = num_files - len(pending)
    with tqdm(total=num_files, initial=num_done, desc=doing, unit=folder.unit, miniters=0) as progress:

        def show(index: int, seconds: float) -> None:  # within a long file
            name = Path(pending[index].path).name
            progress.set_postfix_str(plain(f"{name} {timedelta(seconds=round(seconds))}"), refresh=False)
            progress.update(0)

        pipeline.on_window = show
        for file, result in zip(pending, results, strict=True):
            try:
                if isinstance(result, dict) and "error" in result:
                    raise AudioError(result["error"])
                add(file, result)
            except AudioError as error:
                folder.add_error(file, str(error))
                progress.write(plain(str(error)), file=sys.stderr)
            progress.update()
    seconds = sum(folder.entries[file.path].seconds for file in pending)
    if seconds:
        passed = time.perf_counter() - started
        shown = timedelta(seconds=round(seconds)), timedelta(seconds=round(passed)), seconds / passed
        print("{}: {} of sound in {}, {:.3g} times real time".format(doing, *shown), file=sys.stderr)


def report_results(
    folder: ResultsFolder, files: Sequence[SoundFile] | None, num_new: int, output: os.PathLike, noun: str
) -> bool:
    """Write the tables where no part is missing, and say what has been done.

    Args:
        folder: Of the results.
        files: Of the run; `None` means all that have results.
        num_new: How many were done now.
        output: What the user looks into.
        noun: What the folder counts of a recording.

    Returns:
        Whether all is well as far as this process is to tell: of several that a launcher has started, those that are
            not the last one leave broken files to it, since a launcher ends all where one fails.

    Raises:
        DataError, AudioError: As from the folder, when the tables are written.
    """
    is_whole, missing = folder.finish(files or [])
    part, paths = folder.part, list(folder.entries) if files is None else [file.path for file in files]
    if not is_whole:
        paths = [path for path in paths if part.includes(path) and path in folder.entries]
    entries = {path: folder.entries[path] for path in paths}
    broken = [path for path, entry in entries.items() if entry.has_error]
    length = timedelta(seconds=round(sum(entry.seconds for entry in entries.values())))
    num_rows, unit = sum(entry.num_rows for entry in entries.values()), folder.unit
    print(f"{len(entries)} {unit}(s), {num_new} of them now: {length} of sound (h:mm:ss), {num_rows} {noun}(s).")
    if broken:
        print(f"{len(broken)} cannot be used (--retry tries again), such as {plain(broken[0])}.")
    if is_whole:
        print(f"Results in {output}.")
    else:
        print(f"Part {part} is done; the last one writes the tables.")
    if missing:
        shares = Counter(part_of(file.path, part.count) for file in missing)
        others = ", ".join(f"{number} in part {Part(share, part.count)}" for share, number in sorted(shares.items()))
        print(f"{len(missing)} {unit}(s) have no results yet: {others}.")
    return not broken or (not is_whole and "WORLD_SIZE" in os.environ)
