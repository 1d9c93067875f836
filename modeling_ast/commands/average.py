"""Average the weights of saved models into one.

    modeling-ast average outputs/run/checkpoint-100 outputs/run/checkpoint-200 --output_dir AVERAGE

The result is a folder that loads like any model, with the feature extractor of the first. (A run averages its epochs
itself with `weight_average_start`, and needs no checkpoints for it.)
"""

import argparse
from pathlib import Path

from modeling_ast import ASTFeatureExtractor
from modeling_ast.commands.command_line import run_command, told
from modeling_ast.training.averaging import average_checkpoints


@told(ValueError, OSError)
def main(argv: list[str] | None = None) -> None:
    """Write the average.

    Raises:
        ValueError: Models that cannot be averaged, or a folder that is there already.
        OSError: A folder without a model.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", nargs="+", help="of the models")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write, which must not be there yet")
    arguments = parser.parse_args(argv)
    if arguments.output_dir.exists() and any(arguments.output_dir.iterdir()):
        raise ValueError(f"Expected a new or empty folder as output_dir, but {arguments.output_dir} holds something.")
    extractor = ASTFeatureExtractor.from_pretrained(arguments.folders[0])
    model = average_checkpoints(arguments.folders)
    model.save_pretrained(arguments.output_dir)
    extractor.save_pretrained(arguments.output_dir)
    print(f"The average of {len(arguments.folders)} models is in {arguments.output_dir}.")


if __name__ == "__main__":
    run_command("average")
