#!/usr/bin/env bash
# A batch job of the notebooks: ./run_all.sh slurm 02 04 -p BASE_MODEL meta-llama/Meta-Llama-3-8B (what stands behind slurm goes to run_all.sh).
# All GPUs of the node share every training stage (torchrun, FSDP2). With more nodes the stages are started on each of them through srun;
# that is built but has not run on a cluster yet. Notebooks that do not need each other can be jobs of their own.
#SBATCH --job-name=notebooks
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8              # change: some clusters want --gres=gpu:h200:8
#SBATCH --cpus-per-task=16
#SBATCH --mem=256G                     # change: one process reads the model into it (4 bytes a parameter), and a checkpoint's copy lies in it while
                                       # it is written, 12 bytes a parameter for all processes together
#SBATCH --time=24:00:00                # change: to what the partition allows; ./run_all.sh --dry-run says how many hours are needed
##SBATCH --partition=NAME              # change, and take one # away; so with the next line
##SBATCH --account=NAME
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append             # a job that comes again goes on with the same log
#SBATCH --requeue
#SBATCH --signal=B:TERM@300            # five minutes before the end, to this script alone
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?to be started by ./run_all.sh slurm}" # this script runs as a copy elsewhere

# On a file system that all nodes share: stages that are trained are found there by every later job.
export RUNS_ROOT=${RUNS_ROOT:-$PWD/runs} RESULTS_ROOT=${RESULTS_ROOT:-$PWD/results}
mkdir -p "$RUNS_ROOT" "$RESULTS_ROOT"
# Where nodes have no network: fetch the weights before, and uncomment this.
# export HF_HOME=/shared/huggingface HF_HUB_OFFLINE=1

again() { # the same job once more; it goes on from the last checkpoint, and what is done is not done twice
    echo "the time is nearly up: back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
}
trap again TERM
./run_all.sh --profile full "$@" & # on the first node; training starts its own processes on all
wait "$!" # a trap runs at once only while the shell waits
