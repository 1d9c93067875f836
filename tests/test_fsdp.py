"""A model that GPUs share (FSDP 2) trains, is resumed, evaluated and loaded as one that each of them has whole.

Here processes without GPUs share it. Accelerate shards over GPUs alone, and leaves FSDP out without a word elsewhere:
`train_as_a_process` tells it that these processes have GPUs, and that their backend is gloo. What `accelerate launch`
would tell them is taken from configs/accelerate/fsdp.yaml, by Accelerate's own reading of it.
"""

import functools
import multiprocessing
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import fault_campaign as campaign
import pytest
import torch
from accelerate import DistributedType, PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from helpers import ROOT, end_of, leave_out_pictures, read_csv, without_key_biases
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.fsdp import StateDictType
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig
from transformers.models.audio_spectrogram_transformer import ASTFeatureExtractor, ASTForAudioClassification

from modeling_ast import ASTForAudioClassification as ours
from modeling_ast.commands.command_faults import fault_sentence
from modeling_ast.data.recipes import RecipeError
from modeling_ast.training.faults import SaveError, loading, saving
from modeling_ast.training.sharding import check_strategy, refuse_unusable_fsdp

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = ROOT / "configs" / "accelerate" / "fsdp.yaml"
MODELS = ("model.safetensors", "weight_average/model.safetensors")


def environment_of(strategy: str, *options: str) -> dict[str, str]:
    """What `accelerate launch` tells its processes."""
    argv = ["--config_file", str(CONFIG), "--mixed_precision", "no", *options]
    if strategy == "SHARDED_STATE_DICT":
        argv += ["--fsdp_state_dict_type", strategy]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args([*argv, "script.py"]))
    told = prepare_multi_gpu_env(args)
    return {name: value for name, value in told.items() if name.startswith(("FSDP_", "ACCELERATE_"))}


@pytest.fixture
def asked(monkeypatch):
    """A function: FSDP was asked for by the launcher's file and options."""

    def ask(*options: str) -> SimpleNamespace:
        for name, value in environment_of("FULL_STATE_DICT", *options).items():
            monkeypatch.setenv(name, value)
        state = SimpleNamespace(distributed_type=DistributedType.MULTI_GPU)
        options = {"fsdp": None, "fsdp_plugin_args": None, "auto_find_batch_size": False}
        return SimpleNamespace(distributed_state=state, **options)

    return ask


def test_the_launchers_file_is_one_that_is_trained_by(asked):
    refuse_unusable_fsdp(asked())


@pytest.mark.parametrize("kind", [DistributedType.NO, DistributedType.MULTI_CPU])
def test_fsdp_is_refused_where_it_would_be_left_out(asked, kind):
    args = asked()
    args.distributed_state.distributed_type = kind
    with pytest.raises(ValueError, match="FSDP needs GPUs"):
        refuse_unusable_fsdp(args)
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    refuse_unusable_fsdp(args)
    args.fsdp, args.fsdp_plugin_args = True, {"fsdp_version": 2}  # by keys of the recipe
    with pytest.raises(ValueError, match="FSDP needs GPUs"):
        refuse_unusable_fsdp(args)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fsdp_version", "1"], "Expected fsdp_version 2, got 1"),
        (
            ["--fsdp_cpu_ram_efficient_loading", "true", "--fsdp_sync_module_states", "true"],
            "Expected fsdp_cpu_ram_efficient_loading false, got true",
        ),
    ],
)
def test_what_would_train_otherwise_is_refused(asked, options, words):
    with pytest.raises(ValueError, match=words):
        refuse_unusable_fsdp(asked(*options))


def test_a_batch_size_that_is_to_be_found_is_refused(asked):
    args = asked()
    args.auto_find_batch_size = True
    with pytest.raises(ValueError, match="auto_find_batch_size cannot begin anew"):
        refuse_unusable_fsdp(args)


def accelerator_of(strategy: str) -> SimpleNamespace:
    plugin = None if strategy == "DDP" else SimpleNamespace(state_dict_type=StateDictType[strategy])
    return SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))


CHECKPOINTS = {
    "DDP": "optimizer.pt",
    "FULL_STATE_DICT": "pytorch_model_fsdp.bin",
    "SHARDED_STATE_DICT": "pytorch_model_fsdp_0/.metadata",
}


