"""The launcher's files are what this Accelerate reads, and name what this package has."""

import re
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

import modeling_ast.modeling_ast as modeling

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_it(path):
    config = load_config_from_file(str(path))
    assert config.mixed_precision == "bf16" and config.num_processes >= config.num_machines >= 1
    kinds = {"single_gpu_bf16": "NO", "multi_gpu": "MULTI_GPU", "multi_node": "MULTI_GPU", "fsdp": "FSDP"}
    assert config.distributed_type.value == kinds[path.stem]


def test_fsdp_wraps_a_layer_that_exists():
    config = load_config_from_file(str(ROOT / "configs" / "accelerate" / "fsdp.yaml"))
    layer = config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"]
    assert layer in modeling.ASTPreTrainedModel._no_split_modules and hasattr(modeling, layer)


SLURM_SCRIPT = ROOT / "scripts" / "train_slurm.sh"
# The programs of a cluster, replaced by ones that print: two machines, ranks 0 and 1, eight processes.
CLUSTER = """
scontrol() { if [ "$1" = show ]; then printf 'node-a\\nnode-b\\n'; else echo "scontrol $*"; fi; }
accelerate() { echo "$@"; }
export -f accelerate
export SLURM_GPUS_ON_NODE=4 SLURM_NNODES=2 SLURM_JOB_NODELIST=x SLURM_JOB_ID=17
"""


def run_slurm_script(programs: str) -> subprocess.CompletedProcess:
    shell = f"{CLUSTER}{programs}\nset -- configs/esc50.yaml --seed 1; source {SLURM_SCRIPT}"
    return subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=30)


def test_every_key_of_fsdp_reaches_the_processes():
    path = ROOT / "configs" / "accelerate" / "fsdp.yaml"
    argv = ["--config_file", str(path), "--fsdp_offload_params", "true", "script.py"]  # which wins over the file
    args, file, _ = _validate_launch_command(launch_command_parser().parse_args(argv))
    told = prepare_multi_gpu_env(args)
    assert told["ACCELERATE_USE_FSDP"] == "true" and told["ACCELERATE_MIXED_PRECISION"] == "bf16"
    names = {"fsdp_transformer_layer_cls_to_wrap": "FSDP_TRANSFORMER_CLS_TO_WRAP"}
    for key, value in (file.fsdp_config | {"fsdp_offload_params": True}).items():
        assert told[names.get(key, key.upper())].lower() == str(value).lower(), key


def test_the_slurm_script_starts_the_same_command_on_every_machine():
    text = SLURM_SCRIPT.read_text()
    for named in re.findall(r"(?:configs|scripts)/[\w/]+\.(?:yaml|py)", text):
        assert (ROOT / named).is_file(), named
    result = run_slurm_script('srun() { for i in 0 1; do SLURM_NODEID=$i "$@"; done; }')
    lines = result.stdout.splitlines()
    assert result.returncode == 0 and len(lines) == 2, result.stderr
    for rank, line in enumerate(lines):
        assert f"--machine_rank {rank} --main_process_ip node-a" in line and "--num_processes 8" in line
        assert line.endswith("run_audio_classification.py configs/esc50.yaml --seed 1 --resume_from_checkpoint true")


@pytest.mark.parametrize(
    ("end", "status", "is_requeued"),
    [("exit 1", 1, True), ("exit 0", 0, False)],
    ids=["stopped", "finished meanwhile"],
)
def test_the_slurm_script_stops_the_run_before_its_time_is_up_and_queues_it_again(tmp_path, end, status, is_requeued):
    """The signal is passed on to the processes, and waited for what they do about it."""
    assert {"#SBATCH --signal=B:USR1@300", "#SBATCH --requeue"} <= set(SLURM_SCRIPT.read_text().splitlines())
    programs = (
        f"srun() {{ kill -USR1 $$; until [ -e {tmp_path}/told ]; do sleep 0.02; done; echo saved; {end}; }}\n"
        f'scancel() {{ echo "scancel $*"; touch {tmp_path}/told; }}'
    )
    result = run_slurm_script(programs)
    requeues = ["scontrol requeue 17"] if is_requeued else []
    assert result.stdout.splitlines() == ["scancel --signal TERM 17", "saved", *requeues]
    assert result.returncode == status


def test_the_slurm_script_does_not_queue_again_what_fails():
    result = run_slurm_script("srun() { return 3; }")
    assert (result.returncode, result.stdout) == (3, "")
