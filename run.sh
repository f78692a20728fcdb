#!/usr/bin/env bash
# RapidBERT from a fresh clone.
#
#   ./run.sh          set up, then the whole pipeline on this machine: text -> tokenizer -> shards ->
#                     pretraining -> finetuning -> report, on its GPUs or on the CPU in minutes
#   ./run.sh test     set up and run the tests (more words go to pytest)
#   ./run.sh bench    set up and measure this machine: a table, records in docs/results
#   ./run.sh cram     set up and compare RapidBERT with BERT after equal time (--minutes 20)
#   ./run.sh setup    only the environment, in .venv
#   ./run.sh wheels   a folder of wheels for a machine without a network (--python 3.12); there,
#                     WHEELS=folder before any of these commands sets up from it
#   ./run.sh lint     formatting, lint, types and shell scripts
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

base=${PYTHON:-python3}
export PYTHONUTF8=1 # text is UTF-8, whatever the locale says
venv=.venv
python=$venv/bin/python

check_python() {
  "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "run.sh: Python 3.11 or newer is needed; $base is $("$base" -V 2>&1)." \
      "Set PYTHON=/path/to/python3.11." >&2
    exit 1
  }
}

# The stamp holds what was installed, so that a changed pin installs again and an unchanged one
# costs nothing; what came from a folder of wheels serves later commands without it.
setup() {
  local stamp=$venv/.installed wanted torch
  check_python
  wanted=$("$base" -V; cat pyproject.toml constraints.txt)
  [[ -z ${WHEELS:-} ]] || wanted+=$(echo; cd "$WHEELS" && echo ./*.whl)
  [[ -f $stamp && $(<"$stamp") == "$wanted"* ]] && return
  echo "run.sh: installing into $venv (about two minutes) ..."
  # Wheels are installed by the other interpreter's pip; Debian's cannot give an environment its own.
  [[ -x $python ]] || "$base" -m venv ${WHEELS:+--without-pip} "$venv" || {
    echo "run.sh: $base cannot make a virtual environment (Debian: apt install python3-venv)." >&2
    exit 1
  }
  if [[ -n ${WHEELS:-} ]]; then
    # Not the package itself, which would need build tools: commands run from this directory.
    "$base" recipes/wheels.py install "$WHEELS" --into "$python"
    printf '%s\n' "$wanted" >"$stamp"
    return
  fi
  local install=("$python" -m pip --disable-pip-version-check install --quiet)
  torch=$(grep '^torch==' constraints.txt)
  # The package index has the CUDA build (several GB); a machine without a GPU asks PyTorch's own
  # index for the CPU build first.
  if ! has_gpu && ! "$python" -c 'import torch' 2>/dev/null; then
    "${install[@]}" --retries 0 --timeout 15 "$torch" \
      --index-url https://download.pytorch.org/whl/cpu 2>/dev/null ||
      echo "run.sh: PyTorch's CPU index is out of reach, taking $torch from the default index"
  fi
  # pip names its every mirror that lacks a package; what fails still prints ERROR.
  { "${install[@]}" "$torch" && "${install[@]}" -c constraints.txt -e '.[dev]'; } \
    2> >(grep -v '^WARNING: Location' >&2)
  printf '%s\n' "$wanted" >"$stamp"
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; }

# GPUs of this machine, or on the CPU two processes, so that the distributed code is what runs.
processes() {
  if has_gpu; then nvidia-smi -L | grep -c GPU; else echo 2; fi
}

demo() {
  local data=data/demo output=runs/demo
  say "1/5  text to tokenizer and token shards"
  "$python" recipes/prepare_data.py --output "$data" --vocab-size 4096 --validation-fraction 0.05
  say "2/5  pretraining, through the DeepSpeed launcher"
  "$venv/bin/deepspeed" --num_gpus "$(processes)" recipes/pretrain.py \
    --model rapidbert-tiny --data "$data" --output "$output" \
    --deepspeed_config ds_configs/tiny_cpu.json \
    --duration 16000 --learning-rate 1.5e-3 \
    --loader-workers 0 --log-every 50 --eval-every 250 --save-every 250
  say "3/5  held-out sentences with a word masked"
  "$python" recipes/fill_mask.py --checkpoint "$output" --data "$data"
  say "4/5  finetuning on eight tasks made from the same text: stand-ins, not GLUE"
  "$python" recipes/stand_in_tasks.py --output data/demo-glue
  # Higher than Table S1's learning rates, which are for models fifty times as large.
  "$python" recipes/glue.py --checkpoint "$output" --data data/demo-glue --seeds 1 \
    -- --learning-rate 4e-4 --epochs 2 --batch-size 16
  # The control: the same architecture on the first task without pretraining.
  "$python" recipes/glue.py --checkpoint "$output" --data data/demo-glue --seeds 1 --tasks cola \
    --from-scratch -- --learning-rate 4e-4 --epochs 2 --batch-size 16
  say "5/5  report"
  "$python" recipes/report.py "$output"
  echo
  echo "data        $data"
  echo "run         $output (weights, configuration and tokenizer in $output/export)"
  echo "scores      $output/glue/scores.md, scores.png"
  echo "curves      $venv/bin/tensorboard --logdir runs"
}

say() { printf '\n== %s\n' "$*"; }

command=${1:-demo}
[[ $# -gt 0 ]] && shift
case $command in
  demo | test | bench | cram | setup | lint) setup ;;
  wheels) check_python ;;
esac
if ! has_gpu; then
  export DS_ACCELERATOR=cpu # otherwise DeepSpeed looks for devices in every process, aloud
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
fi
case $command in
  setup) ;;
  demo) demo ;;
  # Two processes; a file's tests stay together, since they share what was trained for them.
  test) exec "$python" -m pytest -n 2 --dist loadfile "$@" ;;
  bench) exec "$python" recipes/benchmark.py all --output docs/results "$@" ;;
  cram) exec "$python" recipes/cram.py "$@" ;;
  wheels) exec "$base" recipes/wheels.py download "$@" ;;
  lint)
    "$venv/bin/ruff" format --check .
    "$venv/bin/ruff" check .
    "$venv/bin/mypy"
    git ls-files -z '*.sh' .ci/run | xargs -0 "$venv/bin/shellcheck"
    ;;
  -h | --help | help) sed -n '2,12s/^# \{0,1\}//p' run.sh ;;
  *)
    echo "run.sh: unknown command '$command'; see ./run.sh help" >&2
    exit 2
    ;;
esac
