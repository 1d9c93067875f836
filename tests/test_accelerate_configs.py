"""The launcher's files are what this Accelerate reads, and name what this package has."""

import re
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

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


def test_the_slurm_script_starts_the_same_command_on_every_machine():
    path = ROOT / "scripts" / "train_slurm.sh"
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0
    text = path.read_text()
    for named in re.findall(r"(?:configs|scripts)/[\w/]+\.(?:yaml|py)", text):
        assert (ROOT / named).is_file(), named
    # With the programs of a cluster replaced by ones that print: two machines, ranks 0 and 1, eight processes.
    stubs = (
        "scontrol() { printf 'node-a\\nnode-b\\n'; }; accelerate() { echo \"$@\"; }; export -f accelerate; "
        'srun() { for i in 0 1; do SLURM_NODEID=$i "$@"; done; }; '
        "export SLURM_GPUS_ON_NODE=4 SLURM_NNODES=2 SLURM_JOB_NODELIST=x; "
    )
    shell = f"{stubs} set -- configs/esc50.yaml --seed 1; source {path}"
    result = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert len(lines) == 2, result.stderr
    for rank, line in enumerate(lines):
        assert f"--machine_rank {rank} --main_process_ip node-a" in line and "--num_processes 8" in line
        assert line.endswith("run_audio_classification.py configs/esc50.yaml --seed 1 --resume_from_checkpoint true")
