"""Several processes are one run: what they have alike is compared before it, and the main one decides for all."""

import os
import re
import signal
import socket
import subprocess
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import fault_campaign as campaign
import pytest
import torch
from datasets import Audio, Dataset
from helpers import ROOT, end_of, restored_signals

from modeling_ast import ASTFeatureExtractor
from modeling_ast.commands import command_signals
from modeling_ast.commands import train as script
from modeling_ast.data.clip_tables import AudioSplits
from modeling_ast.data.fingerprint import fingerprint_model
from modeling_ast.data.processes import decided_by_main, raise_in_all, together
from modeling_ast.data.recipes import RecipeError
from modeling_ast.training import process_group, same_run
from modeling_ast.training.arguments import parse_arguments
from modeling_ast.training.faults import Stopped, StopRequest
from modeling_ast.training.process_group import join_on_cpus, refuse_lone_processes
from modeling_ast.training.same_run import compare_clips, compare_models, compare_processes, find_difference

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures_in_module")

NAMES = ("process 0 (a)", "process 1 (b)", "process 2 (b)")


def test_the_same_facts_are_no_difference():
    assert find_difference(NAMES, [{"seed": "1", "torch": "2"}] * 3) is None
    assert find_difference(NAMES[:1], [{"seed": "1"}]) is None


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ([{"seed": "1"}, {"seed": "2"}, {"seed": "3"}], "seed is 1 for process 0 (a) and 2 for process 1 (b)."),
        ([{"seed": "1"}, {"seed": "1"}, {"seed": "3"}], "seed is 1 for process 0 (a) and 3 for process 2 (b)."),
        ([{}, {}, {"test": "5 clips"}], "test is nothing for process 0 (a) and 5 clips for process 2 (b)."),
        ([{"test": "5 clips"}, {}, {}], "test is 5 clips for process 0 (a) and nothing for process 1 (b)."),
    ],
)
def test_a_difference_names_the_process_the_key_and_both_values(facts, words):
    assert find_difference(NAMES, facts) == f"Expected all processes to begin the same run, but {words}"


# One process, that believes itself the second of two


class Main:
    """What a main process has: this process's own, as long as that is not compared."""

    def __init__(self, monkeypatch):
        self.facts, self.monkeypatch = None, monkeypatch

    def is_like(self, compare, *args) -> None:
        taken = []
        with self.monkeypatch.context() as patch:
            patch.setattr(same_run, "is_one_of_several", lambda: True)
            patch.setattr(same_run, "gather_values", lambda value: taken.append(value[1]) or [value])
            compare(*args)
        self.facts = taken

    def against(self, compare, *args) -> None:
        facts = iter(self.facts)
        with self.monkeypatch.context() as patch:
            patch.setattr(same_run, "is_one_of_several", lambda: True)
            patch.setattr(same_run, "gather_values", lambda value: [("process 0 (a)", next(facts)), value])
            compare(*args)


@pytest.fixture
def main(monkeypatch) -> Main:
    return Main(monkeypatch)


def make_splits(folder: str, names: str, labels: list, label_names: str = "xyz") -> AudioSplits:
    paths = [{"path": f"{folder}/clips/{name}.wav", "bytes": None} for name in names]
    rows = Dataset.from_dict({"audio": paths, "labels": labels}).cast_column("audio", Audio(decode=False))
    return AudioSplits(rows, rows.select(range(1)), None, list(label_names))


@pytest.mark.parametrize("labels", [[0, 1, 2, 0], [[0], [1, 2], [], [0]]], ids=["one", "several"])
def test_clips_are_compared_by_names_and_labels_and_not_by_where_they_lie(main, labels):
    main.is_like(compare_clips, make_splits("/disk/of/main", "abcd", labels))
    main.against(compare_clips, make_splits("/scratch", "abcd", labels))
    fewer, reverse = make_splits("/scratch", "abc", labels[:3]), make_splits("/scratch", "dcba", labels)
    for splits in (fewer, reverse, make_splits("/scratch", "abcd", labels[::-1])):
        words = rf"the train split is 4 clips \(\w+\) for .* and {len(splits.train)} clips \(\w+\) for process 0"
        with pytest.raises(RecipeError, match=words):
            main.against(compare_clips, splits)
    with pytest.raises(RecipeError, match="the table of labels is 3 labels .* and 2 labels"):
        main.against(compare_clips, make_splits("/scratch", "abcd", labels, "xy"))
    with pytest.raises(RecipeError, match=r"the test split is nothing for .* and 4 clips"):
        splits = make_splits("/scratch", "abcd", labels)
        splits.test = splits.train
        main.against(compare_clips, splits)


