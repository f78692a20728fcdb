# shellcheck shell=bash
# What the jobs in this folder share. Sourced from the repository's root, inside a job.

source slurm/cluster.sh

# Submit a follow-up job. SLURM_* variables describe this job and would be taken for the new one's.
submit() {
  (
    for name in "${!SLURM_@}"; do [[ $name == SLURM_CONF ]] || unset "$name"; done
    sbatch --parsable "$@"
  )
}

newest_checkpoint() { # of a run's directory, which may have none yet
  [[ -d $1/checkpoints ]] || return 0
  find "$1/checkpoints" -maxdepth 1 -name 'step-*' ! -name '*.partial' -printf '%f\n' |
    sort | tail -n 1
}

# Starts of this job, the present one included, that found this checkpoint as the newest. Each start
# notes itself in attempts.log before it does anything, so that those that a dead node took count.
starts_from() { # run directory, checkpoint
  grep -c " job $SLURM_JOB_ID starts from ${2:-nothing}\$" "$1/attempts.log" || true
}

note() { # run directory, words
  printf '%s job %s %s\n' "$(date --iso-8601=seconds)" "$SLURM_JOB_ID" "${*:2}" >>"$1/attempts.log"
}

give_up() { # run directory, starts, checkpoint, what became of the last start
  echo "$2 starts in a row from ${3:-nothing} have brought no new checkpoint, the last one $4: not" \
    "started again. See above and $1/attempts.log." >&2
}

# Pretrain, and start again whatever happens, as long as there is progress:
#   0 finished; 2 wrong settings and 3 stopped by <output>/stop: the end, for a person to look at;
#   all else (75 after a signal, 74 for a full disk or a node out of reach, a crash, a killed rank):
#   back into the queue, unless MAX_RESTARTS restarts in a row have brought no new checkpoint.
pretrain() { # model, DeepSpeed JSON
  local model=${MODEL:-$1} config=${DEEPSPEED_CONFIG:-$2} status=0 newest starts options
  local output=${OUTPUT:-runs/${model#rapidbert-}} most=${MAX_RESTARTS:-3}
  read -ra options <<<"${PRETRAIN_OPTIONS:-}"
  mkdir -p "$output"
  newest=$(newest_checkpoint "$output")
  note "$output" "starts from ${newest:-nothing}"
  # After a start that ended below, this cannot be; after one that its node took with it, it can.
  starts=$(starts_from "$output" "$newest")
  if ((starts > most + 1)); then
    give_up "$output" "$((starts - 1))" "$newest" "was lost with its node"
    return 1
  fi
  echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)) on $SLURM_JOB_NODELIST"
  on_nodes python recipes/pretrain.py --model "$model" --data "${DATA:-data/c4}" \
    --output "$output" --deepspeed_config "$config" "${options[@]}" || status=$?
  note "$output" "ends with status $status"
  case $status in
    0) return 0 ;;
    2 | 3) return $status ;;
  esac
  newest=$(newest_checkpoint "$output")
  starts=$(starts_from "$output" "$newest")
  if ((starts > most)); then
    give_up "$output" "$starts" "$newest" "ended with status $status"
    return $status
  fi
  echo "ended with status $status, newest checkpoint ${newest:-none}: back into the queue"
  if scontrol requeue "$SLURM_JOB_ID"; then
    sleep 60 # SLURM ends this script; leaving by itself could be taken for the job's end
  else
    echo "the cluster does not requeue; submit the same command again to go on" >&2
  fi
  return $status
}

# The finetuning jobs of a finished run, unless FINETUNE=no.
then_finetune() { # model
  local model=${MODEL:-$1} job
  [[ ${FINETUNE:-yes} == no ]] && return
  export CHECKPOINT=${OUTPUT:-runs/${model#rapidbert-}}
  if job=$(submit slurm/finetune_glue.sh); then
    echo "finetuning: job $job"
  else
    echo "no job can be submitted from here; type: CHECKPOINT=$CHECKPOINT sbatch" \
      "slurm/finetune_glue.sh" >&2
  fi
}
