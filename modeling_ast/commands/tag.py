"""Listen to whole recordings, and write down what is in them and when.

    modeling-ast tag FILE|FOLDER|LIST ... --model MODEL --output_dir OUT [--key value ...]
    modeling-ast tag --events_only --output_dir OUT --threshold 0.3 [--min_seconds 1 ...]

Recordings (WAV, FLAC, OGG, MP3) of any length are cut into overlapping windows. A LIST (.txt, .csv, .tsv) names one a
line, or in a column path. OUT gets `results.jsonl`, a line a file; the tables `tags.csv`, `events.csv` and, with
`--formats parquet`, `tags.parquet` (a row a file: path, seconds, error, labels and scores, best first); and file by
file `timelines/` (scores over time, CSV), `audacity/` (labels to import), and `pictures/` (with `--formats png`).

In a line of `results.jsonl`, `place` is what the file's own results are called in these folders, without the suffix,
and `stamp` its size in bytes and time of change in nanoseconds, by which it is known again.

The second command finds events anew in the saved timelines, with other thresholds, lengths and gaps; what is not given
stays (`--ignore` alone: none). The first one again goes on where it was stopped, with new and changed files alone.

Under accelerate launch or torchrun each process takes its share of the files and a GPU of its own; --part K/N is one
of N shares, which a SLURM job array fills in. Who is last writes the tables; until then it is said what is missing.

Exit status: 0; 1 if some files cannot be used (of a launcher's processes, the last one's), 2 if nothing can be done.
"""

import argparse
import os
from pathlib import Path

from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import CommandError, Parser, add_bulk_options, check_bulk_options
from modeling_ast.data.fingerprint import fingerprint_model
from modeling_ast.data.labels import DataError
from modeling_ast.data.locks import still_written
from modeling_ast.data.parts import claimed_part, own_device
from modeling_ast.inference.budget import find_plan, make_plan
from modeling_ast.inference.bulk import report_results
from modeling_ast.inference.pipeline import audio_tagger
from modeling_ast.inference.sound_files import SoundFile, find_files
from modeling_ast.inference.tagging import check_event_options, choose_formats, tag_files
from modeling_ast.inference.tags_folder import FORMATS, TagsFolder, import_for

EVENT_OPTIONS = {"threshold": None, "low_threshold": None, "min_seconds": 0.0, "merge_seconds": 0.0, "ignore": []}
GOES_ON = "The same command goes on from here."


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
    files = None if args.events_only else find_files(args.sources, args.output_dir)
    with claimed_part(args.output_dir, args.part, DataError(still_written(args.output_dir))):
        folder, num_new = run(args, files)
    # Where a part is no longer at work, so that the last one knows that it is the last.
    is_well = report_results(folder, files, num_new, args.output_dir, "event")
    if (num_new or args.events_only) and (hint := folder.why_silent()) is not None:
        print(hint)
    return 0 if is_well else 1


