"""Tags of many recordings: what the pipeline says of each goes into a folder of results."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from modeling_ast.audio import AudioError
from modeling_ast.inference.bulk import run_pending
from modeling_ast.inference.pipeline import ASTAudioClassificationPipeline
from modeling_ast.inference.sound_files import SoundFile
from modeling_ast.inference.tags_folder import TagsFolder


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
        if given := [name for name, value in options.items() if value or (value == 0 and "threshold" in name)]:
            name = classifier.model.name_or_path
            raise ValueError(f"No effect on {name}, a regression model, which gives no events: {given[0]}.")
        return None
    outputs = {"logits": torch.zeros(1, classifier.model.config.num_labels), "distance": torch.zeros(1)}
    window = {"start": 0, "num_samples": 1, **outputs}
    timeline = classifier.postprocess([window], function_to_apply=function_to_apply, return_timeline=True)["timeline"]
    timeline.find_events(**options)
    return timeline.thresholds


def choose_formats(model: str, given: Sequence[str] | None, with_events: bool) -> Sequence[str]:
    """The formats of results, those that are given or the usual ones.

    Args:
        model: As the user calls it.
        given: Some of `FORMATS`, or none.
        with_events: Whether it gives events.

    Raises:
        ValueError: Labels of events, of a model that gives none.
    """
    if with_events:
        return given or ["jsonl", "csv", "audacity"]
    print(f"{model} is a regression model: it gives numbers over time, and no events.", file=sys.stderr)
    if "audacity" in (given or ()):
        raise ValueError(f"No effect on {model}, which gives no events: formats audacity.")
    return given or ["jsonl", "csv"]


def tag_files(
    classifier: ASTAudioClassificationPipeline,
    folder: TagsFolder,
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
    pending = folder.pending(files, retry)
    extractor, ignore_length = classifier.feature_extractor, options.get("ignore_length", False)

    def add(file: SoundFile, result: Mapping[str, Any]) -> None:
        timeline = result["timeline"]
        if not np.isfinite(timeline.scores).all():  # which JSON cannot say
            raise AudioError(f"{file.path}: the model's scores are not finite.")
        events = [] if event_options is None else timeline.find_events(**event_options)
        folder.add(file, result["tags"], events, timeline, extractor, ignore_length)

    paths = (file.path for file in pending)
    run_pending(classifier, folder, files, pending, paths, add, "Tagging", return_timeline=True, **options)
    return len(pending)
