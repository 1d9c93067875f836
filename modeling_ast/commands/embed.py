"""Vectors of sounds, to search, cluster or train on: of files and folders, or of the clips of a recipe.

    modeling-ast embed FILE|FOLDER ... --model MODEL --output FILE.parquet|FILE.npy
    modeling-ast embed --recipe RECIPE.yaml [--key value ...] --model MODEL --output ...

A row is a recording, a window of it, or a patch of time (`--level`), with path, start and end in seconds; of the clips
of a recipe split and label too. Parquet holds all of it in one table; beside an .npy array a .csv file says what its
rows are. The file is written while the model listens and gets its name when it is whole; what was interrupted starts
anew.

A file that cannot be used is named and left out, and the exit status is then 1.
"""

import argparse
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from modeling_ast import __version__
from modeling_ast.audio import AudioError
from modeling_ast.commands.command_line import device, run_command
from modeling_ast.data.clip_tables import SPLITS
from modeling_ast.data.recipes import RecipeError, parse_data_arguments
from modeling_ast.data.splits import read_splits
from modeling_ast.inference.embeddings import (
    LEVELS,
    ASTEmbeddingPipeline,
    Embeddings,
    audio_embedder,
    write_npy,
    write_parquet,
)
from modeling_ast.inference.predictions import fingerprint_model
from modeling_ast.inference.sound_files import find_files

OUTPUT_SUFFIXES = (".parquet", ".npy")


