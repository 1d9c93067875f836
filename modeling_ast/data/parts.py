"""Work divided over processes, machines and jobs: which files a part takes depends on their paths alone."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from modeling_ast.data.labels import DataError
from modeling_ast.data.locks import RUNNING, claimed

_NAME = re.compile(r"-(\d+)-of-(\d+)$")


class Part(NamedTuple):
    """One of some parts of a run, which is the run itself where there is one."""

    number: int = 1  # from 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def name(self, stem: str) -> str:
        """What a file of this part is called that is `stem` in an undivided run."""
        return stem if self.count == 1 else f"{stem}-{self.number}-of-{self.count}"

    def includes(self, path: str) -> bool:
        """Whether a file belongs to this part: by its path, on every machine and whichever other files there are."""
        return part_of(path, self.count) == self.number


def part_of(path: str, count: int) -> int:
    """The number, from 1, of the part that a file belongs to."""
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
    return int.from_bytes(digest, "big") % count + 1


def part_named(stem: str) -> Part:
    """The part whose file has a name, without its suffix."""
    match = _NAME.search(stem)
    return Part(*map(int, match.groups())) if match else Part()


def find_part(given: str | None, environment: Mapping[str, str]) -> Part:
    """The part of this process.

    Args:
        given: As K/N, from 1/N to N/N; `None` is what an array of SLURM jobs says, or all.
        environment: Of the process. Where a launcher (accelerate, torchrun) has started several, each takes its share
            of what is given.

    Raises:
        ValueError: It is no part.
    """
    text = given
    if text is None and environment.keys() >= {"SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"}:
        number, count = (int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "COUNT"))
        first, step = (int(environment.get(f"SLURM_ARRAY_TASK_{name}", 1)) for name in ("MIN", "STEP"))
        place, rest = divmod(number - first, step)
        if rest or not 0 <= place < count:
            raise ValueError(
                f"Expected --part K/N, since the tasks of this job array do not follow one another: got {number}, "
                f"one of {count} from {first} on."
            )
        text = f"{place + 1}/{count}"
    match = re.fullmatch(r"(\d+)/(\d+)", text or "1/1")
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"Expected a part from 1/N to N/N, got {text}.")
    number, count = map(int, match.groups())
    rank, num_processes = (int(environment.get(name, least)) for name, least in (("RANK", 0), ("WORLD_SIZE", 1)))
    return Part((number - 1) * num_processes + rank + 1, count * num_processes)


def own_device(environment: Mapping[str, str]) -> str | None:
    """The GPU of this process among those of its machine; `None` where no launcher started it, or there are none."""
    if "LOCAL_RANK" not in environment or not torch.cuda.is_available():
        return None
    return f"cuda:{int(environment['LOCAL_RANK']) % torch.cuda.device_count()}"


@contextmanager
def claimed_part(folder: Path, part: Part, refusal: DataError) -> Iterator[None]:
    """While it is entered, no other process can enter it for the same part, nor for one of another division.

    Args:
        folder: Of the results.
        part: Of the run that writes there.
        refusal: What is raised where another process is inside.

    Raises:
        DataError: The folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"Expected a folder for the results, got the file {folder}.")
    with claimed(folder, refusal, part.name(RUNNING)):
        if running_parts(folder, part, of_other_divisions=True):
            raise refusal
        yield


def running_parts(folder: Path, but: Part, of_other_divisions: bool = False) -> list[Part]:
    """The parts, this one apart, that processes are at work on; all, or those of other divisions.

    To ask about a part keeps it from starting for a moment: not to be done while others of one division start.
    """
    running = []
    for path in folder.glob(f"{RUNNING}*"):
        part = part_named(path.name)
        is_asked = part.count != but.count if of_other_divisions else part != but
        if is_asked and path.name == part.name(RUNNING):
            try:
                with claimed(folder, DataError(str(part)), path.name):
                    pass
            except DataError:
                running.append(part)
    return running
