"""Compare this package's speed with Transformers' own AST, on the same weights and sounds, in one process.

    python tests/campaigns/benchmark.py [--sections features ...] [--audio FOLDER] [--model FOLDER] [--key value ...]
    python tests/campaigns/benchmark.py --check outputs/benchmark/benchmark.json [--key value ...]

The two sides take turns, after it was checked that they give the same; figures are medians of several rounds. Beside
the ratio stands the share of what bounds it, measured in the same turns: bare matrix products of the network's layers
(operations counted on Transformers' AST, of which this one leaves some out), the bare Fourier transform, the decoder.
The output folder gets `benchmark.md`, a table, and `benchmark.json`.

Real recordings (--audio) are taken from anywhere below a folder. With a trained model (--model) too, labels are
compared: of files in a folder named after the label, outside the training clips where Speech Commands' two lists are
there. Without recordings, files are generated.

`--check` runs the sections of a table again, with its settings, and writes nothing. Exit status: 0; 1 if a ratio fell
more than 15 % under the table's; 2 if nothing can be measured, or the two sides do not give the same.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
from comparison import (
    DTYPES,
    NUM_LABELS,
    RATE,
    TOLERANCES,
    agreement,
    count_stock,
    features,
    folder_of_files,
    generate_sounds,
    inference,
    int8,
    short_clips,
    skipped,
    spread,
    write_model,
    write_sound,
)
from datasets import Audio, Dataset
from measuring import (
    BenchmarkError,
    Row,
    check_agreement,
    describe_machine,
    fallen_rows,
    forget_peak,
    in_new_process,
    markdown_table,
    quiet,
    resident_bytes,
    threads,
    time_in_turn,
)
from on_gpu import gpu
from sklearn.metrics import average_precision_score
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from training_steps import PATCHOUT_COLUMNS, PATCHOUT_ROWS, training
from transformers.models.audio_spectrogram_transformer import ASTFeatureExtractor as StockExtractor

from modeling_ast import ASTConfig, ASTFeatureExtractor
from modeling_ast.audio import AudioError, load_waveform, read_samples
from modeling_ast.configuration_ast import SIZES
from modeling_ast.data.collating import ASTDataCollator
from modeling_ast.data.decoding import decode
from modeling_ast.data.metrics import mean_average_precision
from modeling_ast.training.arguments import AugmentArguments
from modeling_ast.training.collator import AugmentingCollator
from modeling_ast.training.rows import TrainingRows

# All of AudioSet's recipe (configs/audioset_full.yaml) and of Speech Commands': mixup, crop, masks, noise and roll.
AUGMENTATION = {"mixup_probability": 0.5, "random_crop": True, "freq_mask_bins": 48, "time_mask_frames": 192}
AUGMENTATION |= {"max_noise": 0.1, "roll_frames": 10}
# Data workers that compute no features, and others that read no partners and draw no noise either.
HANDED_OVER = {
    "waveforms handed over": {},
    "waveforms handed over, partners of the batch, no noise": {"mixup_partner": "batch", "max_noise": 0.0},
}
# Of one H100 (SXM, dense bf16). Source: NVIDIA's data sheet.
H100_OPERATIONS_PER_SECOND = 989e12
# The share of its rate that training is to reach, and workers.
TRAINING_SHARE, NUM_WORKERS = 0.45, 8
ALLOWED_FALL = 0.15


def data(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    if args.audio:  # what real recordings hold, in files of AudioSet's length
        sounds = [load_waveform(path, RATE) for path in spread(args.audio, args.num_files)]
    else:
        sounds = generate_sounds(args.num_files)
    extractor = ASTFeatureExtractor(max_length=args.max_length)
    stock = StockExtractor(max_length=args.max_length)
    supply = {}
    for kind, name in ((".flac", "FLAC at 16 kHz"), (".wav", "WAV at 16 kHz"), (".ogg", "OGG at 44.1 kHz")):
        files = [write_sound(folder / f"{number}{kind}", sound, 10) for number, sound in enumerate(sounds)]
        rows = Dataset.from_dict({"audio": files, "labels": [[0]] * len(files)}).cast_column(
            "audio", Audio(decode=False)
        )
        rows = decode(rows, RATE)
        collate = AugmentingCollator(extractor, NUM_LABELS, True, augment=AugmentArguments(**AUGMENTATION))
        plain = ASTDataCollator(extractor, NUM_LABELS, True)
        order = [(index, index) for index in range(len(files))]

        def load(collator: Callable, rows=rows, order=order, name: str = "input_values") -> torch.Tensor:
            prepare = getattr(collator, "prepare", None)
            loader = DataLoader(TrainingRows(rows, prepare), batch_size=8, sampler=order, collate_fn=collator)
            return torch.cat([batch[name] for batch in loader])

        def load_by_stock(files=files) -> torch.Tensor:
            clips = (load_waveform(path, RATE).numpy() for path in files)
            return torch.cat([stock(clip, sampling_rate=RATE, return_tensors="pt")["input_values"] for clip in clips])

        with threads(1):
            # Removing the clip's mean first, as training does, shows a little in quiet bins.
            check_agreement({"ours": load(plain), "stock": load_by_stock()}, "stock", 1e-2)
            sides = {"ours": partial(load, collate), "stock": load_by_stock}
            for side, keys in HANDED_OVER.items():
                augment = AugmentArguments(**AUGMENTATION | keys)
                own = AugmentingCollator(extractor, NUM_LABELS, True, augment=augment, hands_over=True)
                sides[side] = partial(load, own, name="waveforms")
            sides["decoder"] = lambda files=files: [read_samples(path) for path in files]
            rates = {side: len(files) / time for side, time in time_in_turn(sides, args.rounds).items()}
        supply |= {(name, side): rate for side, rate in rates.items() if side in HANDED_OVER}
        share = rates["ours"] / rates["decoder"]
        note = "a core; the other side decodes and extracts without augmentation; the decoder reads one file a clip"
        work = f"10 s {name} to batches, all augmentations"
        yield Row("data", work, rates["ours"], rates["stock"], "clips/s", None, share, None, "decoder", note)
        for side in HANDED_OVER:
            share, note = rates[side] / rates["decoder"], "a core; the other side is ours with features"
            what = f"10 s {name}, {side}"
            yield Row("data", what, rates[side], rates["ours"], "clips/s", None, share, None, "decoder", note)
    config = ASTConfig(max_length=args.max_length)
    kept_bins = 128 - config.frequency_stride * PATCHOUT_ROWS
    kept_frames = args.max_length - config.time_stride * (config.num_time_patches * PATCHOUT_COLUMNS // 101)
    for work, frames, bins in (
        ("one H100", args.max_length, 128),
        ("one H100 with patchout", kept_frames, kept_bins),
    ):
        operations = count_stock(folder, frames, bins, backward=True)
        needed = TRAINING_SHARE * H100_OPERATIONS_PER_SECOND / operations
        for (name, side), rate in supply.items():  # as on a GPU
            note = f"arithmetic: {NUM_WORKERS} workers of {rate:.1f} clips/s : {TRAINING_SHARE:.0%} of "
            note += f"{H100_OPERATIONS_PER_SECOND / 1e12:.0f} TFLOP/s at {operations / 1e9:.0f} GFLOP a clip and step"
            what = f"{args.size}, {NUM_WORKERS} workers for {work}, {name}, {side}"
            yield Row("data", what, NUM_WORKERS * rate, needed, "clips/s", goal=1.0, note=note)


def metrics(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    scores, labels = make_predictions(args.num_eval_clips)
    sides = {"ours": lambda: mean_average_precision(scores, labels)}
    sides["stock"] = lambda: average_precision_score(labels, scores, average="macro")
    sides["sorting"] = lambda: np.argsort(scores, axis=0)
    seconds = time_in_turn(sides, args.rounds, agreement(["ours"], 1e-6))
    work, note = f"mAP of {args.num_eval_clips} clips, {NUM_LABELS} labels", "the other side is scikit-learn"
    share = seconds["sorting"] / seconds["ours"]
    yield Row("metrics", work, seconds["ours"], seconds["stock"], "s", None, share, None, "sorting", note)
    try:
        peaks = [in_new_process(metric_memory, side, args.num_eval_clips) for side in ("ours", "stock")]
    except OSError as error:
        yield skipped("metrics", f"{work}, memory", str(error))
        return
    note = f"over scores and labels, which take {(scores.nbytes + labels.nbytes) / 1e6:.0f} MB"
    yield Row("metrics", f"{work}, memory", *peaks, unit="MB", note=note)


def make_predictions(num_clips: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores that know a little, and multi-hot labels of which each has a clip: (clips, labels) both."""
    random = np.random.default_rng(0)
    labels = random.random((num_clips, NUM_LABELS)) < 0.005
    labels[np.arange(NUM_LABELS) % num_clips, np.arange(NUM_LABELS)] = True
    return (random.standard_normal(labels.shape) + labels).astype(np.float32), labels


