"""Export a model to one ONNX graph from waveforms to scores, features inside.

    modeling-ast export MODEL OUTPUT.onnx [--int8] [--padding max_length|longest] [--with_lengths]
        [--standard_operators] [--check FILE|FOLDER ...] [--num_threads N]
    modeling-ast export MODEL FOLDER --transformers_js

The graph takes any number of clips of any length from 25 ms up, and needs onnxruntime alone:

    import json

    import onnxruntime
    import soundfile

    session = onnxruntime.InferenceSession("model.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    waveform, rate = soundfile.read("clip.wav", dtype="float32", always_2d=True)  # (samples, channels), in [-1, 1]
    assert rate == int(metadata["sampling_rate"]), f"resample the clip to {metadata['sampling_rate']} Hz first"
    (scores,) = session.run(["scores"], {"waveform": waveform.mean(axis=1)[None]})  # (batch, samples)
    labels = json.loads(metadata["labels"])
    for index in scores[0].argsort()[::-1][:3]:
        print(f"{scores[0, index]:.3f}  {labels[index]}")

Unless --padding says otherwise, clips are padded and cut as the model's feature extractor does it. Before the file is
there, its scores are compared with the model's, on the sound files of --check or on generated sounds below, at and
above the model's length; a difference above 1e-3 is an error. --int8 writes a second, smaller file, OUTPUT.int8.onnx,
whose scores differ from the model's as much as is then reported, with a warning where less than 99 % of its answers
are the model's (the best label, or of a multi-label model the labels at its thresholds) or where it is slower.

--transformers_js writes a folder for transformers.js, in the browser and in node, with both files. transformers.js
computes its own features and a softmax; a model for which these are other ones is refused.

    const classify = await pipeline("audio-classification", "FOLDER", { dtype: "fp32" });  // "q8" takes the 8 bits
    const tags = await classify(samples, { top_k: 3 });  // Float32Array in [-1, 1], at 16000 Hz, one channel
"""

import argparse
import logging
from pathlib import Path

import torch

from modeling_ast.commands.command_line import run_command
from modeling_ast.commands.command_options import Parser, check_least
from modeling_ast.feature_extraction_ast import PADDINGS
from modeling_ast.inference.agreement import comparison_table, generate_clips, int8_warnings, read_clips
from modeling_ast.inference.checked_export import checked_export
from modeling_ast.inference.export import (
    check_for_transformers_js,
    model_warnings,
    require_onnx,
    save_transformers_js_config,
)
from modeling_ast.inference.sound_files import find_files
from modeling_ast.loading import load_model

logger = logging.getLogger("export_onnx")

# In the folder `onnx`; transformers.js takes the second one in browsers, and elsewhere where dtype is "q8".
TRANSFORMERS_JS_FILES = {"fp32": "model.onnx", "int8": "model_quantized.onnx"}


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Export a model, compare the graph with it, and report.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        What `compare` gives for the `model`, the `fp32` graph and, with --int8, the `int8` graph.

    Raises:
        ModelError: A model that cannot be used, or a graph that does not give its scores.
        CommandError, DataError, AudioError: Options, sources or a sound file that cannot be used.
        ImportError: A package that the export needs is not installed.
    """
    args = parse_command_line(argv)
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)  # and no other: the exporter tells of every rewritten node
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is missing
    require_onnx()
    torch.set_num_threads(args.num_threads)
    paths = [Path(file.path) for file in find_files(args.check, args.output)] if args.check else []
    model, extractor = load_model(args.model)
    for warning in model_warnings(args.model, model.config):
        logger.warning(warning)
    padding = args.padding or extractor.padding
    seconds = extractor.num_samples(extractor.max_length) / extractor.sampling_rate
    logger.info(f"Clips are padded by {padding}; the model takes {extractor.max_length} frames, {seconds:.2f} s.")
    own = extractor, args.with_lengths
    batches = read_clips(paths, *own) if paths else generate_clips(*own)
    if args.transformers_js:
        check_for_transformers_js(model, extractor, padding)
        outputs = {name: args.output / "onnx" / file for name, file in TRANSFORMERS_JS_FILES.items()}
    else:
        outputs = {"fp32": args.output, **({"int8": args.output.with_suffix(".int8.onnx")} if args.int8 else {})}
    clips = f"{len(paths)} sound files" if paths else "generated sounds"
    logger.info(f"Exporting {args.model}")
    options = args.with_lengths, args.standard_operators, args.transformers_js, args.num_threads
    with checked_export(model, extractor, outputs, batches, padding, *options) as (results, measure):
        print(f"Compared on {clips}, {args.num_threads} thread(s), torch {torch.__version__}:")
        print(comparison_table(results, measure))
    for name, path in outputs.items():
        print(f"Wrote {path}: {name}, {path.stat().st_size / 1e6:.1f} MB.")
    if args.transformers_js:
        save_transformers_js_config(model, extractor, args.output)
    if "int8" in outputs:
        for warning in int8_warnings(results, clips, measure):
            logger.warning(warning)
    return results


def parse_command_line(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder, or name on the Hub")
    add("output", metavar="OUTPUT.onnx", type=Path, help="file to write; with --transformers_js a folder")
    add(
        "--transformers_js",
        action="store_true",
        help="write a folder for transformers.js, in float32 and in 8 bits, which computes features and scores itself",
    )
    add("--int8", action="store_true", help="write OUTPUT.int8.onnx too, with 8-bit weights")
    add(
        "--padding",
        choices=PADDINGS,
        help="max_length: pad or cut every clip to the model's length; longest: take it at its own. Default: the "
        "feature extractor's, with which scores equal the pipeline's",
    )
    add(
        "--with_lengths",
        action="store_true",
        help="a second input num_samples, int64 (batch,), for clips of different lengths in one batch",
    )
    add("--standard_operators", action="store_true", help="no operators of onnxruntime's own, for other runtimes")
    add("--check", nargs="+", type=Path, default=[], metavar="FILE|FOLDER", help="sounds to compare the scores on")
    add("--num_threads", type=int, default=1, help="of the comparison; default: %(default)s")
    args = parser.parse_args(argv)
    if args.transformers_js:
        if args.with_lengths:
            parser.error("--with_lengths has no meaning with --transformers_js, which gives one clip at a time.")
        if args.output.is_file() or (args.output / "model.safetensors").exists():
            parser.error(f"Expected OUTPUT to be a new folder, not a file or a model's own folder, got {args.output}.")
    elif args.output.suffix != ".onnx" or args.output.is_dir():
        parser.error(f"Expected OUTPUT to be a file ending in .onnx, got {args.output}.")
    check_least(args, num_threads=1)
    return args


if __name__ == "__main__":
    run_command("export")
