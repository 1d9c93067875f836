"""Measure what gives the same result only nearly, or not at all: how far two ways to the same are apart.

    python tests/campaigns/measure_differences.py [--model FOLDER] [--audio FOLDER] [--groups features ...] ...

Prints a Markdown table with a row for each comparison: features and logits of a model on some clips, and small
training runs (on generated sounds, whatever the model) as one process and as two, accumulated, with workers, and so
on. The largest absolute difference is also given as a multiple of the spread, the standard deviation of all values,
with the share of the clips that get the same best label. What cannot be measured here says why. Exit status: 0; 1 if
something differs that must be equal, such as one run and the same run again; 2 if nothing can be measured.
"""

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from modeling_ast.audio import AudioError, load_waveform, to_waveform
from modeling_ast.resampling import require_torchaudio

try:
    require_torchaudio()  # before Transformers fails on a torchaudio that cannot be loaded, without naming it
except ImportError as error:
    sys.exit(str(error))

import torch
from comparison import RATE, forward, generate_sounds, spread
from differences import (
    COMPARISONS,
    Difference,
    NotMeasured,
    Subject,
    difference,
    equal_top1,
    markdown_table,
    measure,
    random_model,
)
from fault_campaign import write_recipe
from measuring import BenchmarkError, describe_machine, quiet, threads
from safetensors.torch import load_file
from tqdm.auto import tqdm

from modeling_ast import ASTFeatureExtractor
from modeling_ast.loading import load_model

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "run_audio_classification.py"
GROUPS = ("features", "logits", "training")
RANDOM_MODEL_FRAMES = 96  # a second


@dataclass(frozen=True)
class Run:
    """How the run of `fault_campaign.write_recipe` is made. Dropout draws from a process's own numbers."""

    options: tuple[str, ...] = ()
    dropout: float = 0.0
    processes: int = 1
    threads: int = 1
    number: int = 1  # of one that is made again


@dataclass(frozen=True)
class RunComparison:
    """Two runs that should give the same; as `Comparison`."""

    compared: str
    expected: Run
    found: Run
    must_be_equal: bool = False


PLAIN, DROPOUT = Run(), Run(dropout=0.1)
ACCUMULATED = ("--gradient_accumulation_steps=2",)
SMALL_EVALUATION = ("--per_device_eval_batch_size=3",)
TRAINING = [
    RunComparison("a second time : the first", DROPOUT, Run(dropout=0.1, number=2), must_be_equal=True),
    RunComparison("2 data workers : none", PLAIN, Run(("--dataloader_num_workers=2",)), must_be_equal=True),
    RunComparison("evaluated in batches of 3 : of 8", PLAIN, Run(SMALL_EVALUATION)),
    RunComparison("2 threads : 1", PLAIN, Run(threads=2)),
    RunComparison("2 accumulated batches : 1", PLAIN, Run(ACCUMULATED)),
    RunComparison("2 processes : 1", PLAIN, Run(processes=2)),
    RunComparison("eager : sdpa", PLAIN, Run(("--attn_implementation=eager",))),
    RunComparison("bf16 : fp32", PLAIN, Run(("--bf16=true",))),
    RunComparison("2 accumulated batches : 1, with dropout", DROPOUT, Run(ACCUMULATED, dropout=0.1)),
    RunComparison("another seed : the same", PLAIN, Run(("--seed=4",))),
]


