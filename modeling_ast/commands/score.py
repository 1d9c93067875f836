"""Say how well the events that were found in recordings agree with annotations of these recordings.

    modeling-ast score RESULTS ANNOTATIONS [--labels LABEL ...] [--key value ...] [--pictures]

RESULTS is a folder that `modeling-ast tag` has written. ANNOTATIONS are those of all or some of its recordings: a list
with the columns audio, start, end and label (.csv, .tsv, .txt, .jsonl; keys of a recipe name other columns:
--label_column_name SPECIES), or a folder of recordings with label files of Audacity or Raven beside them.

Events are right, by collars, where both ends are near those of a true one; by intersection, where enough of them lies
in true ones and of these enough is covered; by segments, second by second. The timelines give the PSDS of both
scenarios of DCASE, over all thresholds. The output folder gets score.json, labels.csv and, with --pictures, a picture
of each recording, its annotations above the events. To choose thresholds, shortest length and gap by annotations, see
modeling-ast calibrate --results.
"""

import argparse
import csv
import logging
from pathlib import Path
from typing import Any

from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import CommandError, Parser, check_least
from modeling_ast.data.files import write_json, written_beside
from modeling_ast.data.truth import read_truth
from modeling_ast.inference.scored_recordings import (
    Criteria,
    choose_labels,
    read_scored,
    score_recordings,
    score_table,
)
from modeling_ast.inference.tags_folder import TagsFolder


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Score events.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        What is written to `score.json`.

    Raises:
        CommandError, RecipeError, DataError, AudioError, ModelError: Options, keys, results, annotations, or, for the
            pictures, recordings or a model that cannot be used.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args, keys = parse_command_line(argv)
    truth = read_truth(args.annotations, keys)
    folder = TagsFolder.reopen(args.results, read_only=True)
    recordings = read_scored(folder, truth)
    labels = choose_labels(recordings, args.labels)
    criteria = Criteria(args.collar, args.offset_share, args.detection_share, args.truth_share, args.segment_seconds)
    results = {
        "results": str(args.results),
        "annotations": args.annotations,
        "criteria": vars(criteria),
        **score_recordings(recordings, labels, criteria),
    }
    output_dir = args.output_dir or args.results / "score"
    output_dir.mkdir(parents=True, exist_ok=True)
    write_tables(output_dir, results)
    print(score_table(results))
    if args.pictures:
        folder.draw_beside_truth({each.path: each.truth for each in recordings}, output_dir)
    print(f"Saved in {output_dir}.")
    return results


def parse_command_line(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """This command's own arguments, and keys of data."""
    parser = Parser(__doc__)
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder that tag has written")
    parser.add_argument("annotations", metavar="ANNOTATIONS", help="list, or folder with label files")
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="that count; default: those that are annotated")
    parser.add_argument("--collar", type=float, default=0.2, help="seconds at both ends; default: %(default)s")
    share = "share of a true event's length that its end may be off, if more than the collar; default: %(default)s"
    parser.add_argument("--offset_share", type=float, default=0.2, help=share)
    share = "share of a found event that lies in true ones; default: %(default)s"
    parser.add_argument("--detection_share", type=float, default=0.5, help=share)
    share = "share of a true event that found ones cover; default: %(default)s"
    parser.add_argument("--truth_share", type=float, default=0.5, help=share)
    parser.add_argument("--segment_seconds", type=float, default=1.0, help="default: %(default)s")
    parser.add_argument("--pictures", action="store_true", help="of each recording, which is read for it")
    parser.add_argument("--output_dir", type=Path, help="default: RESULTS/score")
    args, keys = parser.parse_known_args(argv)
    check_least(args, collar=0, offset_share=0, segment_seconds=0.001)
    for name in ("detection_share", "truth_share"):
        if not 0 < getattr(args, name) <= 1:
            raise CommandError(f"Expected {name} above 0 and at most 1, got {getattr(args, name)}.")
    if args.pictures:
        import modeling_ast.inference.plots  # noqa: F401 - or say at once that matplotlib is missing
    return args, keys


def write_tables(folder: Path, results: dict[str, Any]) -> None:
    """`score.json`, and `labels.csv` with a row a label."""
    write_json(folder / "score.json", results)
    with written_beside(folder / "labels.csv") as unfinished:
        with open(unfinished, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            rows = [{"label": label, **_flat(each)} for label, each in results["labels"].items()]
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def _flat(figures: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for name, value in figures.items():
        flat |= {f"{name}_{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
    return flat


if __name__ == "__main__":
    run_command("score")
