"""A page to try a model on: upload, record or choose a sound, and see what is heard in it, and when.

    modeling-ast page --model MODEL [--examples FOLDER] [--port 7860]

The page shows the labels of a recording, the events in it, its spectrogram over the scores, and what the model attends
to in an event. Recordings (WAV, FLAC, OGG, MP3, without ffmpeg) may be hours long; several are tagged in turn, and no
longer than their visitors stay. This machine alone can open the page, unless `--host` says otherwise. It loads nothing
from elsewhere, and what was uploaded is deleted when it ends, or at the next start of a page where it was killed.
"""

import argparse
import os
from pathlib import Path

from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import CommandError, Parser, add_device, check_least
from modeling_ast.commands.command_page_options import add_page_options, check_page_options, port_taken
from modeling_ast.data.labels import plain
from modeling_ast.inference import page_server  # first: what it needs beyond all others is told
from modeling_ast.inference.page import Tagger, find_examples, write_examples
from modeling_ast.inference.page_guard import working_folder
from modeling_ast.inference.page_layout import AT_ONCE, CSS, build_page
from modeling_ast.inference.pipeline import audio_tagger


def main(argv: list[str] | None = None) -> None:
    """Open the page, until it is stopped.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Raises:
        ModelError, CommandError, DataError: A model, options or examples that cannot be used.
    """
    args = parse_options(argv)
    classifier = audio_tagger(args.model, device=args.device)
    with working_folder() as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
        if args.examples is None:
            examples = write_examples(folder / "examples")
        else:
            examples = find_examples(args.examples)
        # A folder is no one's business on a page that others see.
        name = plain(Path(args.model).resolve().name if Path(args.model).is_dir() else args.model)
        page = build_page(Tagger(classifier, folder, 60 * args.max_minutes), name, examples, args.max_at_once)
        try:
            page_server.serve(
                page,
                args.host,
                args.port,
                args.auth,
                folder / "uploads",
                args.max_megabytes,
                args.max_total_megabytes,
                CSS,
                allowed_paths=[str(path) for path in examples],
            )
        except OSError as error:
            raise CommandError(port_taken(args)) from error


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with what can be checked without a model checked."""
    parser = Parser(__doc__)
    parser.add_argument("--model", required=True, help="folder or name on the Hub")
    parser.add_argument(
        "--examples", type=Path, metavar="FOLDER", help="of recordings; default: some generated sounds"
    )
    add_page_options(parser)
    parser.add_argument("--max_minutes", type=float, default=240, help="of a recording; default: %(default)s")
    parser.add_argument(
        "--max_at_once",
        type=int,
        default=AT_ONCE,
        help="recordings that are tagged at once, in turn; others wait; default: %(default)s",
    )
    parser.add_argument("--max_megabytes", type=int, default=1024, help="of an upload; default: %(default)s")
    parser.add_argument(
        "--max_total_megabytes",
        type=int,
        default=8192,
        help="of all uploads, of which the oldest are deleted; default: %(default)s",
    )
    add_device(parser)
    args = parser.parse_args(argv)
    check_page_options(args)
    if not args.max_minutes > 0:
        raise CommandError(f"Expected max_minutes above 0, got {args.max_minutes:g}.")
    check_least(args, max_megabytes=1, max_at_once=1)
    if args.max_total_megabytes < args.max_megabytes:
        raise CommandError(
            f"Expected max_total_megabytes of at least max_megabytes, {args.max_megabytes}, got "
            f"{args.max_total_megabytes}."
        )
    return args


if __name__ == "__main__":
    run_command("page")
