"""Tag and embed many short files: what it costs, and whether each is done once, however the work is divided.

    python tests/campaigns/bulk_campaign.py growth [--files 1000 10000 100000]
    python tests/campaigns/bulk_campaign.py division [--files 5000]

Files of noise of 0.3 s and a small network with 527 labels, of which a few are present in a file; one thread. `growth`
runs both commands over more and more files, and once more when all is done: processor time and memory. `division` runs
them in 1, 2 and 4 processes of torchrun, kills 4 of them in the middle and goes on with 2, and does the same with a
job array of 4 tasks and then of 3: how many files each process did, in what processor time behind its imports, and
whether the table has every path once, with what one process gives. Exit status 1 where it has not.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import soundfile
import torch

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

NUM_LABELS, BATCH_SIZE = 527, 32
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
COLUMNS = {"tag": "scores", "embed": "embedding"}
# A command, and the processor time of its work behind the imports.
WORK = """
import importlib, sys, time
_, name, *argv = sys.argv
command = importlib.import_module(f"modeling_ast.commands.{name}")
began = time.process_time()
status = command.main(argv)
print(f"{time.process_time() - began:.1f} s of work", flush=True)
sys.exit(status)
"""


def save_model(folder: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    names = {index: f"label {index}" for index in range(NUM_LABELS)}
    config = ASTConfig(
        **sizes, max_length=64, num_mel_bins=32, id2label=names, problem_type="multi_label_classification"
    )
    model = ASTForAudioClassification(config)
    model.classifier.dense.bias.data = 2 * torch.randn(NUM_LABELS) - 6
    model.save_pretrained(folder)
    ASTFeatureExtractor(max_length=64, num_mel_bins=32, mean=-7.0, std=4.0).save_pretrained(folder)


def write_sounds(folder: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    noise = generator.integers(-8000, 8000, 16000 * 60).astype(np.int16)
    for number in range(count):
        place = folder / f"{number // 1000:03}"
        place.mkdir(parents=True, exist_ok=True)
        start = int(generator.integers(0, len(noise) - 4800))
        soundfile.write(place / f"{number:06}.wav", noise[start : start + 4800], 16000)


def table_of(name: str, out: Path) -> Path:
    return out / "tags.parquet" if name == "tag" else out.with_suffix(".parquet")


def command(name: str, sounds: Path, out: Path) -> list[str]:
    own = ["--output_dir", out, "--formats", "jsonl", "parquet"]
    if name == "embed":
        own = ["--output", table_of(name, out)]
    return [str(word) for word in ("work.py", name, sounds, "--model", "model", "--batch_size", BATCH_SIZE, *own)]


def start(words: list[str], log: Path, **more: str) -> subprocess.Popen:
    environment = {**ENVIRONMENT, **more}
    with open(log, "w") as file:
        return subprocess.Popen([sys.executable, *words], env=environment, stdout=file, stderr=subprocess.STDOUT)


def launch(name: str, sounds: Path, out: Path, count: int, log: Path) -> list[subprocess.Popen]:
    run = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    return [start([*run, *command(name, sounds, out)], log)]


def start_array(name: str, sounds: Path, out: Path, count: int, log: Path) -> list[subprocess.Popen]:
    return [
        start(
            command(name, sounds, out),
            log.with_name(f"{log.name}.{number}"),
            SLURM_ARRAY_TASK_ID=str(number),
            SLURM_ARRAY_TASK_COUNT=str(count),
            SLURM_ARRAY_TASK_MIN="1",
        )
        for number in range(1, count + 1)
    ]


def kill_in_the_middle(processes: list[subprocess.Popen], journal: Path, count: int) -> int:
    """Kill all when so many lines are written; how many there are then."""
    while count_lines(journal) < count:
        assert any(process.poll() is None for process in processes), "it ended before it could be killed"
        time.sleep(0.05)
    for process in processes:
        for each in (*psutil.Process(process.pid).children(recursive=True), process):
            each.kill()
        process.wait()
    return count_lines(journal)


def count_lines(journal: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in journal.glob("results*.jsonl"))


def read_log(log: Path) -> dict[str, list]:
    """How many files each process did, and in what processor time."""
    text = "".join(path.read_text() for path in sorted(log.parent.glob(f"{log.name}*")))
    done, seconds = re.findall(r"\(s\), (\d+) of them now", text), re.findall(r"(\S+) s of work", text)
    return {"files": list(map(int, done)), "cpu_seconds": list(map(float, seconds))}


def is_right(name: str, out: Path, count: int, expected: Path) -> bool:
    """Whether each path is there once, with the numbers of one process."""
    found, reference = (pq.read_table(table_of(name, each)).sort_by("path") for each in (out, expected))
    has_each_once = len(set(found["path"].to_pylist())) == len(found) == count
    return has_each_once and found[COLUMNS[name]].equals(reference[COLUMNS[name]])


def divide(count: int) -> bool:
    sounds, all_right = Path("sounds"), True
    write_sounds(sounds, count)
    for name in COLUMNS:
        one = Path(f"{name}-1")

        def tell(what: str, out: Path, processes: list, log: Path, name=name, one=one, **more: int) -> None:
            nonlocal all_right
            for process in processes:
                process.wait()
            right = is_right(name, out, count, one)
            all_right &= right
            print(json.dumps({"what": f"{name}, {what}", **more, **read_log(log), "each_once": right}), flush=True)

        for number in (1, 2, 4):
            out, log = Path(f"{name}-{number}"), Path(f"{name}-{number}.log")
            tell(f"{number} process(es)", out, launch(name, sounds, out, number, log), log)
        for what, begin, then in (("torchrun", launch, 2), ("job array", start_array, 3)):
            out = Path(f"{name}-{what.replace(' ', '-')}")
            journal = out if name == "tag" else out.with_suffix(".journal")
            begun = begin(name, sounds, out, 4, Path(f"{out}-killed.log"))
            done = kill_in_the_middle(begun, journal, count // 3)
            log = Path(f"{out}-then.log")
            tell(f"{what}: 4 killed, then {then}", out, begin(name, sounds, out, then, log), log, done=done)
    return all_right


def grow(counts: list[int]) -> bool:
    all_right = True
    for count in counts:
        sounds = Path(f"sounds-{count}")
        write_sounds(sounds, count)
        for name in COLUMNS:
            out = Path(f"{name}-{count}")
            for turn in ("first", "again"):
                process = start(command(name, sounds, out), Path("log"))
                _, status, usage = os.wait4(process.pid, 0)
                seconds, megabytes = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
                right = status == 0 and is_right(name, out, count, out)
                all_right &= right
                print(json.dumps({"what": name, "files": count, "turn": turn, "cpu_seconds": round(seconds, 1),
                                  "peak_mb": round(megabytes), "each_once": right}), flush=True)  # fmt: skip
    return all_right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("growth", "division"))
    parser.add_argument("--files", type=int, nargs="+")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        save_model(Path("model"))
        Path("work.py").write_text(WORK)
        if args.what == "growth":
            return int(not grow(args.files or [1000, 10_000, 100_000]))
        return int(not divide((args.files or [5000])[0]))


if __name__ == "__main__":
    sys.exit(main())
