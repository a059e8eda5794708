#!/bin/bash
# One training on many GPU nodes, a process per GPU; JAX finds the others through SLURM's variables.
#
#   sbatch --nodes=4 scripts/slurm.sh --config=configs/clip.py:b16 --workdir=/shared/runs/b16
#
# WORKDIR must lie on a file system that all nodes see. SLURM sends SIGTERM before the time is up: vlx
# saves, and the job puts itself back into the queue, where the same command goes on.
#SBATCH --job-name=vlx
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=%x-%j.log
set -euo pipefail

# A task that dies ends the others, and srun names it.
srun --kill-on-bad-exit=1 --label python -m vlx.train "$@"

# 0 is also what a run that was asked to stop ends with: results.json tells whether it is done.
workdir=$(printf '%s\n' "$@" | sed -n 's/^--workdir=//p')
if [[ ! -f "$workdir/results.json" ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
