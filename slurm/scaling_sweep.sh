#!/usr/bin/env bash
# Throughput against the number of GPUs and the global batch (Figure S1): one short run each.
#
#   sbatch slurm/scaling_sweep.sh                        8 ... 200 GPUs, batches 4,096 ... 65,536
#   MODEL=rapidbert-base NODE_COUNTS="1 2 4" sbatch slurm/scaling_sweep.sh
#   python recipes/report.py runs/scaling/rapidbert-large/*     the table and the figure
#
# Submitted like this it takes seconds and no GPU: it submits one job per size, which runs the
# batches one after the other. A run leaves its record (config.json, log.jsonl) and no weights.
# Submitted again, it skips what is done. Settings, from the environment:
#   MODEL              rapidbert-large
#   DATA               data/c4
#   DEEPSPEED_CONFIG   ds_configs/<size>.json   all but its train_batch_size is used
#   NODE_COUNTS        1 2 4 8 16 25
#   GPUS_PER_NODE      8
#   GLOBAL_BATCHES     4096 8192 16384 32768 65536
#   SWEEP_STEPS        60                       optimizer steps per run
#   SWEEP_OUTPUT       runs/scaling
#   PRETRAIN_OPTIONS                            more options for recipes/pretrain.py, on any number
#                                               of lines, quotes as in a shell
#SBATCH --job-name=scaling
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --time=2:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this with sbatch}"
source slurm/job.sh

model=${MODEL:-rapidbert-large}
config=${DEEPSPEED_CONFIG:-ds_configs/${model##*-}.json}
per_node=${GPUS_PER_NODE:-8}
data=${DATA:-data/c4}
NODE_COUNTS=${NODE_COUNTS:-1 2 4 8 16 25}
GLOBAL_BATCHES=${GLOBAL_BATCHES:-4096 8192 16384 32768 65536}

# The DeepSpeed JSON with another global batch, on standard output.
with_batch() { # batch
  python3 -c '
import json, sys
path, batch = sys.argv[1:]
with open(path) as file:
    config = json.load(file)
if "train_batch_size" not in config:
    raise ValueError("no train_batch_size in it")
config["train_batch_size"] = int(batch)
print(json.dumps(config, indent=2))' "$config" "$1"
}

words NODE_COUNTS
sizes=("${options[@]}")
whole NODE_COUNTS 1 100000 "${sizes[@]}"
words GLOBAL_BATCHES
batches=("${options[@]}")
whole GLOBAL_BATCHES 1 100000000 "${batches[@]}"
whole GPUS_PER_NODE 1 64
whole CPUS_PER_GPU 1 1024
whole SWEEP_STEPS 1 1000000
check_training "$model" "$config" "$data"
if [[ -f $config ]]; then
  said=$(with_batch 1 2>&1) || fault "DEEPSPEED_CONFIG=$config: ${said##*$'\n'}"
fi
[[ ${SWEEP_STAGE:-run} == run ]] || fault "SWEEP_STAGE=$SWEEP_STAGE: this script sets it; unset it"
words PRETRAIN_OPTIONS
reserved PRETRAIN_OPTIONS --model --data --output --deepspeed-config --duration --minutes --dry-run
stop_at_faults

if [[ -z ${SWEEP_STAGE:-} ]]; then
  export SWEEP_STAGE=run
  for nodes in "${sizes[@]}"; do
    job=$(submit --nodes="$nodes" --ntasks=$((nodes * per_node)) --ntasks-per-node="$per_node" \
      --gpus-per-node="$per_node" --cpus-per-task="$CPUS_PER_GPU" slurm/scaling_sweep.sh)
    echo "$nodes nodes: job $job"
  done
  exit
fi

failed=()
for batch in "${batches[@]}"; do
  output=${SWEEP_OUTPUT:-runs/scaling}/$model/gpus-$SLURM_NTASKS-batch-$batch
  asked="$data, $config, ${SWEEP_STEPS:-60} steps, options ${options[*]@Q}"
  if [[ -e $output/done ]]; then
    before=$(sed -n 's/^settings //p' "$output/done") # nothing in those of older versions
    if [[ -z $before || $before == "$asked" ]]; then
      echo "$output: done before"
    else
      failed+=("$output (done before with other settings, $before: name another SWEEP_OUTPUT)")
    fi
    continue
  fi
  mkdir -p "$output"
  with_batch "$batch" >"$output/deepspeed.json"
  if on_nodes python recipes/pretrain.py --model "$model" --data "$data" \
    --output "$output" --deepspeed_config "$output/deepspeed.json" \
    --duration $((batch * ${SWEEP_STEPS:-60})) --log-every 5 --save-every 0 --eval-every 0 \
    --eval-sequences 64 "${options[@]}"; then
    printf 'job %s\nsettings %s\n' "$SLURM_JOB_ID" "$asked" >"$output/done"
    rm -rf "$output/checkpoints" "$output/export"
  else
    failed+=("$output (status $?)")
  fi
done
if ((${#failed[@]})); then
  printf 'failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
