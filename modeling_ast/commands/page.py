"""A page to try a model on: upload, record or choose a sound, and see what is heard in it, and when.

    modeling-ast page --model MODEL [--examples FOLDER] [--port 7860]

The page shows the labels of a recording, the events in it, its spectrogram over the scores, and what the model attends
to in an event. Recordings (WAV, FLAC, OGG, MP3, without ffmpeg) may be hours long; several are tagged in turn, and no
longer than their visitors stay. This machine alone can open the page, unless `--host` says otherwise. It loads nothing
from elsewhere, and what was uploaded is deleted when it ends, or at the next start of a page where it was killed.
"""

import argparse
import os
import threading
from pathlib import Path

from starlette.middleware import Middleware

from modeling_ast.commands.command_line import CommandError, Parser, add_device, run_command
from modeling_ast.data.labels import plain
from modeling_ast.inference.page import Tagger, find_examples, write_examples
from modeling_ast.inference.page_guard import PageGuard, working_folder
from modeling_ast.inference.page_layout import CSS, build_page
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
        page = build_page(Tagger(classifier, folder, 60 * args.max_minutes), name, examples)
        guard = Middleware(
            PageGuard,
            uploads=folder / "uploads",
            max_bytes=args.max_megabytes * 2**20,
            max_total_bytes=args.max_total_megabytes * 2**20,
        )
        try:
            page.launch(
                server_name=args.host,
                server_port=args.port,
                share=False,
                allowed_paths=[str(path) for path in examples],
                max_file_size=args.max_megabytes * 2**20,
                app_kwargs={"middleware": [guard], "openapi_url": None},
                auth=args.auth and read_accounts(args.auth),
                enable_monitoring=False,
                footer_links=[],
                run_history=False,
                css=CSS,
                quiet=True,
                prevent_thread_lock=True,
            )
        except OSError as error:
            raise CommandError(f"{args.host}:{args.port} cannot be opened; --port chooses another.") from error
        print(f"The page is at http://{args.host}:{args.port}, until Ctrl+C.", flush=True)
        try:
            threading.Event().wait()  # for a signal, which Gradio's own waiting would keep to itself
        finally:
            page.close()


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with what can be checked without a model checked."""
    parser = Parser(__doc__)
    parser.add_argument("--model", required=True, help="folder or name on the Hub")
    parser.add_argument(
        "--examples", type=Path, metavar="FOLDER", help="of recordings; default: some generated sounds"
    )
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 opens the page to the network; default: %(default)s"
    )
    parser.add_argument(
        "--auth", metavar="USER:PASSWORD", help="only they can open the page; or a file with one such line for each"
    )
    parser.add_argument("--max_minutes", type=float, default=240, help="of a recording; default: %(default)s")
    parser.add_argument("--max_megabytes", type=int, default=1024, help="of an upload; default: %(default)s")
    parser.add_argument(
        "--max_total_megabytes",
        type=int,
        default=8192,
        help="of all uploads, of which the oldest are deleted; default: %(default)s",
    )
    add_device(parser)
    args = parser.parse_args(argv)
    if not 1 <= args.port <= 65535:
        raise CommandError(f"Expected port from 1 to 65535, got {args.port}.")
    if not args.max_minutes > 0:
        raise CommandError(f"Expected max_minutes above 0, got {args.max_minutes:g}.")
    if args.max_megabytes < 1:
        raise CommandError(f"Expected max_megabytes of at least 1, got {args.max_megabytes}.")
    if args.max_total_megabytes < args.max_megabytes:
        raise CommandError(
            f"Expected max_total_megabytes of at least max_megabytes, {args.max_megabytes}, got "
            f"{args.max_total_megabytes}."
        )
    return args


def read_accounts(auth: str) -> list[tuple[str, str]]:
    """Users and passwords, from a file or from the command line, where other users of the machine can read them.

    Raises:
        CommandError: A line without both.
    """
    lines = Path(auth).read_text(encoding="utf-8").split("\n") if Path(auth).is_file() else [auth]
    accounts = [line.strip().partition(":") for line in lines if line.strip()]
    if not accounts or not all(user and password for user, _, password in accounts):
        raise CommandError("Expected auth to be USER:PASSWORD, or a file with such lines; got something else.")
    return [(user, password) for user, _, password in accounts]


if __name__ == "__main__":
    run_command("page")
