"""Listen to whole recordings, and write down what is in them and when.

    modeling-ast tag FILE|FOLDER|LIST ... --model MODEL --output_dir OUT [--key value ...]
    modeling-ast tag --events_only --output_dir OUT --threshold 0.3 [--min_seconds 1 ...]

Recordings (WAV, FLAC, OGG, MP3) of any length are heard in overlapping windows. A LIST (.txt, .csv, .tsv) names one a
line, or in a column path. OUT gets `results.jsonl`, a line a
file; the tables `tags.csv` and `events.csv`; and file by file `timelines/` (scores over time, CSV), `audacity/`
(labels to import), and `pictures/` (with `--formats png`).

In a line of `results.jsonl`, `place` is what the file's own results are called in these folders, without the suffix,
and `stamp` its size in bytes and time of change in nanoseconds, by which it is known again.

The second command finds events anew in the saved timelines, with other thresholds, lengths and gaps; nothing is heard.

The same command again goes on where it was stopped, with new and changed files alone. Exit status: 0; 1 if some files
cannot be used, 2 if nothing can be done.
"""

import argparse
import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from modeling_ast.audio import AudioError
from modeling_ast.commands.command_line import CommandError, device, run_command, told
from modeling_ast.data.labels import DataError, plain
from modeling_ast.inference.pipeline import ASTAudioClassificationPipeline, audio_tagger
from modeling_ast.inference.predictions import fingerprint_model
from modeling_ast.inference.sound_files import find_files
from modeling_ast.inference.tagging import FORMATS, ResultsFolder
from modeling_ast.inference.timeline import Event, Timeline

EVENT_OPTIONS = ("threshold", "low_threshold", "min_seconds", "merge_seconds", "ignore")
GOES_ON = "The same command goes on from here."


@told(OSError)
def main(argv: list[str] | None = None) -> int:
    """Tag recordings.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        The exit status: 0, or 1 if some files cannot be used.

    Raises:
        ModelError, CommandError, DataError, AudioError: A model, options, files or a folder for the results that
            cannot be used.
    """
    args = parse_options(argv)
    if args.events_only:
        return find_again(args)
    files = find_files(args.sources, args.output_dir)
    classifier = audio_tagger(args.model, device=args.device)
    try:
        windows = classifier.window_keywords(args.window, args.hop)
    except ValueError as error:
        raise CommandError(str(error)) from error
    find_events, thresholds = event_finder(classifier, args)
    settings = {
        "model": args.model,
        "fingerprint": fingerprint_model(classifier.model, classifier.feature_extractor),
        **{name: getattr(args, name) for name in ("window", "hop", "top_k", "function_to_apply", "aggregate")},
        **{name: getattr(args, name) for name in EVENT_OPTIONS},
        "thresholds": thresholds,
        "sampling_rate": classifier.feature_extractor.sampling_rate,
    }
    formats = args.formats or ["jsonl", "csv", *([] if is_regression(classifier, args) else ["audacity"])]
    folder = ResultsFolder(args.output_dir, settings, formats, args.overwrite)
    pending = folder.pending(files, args.retry)
    results = classifier(
        (file.path for file in pending),
        **windows,
        top_k=args.top_k,
        function_to_apply=args.function_to_apply,
        aggregate=args.aggregate,
        return_timeline=True,
        on_error="return",
        ignore_length=args.ignore_length,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
    )
    with tqdm(
        total=len(files), initial=len(files) - len(pending), desc="Tagging", unit="file", miniters=0
    ) as progress:

        def show(index: int, seconds: float) -> None:  # within a long file
            name = Path(pending[index].path).name
            progress.set_postfix_str(plain(f"{name} {timedelta(seconds=round(seconds))}"), refresh=False)
            progress.update(0)

        classifier.on_window = show
        for file, result in zip(pending, results, strict=True):
            try:
                if "error" in result:
                    raise AudioError(result["error"])
                if not np.isfinite(result["timeline"].scores).all():  # which JSON cannot say
                    raise AudioError(f"{file.path}: the model's scores are not finite.")
                events = find_events(result["timeline"])
                extractor, timeline = classifier.feature_extractor, result["timeline"]
                folder.add(file, result["tags"], events, timeline, extractor, args.ignore_length)
            except AudioError as error:
                folder.add_error(file, str(error))
                progress.write(plain(str(error)), file=sys.stderr)
            progress.update()
    folder.write_tables()
    return report(folder, [folder.entries[file.path] for file in files], len(pending))


