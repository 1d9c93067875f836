"""Mean and standard deviation of the log-mel features of a recipe's training clips.

    modeling-ast statistics RECIPE [--key value ...]

Prints the two lines to put into the recipe. Every real frame counts the same: at most `max_length` of a clip, no
padding, no masks, no mixup. All keys are those of the training script, such as `--max_train_samples` and
`--dataloader_num_workers`. Of a stream `--max_train_samples` takes the first clips; without it, all are read once.
"""

import logging

from modeling_ast.commands.command_line import Parser, run_command
from modeling_ast.data.splits import read_splits
from modeling_ast.data.statistics import pooled_statistics, recipe_lines
from modeling_ast.training.arguments import NOT_TRAINING, parse_arguments
from modeling_ast.training.building import build_model_and_extractor


def main(argv: list[str] | None = None) -> tuple[float, float]:
    """Compute and print.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        Mean and standard deviation.

    Raises:
        RecipeError, DataError, AudioError: Arguments, data set or a sound file that cannot be used.
    """
    parser = Parser(__doc__, usage="%(prog)s RECIPE [--key value ...]")
    _, recipe_argv = parser.parse_known_args(argv)
    model_args, data_args, _, training_args = parse_arguments([*recipe_argv, NOT_TRAINING])
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    multi_label = model_args.problem_type == "multi_label_classification"
    splits = read_splits(data_args, multi_label)
    _, extractor = build_model_and_extractor(model_args, splits.label_names)
    statistics = pooled_statistics(
        splits.train,
        extractor,
        training_args.dataloader_num_workers,
        training_args.disable_tqdm,
        splits.ignore_length,
    )
    what = f"of {statistics.clips} training clips, {statistics.frames} real frames"
    print(f"# {what}, {extractor.num_mel_bins} mel bins at {extractor.sampling_rate} Hz")
    print(recipe_lines(statistics.mean, statistics.std))
    return statistics.mean, statistics.std


if __name__ == "__main__":
    run_command("statistics")
