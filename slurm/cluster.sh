# shellcheck shell=bash
# Everything that differs between clusters. The jobs read this file; read it yourself once per login
# (`source slurm/cluster.sh`) if your cluster wants an account or a partition at submission.

# Account and partition, for sbatch.
#export SBATCH_ACCOUNT=my_project
#export SBATCH_PARTITION=gpu

# How a command runs on the nodes of a job: one task per GPU, each with the job's cores per task,
# which srun does not take over by itself since SLURM 22.05. When one has ended, the others have a
# minute to end by themselves, so that the status is the trainer's own and not that of a task that
# srun has killed.
steps=(--cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0
  --wait="${TASK_END_SECONDS:-60}")
on_nodes() { srun "${steps[@]}" "$@"; }

# 1. Modules and the environment that `./run.sh setup` made.
#module load cuda/13.0
# shellcheck source=/dev/null
if [[ -f .venv/bin/activate ]]; then source .venv/bin/activate; fi

# 2. A container through pyxis. The repository must be visible inside.
#on_nodes() {
#  srun "${steps[@]}" --container-image="$PWD/rapidbert.sqsh" \
#    --container-mounts="$PWD:$PWD" --container-workdir="$PWD" "$@"
#}

# 3. A container through apptainer.
#on_nodes() { srun "${steps[@]}" apptainer exec --nv --bind "$PWD" rapidbert.sif "$@"; }

# Network interface for the rendezvous and for NCCL, where the default route is not the fast one.
#export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
#export NCCL_IB_HCA=mlx5
# Where rank 0 is, if the first node's name in SLURM is not one that the others can reach.
#export MASTER_ADDR=...

# CPU cores for each GPU of the jobs that other jobs submit (finetuning, the scaling sweep); the
# pretraining jobs say it in their #SBATCH lines.
export CPUS_PER_GPU=${CPUS_PER_GPU:-6}

# Text is UTF-8, whatever the nodes' locale says.
export PYTHONUTF8=1

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