def test_clips_are_compared_without_reading_their_sounds(main):
    splits = make_splits("", "ab", [0, 1])
    splits.train = Dataset.from_dict({"audio": [{"path": None, "bytes": b"1"}, None], "labels": [0, 1]})
    splits.train = splits.train.cast_column("audio", Audio(decode=False))
    main.is_like(compare_clips, splits)
    splits.train = splits.train.select([0, 1])
    main.against(compare_clips, splits)
    splits.train = splits.train.to_iterable_dataset(num_shards=2)
    with pytest.raises(RecipeError, match=r"2 clips .* and a stream of 2 shard\(s\)"):
        main.against(compare_clips, splits)


def read(tmp_path: Path, *argv) -> tuple:
    common = ["--dataset_name=synthetic", "--use_cpu=true", "--report_to=none", f"--output_dir={tmp_path}"]
    return parse_arguments([*common, *argv])


def test_recipes_are_compared_but_for_what_each_process_may_have_its_own(main, tmp_path):
    main.is_like(compare_processes, read(tmp_path))
    own = ["--dataloader_num_workers=3", "--disable_tqdm=true", "--output_dir=there"]
    main.against(compare_processes, read(tmp_path, *own))
    for key, before, value in (
        ("learning_rate", "5e-05", "0.1"),
        ("freq_mask_bins", "0", "7"),
        ("save_steps", "500", "3"),
        ("label_column_name", "label", "kind"),
        ("weight_average_start", "nothing", "2"),
        ("eval_strategy", "no", "epoch"),
        ("accelerator_config", r"\{.*\}", '{"dispatch_batches": false}'),
    ):
        arguments = read(tmp_path, f"--{key}={value}")
        with pytest.raises(RecipeError, match=f"{key} is {before} for process 0 .a. and .* for process 0"):
            main.against(compare_processes, arguments)


def test_of_a_stream_the_numbers_of_data_workers_are_compared_which_share_it_out(main, tmp_path):
    stream = ["--streaming=true", "--max_steps=1"]
    main.is_like(compare_processes, read(tmp_path, *stream))
    with pytest.raises(RecipeError, match="dataloader_num_workers is 0 for process 0 .a. and 3 for process 0"):
        main.against(compare_processes, read(tmp_path, *stream, "--dataloader_num_workers=3"))


