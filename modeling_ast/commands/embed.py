"""Vectors of sounds, to search, cluster or train on: of files and folders, or of the clips of a recipe.

    modeling-ast embed FILE|FOLDER ... --model MODEL --output FILE.parquet
    modeling-ast embed --recipe RECIPE.yaml [--key value ...] --model MODEL --output ...

A row is a recording, a window of it, or a patch of time (`--level`), with path, start and end in seconds; of the clips
of a recipe split and label too. The file is written while the model runs and gets its name when it is whole; what was
interrupted starts anew.

A file that cannot be used is named and left out, and the exit status is then 1.
"""

import argparse
import logging
from pathlib import Path

from modeling_ast import __version__
from modeling_ast.commands.command_line import (
    CommandError,
    Parser,
    add_running_options,
    check_least,
    run_command,
)
from modeling_ast.data.clip_tables import SPLITS
from modeling_ast.data.labels import DataError
from modeling_ast.data.locks import RUNNING, claimed, still_written
from modeling_ast.data.recipes import RecipeError, parse_data_arguments
from modeling_ast.data.splits import read_splits
from modeling_ast.inference.embedding_tables import Clips, Files, embed, write_parquet
from modeling_ast.inference.embeddings import LEVELS, audio_embedder
from modeling_ast.inference.fingerprint import fingerprint_model
from modeling_ast.inference.sound_files import find_files


def main(argv: list[str] | None = None) -> int:
    """Embed recordings and write a table.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        The exit status: 0, or 1 where recordings were left out.

    Raises:
        CommandError, ModelError, RecipeError, DataError, AudioError: Options, a model, keys, files or a data set that
            cannot be used, or not one recording that can.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args, rest = parse_command_line(argv)
    refusal = DataError(still_written(args.output, "--output"))
    with claimed(args.output.absolute().parent, refusal, f"{RUNNING}_{args.output.name}"):
        return run(args, rest)


def run(args: argparse.Namespace, rest: list[str]) -> int:
    """Embed what the command line names, and return the exit status."""
    embedder = audio_embedder(args.model, device=args.device, level=args.level, on_error="return")
    try:
        windows = embedder.window_keywords(args.window, args.hop)
    except ValueError as error:
        raise CommandError(str(error)) from error
    if args.recipe is None:
        recordings = Files([file.path for file in find_files(rest, args.output)])
    else:
        recordings = find_clips(args.recipe, args.split, rest)

    left_out = []
    items = embed(
        embedder,
        recordings,
        left_out,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        ignore_length=args.ignore_length or recordings.ignore_length,
        **windows,
    )
    metadata = {
        "model": args.model,
        "fingerprint": fingerprint_model(embedder.model.base_model, embedder.feature_extractor),
        "level": args.level,
        **windows,
        "version": __version__,
    }
    num_rows = write_parquet(args.output, items, recordings.columns, embedder.model.config.hidden_size, metadata)
    print(f"{num_rows} rows of {len(recordings) - len(left_out)} recordings, saved in {args.output}.")
    if left_out:
        print(f"{len(left_out)} of {len(recordings)} recordings were left out.")
    return int(bool(left_out))


def parse_command_line(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """This command's own arguments, and the rest: files and folders, or keys of the recipe."""
    parser = Parser(
        __doc__,
        usage="%(prog)s FILE|FOLDER ... | --recipe RECIPE [--key value ...]  --model MODEL --output FILE [options]",
    )
    parser.add_argument("--model", required=True, help="folder or name on the Hub, with a head or without")
    parser.add_argument("--output", required=True, type=Path, help="ends in .parquet")
    parser.add_argument("--level", choices=LEVELS, default="clip", help="what a row is; default: %(default)s")
    parser.add_argument("--window", type=float, metavar="SECONDS", help="default: the model's own length")
    parser.add_argument("--hop", type=float, metavar="SECONDS", help="default: two thirds of the window")
    add_running_options(parser)
    parser.add_argument("--recipe", help="whose clips are embedded, in place of files")
    parser.add_argument("--split", nargs="+", choices=SPLITS, help="of the recipe's clips; default: all")
    args, rest = parser.parse_known_args(argv)
    if args.recipe is None:
        if unknown := [word for word in rest if word.startswith("-")]:
            raise CommandError(f"Unknown: {' '.join(unknown)}. Keys of a recipe need --recipe.")
        if not rest:
            raise CommandError("Expected files or folders, or --recipe, got neither.")
        if args.split is not None:
            raise CommandError("Expected --split together with --recipe: files have no splits.")
    if args.output.suffix != ".parquet" or not args.output.absolute().parent.is_dir():
        raise CommandError(f"Expected output to end in .parquet, in a folder that exists, got {args.output}.")
    check_least(args, batch_size=1, num_workers=0)
    return args, rest


def find_clips(recipe: str, wanted: list[str] | None, keys: list[str]) -> Clips:
    """The clips of a recipe's data set, in its order, with their labels."""
    model_args, data_args, _ = parse_data_arguments(recipe, keys, "embeddings", ("problem_type",))
    if data_args.streaming:
        raise RecipeError("Expected streaming: false; a stream is not gone through in its own order.")
    multi_label = model_args.problem_type == "multi_label_classification"
    splits = read_splits(data_args, multi_label)
    available = [name for name, _ in splits]
    if missing := set(wanted or ()) - set(available):
        raise CommandError(f"Expected data with a split {missing.pop()}, got {', '.join(available)}.")
    return Clips(splits, wanted or available, multi_label)


if __name__ == "__main__":
    run_command("embed")
