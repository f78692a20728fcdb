#!/usr/bin/env bash
# Pretrain RapidBERT-Large, then finetune it on GLUE.
#
#   sbatch slurm/pretrain_large.sh                8 GPUs; submitted again, it goes on
#   sbatch --nodes=25 slurm/pretrain_large.sh     200 GPUs
#   sbatch --signal=USR1@600 --time=4:00:00 slurm/pretrain_large.sh
#
# The signal comes so many seconds before the time limit: the run saves and goes back into the
# queue. Settings, from the environment:
#   DATA               data/c4                  written by recipes/prepare_data.py
#   OUTPUT             runs/large
#   MODEL              rapidbert-large
#   DEEPSPEED_CONFIG   ds_configs/large.json
#   PRETRAIN_OPTIONS                            more options for recipes/pretrain.py, on any number
#                                               of lines, quotes as in a shell;
#                                               --paper: the published run to the letter
#   MAX_RESTARTS       3                        in a row without a new checkpoint
#   FINETUNE           yes                      no: without the finetuning jobs
# and those of slurm/finetune_glue.sh. Account, partition, modules, containers: slurm/cluster.sh.
#SBATCH --job-name=pretrain-large
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=6
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this with sbatch}"
source slurm/job.sh

pretrain rapidbert-large ds_configs/large.json
then_finetune rapidbert-large
