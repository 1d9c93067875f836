#!/usr/bin/env bash
# From a clean clone to a trained classifier: makes .venv, installs, trains the demo, tags a sound. No data needed.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare_environment train

.venv/bin/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
    scripts/run_audio_classification.py configs/demo.yaml "$@"