class Files(Dataset):
    """Sounds as they are found, to listen to (`files[index]`), and what is written of each."""

    columns = ("path",)
    ignore_length = False  # but for the script's own option

    def __init__(self, paths: list[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> str:
        return self.paths[index]

    def describe(self, index: int) -> dict[str, Any]:
        return {"path": self.paths[index]}


class Clips(Dataset):
    """The clips of a data set, split by split, to listen to (`clips[index]`), and what is written of each."""

    def __init__(
        self, splits: dict[str, datasets.Dataset], label_names: list[str], multi_label: bool, ignore_length: bool
    ):
        self.ignore_length = ignore_length
        self.rows = datasets.concatenate_datasets(list(splits.values()))
        self.splits = np.repeat(list(splits), [len(rows) for rows in splits.values()])
        self.label_names, self.multi_label = label_names, multi_label
        self.columns = ("path", "split", "labels" if multi_label else "label")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        audio = self.rows[index]["audio"]
        return {**audio, "path": audio["path"] or f"row {index}"}  # sounds that lie in a table may have no name

    def describe(self, index: int) -> dict[str, Any]:
        known, labels = {"path": self[index]["path"], "split": str(self.splits[index])}, self.rows[index]["labels"]
        if self.multi_label:
            return {**known, "labels": [self.label_names[label] for label in labels]}
        return {**known, "label": self.label_names[labels]}


def main(argv: list[str] | None = None) -> int:
    """Listen and write.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        The exit status: 0, or 1 where recordings were left out.

    Raises:
        ModelError, RecipeError, DataError, AudioError: A model, arguments, files or a data set that
            cannot be used, or not one recording that can.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args, rest = parse_command_line(argv)
    embedder, keywords = load(args)
    if args.recipe is None:
        recordings = Files([file.path for file in find_files(rest, args.output)])
    else:
        recordings = find_clips(args.recipe, args.split, rest)

    left_out = []
    reading = {
        "batch_size": args.batch_size,
        "num_workers": args.num_workers,
        "ignore_length": args.ignore_length or recordings.ignore_length,
    }
    items = embed(embedder, recordings, left_out, **reading, **keywords)
    hidden_size = embedder.model.config.hidden_size
    if args.output.suffix == ".npy":
        num_rows = write_npy(args.output, items, recordings.columns, hidden_size)
    else:
        metadata = {
            "model": args.model,
            "fingerprint": fingerprint_model(embedder.model.base_model, embedder.feature_extractor),
            "level": args.level,
            **keywords,
            "version": __version__,
        }
        num_rows = write_parquet(args.output, items, recordings.columns, hidden_size, metadata)
    print(f"{num_rows} rows of {len(recordings) - len(left_out)} recordings, saved in {args.output}.")
    if left_out:
        print(f"{len(left_out)} of {len(recordings)} recordings were left out.")
    return int(bool(left_out))


def parse_command_line(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """This script's own arguments, and the rest: files and folders, or keys of the recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage="%(prog)s FILE|FOLDER ... | --recipe RECIPE [--key value ...]  --model MODEL --output FILE [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="folder or name on the Hub, with a head or without")
    parser.add_argument("--output", required=True, type=Path, help="ends in .parquet or .npy")
    parser.add_argument("--level", choices=LEVELS, default="clip", help="what a row is; default: %(default)s")
    parser.add_argument("--window", type=seconds, metavar="S", help="seconds; default: the model's own length")
    parser.add_argument("--hop", type=seconds, metavar="S", help="seconds; default: two thirds of the window")
    parser.add_argument("--batch_size", type=int, default=8, help="windows at a time; default: %(default)s")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read; default: this one")
    parser.add_argument("--device", type=device, help="such as cpu or cuda:0; default: a GPU where there is one")
    parser.add_argument(
        "--ignore_length",
        action="store_true",
        help="read files whose headers announce more sound than they hold, or less, as far as they go",
    )
    parser.add_argument("--recipe", help="whose clips are listened to, in place of files")
    parser.add_argument("--split", nargs="+", choices=SPLITS, help="of the recipe's clips; default: all")
    args, rest = parser.parse_known_args(argv)
    if args.recipe is None:
        if unknown := [word for word in rest if word.startswith("-")]:
            raise RecipeError(f"Unknown: {' '.join(unknown)}. Keys of a recipe need --recipe.")
        if not rest:
            raise RecipeError("Expected files or folders, or --recipe, got neither.")
        if args.split is not None:
            raise RecipeError("Expected --split together with --recipe: files have no splits.")
    if args.output.suffix not in OUTPUT_SUFFIXES or not args.output.absolute().parent.is_dir():
        raise RecipeError(
            f"Expected output to end in {' or '.join(OUTPUT_SUFFIXES)}, in a folder that exists, got {args.output}."
        )
    if args.batch_size < 1 or args.num_workers < 0:
        raise RecipeError(
            f"Expected batch_size of at least 1 and num_workers of at least 0, got {args.batch_size} and "
            f"{args.num_workers}."
        )
    return args, rest


def seconds(text: str) -> float:
    """An option's value; argparse makes the sentence of what it raises."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text}")
    return value


def load(args: argparse.Namespace) -> tuple[ASTEmbeddingPipeline, dict[str, Any]]:
    """The model as a pipeline, with the keywords that the options stand for."""
    embedder = audio_embedder(args.model, device=args.device, level=args.level, on_error="return")
    try:
        return embedder, embedder.window_keywords(args.window, args.hop)
    except ValueError as error:
        raise RecipeError(str(error)) from error


def find_clips(recipe: str, wanted: list[str] | None, keys: list[str]) -> Clips:
    """The clips of a recipe's data set, in its order, with their labels."""
    model_args, data_args, _ = parse_data_arguments(recipe, keys, "embeddings", ("problem_type",))
    if data_args.streaming:
        raise RecipeError("Expected streaming: false; a stream is not gone through in its own order.")
    multi_label = model_args.problem_type == "multi_label_classification"
    splits = read_splits(data_args, multi_label)
    chosen = {name: rows for name, rows in splits if wanted is None or name in wanted}
    if missing := set(wanted or ()) - chosen.keys():
        raise RecipeError(f"Expected data with a split {missing.pop()}, got {', '.join(name for name, _ in splits)}.")
    return Clips(chosen, splits.label_names, multi_label, splits.ignore_length)


def embed(
    embedder: ASTEmbeddingPipeline, recordings: Files | Clips, left_out: list[str], **kwargs
) -> Iterator[tuple[dict[str, Any], Embeddings]]:
    """What is written, of each recording that can be used; the messages of the others are added to `left_out`.

    Raises:
        AudioError: None can be used.
    """
    results = tqdm(embedder(recordings, **kwargs), total=len(recordings), desc="Listening", unit="recording")
    for index, result in enumerate(results):
        if isinstance(result, Embeddings):
            yield recordings.describe(index), result
        else:
            left_out.append(result["error"])
            tqdm.write(f"left out: {result['error']}", file=sys.stderr)
    if len(left_out) == len(recordings):
        raise AudioError("Expected recordings that can be used, got none: nothing is written.")


if __name__ == "__main__":
    run_command("embed")
