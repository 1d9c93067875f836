"""Vectors of sounds, to search, cluster or train on: of files and folders, or of the clips of a recipe.

    modeling-ast embed FILE|FOLDER|LIST ... --model MODEL --output FILE.parquet
    modeling-ast embed --recipe RECIPE.yaml [--key value ...] --model MODEL --output FILE.parquet

A row is a recording, a window of it, or a patch of time (`--level`), with path, start and end in seconds; of the clips
of a recipe split and label too. Its vector is what a classifier sees, or with `--readout rows`, longer and richer, the
mean and deviation over time of each row of patches in some layers (`--layers`, from 0, which is before the first): of
a recording that a model pads, with the padding.

FILE.journal, a folder beside the table, gets a line a recording once it is done, and the table is made of it at the
end: the same command again goes on where it was stopped, with what is new or changed alone, also divided otherwise.
The folder may be deleted when no more recordings come.

Under accelerate launch or torchrun each process takes its share of the recordings and a GPU of its own; --part K/N is
one of N shares, which a SLURM job array fills in. Who is last writes the table; until then it is said what is missing.

Exit status: 0; 1 if some recordings cannot be used, which are left out (a launcher's processes leave that to the last
one, since they would end one another), 2 if nothing can be done.
"""

import argparse
import logging
import os
from pathlib import Path

from modeling_ast import __version__
from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import CommandError, Parser, add_bulk_options, check_bulk_options
from modeling_ast.data.clip_tables import SPLITS
from modeling_ast.data.fingerprint import fingerprint_model
from modeling_ast.data.labels import DataError
from modeling_ast.data.locks import still_written
from modeling_ast.data.parts import claimed_part, own_device
from modeling_ast.data.recipes import RecipeError, parse_data_arguments
from modeling_ast.data.splits import read_splits
from modeling_ast.inference.bulk import report_results
from modeling_ast.inference.embedding_tables import Clips, EmbeddingsFolder, Files, embed_recordings, journal_folder
from modeling_ast.inference.embeddings import LEVELS, READOUTS, audio_embedder
from modeling_ast.inference.sound_files import find_files

GOES_ON = "The same command goes on from here."


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
    journal = journal_folder(args.output)
    recordings = find_clips(args.recipe, args.split, rest) if args.recipe else Files(find_files(rest, journal))
    with claimed_part(journal, args.part, DataError(still_written(args.output, "--output"))):
        folder, num_new = run(args, recordings)
    # Where a part is no longer at work, so that the last one knows that it is the last.
    return 0 if report_results(folder, recordings.files, num_new, args.output, "row") else 1


def run(args: argparse.Namespace, recordings: Files | Clips) -> tuple[EmbeddingsFolder, int]:
    """Do what the command line says, up to the table, and return the journal and how many were embedded now."""
    readout = {"level": args.level, "readout": args.readout, "layers": args.layers}
    readout = {key: value for key, value in readout.items() if value is not None}
    embedder = audio_embedder(args.model, device=args.device or own_device(os.environ), **readout)
    try:
        layers = embedder.choose_layers(args.level, args.readout, args.layers)
        windows = embedder.window_keywords(args.window, args.hop)
    except ValueError as error:
        raise CommandError(str(error)) from error
    settings = {
        "model": args.model,
        "fingerprint": fingerprint_model(embedder.model.base_model, embedder.feature_extractor),
        "level": args.level,
        **({} if layers is None else {"readout": args.readout, "layers": layers}),
        **windows,
        "version": __version__,
    }
    size = embedder.vector_size(layers)
    folder = EmbeddingsFolder(args.output, settings, recordings, size, args.overwrite, args.part)
    reading = {"batch_size": args.batch_size, "num_workers": args.num_workers}
    ignore_length = args.ignore_length or recordings.ignore_length
    return folder, embed_recordings(embedder, folder, args.retry, ignore_length=ignore_length, **reading, **windows)


def parse_command_line(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """This command's own arguments, and the rest: files and folders, or keys of the recipe."""
    parser = Parser(
        __doc__,
        usage="%(prog)s FILE|FOLDER|LIST ... | --recipe RECIPE [--key value ...]  "
        "--model MODEL --output FILE [options]",
    )
    parser.add_argument("--model", required=True, help="folder or name on the Hub, with a head or without")
    parser.add_argument("--output", required=True, type=Path, help="ends in .parquet")
    parser.add_argument("--level", choices=LEVELS, default="clip", help="what a row is; default: %(default)s")
    parser.add_argument("--readout", choices=READOUTS, default="pooled", help="what is taken; default: %(default)s")
    parser.add_argument(
        "--layers", type=int, nargs="+", metavar="N", help="of rows; default: the middle one, the last"
    )
    parser.add_argument("--window", type=float, metavar="SECONDS", help="default: the model's own length")
    parser.add_argument("--hop", type=float, metavar="SECONDS", help="default: two thirds of the window")
    add_bulk_options(parser)
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
    check_bulk_options(args, os.environ)
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
