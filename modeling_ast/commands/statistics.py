"""Mean and standard deviation of the log-mel features of a recipe's training clips.

    modeling-ast statistics RECIPE [--key value ...]

Prints the two lines to put into the recipe. Every real frame counts the same: at most `max_length` of a clip, no
padding, no masks, no mixup. Keys say which clips are read, by how many processes (`--dataloader_num_workers`), and to
which features. Of a stream `--max_train_samples` takes the first clips; without it, all are read once.
"""

import logging

from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import Parser
from modeling_ast.data.recipes import parse_data_arguments
from modeling_ast.data.splits import read_splits
from modeling_ast.data.statistics import pooled_statistics, recipe_lines
from modeling_ast.training.building import build_model_and_extractor

# Keys of the recipe that have an effect here, besides those that say where the rows come from.
KEYS = {"model_name_or_path", "max_length", "num_mel_bins", "sampling_rate", "problem_type", "dataloader_num_workers"}


def main(argv: list[str] | None = None) -> tuple[float, float]:
    """Compute and print.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        Mean and standard deviation.

    Raises:
        RecipeError, DataError, AudioError: Arguments, data set or a sound file that cannot be used.
    """
    parser = Parser(__doc__)
    parser.add_argument("recipe", help="whose training clips are read")
    args, keys = parser.parse_known_args(argv)
    model_args, data_args, batch_args = parse_data_arguments(args.recipe, keys, "statistics", KEYS)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    splits = read_splits(data_args, model_args.problem_type == "multi_label_classification")
    _, extractor = build_model_and_extractor(model_args, splits.label_names)
    statistics = pooled_statistics(splits.train, extractor, batch_args.dataloader_num_workers, splits.ignore_length)
    what = f"of {statistics.clips} training clips, {statistics.frames} real frames"
    print(f"# {what}, {extractor.num_mel_bins} mel bins at {extractor.sampling_rate} Hz")
    print(recipe_lines(statistics.mean, statistics.std))
    return statistics.mean, statistics.std


if __name__ == "__main__":
    run_command("statistics")
