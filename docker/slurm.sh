#!/usr/bin/env bash
# Workers on a Slurm cluster, one for each GPU: sbatch --array=0-7 docker/slurm.sh
# The API and PostgreSQL run elsewhere; every worker is given their two addresses:
#   export SAE_SERVICE_DATABASE_URL=postgresql://user:password@host/database
#   export SAE_SERVICE_STORAGE_URL=s3://bucket/prefix
# Slurm sends SIGTERM before the time is up or when a job with more rights needs the place: the worker saves its job,
# gives it back and ends, and --requeue starts it again when there is room.
#SBATCH --job-name=sae-worker
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=1-00:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@180
set -euo pipefail
: "${SAE_SERVICE_DATABASE_URL:?}" "${SAE_SERVICE_STORAGE_URL:?}"

# srun passes the signal on to the worker itself.
exec srun sae-service worker --data-dir "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/sae-worker" --queue "${SAE_QUEUE:-default}"
