#!/bin/bash
# An example of a SLURM job: one launcher a machine, the same command on each.
#
#   sbatch --nodes 2 scripts/train_slurm.sh configs/speech_commands_v2.yaml [--key value ...]
#
# The recipe's global batch must be divisible by the number of GPUs: of audioset_full.yaml it is 12, for 1 or 3 such nodes.
# Interrupted (time limit, failure), submit it again: it goes on from its last checkpoint.
#SBATCH --job-name=modeling_ast
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --output=%x_%j.log
set -euo pipefail

gpus_per_node="${SLURM_GPUS_ON_NODE:-4}"
main_address="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"

# SLURM_NODEID differs from machine to machine, so it is read there.
srun bash -c 'accelerate launch \
    --config_file configs/accelerate/multi_node.yaml \
    --num_machines "$SLURM_NNODES" \
    --num_processes "$((SLURM_NNODES * '"$gpus_per_node"'))" \
    --machine_rank "$SLURM_NODEID" \
    --main_process_ip '"$main_address"' \
    scripts/run_audio_classification.py "$@" --resume_from_checkpoint true' train "$@"
