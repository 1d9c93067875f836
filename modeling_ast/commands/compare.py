"""Say by how much two models differ on the clips that both predicted, and whether that is more than chance.

    modeling-ast compare RUN_A RUN_B [--split validation] [--output clips.csv]

A run is the folder of a training, or of all its folds, which are taken together; or the folder that `evaluate` or
`ensemble` wrote, or such a table of predictions. Of a training the test clips are compared or, where it has none,
those of validation. Each metric is told of both, with the difference B - A and its 95 % interval, by a bootstrap of
the same clips for both, or of the same groups where the predictions have them. A difference whose interval does not
hold 0 is more than chance. Then come the clips on which they differ; `--output` gets all of them.
"""

import argparse
from pathlib import Path

from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import CommandError, Parser
from modeling_ast.data.files import written_beside
from modeling_ast.data.labels import plain
from modeling_ast.inference.comparison import REPORTED, Comparison, compare, difference_lines, find_predictions

MAX_SHOWN = 20  # clips


def main(argv: list[str] | None = None) -> Comparison:
    """Compare two models.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        What is printed.

    Raises:
        CommandError, DataError: A file that cannot be written, or runs that cannot be compared.
    """
    args = parse_command_line(argv)
    comparison = compare(*(find_predictions(run, args.split) for run in (args.first, args.second)))
    print(f"A: {plain(str(args.first))}\nB: {plain(str(args.second))}")
    report(comparison, args.output)
    if args.output is not None:
        with written_beside(args.output) as unfinished:
            comparison.table.to_csv(unfinished, index=False, lineterminator="\r\n", errors="backslashreplace")
    return comparison


def parse_command_line(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("first", type=Path, metavar="RUN_A", help="folder of a run, of folds or of an evaluation")
    parser.add_argument("second", type=Path, metavar="RUN_B", help="the same of the other model")
    parser.add_argument("--split", choices=REPORTED, help="of runs; default: test, or validation without a test")
    parser.add_argument("--output", type=Path, metavar="FILE", help="CSV table of all clips on which they differ")
    args = parser.parse_args(argv)
    if args.output is not None and (args.output.is_dir() or not args.output.absolute().parent.is_dir()):
        raise CommandError(f"Expected output to be a file in a folder that exists, got {args.output}.")
    return args


def report(comparison: Comparison, output: Path | None) -> None:
    """Print the metrics, and the clips on which the models differ."""
    units = "" if comparison.groups is None else f" in {comparison.groups} groups"
    left_out = "; {} of A alone, {} of B alone".format(*comparison.alone) if any(comparison.alone) else ""
    print(f"{comparison.clips} clips{units} that both predicted{left_out}")
    print(f"{'':<10} {'A':>8} {'B':>8} {'B - A':>8}  95 % interval")
    print("\n".join(difference_lines(comparison.differences)))
    table = comparison.table
    first, second = table["first_right"], table["second_right"]
    only_first, only_second = sum(first & ~second), sum(second & ~first)
    print(f"They differ on {len(table)} clips: A alone is right on {only_first}, B alone on {only_second}.")
    for row in table.head(MAX_SHOWN).itertuples():
        print(plain(f"  {row.path} ({row.truth or 'none'}): A {row.first or 'none'}, B {row.second or 'none'}"))
    if len(table) > MAX_SHOWN:
        print(f"  and {len(table) - MAX_SHOWN} more" + ("" if output else " (--output FILE lists them all)"))


if __name__ == "__main__":
    run_command("compare")
