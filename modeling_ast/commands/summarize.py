"""Summarise the runs of all folds of a data set.

    modeling-ast summarize outputs/esc50 [--metric accuracy]

Reads `results.csv` in each `fold_*` folder below the one named, prints the metric of each fold and the mean, at the
epoch with the best mean (the paper's way, and optimistic: the same clips choose and report) and at the last epoch, and
writes it to `folds.json` there.
"""

import argparse
import json
from pathlib import Path

from modeling_ast.commands.command_line import run_command
from modeling_ast.training.folds import FoldError, summarize_folds


def main(argv: list[str] | None = None) -> dict:
    """Print and save the summary, and return it.

    Raises:
        FoldError: No runs, or runs that do not belong together.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("output_dir", type=Path, help="folder with the runs, each in fold_NUMBER")
    parser.add_argument("--metric", default="accuracy", help="column of results.csv")
    arguments = parser.parse_args(argv)
    folders = sorted(arguments.output_dir.glob("fold_*"), key=lambda folder: (len(folder.name), folder.name))
    if not folders:
        raise FoldError(f"{arguments.output_dir}: expected folders fold_1, fold_2, ... in it, found none.")
    summary = summarize_folds(folders, arguments.metric)
    for name, words in (("chosen", "the best on average, which is optimistic"), ("last", "the last")):
        of_folds = ", ".join(f"{value:.4f}" for value in summary[name]["folds"])
        print(
            f"{arguments.metric} at epoch {summary[name]['epoch']:g}, {words}: {of_folds}; "
            f"mean {summary[name]['mean']:.4f}"
        )
    print(f"{arguments.metric} of the mean of all epochs' predictions: mean {summary['cum_mean'][-1]:.4f}")
    for name, words in (("weight_average", "the average of weights"), ("baseline", "a linear model")):
        if name in summary:
            of_folds = ", ".join(f"{value:.4f}" for value in summary[name]["folds"])
            print(f"{arguments.metric} of {words}: {of_folds}; mean {summary[name]['mean']:.4f}")
    summary["folders"] = [folder.name for folder in folders]
    (arguments.output_dir / "folds.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


if __name__ == "__main__":
    run_command("summarize")
