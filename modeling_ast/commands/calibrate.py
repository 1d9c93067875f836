"""Make the scores of a trained model as sure as they are right, and find for each label the score that decides.

    modeling-ast calibrate MODEL --recipe RECIPE.yaml [--key value ...] [--target_precision 0.9]
        [--unknown [SHARE] [--unknown_sounds FILE|FOLDER|LIST ...]]
    modeling-ast calibrate MODEL --results RESULTS --annotations LIST [--test_annotations LIST] [--key value ...]

The recipe, and keys that win over it, say which data are predicted. On their validation clips (on all of them, where
they name no splits and did not train the model) a temperature is found and folded into the classifier, so that
Transformers without this package gives the same scores, and then a threshold a label, which the configuration keeps.
The model must not have been trained on these clips. The result is a new folder, with the model card, the recipe and
the licence of the old one; `calibration_results.json` and `calibration.png` in it show before and after, on test clips
too where there are any: those are the figures to report.

--unknown finds how far a clip may be from the validation clips to have one of the labels. Pipeline, tag and page call
what is farther `unknown`; by mistake SHARE of the clips of the labels at most, which is told of clips that nothing was
fitted on, and beside it what is refused of --unknown_sounds, which have none of the labels. Scores stay.

The second form goes by events in annotated recordings, which tag has listened to with this model (RESULTS): for each
label the threshold, and for all of them the shortest length and the longest gap, that give the best mean F1 by
intersection. Annotations are as for modeling-ast score; those to report on (--test_annotations) are of others.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import CommandError, Parser, check_new_folder
from modeling_ast.data.labels import DataError
from modeling_ast.data.recipes import parse_data_arguments
from modeling_ast.data.splits import read_held_out
from modeling_ast.data.truth import read_truth
from modeling_ast.data.unknown import UNKNOWN
from modeling_ast.inference.calibrated_model import metrics_table
from modeling_ast.inference.clip_calibration import calibrate_by_clips
from modeling_ast.inference.event_calibration import calibrate_by_annotations, events_table
from modeling_ast.inference.predictions import KEYS
from modeling_ast.inference.tags_folder import TagsFolder
from modeling_ast.inference.unknown_calibration import unknown_table


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Calibrate a model.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        What is written to `calibration_results.json`.

    Raises:
        CommandError, ModelError, RecipeError, DataError, AudioError: Options, a model, keys, a data set or a sound
            file that cannot be used, or clips on which nothing can be fitted.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args, keys = parse_command_line(argv)
    if args.results is not None:
        return calibrate_events(args, keys)
    effective = {"problem_type", *KEYS}
    model_args, data_args, batch_args = parse_data_arguments(args.recipe, keys, "a calibration", effective)
    output_dir = choose_output_dir(args.model, args.output_dir)
    multi_label = model_args.problem_type == "multi_label_classification"
    splits = read_held_out(args.model, data_args, multi_label, alone="validation")
    if splits.validation is None:
        raise DataError(f"{data_args.dataset_name}: expected clips to calibrate on, got test clips alone.")
    results = calibrate_by_clips(
        args.model,
        data_args.dataset_name,
        splits,
        model_args.problem_type,
        batch_args,
        output_dir,
        with_temperature=not args.no_temperature,
        with_thresholds=not args.no_thresholds,
        target_precision=args.target_precision,
        unknown_share=args.unknown,
        unknown_sounds=args.unknown_sounds,
    )
    print(metrics_table(results))
    if UNKNOWN in results:
        print(unknown_table(results[UNKNOWN]))
    print(f"Saved in {output_dir}.")
    return results


def calibrate_events(args: argparse.Namespace, keys: list[str]) -> dict[str, Any]:
    """Choose thresholds and lengths of events by annotated recordings."""
    output_dir = choose_output_dir(args.model, args.output_dir)
    folder = TagsFolder.reopen(args.results, read_only=True)
    parts = [read_truth(name, keys) for name in filter(None, (args.annotations, args.test_annotations))]
    results = calibrate_by_annotations(args.model, folder, parts, output_dir)
    print(events_table(results))
    lengths = f"--min_seconds {results['min_seconds']:g} --merge_seconds {results['merge_seconds']:g}"
    print(f"Saved in {output_dir}. To tag with it: modeling-ast tag RECORDINGS --model {output_dir} {lengths}")
    return results


def parse_command_line(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """This command's own arguments, and keys of the recipe."""
    parser = Parser(__doc__)
    parser.add_argument("model", metavar="MODEL", help="folder or name on the Hub; it is not changed")
    parser.add_argument("--recipe", help="whose validation clips, and test clips, are predicted")
    parser.add_argument("--results", type=Path, help="folder that tag has written with this model")
    parser.add_argument("--annotations", help="of the recordings to choose by: list, or folder with label files")
    parser.add_argument("--test_annotations", help="of others, to report on")
    precision = "of the label of each threshold, in (0, 1]; default: the best F1"
    parser.add_argument("--target_precision", type=float, help=precision)
    parser.add_argument("--no_temperature", action="store_true", help="leave the scores as they are")
    parser.add_argument("--no_thresholds", action="store_true", help="find the temperature alone")
    share = "of the clips of the labels that may be called so; default: 0.05"
    parser.add_argument("--unknown", nargs="?", const=0.05, type=float, metavar="SHARE", help=share)
    parser.add_argument("--unknown_sounds", nargs="+", type=Path, metavar="FILE|FOLDER|LIST", help="to report on")
    parser.add_argument("--output_dir", type=Path, help="new folder; default: MODEL_calibrated, beside the model's")
    args, keys = parser.parse_known_args(argv)
    if (args.recipe is None) == (args.results is None) or (args.results is None) != (args.annotations is None):
        raise CommandError("Expected --recipe, or --results with --annotations.")
    of_recipe = ("no_temperature", "no_thresholds", "target_precision", "unknown", "unknown_sounds")
    if idle := [name for name in of_recipe if args.results and getattr(args, name)]:
        raise CommandError(f"--{idle[0]} has no effect with --results: leave it out.")
    if args.test_annotations and args.recipe:
        raise CommandError("--test_annotations has no effect with --recipe: leave it out.")
    if args.unknown is None and args.unknown_sounds:
        raise CommandError("--unknown_sounds has no effect without --unknown: give both, or neither.")
    if args.unknown is not None and not 0 < args.unknown < 1:
        raise CommandError(f"Expected --unknown between 0 and 1, got {args.unknown}.")
    if args.no_temperature and args.no_thresholds and args.unknown is None:
        raise CommandError("Nothing to do with both --no_temperature and --no_thresholds: leave one out.")
    if args.no_thresholds and args.target_precision is not None:
        raise CommandError("--target_precision has no effect with --no_thresholds: leave one out.")
    if args.target_precision is not None and not 0 < args.target_precision <= 1:
        raise CommandError(f"Expected --target_precision in (0, 1], got {args.target_precision}.")
    return args, keys


def choose_output_dir(model: str, output_dir: Path | None) -> Path:
    """A folder that is not there yet, or empty."""
    source = Path(model).resolve()
    if output_dir is None:
        if not source.is_dir():
            raise CommandError(f"Expected --output_dir, as {model} is no folder that the new one could lie beside.")
        output_dir = source.with_name(f"{source.name}_calibrated")
    if output_dir.resolve() == source:
        raise CommandError(f"Expected an --output_dir besides the model's own folder {model}, which is not changed.")
    check_new_folder(output_dir)
    return output_dir


if __name__ == "__main__":
    run_command("calibrate")
