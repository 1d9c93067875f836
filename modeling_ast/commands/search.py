"""Find in an archive what sounds like a clip: the nearest stretches of a store of embeddings.

    modeling-ast embed recordings/ --model MODEL --level window --output STORE.parquet
    modeling-ast search STORE.parquet clip.wav [--start 3.5 --end 5] [--output FOLDER]

The clip is embedded by the store's model, and compared with every row (cosine). FOLDER gets the stretches that are
most like it, no two of which overlap, as a table (matches.csv) and as a page with players (index.html), which plays
the recordings where they are. Where the clip itself is in the store, it is no find.

All rows are read at each search, in blocks: seconds up to a million. Beyond, --approximate asks an index of usearch
(pip install 'modeling_ast[search]'), which is built once, beside the store, and may miss some.
"""

import argparse
import os
from pathlib import Path

from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import CommandError, Parser, add_ignore_length, check_least
from modeling_ast.data.labels import plain
from modeling_ast.inference.embedding_store import EmbeddingStore
from modeling_ast.inference.embeddings import ASTEmbeddingPipeline
from modeling_ast.inference.matches_folder import PAGE_NAME, write_matches
from modeling_ast.inference.recordings import read_stretch
from modeling_ast.inference.search import Match, Stretch, search


def main(argv: list[str] | None = None) -> list[Match]:
    """Search a store and write what was found.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        What was found, the best first.

    Raises:
        CommandError, ModelError, DataError, AudioError: Options, a model, a store or a clip that cannot be used.
    """
    args = parse_command_line(argv)
    store = EmbeddingStore(args.store)
    model, extractor = store.load_model(args.model)
    embedder = ASTEmbeddingPipeline(model=model, feature_extractor=extractor, device="cpu")
    rate, window = extractor.sampling_rate, embedder.window_cutter(**store.windows).length
    waveform, goes_on = read_stretch(args.clip, rate, args.start, args.end, window, args.ignore_length)
    asked = Stretch(os.path.realpath(args.clip), args.start, args.start + len(waveform) / rate)
    if goes_on:
        print(
            f"The file goes on; what is looked for is one window, {window / rate:.2f} s. --end chooses more or less."
        )
    readout = {name: store.settings[name] for name in ("readout", "layers") if name in store.settings}
    vector = embedder(waveform.numpy(), level="clip", **readout, **store.windows).vectors[0]
    matches = search(store, vector, args.top_k, asked, args.approximate)
    for match in matches:
        print(plain(f"{match.similarity:.3f}  {match.path}, {match.start:.2f} to {match.end:.2f} s"))
    output = args.output or Path(f"{args.clip.stem}_matches")
    write_matches(output, store, matches, asked)
    print(f"{output / PAGE_NAME} plays them.")
    if gone := [match.path for match in matches if not os.path.exists(store.find(match.path))]:
        print(
            f"But {len(gone)} of them are not where the store says, such as {plain(gone[0])}: go to the folder from "
            "which they were embedded, or embed them again."
        )
    return matches


def parse_command_line(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with what can be checked without a store checked."""
    parser = Parser(__doc__)
    parser.add_argument("store", metavar="STORE", help="table that `embed` wrote, by --level window or clip")
    parser.add_argument("clip", metavar="CLIP", type=Path, help="sound file: what is looked for")
    parser.add_argument("--start", type=float, default=0.0, help="second at which that begins; default: %(default)s")
    parser.add_argument("--end", type=float, help="second at which it ends; default: after one window of the store")
    parser.add_argument("--top_k", type=int, default=20, help="how many stretches; default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: CLIP_matches, here")
    parser.add_argument("--model", help="where the store's model is now; default: as the store says")
    parser.add_argument("--approximate", action="store_true", help="ask an index of usearch; for millions of rows")
    add_ignore_length(parser)
    args = parser.parse_args(argv)
    check_least(args, start=0, end=0, top_k=1)
    if args.end is not None and not args.start < args.end:
        raise CommandError(f"Expected an end behind the start, {args.start:g} s, got {args.end:g} s.")
    if args.output is not None and args.output.exists() and not args.output.is_dir():
        raise CommandError(f"Expected a folder as output, got {args.output}.")
    return args


if __name__ == "__main__":
    run_command("search")
