# shellcheck shell=bash
# What the jobs in this folder share. Sourced from the repository's root, inside a job.

source slurm/cluster.sh

# The settings come from the environment. Each script looks at all of its own before it submits or
# starts anything, and ends with status 2 and every fault. An empty one counts as not set.
faults=()
fault() { faults+=("$*"); }

stop_at_faults() {
  ((${#faults[@]})) || return 0
  printf 'error: %s\n' "${faults[@]}" >&2
  exit 2
}

# The words of a setting, into the array `options`. They may stand on several lines and in quotes,
# as in a shell; nothing else in them is expanded.
words() { # setting
  local list
  options=()
  [[ -n ${!1:-} ]] || return 0
  if list=$(xargs -r printf '%s\n' <<<"${!1}" 2>/dev/null); then
    [[ -z $list ]] || mapfile -t options <<<"$list"
  else
    fault "$1: a quote is not closed on its line: ${!1}"
  fi
}

whole() { # setting, least, most, then the words to look at, or none for its value
  local name=$1 least=$2 most=$3 word
  shift 3
  (($#)) || set -- ${!name:+"${!name}"}
  for word; do
    if ! [[ $word =~ ^(0|[1-9][0-9]{0,8})$ ]] || ((word < least || word > most)); then
      fault "$name=$word: a whole number from $least to $most"
    fi
  done
}

# What the scripts pass on themselves cannot be among a setting's options, where it would come last
# and win, unseen by what looks after the job; nor can --dry-run, which ends well without a run.
reserved() { # setting, then option names; looks at the array `options`
  local setting=$1 word name
  shift
  for word in "${options[@]}"; do
    [[ $word != -- ]] || break
    word=${word%%=*}
    for name; do
      [[ ${word//_/-} != "$name" ]] || fault "$setting: $name cannot be given here: the script decides it"
    done
  done
}

finetune_wanted() { # FINETUNE, in capitals or not
  case ${FINETUNE:-yes} in
    [Yy][Ee][Ss]) ;;
    [Nn][Oo]) return 1 ;;
    *) fault "FINETUNE=$FINETUNE: yes or no" ;;
  esac
}

check_glue() {
  whole CPUS_PER_GPU 1 1024
  words GLUE_OPTIONS
}

check_training() { # model, DeepSpeed JSON, data
  local said
  whole TASK_END_SECONDS 1 86400
  # A Python outside of the container that is too old for this leaves it to pretrain.py.
  said=$(python3 -c '
import sys
from model.config import preset
try:
    preset(sys.argv[1])
except ValueError as error:
    print(error)' "$1" 2>/dev/null) || said=
  [[ -z $said ]] || fault "MODEL: $said"
  [[ -f $2 ]] || fault "DEEPSPEED_CONFIG=$2: no such file"
  [[ -f $3/manifest.json ]] || fault "DATA=$3: no manifest.json in it; recipes/prepare_data.py makes it"
}

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
  local output=${OUTPUT:-runs/${model#rapidbert-}} most=${MAX_RESTARTS:-3} data=${DATA:-data/c4}
  # What follows after days is checked now.
  ! finetune_wanted || check_glue
  whole MAX_RESTARTS 0 1000
  check_training "$model" "$config" "$data"
  [[ -d $output || ! -e $output ]] || fault "OUTPUT=$output: is a file; name a directory"
  words PRETRAIN_OPTIONS
  reserved PRETRAIN_OPTIONS --model --data --output --deepspeed-config --dry-run
  stop_at_faults
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
  on_nodes python recipes/pretrain.py --model "$model" --data "$data" \
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

# The finetuning jobs of a finished run, if they are wanted.
then_finetune() { # model
  local model=${MODEL:-$1} job
  finetune_wanted || return 0
  export CHECKPOINT=${OUTPUT:-runs/${model#rapidbert-}}
  if job=$(submit slurm/finetune_glue.sh); then
    echo "finetuning: job $job"
  else
    echo "no job can be submitted from here; type: CHECKPOINT=$CHECKPOINT sbatch" \
      "slurm/finetune_glue.sh" >&2
  fi
}