class Runs:
    """Training runs, each made when it is first asked for.

    Args:
        folder: Where they go.
    """

    def __init__(self, folder: Path):
        self.folder, self.done = folder, {}
        self.recipe = write_recipe(folder / "data")

    def __getitem__(self, run: Run) -> Path:
        """The folder of a run.

        Raises:
            NotMeasured: Two processes cannot talk to each other here.
            BenchmarkError: The run failed.
        """
        if run not in self.done:
            self.done[run] = self._make(run, self.folder / f"run-{len(self.done)}")
        return self.done[run]

    def _make(self, run: Run, output_dir: Path) -> Path:
        launcher, layout = [], []
        if run.processes > 1:
            if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
                raise NotMeasured("torch comes without gloo")
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={run.processes}"]
            layout = ["--ddp_backend=gloo"]
        # The last weights, not those of the best evaluation, which may be another one after the slightest difference.
        options = ["--load_best_model_at_end=false", "--save_strategy=no", f"--hidden_dropout_prob={run.dropout}"]
        options += [f"--output_dir={output_dir}", *layout, *run.options]
        command = [sys.executable, *launcher, str(SCRIPT), str(self.recipe), *options]
        environment = {**os.environ, "OMP_NUM_THREADS": str(run.threads), "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = str(ROOT)
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            words = " ".join(done.stderr.split()[-40:])
            raise BenchmarkError(f"A training run failed ({shlex.join(command)}): {words}")
        return output_dir


def compare_runs(comparison: RunComparison, runs: Runs) -> Difference:
    """Weights, losses and best labels of two runs; where only the evaluation is another, what that gave."""
    try:
        expected, found = runs[comparison.expected], runs[comparison.found]
    except NotMeasured as reason:
        return Difference("training", comparison.compared, "weights", note=f"not measured: {reason}")
    losses = [update_losses(folder) for folder in (expected, found)]
    if comparison.found.options == SMALL_EVALUATION:
        values, over = [validation_losses(folder) for folder in (expected, found)], "validation losses"
    else:
        values, over = [weights(folder) for folder in (expected, found)], f"weights after {len(losses[0])} updates"
    row = difference("training", comparison.compared, over, *values)
    row.equal_top1 = equal_top1(*(held_out_logits(folder, runs.recipe.parent) for folder in (expected, found)))
    apart = (losses[0] - losses[1]).abs().max().item()
    row.note = "losses of all updates equal" if apart == 0 else f"losses of the updates to {apart:.1e}"
    row.must_be_equal = comparison.must_be_equal
    if row.must_be_equal and apart != 0:  # though the weights be equal
        row.largest = max(row.largest, apart)
    return row


def weights(run: Path) -> torch.Tensor:
    """All of a trained model, (values,)."""
    tensors = load_file(run / "model.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def update_losses(run: Path) -> torch.Tensor:
    """Loss of each update."""
    history = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return torch.tensor([entry["loss"] for entry in history if "loss" in entry], dtype=torch.float64)


def validation_losses(run: Path) -> torch.Tensor:
    """Of each evaluation during training."""
    with open(run / "results.csv", encoding="utf-8", newline="") as file:
        return torch.tensor([float(row["validation_loss"]) for row in csv.DictReader(file)], dtype=torch.float64)


def held_out_logits(run: Path, data: Path) -> torch.Tensor:
    """What a trained model gives for the clips that it was not trained on."""
    model, extractor = load_model(run)
    paths = sorted(path for path in data.glob("*.wav") if not path.name.startswith("train"))
    return torch.cat(
        [forward(model, extractor, load_waveform(path, extractor.sampling_rate).numpy()) for path in paths]
    )


def make_subject(args: argparse.Namespace, folder: Path) -> Subject:
    """The model and the clips that were asked for."""
    if args.model is None:
        extractor = ASTFeatureExtractor(max_length=RANDOM_MODEL_FRAMES)
    else:
        try:
            model, extractor = load_model(args.model)
        except (OSError, ValueError) as error:
            raise BenchmarkError(f"{args.model} cannot be used: {error}") from error
    rate = extractor.sampling_rate
    if args.audio is None:
        clips = [to_waveform(sound.unsqueeze(1), RATE, rate) for sound in generate_sounds(args.num_clips)]
    else:
        clips = [load_waveform(path, rate) for path in spread(args.audio, args.num_clips)]
    clips = [clip[: extractor.num_samples(extractor.max_length)] for clip in clips]
    model_folder = args.model or folder / "model"
    if args.model is None:
        model = random_model(extractor, clips)
        model.save_pretrained(model_folder)
        extractor.save_pretrained(model_folder)
    return Subject(model_folder, model.float().eval(), extractor, clips, folder, args.compile)


def main(argv: list[str] | None = None) -> int:
    """Measure, and print the table.

    Args:
        argv: Command line without the program; `None` takes the process's own.

    Returns:
        The exit status: 0, or 1 if something differs that must be equal.

    Raises:
        BenchmarkError: Options or a model that cannot be used, or a training run that failed.
        AudioError: A recording that cannot be read.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = parse_options(argv)
    machine, rows = describe_machine(), []
    with tempfile.TemporaryDirectory() as temporary, threads(1), quiet():
        folder = Path(temporary)
        tasks = {}
        if {"features", "logits"} & set(args.groups):
            subject = make_subject(args, folder)
            tasks = {each: partial(measure, each, subject) for each in COMPARISONS if each.group in args.groups}
        if "training" in args.groups:
            runs = Runs(folder)
            tasks |= {each: partial(compare_runs, each, runs) for each in TRAINING}
        progress = tqdm(tasks.items(), unit="comparison", file=sys.stderr)
        for comparison, task in progress:
            progress.set_description(comparison.compared)
            rows.append(task())
    print(markdown_table(rows))
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    if args.output is not None:
        command = shlex.join(["python", "tests/campaigns/measure_differences.py", *argv])
        report = {"machine": machine, "command": command, "rows": [asdict(row) for row in rows]}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return int(not all(row.is_as_promised for row in rows))


def parse_options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", type=Path, metavar="FOLDER", help="trained model; default: random weights, always the same")
    add("--audio", type=Path, metavar="FOLDER", help="real recordings, anywhere below it; default: generated sounds")
    add("--num_clips", type=int, default=40, help="of features and logits; default: %(default)s")
    add("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="default: all")
    add("--compile", action="store_true", help="measure what needs torch.compile, which takes a minute")
    add("--output", type=Path, metavar="FILE.json", help="the rows as numbers")
    args = parser.parse_args(argv)
    if args.num_clips < 2:  # one clip has no batch
        raise BenchmarkError(f"Expected num_clips of at least 2, got {args.num_clips}.")
    for name in ("audio", "model"):
        if getattr(args, name) is not None and not getattr(args, name).is_dir():
            raise BenchmarkError(f"Expected {name} to be a folder, got {getattr(args, name)}.")
    return args


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BenchmarkError, AudioError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
