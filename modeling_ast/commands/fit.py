"""Learn to name sounds from a few labels, in seconds, on stored embeddings, and write a model like any other.

    modeling-ast embed recordings/ --model MODEL --level window --output STORE.parquet
    modeling-ast fit STORE.parquet LABELS --output MODEL_FOLDER [--key value ...]

LABELS is a list with columns audio, start, end (seconds; both may be empty or missing) and label, or anything else
that training reads files from: label files of Audacity or Raven, a folder of recordings with such files, a folder a
class. Keys of a recipe say how (--label_column_name SPECIES). Rows of one stretch say its labels together, and an
empty label means that it has none of them. 5 to 100 stretches a label will do. Where every stretch has one label the
head chooses one, else each label is decided by itself.

A logistic regression is fitted on the rows of the store that lie in these stretches; how strongly, is chosen on
recordings that it has not seen, or on groups of them (--group_column_name or --group_pattern: the place, the speaker,
the device), and so is what to expect of it, with an interval. MODEL_FOLDER is the store's model with this head in its
classifier: tag, calibrate, export, page, pipelines and Transformers without this package take it.
"""

import argparse
import logging
import time
from pathlib import Path
from typing import Any

from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import Parser, check_new_folder
from modeling_ast.data.label_checks import check_spelling
from modeling_ast.data.labels import plain
from modeling_ast.data.truth import read_labelled_stretches
from modeling_ast.inference.embedding_store import EmbeddingStore
from modeling_ast.inference.examples import find_examples
from modeling_ast.inference.fitted_model import (
    build_classifier,
    describe_counts,
    describe_expectation,
    summarize_fit,
    write_fitted_model,
)
from modeling_ast.inference.linear_heads import choose_head, normalize


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Fit a head and write its model.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        What is written to `fit_results.json`.

    Raises:
        CommandError, ModelError, RecipeError, DataError: Options, a model, keys, a store or labels that cannot be
            used.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args, keys = parse_command_line(argv)
    store = EmbeddingStore(args.store)
    store.expect_pooled()
    stretches = read_labelled_stretches(args.labels, keys, args.problem_type != "single_label_classification")
    examples = find_examples(store, stretches, args.labels, args.problem_type)
    model, extractor = store.load_model(args.model)
    begin = time.perf_counter()
    features = normalize(store.vectors(examples.rows), model.config.layer_norm_eps)
    head, expected = choose_head(features, examples)
    seconds = time.perf_counter() - begin
    results = summarize_fit(args.model or store.settings["model"], examples, head, expected)
    counts = plain(describe_counts(results["labels"]))
    for finding in check_spelling(examples.label_names):
        print(plain(f"{finding.seen} {finding.mend}"))
    print(f"{len(examples.truth)} labelled stretches in {len(examples.rows)} rows: {counts}.")
    print(f"Fitted in {seconds:.1f} s with C {head.strength:g}. {describe_expectation(results['expected'])}")
    if args.output is not None:
        classifier = build_classifier(model, head, examples.label_names, examples.problem_type)
        write_fitted_model(args.output, classifier, extractor, results)
        print(f"Saved in {args.output}.")
    return results


def parse_command_line(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The command line, with what can be checked without a store checked, and keys of data."""
    parser = Parser(__doc__)
    parser.add_argument("store", metavar="STORE", help="table that `embed` wrote, by --level window or clip")
    parser.add_argument("labels", metavar="LABELS", help="list, label file, or folder")
    parser.add_argument("--output", type=Path, help="new folder of the model; default: only what to expect is told")
    parser.add_argument("--model", help="where the store's model is now; default: as the store says")
    parser.add_argument(
        "--problem_type",
        choices=("single_label_classification", "multi_label_classification"),
        help="default: as the labels are",
    )
    args, keys = parser.parse_known_args(argv)
    if args.output is not None:
        check_new_folder(args.output)
    return args, keys


if __name__ == "__main__":
    run_command("fit")
