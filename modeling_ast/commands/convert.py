"""Convert a published checkpoint, or ImageNet weights of a DeiT, to a folder for `from_pretrained`.

    modeling-ast convert audioset_10_10_0.4593.pth ast-audioset --labels audioset
    modeling-ast convert SSAST-Tiny-Patch-400.pth ssast-tiny
    modeling-ast convert base384 ast-imagenet --imagenet --num_labels 50 --max_length 512

The folder holds the model, with its label names, and the feature extractor. What learnt without labels (SSAST's patch
models, AudioMAE) becomes a model without a head, which a recipe's `model_name_or_path` takes and gives one. PaSST has
other features than AST: its folder names their class, and only this package reads it.
"""

import argparse
from pathlib import Path

from modeling_ast import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    load_imagenet_checkpoint,
    load_original_checkpoint,
)
from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import CommandError, Parser, check_least
from modeling_ast.configuration_ast import SIZES
from modeling_ast.conversion import checkpoint_layout, imagenet_sizes
from modeling_ast.data.files import files_written_beside
from modeling_ast.data.labels import read_label_table
from modeling_ast.loading import ModelError, as_model_error

GEOMETRY = ("frequency_stride", "time_stride", "num_mel_bins", "max_length")
PROBLEM_TYPES = ("multi_label_classification", "single_label_classification", "regression")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("source", help="a published .pth file; with --imagenet DeiT weights or " + ", ".join(SIZES))
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--imagenet", action="store_true", help="the source is a DeiT: positions adapted, fresh head")
    parser.add_argument(
        "--labels", metavar="CSV", help="label table: a path, or audioset, esc50 or speech_commands_v2"
    )
    parser.add_argument("--num_labels", type=int, help="outputs of the fresh head, where --labels does not tell")
    parser.add_argument("--problem_type", choices=PROBLEM_TYPES, help=f"default: {PROBLEM_TYPES[0]}")
    parser.add_argument("--frequency_stride", type=int, help="in mel bins; default: from weights or file name, or 10")
    parser.add_argument("--time_stride", type=int, help="in frames; default: from weights or file name, or 10")
    parser.add_argument("--num_mel_bins", type=int, help="default: from the weights, or 128")
    parser.add_argument("--max_length", type=int, help="in frames; default: from the weights, or 1024")
    parser.add_argument("--mean", type=float, help="of the log-mel features; default: of the network's training")
    parser.add_argument("--std", type=float, help="of the log-mel features; default: of the network's training")
    args = parser.parse_args(argv)
    if args.imagenet and (args.labels is None) == (args.num_labels is None):
        raise CommandError("--imagenet needs either --labels or --num_labels, for the size of the fresh head.")
    if args.num_labels is not None and not args.imagenet:
        raise CommandError("--num_labels goes with --imagenet: a published checkpoint has its own head, or none.")
    check_least(args, num_labels=1)
    if args.output.is_file():
        raise CommandError(f"Expected a folder to write to, but {args.output} is a file.")
    return args


def main(argv: list[str] | None = None) -> None:
    """Convert, and write the folder.

    Raises:
        CommandError: Options that cannot be used, or not together.
        DataError: A label table that cannot be read.
        ModelError: Weights that cannot be used, or not with these options.
    """
    args = parse_arguments(argv)
    id2label = dict(enumerate(read_label_table(args.labels).names)) if args.labels else None
    geometry = {key: getattr(args, key) for key in GEOMETRY if getattr(args, key) is not None}
    statistics = {key: getattr(args, key) for key in ("mean", "std") if getattr(args, key) is not None}
    extractor_class = ASTFeatureExtractor
    with as_model_error(args.source):
        if args.imagenet:
            size = SIZES[args.source] if args.source in SIZES else imagenet_sizes(args.source)
            labels = {"num_labels": args.num_labels} if id2label is None else {"id2label": id2label}
            config = ASTConfig(layer_norm_eps=1e-6, head_layer_norm_eps=1e-5, **size, **geometry, **labels)
            config.label2id = {name: index for index, name in config.id2label.items()}
            model = load_imagenet_checkpoint(args.source, config)
        else:
            model = load_original_checkpoint(args.source, id2label=id2label, **geometry)
            extractor_class = checkpoint_layout(args.source).extractor_class
        if has_head := isinstance(model, ASTForAudioClassification):
            model.config.problem_type = args.problem_type or PROBLEM_TYPES[0]
        elif args.problem_type:
            raise ModelError("expected no --problem_type: these weights have no head")
        extractor = extractor_class(**ASTFeatureExtractor.options_for(model.config), **statistics)
    with files_written_beside(args.output) as unfinished:
        model.save_pretrained(unfinished)
        extractor.save_pretrained(unfinished)
    head = f"{model.config.num_labels} labels, {model.config.problem_type}" if has_head else "no head"
    print(
        f"Wrote {args.output}: {model.num_parameters():,} parameters, {model.config.max_length} frames of "
        f"{model.config.num_mel_bins} mel bins, strides {model.config.frequency_stride} and "
        f"{model.config.time_stride}; {head}."
    )


if __name__ == "__main__":
    run_command("convert")
