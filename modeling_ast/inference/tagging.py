"""Tags of many recordings: what the pipeline says of each goes into a folder of results."""

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from modeling_ast.audio import AudioError
from modeling_ast.data.labels import plain
from modeling_ast.inference.parts import Part, part_of
from modeling_ast.inference.pipeline import ASTAudioClassificationPipeline
from modeling_ast.inference.results_folder import ResultsFolder
from modeling_ast.inference.sound_files import SoundFile


def check_event_options(
    classifier: ASTAudioClassificationPipeline, function_to_apply: str | None, options: Mapping[str, Any]
) -> dict[str, float] | None:
    """Check how events are to be found, before any recording is read.

    Args:
        classifier: The pipeline.
        function_to_apply: The pipeline's keyword.
        options: Of `Timeline.find_events`.

    Returns:
        The thresholds that were fitted to the model, by label; `None` of a regression model, which gives no events.

    Raises:
        ValueError: Options that contradict each other or the model.
    """
    if classifier.model.config.problem_type == "regression" and function_to_apply is None:
        if given := [name for name, value in options.items() if value]:
            name = classifier.model.name_or_path
            raise ValueError(f"No effect on {name}, a regression model, which gives no events: {given[0]}.")
        return None
    window = {"start": 0, "num_samples": 1, "logits": torch.zeros(1, classifier.model.config.num_labels)}
    timeline = classifier.postprocess([window], function_to_apply=function_to_apply, return_timeline=True)["timeline"]
    timeline.find_events(**options)
    return timeline.thresholds


def tag_files(
    classifier: ASTAudioClassificationPipeline,
    folder: ResultsFolder,
    files: Sequence[SoundFile],
    event_options: Mapping[str, Any] | None,
    retry: bool = False,
    **options: Any,
) -> int:
    """Tag the files of the folder's part whose results it does not hold yet.

    Args:
        classifier: The pipeline.
        folder: Of the results.
        files: As `find_files` gives them.
        event_options: Of `Timeline.find_events`; `None` where the model gives no events.
        retry: Whether files that could not be used are tried again.
        options: Of the pipeline.

    Returns:
        The number of files that were tagged now.
    """
    pending, num_files = folder.pending(files, retry), sum(folder.part.includes(file.path) for file in files)
    results = classifier((file.path for file in pending), return_timeline=True, on_error="return", **options)
    with tqdm(total=num_files, initial=num_files - len(pending), desc="Tagging", unit="file", miniters=0) as progress:

        def show(index: int, seconds: float) -> None:  # within a long file
            name = Path(pending[index].path).name
            progress.set_postfix_str(plain(f"{name} {timedelta(seconds=round(seconds))}"), refresh=False)
            progress.update(0)

        classifier.on_window = show
        for file, result in zip(pending, results, strict=True):
            try:
                if "error" in result:
                    raise AudioError(result["error"])
                timeline = result["timeline"]
                if not np.isfinite(timeline.scores).all():  # which JSON cannot say
                    raise AudioError(f"{file.path}: the model's scores are not finite.")
                events = [] if event_options is None else timeline.find_events(**event_options)
                extractor, ignore_length = classifier.feature_extractor, options.get("ignore_length", False)
                folder.add(file, result["tags"], events, timeline, extractor, ignore_length)
            except AudioError as error:
                folder.add_error(file, str(error))
                progress.write(plain(str(error)), file=sys.stderr)
            progress.update()
    return len(pending)


def report_results(folder: ResultsFolder, files: list[SoundFile] | None, num_new: int) -> bool:
    """Write the tables where no part is missing, and say what has been done.

    Args:
        folder: Of the results.
        files: Of the run; `None` means all that have results.
        num_new: How many were tagged now.

    Returns:
        Whether all is well as far as this process is to tell: of several that a launcher has started, those that are
            not the last one leave broken files to it, since a launcher ends all where one fails.
    """
    is_whole, missing = folder.finish(files or [])
    part, paths = folder.part, list(folder.entries) if files is None else [file.path for file in files]
    if not is_whole:
        paths = [path for path in paths if part.includes(path)]
    entries = {path: folder.entries[path] for path in paths}
    broken = [path for path, entry in entries.items() if entry.place is None]
    length = timedelta(seconds=round(sum(entry.seconds for entry in entries.values())))
    num_events = sum(entry.num_events for entry in entries.values())
    print(f"{len(entries)} file(s), {num_new} of them now: {length} of sound (h:mm:ss), {num_events} event(s).")
    if broken:
        print(f"{len(broken)} cannot be used (--retry tries again), such as {plain(broken[0])}.")
    print(f"Results in {folder.path}.")
    if not is_whole:
        print(f"Part {part} is done; the last one writes the tables.")
    if missing:
        shares = Counter(part_of(file.path, part.count) for file in missing)
        others = ", ".join(f"{number} in part {Part(share, part.count)}" for share, number in sorted(shares.items()))
        print(f"{len(missing)} file(s) have no results yet: {others}.")
    return not broken or (not is_whole and "WORLD_SIZE" in os.environ)
