"""Do to training runs what machines do to them, and say in a table what they survive.

    python tests/campaigns/fault_campaign.py [--kills 20] [--seed 0] [--groups NAME ...] [--output_dir DIR]

Small runs on generated sounds are killed (SIGKILL, workers and all) at random moments, and at the very moments when
files are being written; then the same command is given again until it ends. What it ends with must be what an
undisturbed run ends with: the same weights bit for bit, the same metrics and records, nothing left over. Other groups
are selections of the tests, and count theirs. Exit status 1 where anything was lost.
"""

import argparse
import json
import math
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "run_audio_classification.py"

# Four updates an epoch; all that draws, remembers or is saved is in the recipe.
CLIPS_PER_SPLIT = {"train": 16, "validation": 8, "test": 8}
KINDS = ("beeps", "drone", "noise", "steam")
RECIPE = """
model_name_or_path: tiny224
hidden_size: 32
num_hidden_layers: 1
num_attention_heads: 2
intermediate_size: 64
hidden_dropout_prob: 0.1
max_length: 64
num_mel_bins: 32
split_column_name: split
mixup_probability: 0.5
freq_mask_bins: 8
time_mask_frames: 16
do_train: true
num_train_epochs: 4
global_batch_size: 4
learning_rate: 1e-3
weight_average_start: 2
eval_strategy: steps
eval_steps: 2
save_strategy: steps
save_steps: 2
save_total_limit: 2
load_best_model_at_end: true
metric_for_best_model: mAP
logging_strategy: steps
logging_steps: 1
resume_from_checkpoint: true
use_cpu: true
dataloader_pin_memory: false
disable_tqdm: true
report_to: none
seed: 3
"""
# What is being written, and where that can be seen: a file that is there for that time alone.
MOMENTS = {
    "a checkpoint": "_unfinished/checkpoint-*",
    "the running average": "_unfinished/checkpoint-*/weight_average.safetensors",
    "the mean predictions": "_unfinished/checkpoint-*/mean_predictions.npy",
    "the optimiser": "_unfinished/checkpoint-*/optimizer.pt",
    "the last file of a checkpoint": "_unfinished/checkpoint-*/trainer_state.json",
    "`results.csv`": ".*.unfinished.csv",
    "the recipe": ".*.unfinished.yaml",
    "the averaged model": "_unfinished/weight_average/*",
    "the final model": "_unfinished/files/*",
    "the metrics": ".*.unfinished.json",
    "the final evaluation": "trainer_state.json",
    "a picture": ".*.unfinished.png",
}
# Groups that are selections of the tests: what they do, and pytest's arguments.
TESTS = {
    "signals": ("SIGTERM or Ctrl-C", ["tests/test_faults.py", "-k", "signal"]),
    "disks": ("a full disk, or one that cannot be written", ["tests/test_faults.py", "-k", "disk"]),
    "data": ("a data file that vanished or broke within an epoch", ["tests/test_faults.py", "-k", "data_file"]),
    "clips": ("a training clip that cannot be decoded", ["tests/test_faults.py", "-k", "bad_clip"]),
    "workers": ("a data worker that was killed", ["tests/test_faults.py", "-k", "worker_that_is_killed"]),
    "divergence": ("a loss or weights that are no numbers", ["tests/test_faults.py", "-k", "diverged"]),
    "folders": (
        "the folder of another run, or of one that is going on",
        ["tests/test_faults.py", "-k", "another_run or still_going_on"],
    ),
    "checkpoints": ("a damaged checkpoint to continue from", ["tests/test_faults.py", "-k", "damaged"]),
    "processes": ("one of two processes killed", ["tests/test_faults.py", "-k", "two_processes"]),
    "machines": (
        "two machines that are not one run, or that a signal or a cable stops",
        ["tests/test_two_machines.py"],
    ),
    "sounds": ("broken and mutated sound files", ["tests/test_hostile_audio.py"]),
    "input": ("hostile weights, archives, tables, recipes and names", ["tests/test_hostile_input.py"]),
}
WATCHING_SECONDS = 120  # for a moment that does not come
KILLS_OF_A_RUN = 4  # at most, so that enough of them end


@dataclass
class Row:
    """A line of the table."""

    fault: str
    tried: int = 0
    survived: int = 0
    reasons: list[str] = field(default_factory=list)  # of what was lost, or not tried

    @property
    def lost(self) -> int:
        return self.tried - self.survived


