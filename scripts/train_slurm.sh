#!/bin/bash
# An example of a SLURM job: one launcher a machine, the same command on each.
#
#   sbatch --nodes 2 scripts/train_slurm.sh configs/speech_commands_v2.yaml [--key value ...]
#
# The recipe's global batch must be divisible by the number of GPUs: of audioset_full.yaml it is 12, for 1 or 3 such nodes.
# Five minutes before the time limit it saves a checkpoint and goes back into the queue, as it does after preemption and
# the failure of a node; after another failure submit it again. It always goes on from its last checkpoint.
#SBATCH --job-name=modeling_ast
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --output=%x_%j.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
set -euo pipefail

gpus_per_node="${SLURM_GPUS_ON_NODE:-4}"
main_address="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240 # what a launcher leaves its processes for the checkpoint: by itself 30 s

time_is_up=false
trap 'time_is_up=true; scancel --signal TERM "$SLURM_JOB_ID"' USR1 # to the launchers, not to this script

# SLURM_NODEID differs from machine to machine, so it is read there.
srun bash -c 'accelerate launch \
    --config_file configs/accelerate/multi_node.yaml \
    --num_machines "$SLURM_NNODES" \
    --num_processes "$((SLURM_NNODES * '"$gpus_per_node"'))" \
    --machine_rank "$SLURM_NODEID" \
    --main_process_ip '"$main_address"' \
    scripts/run_audio_classification.py "$@" --resume_from_checkpoint true' train "$@" &

status=0
wait $! || status=$? # also when the signal comes; then until the processes have ended
if $time_is_up; then
    status=0
    wait $! || status=$?
    [ "$status" -eq 0 ] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
