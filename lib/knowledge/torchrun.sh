#!/usr/bin/env bash
# torchrun.sh PROCESSES MODULE FOLDER: run `python -m MODULE FOLDER` in that many processes on this node, and on every other node of a Slurm
# allocation where there is one. PYTHON: the interpreter.
set -euo pipefail
run=("$PYTHON" -m torch.distributed.run "--nproc-per-node=$1")
if [ "${SLURM_NNODES:-1}" -gt 1 ]; then
    first=$(scontrol show hostnames | head -n 1)
    run=(srun --ntasks-per-node=1 "${run[@]}" "--nnodes=$SLURM_NNODES" --rdzv-backend=c10d "--rdzv-id=$SLURM_JOB_ID" "--rdzv-endpoint=$first:29511")
else
    run+=(--standalone)
fi
cores=$(($(nproc) / $1))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > 0 ? cores : 1))}
exec "${run[@]}" -m "${@:2}"