def main(argv: list[str] | None = None) -> int:
    """Run the campaign and print its table.

    Returns:
        The exit status: 1 where anything was lost.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="kills at random moments")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--groups", nargs="+", choices=["kills", "moments", *TESTS], help="what to try; everything if left out"
    )
    parser.add_argument("--output_dir", type=Path, help="where the runs stay; a folder that is removed if left out")
    arguments = parser.parse_args(argv)
    groups = arguments.groups or ["kills", "moments", *TESTS]
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.output_dir or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        if {"kills", "moments"} & set(groups):
            rows += kill_runs(folder, arguments.kills, random.Random(arguments.seed), groups)
        rows += [tests_row(*TESTS[name]) for name in groups if name in TESTS]
    print(table(rows))
    return int(any(row.lost for row in rows))


def table(rows: list[Row]) -> str:
    """In Markdown, with what was lost below."""
    lines = ["| fault | tried | survived | lost |", "|---|---|---|---|"]
    lines += [f"| {row.fault} | {row.tried} | {row.survived} | {row.lost} |" for row in rows]
    reasons = [f"- {row.fault}: {reason}" for row in rows for reason in row.reasons]
    return "\n".join([*lines, "", *reasons]) if reasons else "\n".join(lines)


# Kills


def kill_runs(folder: Path, kills: int, draws: random.Random, groups: list[str]) -> list[Row]:
    """Rows of the kills at random moments, and of those at moments of writing."""
    recipe = write_recipe(folder / "data")
    expected = folder / "undisturbed"
    shutil.rmtree(expected, ignore_errors=True)
    warm_up()
    started = time.monotonic()
    process = start(recipe, expected, folder / "undisturbed.log")
    process.join()
    duration = time.monotonic() - started
    if process.exitcode != 0:
        raise SystemExit(f"error: the undisturbed run failed: {log_end(folder / 'undisturbed.log')}")
    say(f"An undisturbed run takes {duration:.1f} s.")
    rows = []
    if "kills" in groups:
        rows.append(kill_at_random(folder, recipe, expected, kills, duration, draws))
    for moment, pattern in MOMENTS.items() if "moments" in groups else ():
        rows.append(kill_while(folder, recipe, expected, moment, pattern, draws))
    return rows


def kill_at_random(
    folder: Path, recipe: Path, expected: Path, kills: int, duration: float, draws: random.Random
) -> Row:
    """Starts of a run are killed at moments drawn from an undisturbed one's time; in the end one is left alone."""
    row, number = Row("`kill -9` at a random moment of a run"), 0
    while row.tried < kills:
        number += 1
        run, killed = fresh(folder / f"random-{number}"), 0
        while True:
            process = start(recipe, run, folder / f"random-{number}.log")
            if killed < min(KILLS_OF_A_RUN, kills - row.tried):
                process.join(timeout=draws.uniform(0, duration))
            else:
                process.join()
            if process.exitcode is not None:
                break
            kill(process)
            killed += 1
        row.tried += killed
        difference = run_difference(process.exitcode, run, expected)
        if difference is None:
            row.survived += killed
        elif killed:
            row.reasons.append(f"{run.name}, killed {killed} times: {difference}")
        else:
            raise SystemExit(f"error: a run that was not killed differs from the undisturbed one: {difference}.")
        say(f"{run.name}: killed {killed} times, {difference or 'equal'} ({row.tried} of {kills}).")
    return row


def kill_while(folder: Path, recipe: Path, expected: Path, moment: str, pattern: str, draws: random.Random) -> Row:
    """A run is killed when a file appears, for the first time after some that are let pass."""
    row = Row(f"`kill -9` while it writes {moment}" if "evaluation" not in moment else f"`kill -9` in {moment}")
    run = fresh(folder / f"moment-{list(MOMENTS).index(moment)}")
    log = folder / f"{run.name}.log"
    process = start(recipe, run, log)
    to_pass = draws.randrange(3) if "checkpoint-" in pattern else 0
    if not wait_for(run, pattern, process, to_pass):
        process.join()
        row.reasons.append("not tried: the moment was too short to be seen")
        return row
    kill(process)
    row.tried = 1
    trained = (run / "trainer_state.json").is_file()
    process = start(recipe, run, log)
    process.join()
    difference = run_difference(process.exitcode, run, expected)
    if difference is None and trained and "what is left is its evaluation" not in log.read_text():
        difference = "it trained again"
    row.survived = int(difference is None)
    row.reasons += [difference] if difference else []
    say(f"{row.fault}: {difference or 'equal'}.")
    return row


def wait_for(run: Path, pattern: str, process: multiprocessing.Process, to_pass: int) -> bool:
    """Until the so-manieth file of a kind appears; `False` where the run ends before."""
    end, seen = time.monotonic() + WATCHING_SECONDS, set()
    while process.exitcode is None and time.monotonic() < end:
        for _ in range(50):  # without asking for the process each time: some of the moments last 0.1 ms
            try:
                found = {str(path) for path in run.glob(pattern)} - seen
            except FileNotFoundError:  # a folder that got its name while it was looked into
                continue
            if found and len(seen) >= to_pass:
                return True
            seen |= found
    return False