def test_what_the_launcher_says_of_the_model_is_compared(main, tmp_path, monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    main.is_like(compare_processes, read(tmp_path))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    main.against(compare_processes, read(tmp_path))
    for name, value in (("ACCELERATE_MIXED_PRECISION", "bf16"), ("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(RecipeError, match=f"{name} of the launcher is .* and {value} for process 0"):
                main.against(compare_processes, read(tmp_path))


def test_versions_are_compared(main, tmp_path, monkeypatch):
    main.is_like(compare_processes, read(tmp_path))
    monkeypatch.setattr(torch, "__version__", "1.0")
    with pytest.raises(RecipeError, match="the version of torch is .* for process 0 .a. and 1.0 for process 0"):
        main.against(compare_processes, read(tmp_path))


def test_models_are_compared_by_weights_and_settings_or_by_these_alone(main, tiny_model):
    def compare(extractor: ASTFeatureExtractor, **options) -> None:
        compare_models(lambda: fingerprint_model(tiny_model, extractor, **options))

    main.is_like(compare, ASTFeatureExtractor())
    main.against(compare, ASTFeatureExtractor())
    with pytest.raises(RecipeError, match=r"the model is \w{12} for process 0 \(a\) and \w{12} for process 0"):
        main.against(compare, ASTFeatureExtractor(mean=-4.0))
    other = main.facts
    tiny_model.classifier.dense.bias.data += 1
    with pytest.raises(RecipeError, match="the model is"):
        main.against(compare, ASTFeatureExtractor())
    main.is_like(partial(compare, with_weights=False), ASTFeatureExtractor())
    assert main.facts != other
    tiny_model.classifier.dense.bias.data += 1
    main.against(partial(compare, with_weights=False), ASTFeatureExtractor())


# The group of processes


@pytest.fixture
def joined(monkeypatch) -> list[dict]:
    """With what groups would be made, two processes each on two machines."""
    made = []
    monkeypatch.setattr(process_group, "PartialState", lambda **options: made.append(options))
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node-a"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.7")
    return made


ON_CPUS = SimpleNamespace(use_cpu=True, ddp_backend=None, ddp_timeout=7)


def test_the_timeout_holds_on_cpus_too(joined, monkeypatch):
    join_on_cpus(ON_CPUS)
    assert joined == [{"cpu": True, "backend": None, "timeout": timedelta(seconds=7)}]
    join_on_cpus(SimpleNamespace(use_cpu=False, ddp_backend="nccl", ddp_timeout=7))
    assert len(joined) == 1  # Transformers hands it on
    monkeypatch.setenv("WORLD_SIZE", "1")
    join_on_cpus(ON_CPUS)
    assert len(joined) == 1


def test_a_host_name_that_no_other_machine_finds_is_one_sentence(joined, monkeypatch):
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    with pytest.raises(ValueError, match="leads to 127.0.1.1, .*GLOO_SOCKET_IFNAME .*NCCL_SOCKET_IFNAME"):
        join_on_cpus(ON_CPUS)
    assert joined == []
    for name, value in (("GLOO_SOCKET_IFNAME", "eth0"), ("LOCAL_WORLD_SIZE", "4"), ("MASTER_ADDR", "127.0.0.1")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            join_on_cpus(ON_CPUS)
    assert len(joined) == 3

    def refuse(name: str) -> str:
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "gethostbyname", refuse)
    with pytest.raises(ValueError, match="leads to no address, where no other machine finds it"):
        join_on_cpus(ON_CPUS)


def test_one_process_in_place_of_several_is_one_sentence(monkeypatch, tmp_path):
    """As `accelerate launch --cpu --num_processes 2` starts it."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    join_on_cpus(ON_CPUS)  # as with --num_processes 1
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ValueError, match="asked for several processes without GPUs, and started one"):
        join_on_cpus(ON_CPUS)
    with pytest.raises(RecipeError, match="--multi_gpu in place of --cpu and with the recipe's key use_cpu true"):
        read(tmp_path)


def test_a_group_whose_processes_believe_themselves_alone_is_one_sentence(monkeypatch):
    alone = SimpleNamespace(parallel_mode="not_parallel")
    refuse_lone_processes(alone)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="Expected use_cpu true for 2 processes that find no GPU"):
        refuse_lone_processes(alone)


def test_a_single_process_decides_and_fails_by_itself():
    assert decided_by_main(lambda: 5) == 5
    with pytest.raises(RecipeError, match="^wrong$") as caught, together():
        raise RecipeError("wrong")
    assert caught.value.of_all_processes


@pytest.mark.parametrize(("rank", "is_of_all", "is_told"), [("0", True, True), ("1", True, False), ("1", False, True)])
@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (RecipeError("wrong"), 2, "error: wrong"),
        (Stopped(signal.SIGTERM, " after update 7."), 143, "Stopped by SIGTERM after update 7."),
    ],
)
def test_what_all_processes_raise_is_told_once_a_machine(monkeypatch, rank, is_of_all, is_told, error, status, words):
    def fail() -> None:
        error.of_all_processes = False
        if is_of_all:
            raise_in_all(error)
        raise error

    monkeypatch.setattr(script, "main", fail)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert end_of("train") == (status, words if is_told else "")


@restored_signals()
def test_a_signal_to_one_process_is_one_to_all():
    """Of two different ones all go by the same."""
    several = SimpleNamespace(num_processes=3, device="cpu", gather=lambda own: torch.tensor([0, 0, *own]))
    with StopRequest() as request:
        assert request.agreed(several) is None
        several.gather = lambda own: torch.tensor([0, signal.SIGTERM, *own])
        assert request.agreed(several) == signal.SIGTERM
        signal.raise_signal(signal.SIGINT)
        assert request.agreed(several) == signal.SIGTERM
        assert request.agreed(SimpleNamespace(num_processes=1)) == signal.SIGINT


@restored_signals()
def test_a_signal_to_a_process_that_has_told_its_end_changes_it_no_more(monkeypatch):
    ends = []
    monkeypatch.setattr(command_signals.os, "_exit", ends.append)
    assert end_of("train", "--learn_rate=3")[0] == 2
    with mock.patch.object(command_signals, "tell") as tell:
        command_signals.stop_at_once(130)
        signal.raise_signal(signal.SIGTERM)  # of the launcher, one of whose processes has ended
    assert ends == [130] and not tell.called


# Two processes of a launcher; of two machines, see test_two_machines.py


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, one_thread) -> Path:
    """Of 16 updates, four an epoch, with a checkpoint after every second one."""
    return campaign.write_recipe(tmp_path_factory.mktemp("data"))


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ACCELERATE = ["accelerate.commands.launch", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
ACCELERATE += ["--num_processes=2", "--main_process_port=0"]


def launch(folder: Path, of_second: str, *argv, launcher: list[str] = TORCHRUN) -> subprocess.CompletedProcess:
    """Two processes, started in a folder of their own, of which the second one does something first."""
    lines = ["import os, runpy", "if os.environ.get('RANK') == '1':", "    pass"]
    lines += [f"    {line}" for line in of_second.splitlines()]
    lines += [f"runpy.run_path({str(ROOT / 'scripts' / 'run_audio_classification.py')!r}, run_name='__main__')"]
    folder.mkdir(exist_ok=True)
    (folder / "program.py").write_text("\n".join(lines))
    return subprocess.run(
        [sys.executable, "-m", *launcher, *map(str, [folder / "program.py", *argv])],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=300,
    )


def told(process: subprocess.CompletedProcess) -> list[str]:
    """The sentences that the processes of a run end with, none of them of what Python did."""
    assert process.returncode != 0
    assert "run_command" not in process.stderr  # in a traceback of ours
    return re.findall(r"error: (.*)", process.stderr)


@pytest.mark.slow
def test_an_error_of_all_processes_is_told_once_above_what_the_launcher_adds(recipe, tmp_path):
    (sentence,) = told(launch(tmp_path, "", recipe, "--output_dir=run", "--dataset_name=none/clips.csv"))
    assert sentence.startswith("none/clips.csv: no such file or folder")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--multi_gpu"], "Expected use_cpu true for 2 processes that find no GPU"),
        (["--cpu"], "accelerate launch was asked for several processes without GPUs, and started one"),
        ([], "accelerate launch was asked for several processes without GPUs, and started one"),
    ],
    ids=["multi_gpu", "cpu", "none"],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the launcher finds GPUs here")
def test_processes_that_would_train_alone_are_told_once(recipe, tmp_path, options, words):
    argv = [recipe, "--output_dir=run", "--use_cpu=false"]
    (sentence,) = told(launch(tmp_path, "", *argv, launcher=[*ACCELERATE, *options]))
    assert sentence.startswith(words) and not (tmp_path / "run").exists()


PRESS = """
from modeling_ast.training.trainer import ASTTrainer
average = ASTTrainer.average_weights
def press(self, *args):
    if self.state.global_step == 7:
        os.killpg(os.getpgid(os.getppid()), 2)
    return average(self, *args)
ASTTrainer.average_weights = press
"""


@pytest.mark.slow
def test_ctrl_c_at_a_launcher_saves_a_checkpoint_and_is_told_once(recipe, tmp_path):
    """It hands it on to its processes, which have sessions of their own; that it ends with 1 cannot be helped."""
    process = launch(tmp_path, PRESS.strip(), recipe, "--output_dir=run", launcher=[*ACCELERATE, "--multi_gpu"])
    assert process.returncode == 1 and process.stderr.count("Stopped by ") == 1
    assert "Stopped by Ctrl-C after update " in process.stderr and "run_command" not in process.stderr
    assert max(int(path.name.split("-")[1]) for path in (tmp_path / "run").glob("checkpoint-*")) in (7, 8)
