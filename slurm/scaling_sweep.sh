#!/usr/bin/env bash
# Throughput against the number of GPUs and the global batch: one short run each.
#
#   sbatch slurm/scaling_sweep.sh                        8 ... 200 GPUs, batches 4,096 ... 65,536
#   MODEL=rapidbert-large NODE_COUNTS="1 2 4" sbatch slurm/scaling_sweep.sh
#   python recipes/report.py runs/scaling/rapidbert-base/*
#
# Submitted like this it takes seconds: it submits one job per size, which runs the batches one
# after the other. Submitted again, it skips what is done. Settings, from the environment:
#   MODEL              rapidbert-base
#   DATA               data/c4
#   DEEPSPEED_CONFIG   ds_configs/<size>.json   all but its train_batch_size is used
#   NODE_COUNTS        1 2 4 8 16 25
#   GLOBAL_BATCHES     4096 8192 16384 32768 65536
#   SWEEP_STEPS        60                       optimizer steps per run
#   SWEEP_OUTPUT       runs/scaling
#   PRETRAIN_OPTIONS                            more options for recipes/pretrain.py
#SBATCH --job-name=scaling
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=6
#SBATCH --time=2:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this with sbatch}"
source slurm/job.sh

model=${MODEL:-rapidbert-base}
config=${DEEPSPEED_CONFIG:-ds_configs/${model##*-}.json}
read -ra options <<<"${PRETRAIN_OPTIONS:-}"
read -ra sizes <<<"${NODE_COUNTS:-1 2 4 8 16 25}"
read -ra batches <<<"${GLOBAL_BATCHES:-4096 8192 16384 32768 65536}"

if [[ -z ${SWEEP_STAGE:-} ]]; then
  export SWEEP_STAGE=run
  for nodes in "${sizes[@]}"; do
    # As many tasks and GPUs per node as this job was given.
    job=$(submit --nodes="$nodes" --ntasks-per-node="${SLURM_NTASKS_PER_NODE:-8}" \
      --gpus-per-node="${SLURM_GPUS_PER_NODE:-8}" --cpus-per-task="${SLURM_CPUS_PER_TASK:-6}" \
      slurm/scaling_sweep.sh)
    echo "$nodes nodes: job $job"
  done
  exit
fi

failed=()
for batch in "${batches[@]}"; do
  output=${SWEEP_OUTPUT:-runs/scaling}/$model/gpus-$SLURM_NTASKS-batch-$batch
  [[ -d $output/export ]] && continue
  mkdir -p "$output"
  sed "s/\"train_batch_size\": *[0-9]*/\"train_batch_size\": $batch/" "$config" \
    >"$output/deepspeed.json"
  on_nodes python recipes/pretrain.py --model "$model" --data "${DATA:-data/c4}" \
    --output "$output" --deepspeed_config "$output/deepspeed.json" \
    --duration $((batch * ${SWEEP_STEPS:-60})) --log-every 5 --save-every 0 --eval-every 0 \
    --eval-sequences 64 "${options[@]}" || failed+=("$output (status $?)")
done
if ((${#failed[@]})); then
  printf 'failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