def run_difference(exit_status: int, run: Path, expected: Path) -> str | None:
    """How a run that was disturbed differs from the undisturbed one; `None` where it does not."""
    if exit_status != 0:
        return f"exit status {exit_status}: {log_end(run.with_name(run.name + '.log'))}"
    for name in ("model.safetensors", "weight_average/model.safetensors", "results.csv", "per_class_test.csv"):
        if (run / name).read_bytes() != (expected / name).read_bytes():
            return f"{name} differs"
    metrics, wanted = (reported(each) for each in (run, expected))
    if metrics.keys() != wanted.keys():
        return f"other metrics: {', '.join(sorted(metrics.keys() ^ wanted.keys()))}"
    for name, value in wanted.items():
        # The training loss is summed up in parts.
        if not math.isclose(metrics[name], value, rel_tol=1e-6 if name == "train_loss" else 0):
            return f"{name} is {metrics[name]}, not {value}"
    names, wanted_names = (sorted(path.name for path in each.rglob("*")) for each in (run, expected))
    if names != wanted_names:
        return f"other files: {', '.join(sorted(set(names) ^ set(wanted_names)))}"
    return None


def reported(run: Path) -> dict[str, float]:
    """All metrics, without what a clock says."""
    results = json.loads((run / "all_results.json").read_text(encoding="utf-8"))
    return {key: value for key, value in results.items() if not key.endswith(("_runtime", "_per_second", "_time"))}


# Runs


def write_recipe(folder: Path) -> Path:
    """Sounds and the recipe of a run on them, which takes seconds."""
    import soundfile
    import torch

    from modeling_ast.data.synthetic import SAMPLING_RATE, generate_clip

    folder.mkdir(parents=True, exist_ok=True)
    generator, lines = torch.Generator().manual_seed(0), ["audio,split,label"]
    for split, count in CLIPS_PER_SPLIT.items():
        for number in range(count):
            name, kind = f"{split}-{number}.wav", KINDS[number % len(KINDS)]
            soundfile.write(folder / name, generate_clip(kind, generator).numpy(), SAMPLING_RATE)
            lines.append(f"{name},{split},{kind}")
    (folder / "clips.csv").write_text("\n".join(lines), encoding="utf-8")
    (folder / "recipe.yaml").write_text(f"dataset_name: {folder.resolve() / 'clips.csv'}{RECIPE}", encoding="utf-8")
    return folder / "recipe.yaml"


def fresh(run: Path) -> Path:
    """A folder that is not there, nor its log."""
    shutil.rmtree(run, ignore_errors=True)
    run.with_name(run.name + ".log").unlink(missing_ok=True)
    return run


def start(recipe: Path, run: Path, log: Path) -> multiprocessing.Process:
    """The training script in a process of its own, forked from one that has imported what it needs."""
    process = forking().Process(target=_run_alone, args=([str(recipe), "--output_dir", str(run)], str(log)))
    process.start()
    return process


def warm_up() -> None:
    """Let the process that the runs are forked from import what they need."""
    process = forking().Process(target=int)
    process.start()
    process.join()


def forking() -> multiprocessing.context.BaseContext:
    """Makes processes that have imported what a run needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["modeling_ast.commands.train"])
    return context


def kill(process: multiprocessing.Process) -> None:
    """SIGKILL for the run and its workers, as where a machine goes down."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # so young that it leads no group yet
        process.kill()
    process.join()


def _run_alone(argv: list[str], log: str) -> None:
    os.setsid()
    run_script(argv, log)


def run_script(argv: list[str], log: str) -> None:
    """The training script as this process, which writes into a file what it prints."""
    import torch

    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    multiprocessing.set_start_method("fork", force=True)  # of its own processes, as where it was not forked itself
    torch.set_num_threads(1)  # of such small tensors several threads would make waiting
    sys.argv = [str(SCRIPT), *argv]
    runpy.run_path(str(SCRIPT), run_name="__main__")


def log_end(log: Path) -> str:
    return " ".join(log.read_text(errors="replace").split()[-30:]) if log.is_file() else "no log"


def say(words: str) -> None:
    """What is going on, beside the table."""
    print(words, file=sys.stderr, flush=True)


# Tests


def tests_row(fault: str, selection: list[str]) -> Row:
    """A row that counts the tests of a selection, as pytest is given it."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *selection]
        output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
        if not report.is_file():
            return Row(fault, tried=1, reasons=[f"pytest did not run: {output[-300:]}"])
        cases = xml.etree.ElementTree.parse(report).getroot().findall(".//testcase")
    row = Row(fault)
    for case in cases:
        name, children = case.get("name"), {child.tag: child.get("message", "") for child in case}
        if "skipped" in children:
            row.reasons.append(f"not tried: {name} ({children['skipped']})")
            continue
        row.tried += 1
        if children.keys() & {"failure", "error"}:
            row.reasons.append(f"{name} failed")
        else:
            row.survived += 1
    if not cases:
        row.tried, row.reasons = 1, [f"no such tests: {' '.join(selection)}"]
    say(f"{fault}: {row.survived} of {row.tried}.")
    return row


if __name__ == "__main__":
    sys.exit(main())
