"""What reading a list of clips takes in each of several processes of a machine: seconds, and memory of their own.

    python tests/campaigns/manifests.py [--rows 1000 10000 ...] [--processes 2]

Lists of so many rows over 1,000 files, with one to four of AudioSet's 527 labels a clip, are made and read as a run
with class-balanced sampling reads them, up to the first clip of its first epoch. A table of Markdown comes out.
"""

import argparse
import ctypes
import gc
import os
import random
import resource
import socket
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import torch

from modeling_ast.data.labels import read_label_table


def write_list(folder: Path, num_rows: int) -> Path:
    """A list of clips of which no sound is ever read."""
    (folder / "audio").mkdir(exist_ok=True)
    for number in range(1000):
        (folder / "audio" / f"clip{number:03d}.wav").touch()
    mids, draws, path = read_label_table("audioset").mids, random.Random(0), folder / f"{num_rows}.csv"
    with open(path, "w", encoding="utf-8") as file:
        file.write("audio,label\n")
        for number in range(num_rows):
            file.write(f'audio/clip{number % 1000:03d}.wav,"{",".join(draws.sample(mids, 1 + number % 4))}"\n')
    return path


def private_mebibytes() -> float:
    """What this process alone holds, and no file: what it has mapped of one goes when others need the memory.

    Allocators first give back what is free, as they do in time.
    """
    gc.collect()
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
    fields = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return int(fields["Private_Dirty"].split()[0]) / 1024


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def read(rank: int, num_processes: int, port: int, path: Path, folder: Path) -> None:
    """Read a list as a run does, in one of the processes, and write down what that took."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes}
    places |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()})
    torch.set_num_threads(1)
    from modeling_ast.training.sampling import TrainingSampler, class_balanced_weights
    from modeling_ast.training.stages import read_arguments, read_data

    options = {
        "output_dir": folder / "out",
        "do_train": True,
        "use_cpu": True,
        "problem_type": "multi_label_classification",
    }
    options |= {"class_balanced_sampling": True, "validation_fraction": 0.01, "label_file": "audioset"}
    given = [f"--{key}={value}" for key, value in options.items()]
    read_data(read_arguments([*given, f"--dataset_name={folder / '100.csv'}"]))  # imports, and the first gathering
    private, peak, seconds, start = private_mebibytes(), peak_mebibytes(), time.process_time(), time.perf_counter()
    splits = read_data(read_arguments([*given, f"--dataset_name={path}"]))
    weights = class_balanced_weights(splits.train, 527)
    next(iter(TrainingSampler(len(weights), 8, seed=0, weights=weights)))
    times = time.process_time() - seconds, time.perf_counter() - start  # what memory is measured by takes some too
    found = (private_mebibytes() - private, peak_mebibytes() - peak, *times)
    (folder / f"{rank}.txt").write_text(" ".join(f"{each:.2f}" for each in found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000, 2_000_000])
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    print("| rows | process | CPU | wall | memory of its own | peak |\n|---|---|---|---|---|---|")
    for num_rows in args.rows:
        with tempfile.TemporaryDirectory() as name, socket.socket() as free:
            folder = Path(name)
            os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
            write_list(folder, 100)
            path = write_list(folder, num_rows)
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            torch.multiprocessing.spawn(read, (args.processes, port, path, folder), args.processes)
            for rank in range(args.processes):
                private, peak, seconds, wall = map(float, (folder / f"{rank}.txt").read_text().split())
                memory = f"{private:+.0f} MiB | {peak:+.0f} MiB"
                print(f"| {num_rows:,} | {rank} | {seconds:.1f} s | {wall:.1f} s | {memory} |")


if __name__ == "__main__":
    main()
