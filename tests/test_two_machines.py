"""Two machines are one run, or end in one sentence, and a signal to either saves what both have done.

They are two network namespaces with a cable between them, host names and folders of their own, where namespaces may be
made (by root, with iproute2); elsewhere two processes in folders of their own.
"""

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fault_campaign as campaign
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

NAMES = ("node-a", "node-b")


@dataclass
class Machine:
    """Where a process runs."""

    rank: int
    address: str = "127.0.0.1"
    namespace: str | None = None
    folder: Path | None = None  # of the test
    hosts: str = ""  # what its names lead to

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def enter(self) -> None:
        """Make this process one of the machine."""
        if self.namespace is None:
            return
        libc = ctypes.CDLL(None, use_errno=True)  # Python has these from 3.12 on

        def check(result: int) -> None:
            if result:
                raise OSError(ctypes.get_errno(), f"{self.namespace} cannot be entered")

        new_network, new_names, new_mounts, private, bind = 0x40000000, 0x04000000, 0x00020000, 0x44000, 0x1000
        with open(f"/run/netns/{self.namespace}") as network:
            check(libc.setns(network.fileno(), new_network))
        check(libc.unshare(new_names | new_mounts))
        socket.sethostname(NAMES[self.rank])
        (self.folder / "hosts").write_text(self.hosts)
        check(libc.mount(None, b"/", None, private, None))
        check(libc.mount(os.fsencode(self.folder / "hosts"), b"/etc/hosts", None, bind, None))


def ip(*argv: str) -> bool:
    """Whether the command was there, and allowed."""
    return shutil.which("ip") is not None and subprocess.run(["ip", *argv], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def cabled() -> Iterator[list[Machine]]:
    namespaces = [f"{name}-{os.getpid()}" for name in NAMES]
    addresses = ["10.77.0.1", "10.77.0.2"]
    commands = [["netns", "add", namespace] for namespace in namespaces]
    commands.append([*"link add eth0 netns".split(), namespaces[0], *"type veth peer name eth0 netns".split()])
    commands[-1].append(namespaces[1])
    for namespace, address in zip(namespaces, addresses):
        commands += [["-n", namespace, *f"address add {address}/24 dev eth0".split()]]
        commands += [["-n", namespace, "link", "set", device, "up"] for device in ("lo", "eth0")]
    is_allowed = all(ip(*command) for command in commands)
    if is_allowed:
        yield [Machine(rank, addresses[rank], namespaces[rank]) for rank in (0, 1)]
    for namespace in namespaces:
        ip("netns", "delete", namespace)
    if not is_allowed:
        yield [Machine(0), Machine(1)]


@pytest.fixture
def machines(cabled, tmp_path) -> list[Machine]:
    """Each with an empty folder, and with names that lead to both."""
    for machine, name in zip(cabled, NAMES):
        machine.folder = tmp_path / name
        machine.folder.mkdir()
        machine.hosts = "127.0.0.1 localhost\n" + "".join(f"{cabled[i].address} {NAMES[i]}\n" for i in (0, 1))
    return cabled


@pytest.fixture
def need_cable(cabled):
    if cabled[0].namespace is None:
        pytest.skip("needs the right to make network namespaces")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, one_thread) -> Path:
    """Of 16 updates, four an epoch, with a checkpoint after every second one."""
    return campaign.write_recipe(tmp_path_factory.mktemp("data"))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _run(machine: Machine, environment: dict[str, str], argv: list[str], first: Callable[[], None]) -> None:
    os.setsid()
    machine.enter()
    os.chdir(machine.folder)
    os.environ.update(environment, RANK=str(machine.rank))
    first()
    campaign.run_script(argv, "log")


def run(machines: list[Machine], *argv, first: tuple[Callable[[], None], ...] = (int, int), seconds: int = 90) -> list:
    """Start a process on each machine, in its folder.

    Args:
        machines: On which.
        argv: Of the command.
        first: What each of them does before.
        seconds: By when they have to have ended.

    Returns:
        Their exit statuses.
    """
    environment = {"WORLD_SIZE": str(len(machines)), "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    environment |= {"MASTER_ADDR": machines[0].address, "MASTER_PORT": str(_free_port())}
    argv = list(map(str, argv))
    context = campaign.forking()
    processes = [
        context.Process(target=_run, args=(machine, environment, argv, do)) for machine, do in zip(machines, first)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0, end - time.monotonic()))
    statuses = [process.exitcode for process in processes]
    for process in processes:
        campaign.kill(process)
    return statuses


def told(machine: Machine) -> list[str]:
    """The sentences that a process ended with, without what Python did."""
    assert "Traceback" not in machine.log
    return re.findall(r"^error: (.*)", machine.log, re.MULTILINE)


def at_update(number: int, do: Callable[[], None]) -> None:
    """Do something once, within an update."""
    from modeling_ast.training.trainer import ASTTrainer

    step, is_done = ASTTrainer.training_step, []

    def training_step(self, *args, **kwargs):
        if self.state.global_step == number - 1 and not is_done:
            is_done.append(True)
            do()
        return step(self, *args, **kwargs)

    ASTTrainer.training_step = training_step


# Signals, to the process and its workers of data


def terminated() -> None:
    at_update(7, lambda: os.killpg(0, signal.SIGTERM))


def interrupted() -> None:
    at_update(8, lambda: os.killpg(0, signal.SIGINT))


TWO_STEPS = ["--gradient_accumulation_steps=2", "--dataloader_num_workers=1"]


@pytest.fixture(scope="module")
def undisturbed(cabled, recipe, tmp_path_factory) -> Path:
    """A run of two processes, two accumulation steps an update."""
    folder = tmp_path_factory.mktemp("undisturbed")
    machines = [Machine(rank, folder=folder / NAMES[rank]) for rank in (0, 1)]
    for machine in machines:
        machine.folder.mkdir()
    assert run(machines, recipe, f"--output_dir={folder / 'run'}", *TWO_STEPS) == [0, 0], machines[0].log[-3000:]
    return folder / "run"


@pytest.mark.parametrize(
    ("first", "name", "update"),
    [
        ((terminated, int), "SIGTERM", 7),
        ((int, interrupted), "Ctrl-C", 8),  # the last one of an epoch
        ((terminated, terminated), "SIGTERM", 7),
    ],
    ids=["main", "other", "both"],
)
def test_a_signal_to_any_process_ends_all_with_a_checkpoint_from_which_they_go_on(
    machines, recipe, undisturbed, tmp_path, first, name, update
):
    argv = [recipe, f"--output_dir={tmp_path / 'run'}", *TWO_STEPS]
    status = {"SIGTERM": 143, "Ctrl-C": 130}[name]
    assert run(machines, *argv, first=first) == [status, status], machines[0].log[-3000:]
    checkpoint = tmp_path / "run" / f"checkpoint-{update}"
    assert checkpoint.is_dir() and not (tmp_path / "run" / f"checkpoint-{update + 1}").exists()
    for machine in machines:
        assert machine.log.splitlines()[-1].startswith(f"Stopped by {name} after update {update}: {checkpoint} is")
    assert run(machines, *argv) == [0, 0], machines[0].log[-3000:]
    assert campaign.run_difference(0, tmp_path / "run", undisturbed) is None
