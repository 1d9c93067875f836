"""Average the weights of saved models into one.

    modeling-ast average outputs/run/checkpoint-100 outputs/run/checkpoint-200 --output_dir AVERAGE

The result is a folder that loads like any model, with their feature extractor. (A run averages its epochs
itself with `weight_average_start`, and needs no checkpoints for it.)
"""

from pathlib import Path

from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import Parser, check_new_folder
from modeling_ast.data.files import files_written_beside
from modeling_ast.training.averaging import average_checkpoints, common_extractor


def main(argv: list[str] | None = None) -> None:
    """Write the average.

    Raises:
        CommandError: A folder to write that is there already.
        ModelError: Models that cannot be averaged, or a folder without one.
    """
    parser = Parser(__doc__)
    parser.add_argument("folders", nargs="+", help="of the models")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write, which must not be there yet")
    args = parser.parse_args(argv)
    check_new_folder(args.output_dir)
    model, extractor = average_checkpoints(args.folders), common_extractor(args.folders)
    with files_written_beside(args.output_dir) as unfinished:
        model.save_pretrained(unfinished)
        extractor.save_pretrained(unfinished)
    print(f"The average of {len(args.folders)} models is in {args.output_dir}.")


if __name__ == "__main__":
    run_command("average")
