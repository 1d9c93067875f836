"""A doctor before a long run: what is wrong with the data of a recipe, and the line that mends it.

    modeling-ast check RECIPE [--key value ...] [--max_clips N] [--json FILE]

Listens to every clip once and looks at the files (readable, long enough), sampling rates, channels, clipping,
silence, lengths against `max_length`, labels and their order against the model's, mean and std against the
recipe's, masks, sampling weights, clips that stand in two splits or folds, and groups (voices, places) that go
along with a label, or are on both sides of a split. Findings stand in the order in which to mend them. Other keys are
those of training (with one of `pretrain` no labels are read); `--dataloader_num_workers` processes listen. A stream's
first `--max_train_samples` count. Exit status: 0 with notes at most, which do no harm, 1 with warnings, 2 with errors.
"""

import argparse
import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from modeling_ast import ASTFeatureExtractor
from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import CommandError, Parser, check_least
from modeling_ast.data import label_checks, sound_checks
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.clips import has_stretches
from modeling_ast.data.examination import LEVELS, ClipSummary, Examination, Finding, in_order, read_all_folds
from modeling_ast.data.files import write_json
from modeling_ast.data.splits import read_tables
from modeling_ast.training.arguments import Arguments
from modeling_ast.training.building import build_model_and_extractor
from modeling_ast.training.pretraining_arguments import parse_any_recipe
from modeling_ast.training.sampling import class_balanced_weights

NUM_EXAMPLES = 3


def main(argv: list[str] | None = None) -> int:
    """Examine the data of a recipe and report.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        The exit status: 0, 1 with warnings, 2 with errors.

    Raises:
        CommandError, RecipeError, DataError: Options, keys, a model or a data set that cannot be used at all.
    """
    options, recipe_argv = parse_options(argv)
    arguments = parse_any_recipe(recipe_argv)
    model_args, data_args, training_args = arguments.model, arguments.data, arguments.training
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    splits = read_tables(data_args, model_args.problem_type == "multi_label_classification")
    _, extractor = build_model_and_extractor(model_args, splits.label_names)
    model_label_names = label_checks.read_model_labels(model_args.model_name_or_path)

    folds = read_all_folds(data_args)
    examination = Examination(dict(splits), extractor, folds, options.max_clips, splits.ignore_length)
    loader = DataLoader(examination, batch_size=None, num_workers=training_args.dataloader_num_workers)
    clips = list(tqdm(loader, desc="Listening", unit="clip", disable=training_args.disable_tqdm))
    of_clips = check_clips(clips, splits, extractor, arguments)
    of_labels = check_labels(splits, model_label_names, arguments) if splits.label_names else ()
    findings = in_order([*of_clips, *of_labels])
    status = max((LEVELS.index(finding.level) for finding in findings), default=0)
    report(data_args.dataset_name, splits, clips, findings)
    if options.json is not None:
        contents = {"status": status, "clips": len(clips), "findings": [dataclasses.asdict(each) for each in findings]}
        write_json(options.json, contents)
    return status


def parse_options(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The script's own options, and the rest of the command line, which is a recipe's."""
    parser = Parser(__doc__, usage="%(prog)s RECIPE [--key value ...] [--max_clips N] [--json FILE]")
    parser.add_argument("--max_clips", type=int, metavar="N", help="listen to so many clips alone, drawn at random")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings, with the names of all clips")
    options, rest = parser.parse_known_args(argv)
    check_least(options, max_clips=1)
    if options.json is not None and (options.json.is_dir() or not options.json.absolute().parent.is_dir()):
        raise CommandError(f"Expected json to be a file in a folder that exists, got {options.json}.")
    return options, rest


def check_clips(
    clips: list[ClipSummary], splits: AudioSplits, extractor: ASTFeatureExtractor, arguments: Arguments
) -> Iterator[Finding]:
    """What the sounds say."""
    augment_args = arguments.augment
    yield from sound_checks.check_files(clips)
    readable = [clip for clip in clips if not clip.fault]
    training = [clip for clip in readable if clip.split == "train"]
    yield from sound_checks.check_rates(readable, extractor.sampling_rate)
    yield from sound_checks.check_channels(readable)
    yield from sound_checks.check_levels(readable)
    yield from label_checks.check_duplicates(readable, splits.label_names)
    yield from label_checks.check_groups([clip for clip in clips if clip.split == "train"], splits.label_names)
    yield from label_checks.check_divided_groups(clips, splits.label_names, arguments.data.has_groups)
    is_padded = extractor.padding == "max_length"
    lengths = extractor.max_length, augment_args.random_crop, is_padded
    yield from sound_checks.check_lengths(readable, *lengths, any(has_stretches(rows) for _, rows in splits))
    yield from sound_checks.check_statistics(training, extractor)
    freq_masks = augment_args.freq_mask_bins, augment_args.num_freq_masks
    masks = freq_masks, (augment_args.time_mask_frames, augment_args.num_time_masks)
    yield from sound_checks.check_masks(training, *masks, extractor.num_mel_bins, extractor.max_length, is_padded)


def check_labels(splits: AudioSplits, model_label_names: list[str] | None, arguments: Arguments) -> Iterator[Finding]:
    """What the labels say, of all clips, listened to or not."""
    model_args, training_args = arguments.model, arguments.training
    labels = {name: label_checks.read_labels(rows) for name, rows in splits}
    yield from label_checks.check_spelling(splits.label_names)
    weighs = "balanced" in (training_args.class_weights, training_args.pos_weight)
    is_balanced = training_args.class_balanced_sampling or weighs
    yield from label_checks.check_label_counts(labels, splits.label_names, is_balanced)
    yield from label_checks.check_label_names(
        splits.label_names, model_label_names, model_args.model_name_or_path, training_args.do_train
    )
    if training_args.class_balanced_sampling and any(labels["train"]):
        weights = class_balanced_weights(splits.train, len(splits.label_names))
        yield from label_checks.check_sampling_weights(weights, splits.train, labels["train"], splits.label_names)


def report(dataset_name: str, splits: AudioSplits, clips: list[ClipSummary], findings: list[Finding]) -> None:
    """Print the findings, in their order; errors with all clips concerned, others with some of them."""
    sizes = ", ".join(f"{len(rows)} clips for {name}" for name, rows in splits)
    print(f"{dataset_name}: {len(splits.label_names) or 'no'} labels, {sizes}; listened to {len(clips)}")
    folders = {os.path.dirname(clip.name) for clip in clips}
    root = os.path.commonpath(folders) if all(map(os.path.isabs, folders)) else os.sep
    if root != os.sep and findings:
        print(f"File names start at {root}")
    for finding in findings:
        print(f"\n{finding.level.upper()}  {finding.check}: {finding.seen}")
        shown = finding.clips if finding.level == "error" else finding.clips[:NUM_EXAMPLES]
        for clip in shown:
            print("    " + (clip if root == os.sep else clip.replace(root + os.sep, "")))
        if len(shown) < len(finding.clips):
            print(f"    and {len(finding.clips) - len(shown)} more (--json FILE lists them all)")
        for line in (finding.mend or "").splitlines():
            print(f"  > {line}")
    counts = Counter(finding.level for finding in findings)
    total = ", ".join(f"{counts[level]} {level}(s)" for level in LEVELS[::-1]) if findings else "Nothing found."
    print(f"\n{total}")


if __name__ == "__main__":
    run_command("check")