@pytest.mark.parametrize("saved", CHECKPOINTS)
@pytest.mark.parametrize("own", CHECKPOINTS)
def test_a_checkpoint_of_another_strategy_is_one_sentence_that_names_it(tmp_path, saved, own):
    (tmp_path / CHECKPOINTS[saved]).parent.mkdir(exist_ok=True)
    (tmp_path / CHECKPOINTS[saved]).touch()
    if saved == own:
        check_strategy(tmp_path, accelerator_of(own))
        return
    of_it, of_own = ("without FSDP" if name == "DDP" else f"with FSDP's {name}" for name in (saved, own))
    with pytest.raises(RecipeError, match=f"was saved {of_it}, and cannot be continued from {of_own}") as caught:
        check_strategy(tmp_path, accelerator_of(own))
    assert ("accelerate merge-weights" in str(caught.value)) == (saved == "SHARDED_STATE_DICT")


def test_an_error_of_shards_is_told_by_its_cause_and_once():
    """Torch raises one in all processes, which is no `Exception`, with the tracebacks of each."""
    of_disk = CheckpointException("", {1: (OSError(28, "No space left on device"), [])})
    with pytest.raises(SaveError, match=r"run cannot be saved \(No space left on device\)") as caught, saving("run"):
        raise of_disk
    assert caught.value.of_all_processes
    with pytest.raises(OSError, match="No space left on device"), loading("run", True):
        raise of_disk
    for error, reason in ((EOFError(), "EOFError"), (ValueError("Size mismatch between"), "it is of another model")):
        with pytest.raises(RecipeError, match=rf"from \({reason}\)\. Remove it") as caught, loading("run", True):
            raise CheckpointException("", {0: (error, [])})
        assert caught.value.of_all_processes


@pytest.mark.parametrize("around", [saving, functools.partial(loading, is_of_this_run=True)])
def test_a_process_that_is_lost_meanwhile_is_no_fault_of_the_checkpoint(around):
    with pytest.raises((SaveError, RecipeError)) as caught, around("run"):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer. GLHF!")
    sentence = fault_sentence(caught.value, goes_on="Begin anew.")
    assert sentence == (
        "error: Another process of this run has ended or hangs, and none goes on without it. Begin anew."
    )


def test_keys_that_do_not_go_together_are_one_sentence(tmp_path):
    recipe = campaign.write_recipe(tmp_path / "data")
    argv = ["--accelerator_config", '{"gradient_accumulation_kwargs": {"num_steps": 2}}', f"--output_dir={tmp_path}"]
    status, sentence = end_of("train", recipe, "--gradient_accumulation_steps=2", *argv)
    assert status == 2 and re.search("cannot be trained by: .*num_steps", sentence)


# Two processes


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, one_thread) -> Path:
    """Of 16 updates, four an epoch, with a checkpoint after every second one; without dropout, which draws anew."""
    path = campaign.write_recipe(tmp_path_factory.mktemp("data"))
    path.write_text(path.read_text().replace("hidden_dropout_prob: 0.1\n", ""))
    return path


def train_as_a_process(
    own: dict[str, str], told: dict[str, str], argv: list[str], log: Path, signal_at: int | None
) -> None:
    """Be a process of a run, the last of which gets a signal after an update."""
    from modeling_ast.commands.command_line import run_command
    from modeling_ast.training.trainer import ASTTrainer

    os.environ.update(own | told)
    torch.set_num_threads(1)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    leave_out_pictures(pytest.MonkeyPatch())
    if told:
        PartialState._prepare_backend = lambda *args: ("gloo", DistributedType.MULTI_GPU)
    average = ASTTrainer.average_weights

    def average_weights(trainer: ASTTrainer, is_epoch_end: bool) -> None:
        is_last = trainer.args.process_index == trainer.args.world_size - 1
        if trainer.state.global_step == signal_at and is_last:
            signal.raise_signal(signal.SIGTERM)
        average(trainer, is_epoch_end)

    ASTTrainer.average_weights = average_weights
    sys.argv = ["modeling-ast train", *argv]
    run_command("train")


