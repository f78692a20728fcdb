#!/usr/bin/env bash
# Finetune on GLUE: an array job over tasks and seeds, RTE, MRPC and STS-B after MNLI, then a job
# that writes the score table.
#
#   CHECKPOINT=runs/base sbatch slurm/finetune_glue.sh      submitted again, it skips what is done
#
# Submitted like this it takes seconds: it submits the others. Settings, from the environment:
#   CHECKPOINT     runs/base             a run's directory, or an export
#   GLUE_OUTPUT    $CHECKPOINT/glue
#   GLUE_OPTIONS                         more options for recipes/glue.py (--data, --tasks,
#                                        --seeds, and after -- those of recipes/finetune.py),
#                                        on any number of lines, quotes as in a shell
#SBATCH --job-name=glue
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --time=8:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this with sbatch}"
source slurm/job.sh

export CHECKPOINT=${CHECKPOINT:-runs/base}
output=${GLUE_OUTPUT:-$CHECKPOINT/glue}
check_glue
reserved GLUE_OPTIONS --checkpoint --output --dry-run
whole TASK_END_SECONDS 1 86400
[[ -d $CHECKPOINT ]] || fault "CHECKPOINT=$CHECKPOINT: no such directory"
case ${GLUE_STAGE:-plan} in
  plan | job | report) ;;
  *) fault "GLUE_STAGE=$GLUE_STAGE: this script sets it for its jobs; unset it" ;;
esac
stop_at_faults

glue() { on_nodes python slurm/glue_array.py "$1" --checkpoint "$CHECKPOINT" --output "$output" "${options[@]}"; }

case ${GLUE_STAGE:-plan} in
  plan)
    # Two lines: the jobs that can start at once, MNLI the first of them, and those after MNLI.
    arrays=$(glue list)
    mapfile -t lines < <(grep -E '^(now|after-mnli) ' <<<"$arrays")
    export GLUE_STAGE=job
    array_log=slurm/logs/%x-%A_%a.log
    now=$(submit --job-name=glue-tasks --output="$array_log" --array="${lines[0]#now }" --gpus-per-node=1 \
      --cpus-per-task="$CPUS_PER_GPU" slurm/finetune_glue.sh)
    all=$now
    if [[ ${lines[1]} != "after-mnli " ]]; then
      after=$(submit --job-name=glue-after-mnli --output="$array_log" --array="${lines[1]#after-mnli }" \
        --gpus-per-node=1 --cpus-per-task="$CPUS_PER_GPU" --dependency="afterok:${now}_0" \
        --kill-on-invalid-dep=yes slurm/finetune_glue.sh)
      all=$now:$after
    fi
    export GLUE_STAGE=report
    report=$(submit --job-name=glue-report --dependency="afterany:$all" slurm/finetune_glue.sh)
    echo "tasks: jobs ${all/:/ and }; report: job $report -> $output/scores.md"
    ;;
  job) glue job ;;
  report) glue report ;;
esac
