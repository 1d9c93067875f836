"""Label an archive by ear, on a page that asks for what helps most, and see what was learnt.

    modeling-ast embed recordings/ --model MODEL --level window --output STORE.parquet
    modeling-ast review STORE.parquet LABELS.csv --label_names owl rain [--output FOLDER]
        [--annotations SOURCE [--key value ...]]

The page plays a stretch on its spectrogram and asks what it is: keys say yes, none of the labels, another label, skip
or undo. Each answer is a line of LABELS (audio, start, end, label) at once; the same command goes on with it. What is
labelled elsewhere (SOURCE, all that fit takes) is copied into LABELS first. After every tenth answer a head is fitted
on all of them, which chooses what is asked next: what it can tell least, what is least like all before, what most
likely has the label that was found least. FOLDER gets the curve of what to expect and, by a button, the model so far,
which is one like any other, and the recipe that trains the whole network on the same labels. Nothing is loaded from
elsewhere, and this machine alone can open the page, unless --host says otherwise.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import CommandError, Parser, check_least
from modeling_ast.commands.command_page_options import add_page_options, check_page_options, port_taken
from modeling_ast.data.labels import DataError, plain
from modeling_ast.data.locks import claimed, still_written
from modeling_ast.data.truth import read_labelled_stretches
from modeling_ast.inference.answers import AnswersList
from modeling_ast.inference.embedding_store import EmbeddingStore
from modeling_ast.inference.page_guard import working_folder
from modeling_ast.inference.page_server import serve
from modeling_ast.inference.review import CURVE_NAME, ORDERS, Review
from modeling_ast.inference.review_page import CSS, HEAD, ReviewPage, build_review_page
from modeling_ast.inference.reviewed_model import write_reviewed

GOES_ON = "All answers are in the list; the same command goes on with it."


def main(argv: list[str] | None = None) -> None:
    """Open the page, until it is stopped.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Raises:
        CommandError, ModelError, RecipeError, DataError: Options, a model, keys, a store, a list or annotations that
            cannot be used.
    """
    args, keys = parse_command_line(argv)
    store = EmbeddingStore(args.store)
    store.expect_pooled()
    model, extractor = store.load_model(args.model)
    refusal = DataError(still_written(args.labels, "LABELS"))
    labels = args.labels.resolve()  # which links may lead to
    with working_folder() as folder, claimed(labels.parent, refusal, f"_review_{labels.name}"):
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
        if args.annotations is not None:
            stretches = read_labelled_stretches(args.annotations, keys, args.multi_label)
            recordings = {path: path for path in store.rows_by_recording()}
            moved = store.find_moved({each.audio for each in stretches} - recordings.keys())
            recordings |= {path: store.find(store.names[number]) for path, number in moved.items()}
            own = [replace(each, audio=recordings[each.audio]) for each in stretches if each.audio in recordings]
            count = AnswersList(args.labels).extend(own)
            print(f"{count} stretches of {plain(args.annotations)} were added to {plain(str(args.labels))}.")
            if without := len(stretches) - len(own):
                print(f"{without} are of recordings that are not in {plain(args.store)}, and were left out.")
        review = Review(
            store,
            args.labels,
            args.label_names,
            model.config.layer_norm_eps,
            args.problem_type,
            args.order,
            args.output / CURVE_NAME,
        )
        name = args.model or store.settings["model"]
        actions = ReviewPage(
            review, extractor, lambda: write_reviewed(review, model, extractor, name, args.output), args.fit_every
        )
        try:
            # Nothing can be uploaded.
            page = build_review_page(actions, plain(args.labels.name))
            serve(page, args.host, args.port, args.auth, folder / "uploads", 1, 1, CSS, HEAD)
        except OSError as error:
            raise CommandError(port_taken(args)) from error


def parse_command_line(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The command line, with what can be checked without a store checked, and keys of the annotations."""
    parser = Parser(__doc__)
    parser.add_argument("store", metavar="STORE", help="table that `embed` wrote, by --level window or clip")
    parser.add_argument("labels", metavar="LABELS", type=Path, help="list, .csv; it is made where there is none")
    parser.add_argument("--annotations", metavar="SOURCE", help="to copy into it: another list, label files, a folder")
    parser.add_argument(
        "--label_names", nargs="+", default=[], metavar="NAME", help="to begin with; others as they come"
    )
    parser.add_argument(
        "--order", choices=ORDERS, default="uncertain", help="what is asked first; default: %(default)s"
    )
    parser.add_argument("--fit_every", type=int, default=10, help="answers; default: %(default)s")
    parser.add_argument(
        "--problem_type",
        choices=("multi_label_classification", "single_label_classification"),
        default="multi_label_classification",
        help="default: %(default)s, of which a stretch may have none, too",
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: LABELS_review, beside LABELS")
    parser.add_argument("--model", help="where the store's model is now; default: as the store says")
    add_page_options(parser)
    args, keys = parser.parse_known_args(argv)
    if keys and args.annotations is None:
        raise CommandError(f"Unknown: {' '.join(keys)}. Keys of data go with --annotations.")
    if wrong := next((name for name in args.label_names if "," in name), None):
        raise CommandError(f"Expected names of labels without commas, which stand between them, got {wrong!r}.")
    check_page_options(args)
    check_least(args, fit_every=1)
    if not args.labels.absolute().parent.is_dir() or args.labels.suffix != ".csv":
        raise CommandError(f"Expected a list that ends in .csv, in a folder that exists, got {args.labels}.")
    if args.output is None:
        args.output = args.labels.with_name(f"{args.labels.stem}_review")
    args.multi_label = args.problem_type == "multi_label_classification"
    return args, keys


if __name__ == "__main__":
    run_command("review")
