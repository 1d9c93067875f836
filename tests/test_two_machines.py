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
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fault_campaign as campaign
import pytest
from helpers import contents
from safetensors.torch import load_file, save_file

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


TWO_STEPS = ["--gradient_accumulation_steps=2", "--dataloader_num_workers=1"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, one_thread) -> Path:
    """Of 16 updates, four an epoch, with a checkpoint after every second one."""
    return campaign.write_recipe(tmp_path_factory.mktemp("data"))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _run(machine: Machine, environment: dict[str, str], argv: list[str], first: Callable[[], None]) -> None:
    from modeling_ast.training import same_run

    same_run.PATIENCE_SECONDS = 1.0
    os.setsid()
    machine.enter()
    os.chdir(machine.folder)
    os.environ.update(environment, RANK=str(machine.rank))
    first()
    campaign.run_script(argv, "log")


def run(
    machines: list[Machine], *argv, first: tuple[Callable[[], None] | None, ...] = (int, int), seconds: int = 240
) -> list[int | None]:
    """Start a process on each machine, in its folder.

    Args:
        machines: On which.
        argv: Of the command.
        first: What each of them does before; `None` of one that is not started.
        seconds: By when they have to have ended.

    Returns:
        Their exit statuses.
    """
    environment = {"WORLD_SIZE": str(len(machines)), "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    environment |= {"MASTER_ADDR": machines[0].address, "MASTER_PORT": str(_free_port())}
    argv = list(map(str, argv))
    context = campaign.forking()
    processes = [
        context.Process(target=_run, args=(machine, environment, argv, do))
        for machine, do in zip(machines, first)
        if do is not None
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


def of_one_machine() -> None:
    os.environ |= {"LOCAL_RANK": os.environ["RANK"], "LOCAL_WORLD_SIZE": os.environ["WORLD_SIZE"]}


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


@pytest.fixture(scope="module")
def undisturbed(cabled, recipe, tmp_path_factory) -> Path:
    """A run of two processes, two accumulation steps an update."""
    folder = tmp_path_factory.mktemp("undisturbed")
    machines = [Machine(rank, folder=folder / NAMES[rank]) for rank in (0, 1)]
    for machine in machines:
        machine.folder.mkdir()
    assert run(machines, recipe, f"--output_dir={folder / 'run'}", *TWO_STEPS) == [0, 0], machines[0].log[-3000:]
    return folder / "run"


# What is not one run


def with_another_recipe() -> None:
    from modeling_ast.commands import train

    main = train.main
    train.main = lambda: main([*sys.argv[1:], "--learning_rate=0.002"])


def with_another_version() -> None:
    import modeling_ast

    modeling_ast.__version__ = "0"


def lose_a_clip(folder: Path) -> None:
    head, _, *lines = (folder / "data" / "clips.csv").read_text().splitlines()
    (folder / "data" / "clips.csv").write_text("\n".join([head, *lines]))


def lose_all_clips(folder: Path) -> None:
    shutil.rmtree(folder / "data")


def go_further(folder: Path) -> None:
    (folder / "old" / "checkpoint-2" / "trainer_state.json").write_text('{"global_step": 2}')


UNSHARED = (
    r"output_dir .* process 1 \(.*\) does not find in .*/node-b/run what process 0 \(.*\) wrote into .*/node-a/run\."
)
# By what differs: what the second machine does first, what happens to its folder, keys, and what is told.
DIFFERENCES = {
    "folder": (int, None, ["--output_dir=run"], UNSHARED),
    "folder, resumed": (int, None, ["--output_dir=resumed"], UNSHARED.replace("/run", "/resumed")),
    "recipe": (
        with_another_recipe,
        None,
        [],
        r"learning_rate is 0.001 for process 0 \(.*\) and 0.002 for process 1 \(.*\)\.",
    ),
    "version": (
        with_another_version,
        None,
        [],
        r"the version of modeling_ast is .* for process 0 \(.*\) and 0 for process 1 \(.*\)\.",
    ),
    "clips": (
        int,
        lose_a_clip,
        [],
        r"the train split is 16 clips \(\w+\) for process 0 \(.*\) and 15 clips \(\w+\) for process 1 \(.*\)\.",
    ),
    "no clips": (int, lose_all_clips, [], r"^(process 1 \(.*\): )?data/clips.csv: no such file or folder\.$"),
    "checkpoint": (
        int,
        go_further,
        ["--resume_from_checkpoint=old/checkpoint-2"],
        r"the checkpoint to go on from is checkpoint-2 \(\w+\) for process 0 \(.*\) and checkpoint-2 \(\w+\) for ",
    ),
}


@pytest.mark.parametrize("what", DIFFERENCES)
def test_machines_that_are_not_one_run_end_in_one_sentence_before_anything_is_written(
    machines, recipe, tmp_path, what
):
    first, lose, argv, words = DIFFERENCES[what]
    for machine in machines:
        shutil.copytree(recipe.parent, machine.folder / "data")
        (machine.folder / "old" / "checkpoint-2").mkdir(parents=True)
        (machine.folder / "old" / "checkpoint-2" / "trainer_state.json").write_text("{}")
    shutil.copytree(machines[0].folder / "old", machines[0].folder / "resumed")
    if lose is not None:
        lose(machines[1].folder)
    before = contents(tmp_path)
    argv = [recipe, f"--output_dir={tmp_path / 'shared'}", "--dataset_name=data/clips.csv", *argv]
    assert run(machines, *argv, first=(int, first)) == [2, 2]
    for machine in machines:
        (sentence,) = told(machine)
        assert re.search(words, sentence)
    after = {name: content for name, content in contents(tmp_path).items() if not name.endswith(("/log", "/hosts"))}
    assert after == before and not (tmp_path / "shared").exists()


def test_models_that_differ_are_not_evaluated(machines, recipe, undisturbed):
    for machine in machines:
        shutil.copytree(undisturbed, machine.folder / "model")
    weights = load_file(undisturbed / "model.safetensors")
    weights["classifier.dense.bias"] += 0.1
    save_file(weights, machines[1].folder / "model" / "model.safetensors", {"format": "pt"})
    argv = [f"--dataset_name={recipe.parent / 'clips.csv'}", "--split_column_name=split", "--do_train=false"]
    argv += ["--model_name_or_path=model", "--output_dir=metrics", "--use_cpu=true", "--report_to=none"]
    assert run(machines, *argv) == [2, 2]
    for machine in machines:
        (sentence,) = told(machine)
        assert re.search(r"the model is \w{12} for process 0 \(.*\) and \w{12} for process 1", sentence)
        assert not (machine.folder / "metrics").exists()
    shutil.copy(undisturbed / "model.safetensors", machines[1].folder / "model")
    assert run(machines, *argv) == [0, 0], machines[0].log[-3000:]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--learn_rate=3"], "Unknown: --learn_rate=3"),
        (["--dataset_name=none/clips.csv"], "none/clips.csv: no such file or folder"),
        (["--model_name_or_path=none"], "none cannot be used"),
    ],
    ids=["key", "clips", "model"],
)
def test_an_error_of_all_processes_of_a_machine_is_told_once(machines, recipe, tmp_path, argv, words):
    argv = [recipe, f"--output_dir={tmp_path / 'run'}", *argv]
    assert run(machines, *argv, first=(of_one_machine, of_one_machine)) == [2, 2]
    (sentence,) = told(machines[0])
    assert sentence.startswith(words) and told(machines[1]) == []


