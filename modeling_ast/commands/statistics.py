"""Mean and standard deviation of the log-mel features of a recipe's training clips.

    modeling-ast statistics RECIPE [--key value ...] [--original]

Prints the two lines to put into the recipe. By default every real frame counts the same: at most `max_length` of
a clip, no padding, no masks, no mixup. With `--original` they are computed as the original AST did: over
augmented and padded clips (mixup of one half, masks of up to 24 bins and 192 frames), as means over batches of
1000. All other keys are those of the training script, such as `--max_train_samples` and
`--dataloader_num_workers`. Of a stream `--max_train_samples` takes the first clips; without it, all are read once.
"""

import logging
from functools import partial

from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from modeling_ast import ASTFeatureExtractor
from modeling_ast.commands.command_line import Parser, run_command
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.decoding import DecodeAudio
from modeling_ast.data.recipes import RecipeError
from modeling_ast.data.splits import read_splits
from modeling_ast.data.statistics import batch_moments, mean_of_batch_moments, pooled_statistics, recipe_lines
from modeling_ast.training.arguments import NOT_TRAINING, ASTTrainingArguments, AugmentArguments, parse_arguments
from modeling_ast.training.building import build_model_and_extractor
from modeling_ast.training.collator import AugmentingCollator
from modeling_ast.training.sampling import PositionedRows

# Source: the original's `get_norm_stats.py`.
ORIGINAL_AUGMENTATION = AugmentArguments(mixup_probability=0.5, freq_mask_bins=24, time_mask_frames=192)
ORIGINAL_BATCH_SIZE = 1000


def main(argv: list[str] | None = None) -> tuple[float, float]:
    """Compute and print.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        Mean and standard deviation.

    Raises:
        RecipeError, DataError, AudioError: Arguments, data set or a sound file that cannot be used.
    """
    parser = Parser(__doc__, usage="%(prog)s RECIPE [--key value ...] [--original]")
    parser.add_argument("--original", action="store_true", help="as the original did: augmented and padded clips")
    options, recipe_argv = parser.parse_known_args(argv)
    model_args, data_args, _, training_args = parse_arguments([*recipe_argv, NOT_TRAINING])
    if options.original and data_args.streaming:
        raise RecipeError("Expected streaming: false with --original, whose mixup draws from all clips.")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    multi_label = model_args.problem_type == "multi_label_classification"
    splits = read_splits(data_args, multi_label)
    _, extractor = build_model_and_extractor(model_args, splits.label_names)

    if options.original:
        mean, std = original_statistics(splits, extractor, multi_label, training_args)
        what = f"of {len(splits.train)} training clips of {extractor.max_length} frames, augmented and padded"
    else:
        pooled = pooled_statistics(
            splits.train,
            extractor,
            training_args.dataloader_num_workers,
            training_args.disable_tqdm,
            splits.ignore_length,
        )
        mean, std = pooled.mean, pooled.std
        what = f"of {pooled.clips} training clips, {pooled.frames} real frames"
    print(f"# {what}, {extractor.num_mel_bins} mel bins at {extractor.sampling_rate} Hz")
    print(recipe_lines(mean, std))
    return mean, std


def original_statistics(
    splits: AudioSplits, extractor: ASTFeatureExtractor, multi_label: bool, training_args: ASTTrainingArguments
) -> tuple[float, float]:
    """The mean of the batches' means and of their deviations, over batches in the order of the data."""
    extractor.do_normalize, extractor.padding = False, "max_length"
    rows = splits.train.with_transform(DecodeAudio(extractor.sampling_rate, ignore_length=splits.ignore_length))
    collator = AugmentingCollator(
        extractor,
        len(splits.label_names),
        multi_label,
        augment=ORIGINAL_AUGMENTATION,
        rows=rows,
        seed=training_args.seed,
    )
    loader = DataLoader(
        PositionedRows(rows),
        ORIGINAL_BATCH_SIZE,
        sampler=[(position, position) for position in range(len(rows))],
        num_workers=training_args.dataloader_num_workers,
        collate_fn=partial(batch_moments, collate=collator),
    )
    return mean_of_batch_moments(list(tqdm(loader, desc="Batches", disable=training_args.disable_tqdm)))


if __name__ == "__main__":
    run_command("statistics")