def start_processes(number: int, target: Callable, *args) -> set[int]:
    """Call a function in processes that find one another, after the variables of each, and give how they ended."""
    context = multiprocessing.get_context("forkserver")  # imports once
    context.set_forkserver_preload(["test_fsdp", "modeling_ast.commands.train"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    common |= {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    each = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]
    processes = [context.Process(target=target, args=(own, *args)) for own in each]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
        process.kill()
    return {process.exitcode for process in processes}


@pytest.fixture(scope="module")
def start():
    """A function that runs some processes of one run, and gives how all of them ended and what they told."""

    def start(strategy: str, number: int, recipe: Path, run: Path, *argv: str, signal_at: int | None = None):
        told = {"ACCELERATE_TORCH_DEVICE": "cpu", **environment_of(strategy)} if strategy != "DDP" else {}
        argv = [str(recipe), f"--output_dir={run}", f"--use_cpu={strategy == 'DDP'}", *argv]
        log = run.with_name(f"{run.name}.log")
        log.unlink(missing_ok=True)
        statuses = start_processes(number, train_as_a_process, told, argv, log, signal_at)
        return statuses, log.read_text()

    return start


@pytest.fixture(scope="module")
def stopped(start, recipe, tmp_path_factory):
    """A function that gives a run of two processes, which a signal to the second one ended after its sixth update."""

    @functools.cache
    def stop(strategy: str) -> Path:
        run = tmp_path_factory.mktemp(strategy) / "run"
        statuses, log = start(strategy, 2, recipe, run, signal_at=5)
        assert statuses == {143}, log
        assert log.count("Stopped by SIGTERM") == 1 and "checkpoint-6 is saved" in log
        assert (run / "checkpoint-6" / CHECKPOINTS[strategy]).exists()
        return run

    return stop


@pytest.fixture(scope="module")
def alone(start, recipe, tmp_path_factory) -> Path:
    """The run of one process, with what it ended with."""
    run = tmp_path_factory.mktemp("alone") / "run"
    statuses, log = start("DDP", 1, recipe, run)
    assert statuses == {0}, log
    return run


def differences(run: Path, other: Path) -> dict[str, float]:
    """The largest ones of metrics, of the lines of results.csv and of weights."""
    metrics, wanted = (campaign.reported(each) for each in (run, other))
    assert metrics.keys() == wanted.keys()
    found = {"metrics": max(abs(metrics[name] - wanted[name]) for name in wanted)}
    lines, wanted = (read_csv(each / "results.csv") for each in (run, other))
    assert len(lines) == len(wanted)
    found["results.csv"] = max(abs(float(a[key]) - float(b[key])) for a, b in zip(lines, wanted) for key in b)
    for name in MODELS:
        weights, wanted = (load_file(each / name) for each in (run, other))
        assert weights.keys() == wanted.keys()
        moved = {key: (weights[key] - wanted[key]).abs().max().item() for key in wanted}
        found[name] = max(without_key_biases(moved).values())
        found[f"{name}, key biases"] = max(moved.values())
    return found


def is_alike(run: Path, other: Path) -> bool:
    """Within what another order of adding moves, which AdamW makes larger where gradients are near zero.

    It makes anything of gradients that are zero but for rounding.
    """
    found = differences(run, other)
    print(found)
    return max(found["metrics"], found["results.csv"]) < 1e-5 and max(found[name] for name in MODELS) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["DDP", "FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_a_run_that_is_stopped_and_goes_on_with_other_numbers_of_processes_is_the_run_of_one(
    start, stopped, recipe, alone, tmp_path, strategy
):
    run = tmp_path / "run"
    shutil.copytree(stopped(strategy), run)
    statuses, log = start(strategy, 1, recipe, run, signal_at=9)
    assert statuses == {143} and "Continuing from" in log and "checkpoint-10 is saved" in log, log
    shards = run / "checkpoint-10" / "pytorch_model_fsdp_0"
    assert shards.is_dir() == (strategy == "SHARDED_STATE_DICT")
    statuses, log = start(strategy, 2, recipe, run)
    assert statuses == {0} and "Continuing from" in log, log
    assert is_alike(run, alone)
    names, wanted = ({path.name for path in each.iterdir() if path.is_file()} for each in (run, alone))
    assert names == wanted

    before = campaign.reported(run)
    statuses, log = start(strategy, 2, recipe, run)  # again, after its end
    assert statuses == {0} and "holds the trained model" in log, log
    assert campaign.reported(run) == pytest.approx(before, abs=1e-6)

    for folder in (run, run / "weight_average"):  # as Transformers' own
        model, missing = ASTForAudioClassification.from_pretrained(folder, output_loading_info=True)
        assert not any(missing.values()) and ASTFeatureExtractor.from_pretrained(folder).num_mel_bins == 32
        assert model.config.architectures == ["ASTForAudioClassification"]

    other = tmp_path / "evaluated"
    statuses, log = start(strategy, 2, recipe, other, f"--model_name_or_path={run}", "--do_train=false")
    assert statuses == {0}, log
    metrics = campaign.reported(other)
    assert metrics.pop("epoch") == 0 and metrics == pytest.approx({name: before[name] for name in metrics}, abs=1e-6)


@pytest.mark.slow
def test_an_average_of_every_update_and_small_steps_are_those_of_one_process(start, recipe, tmp_path):
    other = tmp_path / "recipe.yaml"
    other.write_text(recipe.read_text().replace("weight_average_start: 2", "ema_decay: 0.9"))
    argv = ["--max_grad_norm=0.1", "--gradient_checkpointing=true", "--head_learning_rate_factor=10"]
    argv += ["--layer_learning_rate_decay=0.5"]
    for name, strategy, number in (("alone", "DDP", 1), ("copied", "DDP", 2), ("shared", "SHARDED_STATE_DICT", 2)):
        steps = f"--gradient_accumulation_steps={number}"
        statuses, log = start(strategy, number, other, tmp_path / name, *argv, steps, "--num_train_epochs=2")
        assert statuses == {0}, log
    assert all(is_alike(tmp_path / name, tmp_path / "alone") for name in ("copied", "shared"))
    assert "average_test_mAP" in campaign.reported(tmp_path / "copied")


@pytest.mark.slow
def test_shared_layers_drop_the_branches_that_a_run_without_a_stop_drops(start, recipe, tmp_path):
    """Of checkpointed layers with rates of their own, and with an average of every update."""
    other = tmp_path / "recipe.yaml"
    other.write_text(
        recipe.read_text()
        .replace("weight_average_start: 2", "ema_decay: 0.9\nlayer_learning_rate_decay: 0.6")
        .replace("num_hidden_layers: 1", "num_hidden_layers: 3\ndrop_path_rate: 0.5\ngradient_checkpointing: true")
    )
    for name, signal_at, status in (("whole", None, 0), ("run", 5, 143), ("run", None, 0)):
        argv = (other, tmp_path / name, "--num_train_epochs=2")
        statuses, log = start("SHARDED_STATE_DICT", 2, *argv, signal_at=signal_at)
        assert statuses == {status}, log
    assert set(differences(tmp_path / "run", tmp_path / "whole").values()) == {0}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["DDP", "SHARDED_STATE_DICT"])
def test_a_run_that_diverges_is_told_once(start, recipe, tmp_path, strategy):
    argv = ["--learning_rate=1e38", "--max_grad_norm=0"]
    statuses, log = start(strategy, 2, recipe, tmp_path / "run", *argv)
    assert statuses == {2} and log.count("error: The loss of update 2 is no finite number") == 1, log


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_a_damaged_checkpoint_and_one_of_another_strategy_are_told_once(start, stopped, recipe, tmp_path, strategy):
    kept = tmp_path / "kept"
    shutil.copytree(stopped(strategy) / "checkpoint-6", kept)
    file = kept / ("pytorch_model_fsdp.bin" if strategy == "FULL_STATE_DICT" else "pytorch_model_fsdp_0/__1_0.distcp")
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    for own in (strategy, "DDP"):
        statuses, log = start(own, 2, recipe, tmp_path / own, f"--resume_from_checkpoint={kept}")
        assert statuses == {2} and "Traceback" not in log, log
        (sentence,) = re.findall("error: (.*)", log)
        assert sentence.startswith(f"{kept} cannot" if own == strategy else f"{kept} was saved with FSDP's {strategy}")


def compute_as_a_process(own: dict[str, str], folder: Path, sizes: dict[str, int]) -> None:
    """Compute logits and gradients with a model that Transformers shards by our plans."""
    os.environ.update(own)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    model = ours.from_pretrained(folder, distributed_config=DistributedConfig(**sizes))
    layer = model.audio_spectrogram_transformer.encoder.layer[0]
    assert isinstance(layer.intermediate.dense.weight, DTensor)
    output = model(**load_file(folder / "batch.safetensors"))
    output.loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()} | {"": output.logits}
    found = {name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in found.items()}
    if own["RANK"] == "0":
        save_file(found, folder / "found.safetensors")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"fsdp_size": 2}, {"tp_size": 2}], ids=["fsdp", "tp"])
def test_transformers_own_sharding_by_our_plans_changes_nothing(tiny_model, input_values, tmp_path, sizes):
    batch = {"input_values": input_values, "labels": torch.tensor([0, 1, 4])}
    tiny_model.save_pretrained(tmp_path)
    save_file(batch, tmp_path / "batch.safetensors")
    assert start_processes(2, compute_as_a_process, tmp_path, sizes) == {0}
    output = tiny_model(**batch)
    output.loss.backward()
    expected = {name: parameter.grad for name, parameter in tiny_model.named_parameters()} | {"": output.logits}
    found = load_file(tmp_path / "found.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)