def run(args: argparse.Namespace, files: list[SoundFile] | None) -> tuple[TagsFolder, int]:
    """Do what the command line says, up to the tables, and return the results and how many files were tagged now."""
    given = {name: getattr(args, name) for name in EVENT_OPTIONS if getattr(args, name) is not None}
    if args.events_only:
        folder = TagsFolder.reopen(args.output_dir)
        folder.find_again({name: folder.settings[name] for name in EVENT_OPTIONS} | given)
        return folder, 0
    event_options = EVENT_OPTIONS | given
    saved = find_plan(args.output_dir) if args.budget is not None and not args.overwrite else None
    dtype = saved.dtype if saved else args.dtype
    device = args.device or ("cpu" if dtype == "int8" else own_device(os.environ))
    classifier = audio_tagger(args.model, device=device)
    fingerprint = fingerprint_model(classifier.model, classifier.feature_extractor)
    try:
        if args.budget is not None:
            args.dtype, args.hop = saved or make_plan(classifier, args.window, args.budget, args.batch_size)
        windows = classifier.window_keywords(args.window, args.hop)
        thresholds = check_event_options(classifier, args.function_to_apply, event_options)
        formats = choose_formats(args.model, args.formats, with_events=thresholds is not None)
    except ValueError as error:
        raise CommandError(str(error)) from error
    classifier.compute_in(args.dtype)
    scoring = {name: getattr(args, name) for name in ("top_k", "function_to_apply", "aggregate")}
    reading = {name: getattr(args, name) for name in ("ignore_length", "batch_size", "num_workers")}
    settings = {
        **{"model": args.model, "fingerprint": fingerprint, **({"dtype": args.dtype} if args.dtype else {})},
        **{"window": args.window, "hop": args.hop, **scoring, **event_options, "thresholds": thresholds},
        "sampling_rate": classifier.feature_extractor.sampling_rate,
    }
    folder = TagsFolder(args.output_dir, settings, formats, args.overwrite, args.part)
    options = {**windows, **scoring, **reading}
    events = None if thresholds is None else event_options
    return folder, tag_files(classifier, folder, files, events, args.retry, **options)


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with what can be checked without a model checked."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "sources",
        nargs="*",
        type=Path,
        metavar="FILE|FOLDER|LIST",
        help="recordings, folders with recordings below, and lists of both (.txt, .csv, .tsv)",
    )
    add("--model", help="folder or name on the Hub")
    add("--output_dir", required=True, type=Path, help="of the results")
    add("--window", type=float, metavar="SECONDS", help="of a window; default: what the model was made for")
    add("--hop", type=float, metavar="SECONDS", help="between windows; default: two thirds of the window")
    add("--budget", type=float, metavar="SECONDS", help="of computing a second of sound: chooses --hop and --dtype")
    add("--top_k", type=int, default=5, help="tags a recording; default: %(default)s")
    add("--aggregate", choices=("mean", "max"), default="mean", help="tags from all windows; default: %(default)s")
    add("--dtype", choices=("float32", "bfloat16", "float16", "int8"), help="default: the weights' own; int8: on CPUs")
    add("--function_to_apply", choices=("softmax", "sigmoid"), help="default: by the model's problem type")
    add("--threshold", type=float, help="score of an event, in one window at least; default: the model's own, or 0.5")
    add("--low_threshold", type=float, help="score up to which an event lasts; default: half the threshold")
    add("--min_seconds", type=float, help="length of the shortest event; default: 0")
    add("--merge_seconds", type=float, help="gaps that events bridge; default: 0")
    add("--ignore", nargs="*", metavar="LABEL", help="labels without events, such as a background")
    add("--formats", nargs="+", choices=FORMATS, help="default: jsonl csv audacity; jsonl in any case")
    add_bulk_options(parser)
    add("--events_only", action="store_true", help="find events anew in the saved timelines, without the model")
    args = parser.parse_args(argv)
    if args.events_only:
        given = [name for name, value in vars(args).items() if value not in (parser.get_default(name), [])]
        if idle := [name for name in given if name not in {*EVENT_OPTIONS, "events_only", "output_dir"}]:
            raise CommandError(f"No effect with --events_only, which runs no model: {', '.join(idle)}.")
    elif not args.sources or args.model is None:
        raise CommandError("Expected recordings and --model, or --events_only.")
    import_for(args.formats or ())
    least = {"top_k": 1, "min_seconds": 0, "merge_seconds": 0, "budget": 1e-6}
    check_bulk_options(args, {} if args.events_only else os.environ, **least)
    if args.budget is not None and (args.hop is not None or args.dtype or args.part.count > 1):
        raise CommandError("Expected --budget without --hop and --dtype, which it chooses for one process alone.")
    for name in ("threshold", "low_threshold"):
        if getattr(args, name) is not None and not 0 <= getattr(args, name) <= 1:
            raise CommandError(f"Expected {name} between 0 and 1, got {getattr(args, name)}.")
    return args


if __name__ == "__main__":
    run_command("tag")