# What ends, or hangs, or is not there


def silent() -> None:
    at_update(7, lambda: (time.sleep(35), os._exit(7)))


def without_cable() -> None:
    at_update(7, lambda: subprocess.run("ip link set eth0 down".split(), check=True))


LOST = "Another process of this run has ended or hangs, and none goes on without it. The same command "


def test_a_process_that_hangs_ends_the_other_one(machines, recipe, tmp_path):
    argv = [recipe, f"--output_dir={tmp_path / 'run'}", "--ddp_timeout=20"]
    assert run(machines, *argv, first=(int, silent)) == [2, 7]
    (sentence,) = told(machines[0])
    assert sentence.startswith(LOST) and (tmp_path / "run" / "checkpoint-6").is_dir()


def test_a_cable_that_is_pulled_ends_both(machines, need_cable, recipe, tmp_path):
    argv = [recipe, f"--output_dir={tmp_path / 'run'}", "--ddp_timeout=20"]
    try:
        assert run(machines, *argv, first=(int, without_cable)) == [2, 2]
    finally:
        ip("-n", machines[1].namespace, *"link set eth0 up".split())
    for machine in machines:
        (sentence,) = told(machine)
        assert sentence.startswith(LOST)


@pytest.mark.parametrize("is_there", [0, 1])
def test_a_process_that_does_not_come_ends_the_other_one(machines, recipe, tmp_path, is_there):
    first = [None, None]
    first[is_there] = int
    assert run(machines, recipe, f"--output_dir={tmp_path / 'run'}", "--ddp_timeout=3", first=tuple(first)) == [2]
    (sentence,) = told(machines[is_there])
    assert sentence.startswith("This process does not find the others of the run: they have not begun, have ended, ")
    assert not (tmp_path / "run").exists()


def test_host_names_that_no_other_machine_finds_are_one_sentence(machines, need_cable, recipe, tmp_path):
    """As Debian has them."""
    for machine, name in zip(machines, NAMES):
        machine.hosts = f"127.0.0.1 localhost\n127.0.1.1 {name}\n"
    assert run(machines, recipe, f"--output_dir={tmp_path / 'run'}") == [2, 2]
    for machine, name in zip(machines, NAMES):
        (sentence,) = told(machine)
        assert re.match(rf"The name of this machine, {name}, leads to 127.0.1.1, .* GLOO_SOCKET_IFNAME", sentence)


def dies() -> None:
    at_update(7, lambda: os._exit(7))


def blind() -> None:
    """See no checkpoint and no average, as on a disk that tells of them late."""
    from modeling_ast.training import checkpoints, stages

    checkpoints.last_whole_checkpoint = stages.last_whole_checkpoint = lambda folder: None
    is_dir = Path.is_dir
    Path.is_dir = lambda path: is_dir(path) and not path.name.startswith(("checkpoint-", "weight_average"))
    checkpoints.check_optimizer = lambda checkpoint: None  # which looks into one


def test_the_main_process_decides_what_is_resumed_and_what_is_best(machines, recipe, undisturbed, tmp_path):
    argv = [recipe, f"--output_dir={tmp_path / 'run'}", "--gradient_accumulation_steps=2"]
    assert run(machines, *argv, first=(dies, dies)) == [7, 7]
    assert (tmp_path / "run" / "checkpoint-6").is_dir()
    for _ in "12":  # goes on; finds the end and evaluates
        assert run(machines, *argv, first=(int, blind)) == [0, 0], machines[0].log[-3000:]
        assert campaign.run_difference(0, tmp_path / "run", undisturbed) is None


# Signals, to the process and its workers of data


def terminated() -> None:
    at_update(7, lambda: os.killpg(0, signal.SIGTERM))


def interrupted() -> None:
    at_update(8, lambda: os.killpg(0, signal.SIGINT))


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
