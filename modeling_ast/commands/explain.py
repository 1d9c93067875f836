"""Draw what a label hangs on in a sound file, and what the model attends to.

    modeling-ast explain FILE --model MODEL [--label LABEL] [--output PICTURE.png] [--start S] [--end S]

Two pictures: of occlusion (how far the label's log-odds fall when a part of the spectrogram is covered) and, beside it
as PICTURE_attention.png, of attention (where the special tokens look). Of a long file one window of the model's
length is explained, unless --end says how much.
"""

import argparse
import math
from pathlib import Path

import torch

from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import CommandError, Parser, add_ignore_length
from modeling_ast.inference.explanations import Occlusion, explain_attention, occlusion_map
from modeling_ast.inference.plots import plot_attention, plot_occlusion
from modeling_ast.inference.recordings import read_stretch
from modeling_ast.loading import load_model

FORMATS = (".png", ".jpg", ".pdf", ".svg")
SIZES = {
    "window_frames": "of the window that is covered, along time; a frame is 10 ms",
    "window_bins": "the same along frequency, in mel bins",
    "step_frames": "from window to window; small steps take long",
    "step_bins": "the same along frequency",
    "batch_size": "windows at a time",
}


def main(argv: list[str] | None = None) -> Occlusion:
    """Explain a file.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        The occlusion map.

    Raises:
        AudioError: The file cannot be read, or ends before the stretch.
        ModelError: A model that cannot be used.
        CommandError: Options or a label that cannot be used.
    """
    args = parse_options(argv)
    model, extractor = load_model(args.model)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    rate = extractor.sampling_rate
    window = extractor.max_samples(model.config.max_length)
    waveform, goes_on = read_stretch(args.file, rate, args.start, args.end, window, args.ignore_length)
    end = args.start + len(waveform) / rate
    print(f"{args.file}: {args.start:.2f} to {end:.2f} s")
    if goes_on:
        print(
            f"The file goes on; this is one window of the model, {window / rate:.2f} s. --start, --end choose others."
        )
    padding = None
    if len(waveform) > window:
        padding = "longest"
        print(f"Longer than the model's window of {window / rate:.2f} s: taken as a whole, with stretched positions.")

    reading = {"padding": padding, "start_seconds": args.start}
    sizes = {name: getattr(args, name) for name in SIZES if getattr(args, name) is not None}
    try:
        attention = explain_attention(model, extractor, waveform, **reading)
        attention.over_patches(args.layer)  # a layer that is not there is told before the long work
        occlusion = occlusion_map(model, extractor, waveform, args.label, **sizes, **reading)
    except ValueError as error:
        raise CommandError(str(error)) from error
    beside = args.output.with_stem(f"{args.output.stem}_attention")
    plot_occlusion(occlusion, args.output, title=args.file.name)
    plot_attention(attention, beside, args.layer, args.heads, title=args.file.name)
    report(occlusion)
    print(f"Saved in {args.output} and {beside}.")
    return occlusion


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked as far as it can be without the file and the model."""
    parser = Parser(__doc__)
    parser.add_argument("file", type=Path, help="WAV, FLAC, OGG or MP3")
    parser.add_argument("--model", required=True, help="folder or name on the Hub")
    parser.add_argument("--label", help="default: the one with the highest score")
    parser.add_argument("--output", type=Path, help="picture to write; default: FILE's name, .png, in this folder")
    parser.add_argument("--start", type=float, default=0.0, metavar="SECONDS", help="of the stretch; default: 0")
    parser.add_argument("--end", type=float, metavar="SECONDS", help="of the stretch; default: the model's length on")
    add_ignore_length(parser)
    parser.add_argument(
        "--layer", type=int, default=-1, help="whose attention; from 0, or from -1, the last, backwards"
    )
    parser.add_argument("--heads", action="store_true", help="draw the layer's single heads, too")
    for name, what in SIZES.items():
        parser.add_argument(f"--{name}", type=int, metavar="N", help=what)
    args = parser.parse_args(argv)
    args.output = args.output or Path(f"{args.file.stem}.png")
    if args.output.suffix not in FORMATS or not args.output.absolute().parent.is_dir() or args.output.is_dir():
        raise CommandError(
            f"Expected output to be a file ({', '.join(FORMATS)}) in a folder that exists, got {args.output}."
        )
    if not 0 <= args.start < math.inf:
        raise CommandError(f"Expected start of at least 0 seconds, got {args.start}.")
    if args.end is not None and not args.start < args.end < math.inf:
        raise CommandError(f"Expected end behind start ({args.start} s), got {args.end}.")
    return args


def report(occlusion: Occlusion) -> None:
    """Print what was found."""
    print(f"{occlusion.label}: score {occlusion.score:.3f}")
    seconds, hertz, drop = occlusion.peak()
    if drop <= 0:
        print("Nothing that was covered lowers it.")
        return
    covered = 1 / (1 + math.exp(drop - occlusion.log_odds))
    print(
        f"It hangs most on {seconds:.2f} s, {hertz:.0f} Hz. Covered there, its log-odds fall by {drop:.2f} (mean), "
        f"to a score of {covered:.3f}."
    )


if __name__ == "__main__":
    run_command("explain")
