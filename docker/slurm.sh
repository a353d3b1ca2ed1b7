#!/usr/bin/env bash
# Workers on a Slurm cluster, one for each GPU: sbatch --array=0-7 docker/slurm.sh
# One worker of several nodes, for jobs that are split over all their GPUs (gpus: 16): sbatch --nodes=2 --gres=gpu:8 docker/slurm.sh
# The API and PostgreSQL run elsewhere; every worker is given their two addresses:
#   export SAE_SERVICE_DATABASE_URL=postgresql://user:password@host/database
#   export SAE_SERVICE_STORAGE_URL=s3://bucket/prefix
# Slurm sends SIGTERM before the time is up or when a job with more rights needs the place: the worker saves its job,
# gives it back and ends, and this script queues itself again, until it is cancelled.
# Before the time is up it has 180 s to save. scancel and scontrol requeue leave it the cluster's KillWait (30 s unless set),
# a preemption the partition's GraceTime before that. A worker that is killed as it saves loses what is not saved.
#SBATCH --job-name=sae-worker
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=1-00:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@180
# What it said before it was queued again stays.
#SBATCH --open-mode=append
set -euo pipefail
: "${SAE_SERVICE_DATABASE_URL:?}" "${SAE_SERVICE_STORAGE_URL:?}"

# The signal goes to what srun runs, not to this script. Since Slurm 22.05 srun does not inherit --cpus-per-task: where tasks
# are bound to cores, the worker would have one. The folder is the user's own, for a node may be shared.
folder=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/sae-worker-$UID
tasks=() gpus=()
if ((${SLURM_JOB_NUM_NODES:-1} > 1)); then
    # One task a node, which knows by SLURM_PROCID which one it is; the first takes the jobs, and the others follow it.
    export SAE_SERVICE_HOSTS=$SLURM_JOB_NUM_NODES
    SAE_SERVICE_COORDINATOR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):${SAE_PORT:-8476}
    export SAE_SERVICE_COORDINATOR
    tasks=(--ntasks-per-node=1 --kill-on-bad-exit=1)
    gpus=(--device "$(seq --separator=, 0 $((SLURM_GPUS_ON_NODE - 1)))")
fi
srun ${tasks[@]+"${tasks[@]}"} --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    sae-service worker --data-dir "$folder" --queue "${SAE_QUEUE:-default}" ${gpus[@]+"${gpus[@]}"}

# A worker ends well only if it was told to stop. --requeue allows what follows, and does it only after a preemption or
# the loss of a node. The id of one task of an array can be that of the whole array too, so it is named by its index.
job=${SLURM_ARRAY_TASK_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
# One that was cancelled, or that Slurm has taken back already, is not running any more.
if [[ $(squeue --noheader --format=%T --jobs="$job") == RUNNING ]]; then
    scontrol requeue "$job"
fi
