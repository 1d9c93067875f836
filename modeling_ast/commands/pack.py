"""Pack a recipe's data into shards of Parquet, to be streamed, passed on, or read from the Hub.

    modeling-ast pack RECIPE --output FOLDER [--format flac] [--shard_megabytes 500 | --clips_per_shard N]
        [--push_to_hub ME/NAME [--private]] [--key value ...]

All splits are packed, training clips in a shuffled order. Sounds stay the bytes that they are, or become FLAC or
WAV (16 bits) or Opus, in mono at the rate that the recipe's model takes. Each clip is decoded: up to `max_bad_clips`
training clips that cannot be are left out and named in bad_clips.csv. Columns without sounds are kept, and labels have
their names. The same command goes on where it was stopped. Folds are packed together, so that any of them can be held
out. What comes of it is read by the same recipe with another `dataset_name`: the folder, or where it was copied to.
Exit status: 1 where clips were left out.
"""

import argparse
import logging
from pathlib import Path

from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import CommandError, Parser, check_least
from modeling_ast.commands.push import check_hub, upload
from modeling_ast.data.decoding import BAD_CLIPS_NAME, BadClips
from modeling_ast.data.locks import claimed, still_written
from modeling_ast.data.packing import CARD_NAME, FORMATS, PackedSplit, Packing, pack_splits
from modeling_ast.data.recipes import DataArguments, RecipeError, parse_data_arguments
from modeling_ast.data.splits import read_splits
from modeling_ast.training.building import recipe_sampling_rate

GOES_ON = "The same command goes on from here."
# Keys of the recipe that have an effect here, besides those that say where the rows come from.
KEYS = {"model_name_or_path", "sampling_rate", "problem_type", "max_bad_clips"}
# Keys of a recipe that shards have no use for, and that are refused beside them.
NOT_OF_SHARDS = (
    *("audio_dir", "validation_file", "test_file", "dataset_config_name"),
    *("train_split_name", "validation_split_name", "test_split_name"),
)


def main(argv: list[str] | None = None) -> int:
    """Pack, and perhaps upload.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        The exit status: 0, or 1 where clips were left out.

    Raises:
        CommandError, RecipeError, DataError, AudioError: Options, keys, a folder, a data set or a clip that cannot be
            used.
    """
    args, keys = parse_command_line(argv)
    model_args, data_args, _ = parse_data_arguments(args.recipe, keys, "packing", KEYS)
    if data_args.streaming:
        raise RecipeError("Expected streaming: false; all clips are shuffled, which a stream does not hold.")
    packing = to_packing(args, None if args.format == "original" else recipe_sampling_rate(model_args))
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with claimed(args.output, CommandError(still_written(args.output, "--output"))):
        splits = read_splits(data_args, model_args.problem_type == "multi_label_classification", keep_columns=True)
        bad_clips = BadClips(args.output / BAD_CLIPS_NAME, data_args.max_bad_clips)
        columns = data_args.audio_column_name, data_args.label_column_name
        packed = pack_splits(splits, args.output, packing, bad_clips, columns)
        report(args.output, packed, data_args, len(splits.label_names), len(bad_clips.read()))
        if args.push_to_hub:
            patterns = {"allow_patterns": ["*.parquet", CARD_NAME]}
            print(
                f"Uploaded to {upload(args.output, args.push_to_hub, args.private, repo_type='dataset', **patterns)}"
            )
    return int(bool(bad_clips.read()))


def parse_command_line(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and the rest of the command line, which is a recipe's."""
    parser = Parser(__doc__, usage="%(prog)s RECIPE --output FOLDER [options] [--key value ...]")
    parser.add_argument("recipe", help="whose data are packed")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="of the shards")
    parser.add_argument("--format", choices=FORMATS, default="original", help="of the sounds; default: %(default)s")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--shard_megabytes", type=float, default=500, help="of a shard, about; default: %(default)s")
    size.add_argument("--clips_per_shard", type=int, metavar="N", help="at most, instead")
    parser.add_argument("--seed", type=int, default=0, help="of the order of training clips; default: %(default)s")
    parser.add_argument("--num_workers", type=int, default=16, help="clips at once; default: %(default)s")
    parser.add_argument("--push_to_hub", metavar="ME/NAME", help="upload what is whole, as a data set")
    parser.add_argument("--private", action="store_true", help="for you, or your organisation, alone")
    args, keys = parser.parse_known_args(argv)
    check_least(args, shard_megabytes=0.001, clips_per_shard=1, num_workers=1, seed=0)
    if args.output.exists() and not args.output.is_dir():
        raise CommandError(f"Expected output to be a folder, got {args.output}.")
    if args.private and not args.push_to_hub:
        raise CommandError("--private has no effect without --push_to_hub.")
    if args.push_to_hub:
        check_hub(args.push_to_hub)
    return args, keys


def to_packing(args: argparse.Namespace, sampling_rate: int | None) -> Packing:
    """
    Raises:
        CommandError: A rate that the format does not have.
    """
    sizes = {"clips_per_shard": args.clips_per_shard, "shard_bytes": int(args.shard_megabytes * 1e6)}
    try:
        return Packing(args.format, sampling_rate or 16000, **sizes, seed=args.seed, num_workers=args.num_workers)
    except ValueError as error:
        raise CommandError(str(error)) from error


def report(folder: Path, packed: list[PackedSplit], data_args: DataArguments, num_labels: int, num_bad: int) -> None:
    print(f"{folder}: {num_labels or 'no'} labels")
    for split in packed:
        print(f"  {split.name}: {split.clips:,} clips in {split.shards:,} shard(s), {split.num_bytes / 1e6:,.1f} MB")
    if num_bad:
        print(f"Left out, and named in {folder / BAD_CLIPS_NAME}: {num_bad:,} clip(s).")
    given = [name for name in NOT_OF_SHARDS if getattr(data_args, name)]
    without = f", without {', '.join(given)}" if given else ""
    print(f"To read it, in the recipe: dataset_name: {folder.absolute()}{without}")


if __name__ == "__main__":
    run_command("pack")