def find_again(args: argparse.Namespace) -> int:
    """Find the events in the saved timelines, with other options."""
    path = args.output_dir / "settings.json"
    try:
        settings = json.loads(path.read_bytes())
        formats = settings.pop("formats")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{args.output_dir} holds no results whose events could be found again.") from error
    folder = ResultsFolder(args.output_dir, settings, formats)
    folder.find_again({name: getattr(args, name) for name in EVENT_OPTIONS})
    return report(folder, list(folder.entries.values()), 0)


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with what can be checked without a model checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add(
        *("sources",),
        nargs="*",
        type=Path,
        metavar="FILE|FOLDER|LIST",
        help="recordings, folders with recordings below, and lists of both (.txt, .csv, .tsv)",
    )
    add("--model", help="folder or name on the Hub")
    add("--output_dir", required=True, type=Path, help="of the results")
    add("--window", type=float, metavar="SECONDS", help="heard at a time; default: the length the model was made for")
    add("--hop", type=float, metavar="SECONDS", help="between windows; default: two thirds of the window")
    add("--top_k", type=int, default=5, help="tags a recording; default: %(default)s")
    add("--aggregate", choices=("mean", "max"), default="mean", help="tags from all windows; default: %(default)s")
    add("--function_to_apply", choices=("softmax", "sigmoid"), help="default: by the model's problem type")
    add("--threshold", type=float, help="score of an event, in one window at least; default: the model's own, or 0.5")
    add("--low_threshold", type=float, help="score up to which an event lasts; default: half the threshold")
    add("--min_seconds", type=float, default=0.0, help="length of the shortest event; default: %(default)s")
    add("--merge_seconds", type=float, default=0.0, help="gaps that events bridge; default: %(default)s")
    add("--ignore", nargs="+", default=[], metavar="LABEL", help="labels without events, such as a background")
    add(
        "--formats",
        nargs="+",
        choices=FORMATS,
        help="default: all but png; results.jsonl is written in any case",
    )
    add("--batch_size", type=int, default=8, help="windows at a time; default: %(default)s")
    add("--num_workers", type=int, default=0, help="processes that read files; default: 0, this one")
    add("--device", type=device, help="such as cpu or cuda:1; default: a GPU where there is one")
    add(
        "--ignore_length",
        action="store_true",
        help="read files whose headers announce more sound than they hold, or less, as far as they go",
    )
    add("--events_only", action="store_true", help="find events anew in the saved timelines, without the model")
    add("--retry", action="store_true", help="hear files that could not be used once more")
    add("--overwrite", action="store_true", help="delete the results in the folder and begin anew")
    args = parser.parse_args(argv)
    if args.events_only:
        used = {*EVENT_OPTIONS, "events_only", "output_dir"}
        if idle := [
            name
            for name, value in vars(args).items()
            if name not in used and value not in (parser.get_default(name), [])
        ]:
            raise CommandError(f"No effect with --events_only, which hears nothing: {', '.join(idle)}.")
    elif not args.sources or args.model is None:
        raise CommandError("Expected recordings and --model, or --events_only.")
    for name, least in {"top_k": 1, "min_seconds": 0, "merge_seconds": 0, "batch_size": 1, "num_workers": 0}.items():
        if not getattr(args, name) >= least:
            raise CommandError(f"Expected {name} of at least {least}, got {getattr(args, name)}.")
    for name in ("threshold", "low_threshold"):
        if getattr(args, name) is not None and not 0 <= getattr(args, name) <= 1:
            raise CommandError(f"Expected {name} between 0 and 1, got {getattr(args, name)}.")
    return args


def event_finder(
    classifier: ASTAudioClassificationPipeline, args: argparse.Namespace
) -> tuple[Callable[[Timeline], list[Event]], dict[str, float] | None]:
    """What finds the events in a timeline, and the thresholds that were fitted to the model; `None` without events.

    Raises:
        CommandError: Options that contradict each other or the model.
    """
    options = {name: getattr(args, name) for name in EVENT_OPTIONS}
    config = classifier.model.config
    if is_regression(classifier, args):
        given = [name for name, value in options.items() if value]
        given += ["formats audacity"] if "audacity" in (args.formats or ()) else []
        if given:
            raise CommandError(f"No effect on {args.model}, a regression model, which gives no events: {given[0]}.")
        print(f"{args.model} is a regression model: it gives numbers over time, and no events.", file=sys.stderr)
        return (lambda timeline: []), None
    window = {"start": 0, "num_samples": 1, "logits": torch.zeros(1, config.num_labels)}
    result = classifier.postprocess([window], function_to_apply=args.function_to_apply, return_timeline=True)
    try:
        result["timeline"].find_events(**options)  # with the model's labels and thresholds
    except ValueError as error:
        raise CommandError(str(error)) from error
    return (lambda timeline: timeline.find_events(**options)), result["timeline"].thresholds


def is_regression(classifier: ASTAudioClassificationPipeline, args: argparse.Namespace) -> bool:
    """Whether the model's outputs are taken as they are."""
    return classifier.model.config.problem_type == "regression" and args.function_to_apply is None


def report(folder: ResultsFolder, entries: list[dict[str, Any]], num_new: int) -> int:
    """Say what has been done, and return the exit status."""
    broken = [entry["path"] for entry in entries if "error" in entry]
    heard = [entry for entry in entries if "error" not in entry]
    length = timedelta(seconds=round(sum(entry["seconds"] for entry in heard)))
    num_events = sum(len(entry["events"]) for entry in heard)
    print(f"{len(entries)} file(s), {num_new} of them now: {length} of sound (h:mm:ss), {num_events} event(s).")
    if broken:
        print(f"{len(broken)} cannot be used (--retry tries again), such as {plain(broken[0])}.")
    print(f"Results in {folder.path}.")
    return 1 if broken else 0


if __name__ == "__main__":
    run_command("tag")