def metric_memory(side: str, num_clips: int) -> float:
    """Megabytes that one side takes at the most."""
    scores, labels = make_predictions(num_clips)
    forget_peak()  # that of making them
    before = resident_bytes()
    if side == "ours":
        mean_average_precision(scores, labels)
    else:
        average_precision_score(labels, scores, average="macro")
    return (resident_bytes(peak=True) - before) / 1e6


STARTS = {
    "ours": "import modeling_ast as package",
    "stock": "import transformers as package",
}
FIRST_CLIP = """
import sys, numpy, torch
folder = sys.argv[1]
model = package.ASTForAudioClassification.from_pretrained(folder).eval()
extractor = package.ASTFeatureExtractor.from_pretrained(folder)
clip = numpy.random.default_rng(0).normal(0, 0.1, 160000).astype(numpy.float32)
with torch.inference_mode():
    print(model(**extractor(clip, sampling_rate=16000, return_tensors="pt")).logits[0].tolist())
"""
BARE_START = "import sys, torch, safetensors.torch\nsafetensors.torch.load_file(sys.argv[1] + '/model.safetensors')\n"


def startup(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.num_threads), "HF_HUB_OFFLINE": "1"}

    def run(code: str) -> str:
        command = [sys.executable, "-c", code, str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise BenchmarkError(f"A fresh process failed: {done.stderr.strip().splitlines()[-1]}")
        return done.stdout

    sides = {side: partial(run, f"{start}\n{FIRST_CLIP}") for side, start in STARTS.items()}
    sides["bare"] = partial(run, BARE_START)

    def check(outputs: dict[str, str]) -> None:
        logits = {side: json.loads(outputs[side].splitlines()[-1]) for side in STARTS}
        check_agreement(logits, "stock", TOLERANCES[torch.float32])

    seconds = time_in_turn(sides, args.rounds, check)
    work, share = f"import, load {args.size}, first clip", seconds["bare"] / seconds["ours"]
    limit = "importing torch and reading the weights"
    yield Row("startup", work, seconds["ours"], seconds["stock"], "s", 1.0, share, None, limit)


SECTIONS = {
    "features": features,
    "inference": inference,
    "int8": int8,
    "short_clips": short_clips,
    "folder": folder_of_files,
    "training": training,
    "data": data,
    "metrics": metrics,
    "startup": startup,
    "gpu": gpu,
}


def main(argv: list[str] | None = None) -> int:
    """Measure, write the table, or compare with one.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        The exit status: 0, or 1 if a ratio fell under that of the table to check.

    Raises:
        BenchmarkError: The two sides do not give the same, or options that cannot be used.
    """
    argv = sys.argv[1:] if argv is None else argv
    args, earlier = parse_options(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    machine, rows, start = describe_machine(), [], time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary, threads(args.num_threads), quiet():
        folder = Path(temporary)
        write_model(args, folder)
        progress = tqdm(args.sections, unit="section", file=sys.stderr)
        for section in progress:
            progress.set_description(section)
            for row in SECTIONS[section](args, folder):
                rows.append(row)
                progress.write(" | ".join(filter(None, row.cells())), file=sys.stdout)
                if earlier is None:  # whatever comes, this row is there
                    write_report(args, argv, machine, rows, time.perf_counter() - start)
    if earlier is None:
        print(f"Wrote benchmark.md and benchmark.json in {args.output_dir}.")
        return 0
    fallen, missing = fallen_rows(rows, earlier, ALLOWED_FALL)
    print(*(f"not compared: {sentence}" for sentence in missing), sep="\n", end="\n" if missing else "")
    compared = sum(row.ratio is not None for row in earlier) - len(missing)
    if not compared:
        raise BenchmarkError(f"Expected ratios to compare with {args.check}, got none.")
    print(*(f"fell: {sentence}" for sentence in fallen), sep="\n", end="\n" if fallen else "")
    print(f"{compared} ratios compared with {args.check}: {len(fallen)} fell by more than {ALLOWED_FALL:.0%}.")
    return 1 if fallen else 0


def write_report(
    args: argparse.Namespace, argv: list[str], machine: dict[str, str | int], rows: list[Row], seconds: float
) -> None:
    """`benchmark.md` and `benchmark.json`."""
    command = shlex.join(["python", "tests/campaigns/benchmark.py", *argv])
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    del settings["check"], settings["output_dir"]
    about = ", ".join(f"{name} {value}" for name, value in machine.items())
    about += f"; {args.num_threads} threads, medians of {args.rounds} rounds, {seconds / 60:.1f} minutes in all."
    report = {"machine": machine, "command": command, "settings": settings, "rows": [report_row(row) for row in rows]}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    table = f"{markdown_table(rows)}\n{about}\n\n    {command}\n"
    (args.output_dir / "benchmark.md").write_text(table, encoding="utf-8")
    (args.output_dir / "benchmark.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def report_row(row: Row) -> dict:
    return {**asdict(row), "ratio": row.ratio, "is_reached": row.is_reached}


def parse_options(argv: list[str]) -> tuple[argparse.Namespace, list[Row] | None]:
    """The command line, and the rows of the table to check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--sections",
        nargs="+",
        choices=SECTIONS,
        default=list(SECTIONS),
        metavar="SECTION",
        help="default: all of " + ", ".join(SECTIONS),
    )
    add("--check", type=Path, metavar="TABLE.json", help="measure its sections again, and compare")
    add("--output_dir", type=Path, default=Path("outputs/benchmark"), help="default: %(default)s")
    add("--audio", type=Path, metavar="FOLDER", help="real recordings; default: generated ones")
    add("--model", type=Path, metavar="FOLDER", help="trained model, whose answers are compared")
    add("--num_threads", type=int, default=os.cpu_count(), help="default: %(default)s")
    add("--rounds", type=int, default=3, help="default: %(default)s")
    add("--size", choices=SIZES, default="base384", help="of the network; default: %(default)s")
    add("--max_length", type=int, default=1024, help="frames of it; default: %(default)s")
    add("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="inference, training; default: all")
    add("--batch_sizes", nargs="+", type=int, default=[1, 8], help="inference; default: 1 8")
    add("--train_batch_size", type=int, default=2, help="default: %(default)s")
    add("--tagging_batch_size", type=int, default=1, help="of the pipelines; default: %(default)s")
    add("--num_files", type=int, default=12, help="folder, data; default: %(default)s")
    add("--num_clips", type=int, default=200, help="whose labels are compared; default: %(default)s")
    add("--num_eval_clips", type=int, default=20371, help="metrics; default: %(default)s, as AudioSet's evaluation")
    earlier, path = None, parser.parse_args(argv).check
    if path is not None:
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            earlier = [Row(**{field.name: row[field.name] for field in fields(Row)}) for row in table["rows"]]
            parser.set_defaults(**table["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BenchmarkError(f"Expected {path} to be a benchmark.json of this script, got {error!r}.") from error
    args = parser.parse_args(argv)
    least = {"num_threads": 1, "rounds": 1, "max_length": 116, "num_files": 2, "num_clips": 1, "num_eval_clips": 1}
    for name, number in {**least, "train_batch_size": 1, "tagging_batch_size": 1}.items():
        if getattr(args, name) < number:
            raise BenchmarkError(f"Expected {name} of at least {number}, got {getattr(args, name)}.")
    if min(args.batch_sizes) < 1:
        raise BenchmarkError(f"Expected batch_sizes of at least 1, got {min(args.batch_sizes)}.")
    for name in ("audio", "model"):
        if getattr(args, name) is not None and not getattr(args, name).is_dir():
            raise BenchmarkError(f"Expected {name} to be a folder, got {getattr(args, name)}.")
    return args, earlier


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BenchmarkError, AudioError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
