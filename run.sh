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

# The `deepspeed` command begins with the path of its Python, which ends there at the first space,
# and so does PyTorch's compiler.
check_place() {
  [[ $PWD != *[[:space:]]* ]] || {
    echo "run.sh: '$PWD' has a space in it, and neither DeepSpeed's command nor PyTorch's compiler" \
      "runs there. Move the folder, for instance to '${PWD//[[:space:]]/-}'." >&2
    exit 2
  }
}

# The stamp holds what was installed, so that a changed pin installs again and an unchanged one
# costs nothing; what came from a folder of wheels serves later commands without it.
#
# The demonstration installs what it needs (`setup demo`), everything else installs all.
setup() {
  local stamp=$venv/.installed wanted torch packages=(-e '.[dev]')
  check_python
  check_place
  wanted=$("$base" -V; what_decides)
  [[ -z ${WHEELS:-} ]] || wanted+=$(echo; cd "$WHEELS" && echo ./*.whl)
  [[ -f $stamp && $(<"$stamp") == "$wanted"* ]] && return
  if [[ ${1:-} == demo ]]; then
    stamp=$venv/.installed-demo packages=(-e . transformers)
    [[ -f $stamp && $(<"$stamp") == "$wanted"* ]] && return
  fi
  echo "run.sh: installing into $venv (a minute or two, and the time of the downloads) ..."
  # pip from outside: Debian's cannot give an environment its own.
  [[ -x $python ]] || "$base" -m venv ${WHEELS:+--without-pip} "$venv" || {
    echo "run.sh: $base cannot make a virtual environment (Debian: apt install python3-venv)." >&2
    exit 1
  }
  if [[ -n ${WHEELS:-} ]]; then
    install_wheels
    printf '%s\n' "$wanted" >"$stamp"
    return
  fi
  local install=("$python" -m pip --disable-pip-version-check install --quiet --no-compile)
  torch=$(grep '^torch==' constraints.txt)
  # The package index has the CUDA build (several GB); a machine without a GPU asks PyTorch's own
  # index for the CPU build first.
  if ! has_gpu && ! "$python" -c 'import torch' 2>/dev/null; then
    "${install[@]}" --retries 0 --timeout 15 "$torch" \
      --index-url https://download.pytorch.org/whl/cpu 2>/dev/null ||
      echo "run.sh: PyTorch's CPU index is out of reach, taking $torch from the default index"
  fi
  # pip names its every mirror that lacks a package; what fails still prints ERROR.
  { "${install[@]}" "$torch" && "${install[@]}" -c constraints.txt "${packages[@]}"; } \
    2> >(grep -v '^WARNING: Location' >&2)
  # pip would do it on one core; what cannot be compiled is no module of ours.
  "$python" -m compileall -q -j 0 -x '/(tests?|testing|transformers/models)/' \
    "$venv"/lib/python*/site-packages >/dev/null 2>&1 || true
  printf '%s\n' "$wanted" >"$stamp"
}

# What decides the installation: of pyproject.toml not the settings of pytest, ruff and the like.
what_decides() {
  awk '/^\[/ { decides = !/^\[+tool\./ || /^\[tool\.setuptools/ } decides' pyproject.toml
  cat constraints.txt
}

# Everything in the folder, and behind it PyTorch of the interpreter that runs this.
install_wheels() {
  local pip=("$base" -m pip --python "$python" --disable-pip-version-check)
  compgen -G "$WHEELS/*.whl" >/dev/null || {
    echo "run.sh: no wheels in $WHEELS; './run.sh wheels' fills it." >&2
    exit 2
  }
  if ! compgen -G "$WHEELS/torch-*.whl" >/dev/null; then
    local torch
    torch=$("$base" -c 'import importlib.util as u; print(u.find_spec("torch").origin)' 2>/dev/null) || {
      echo "run.sh: neither $WHEELS nor $base has PyTorch; set PYTHON to an interpreter that has it," \
        "or fill the folder with --with-torch." >&2
      exit 2
    }
    # The line of a .pth file goes to the end of the search path: the wheels come first.
    dirname "$(dirname "$torch")" \
      >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth"
  fi
  "${pip[@]}" install --quiet --no-index --no-deps --ignore-installed "$WHEELS"/*.whl
  "${pip[@]}" check || echo "run.sh: not all is there (above); the commands that need it will say so"
}

# Fill a folder with the wheels that another machine lacks: uv resolves for its Python, pip brings
# them. PyTorch is left out, with what only it needs, unless asked for: it is gigabytes.
wheels() {
  local output=.whl have=/dev/null version work names=() excluded=(torch)
  version=$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  while (($#)); do
    case $1 in
      --with-torch) excluded=() && shift ;;
      --python) version=${2:?--python needs a version} && shift 2 ;;
      --output) output=${2:?--output needs a folder} && shift 2 ;;
      --have) have=${2:?--have needs a file} && shift 2 ;;
      --only) shift && while (($#)) && [[ $1 != --* ]]; do names+=("$1") && shift; done ;;
      *)
        echo "run.sh: wheels takes --python 3.12, --output FOLDER, --have FILE (pip list" \
          "--format=freeze of the other machine), --only NAME ..., --with-torch; not '$1'." >&2
        exit 2
        ;;
    esac
  done
  [[ $have == /dev/null ]] || grep -q '==' "$have" || {
    echo "run.sh: $have: no line like name==version; 'pip list --format=freeze' prints them." >&2
    exit 2
  }
  work=$(mktemp -d)
  # shellcheck disable=SC2064  # the folder of now
  trap "rm -rf '$work'" EXIT
  "$base" -m venv "$work/venv"
  local pip=("$work/venv/bin/python" -m pip --disable-pip-version-check --quiet)
  "${pip[@]}" install uv
  # Versions that are there stay where they will do: uv prefers what its output file has.
  sed -E 's/[_.]+(.*==)/-\1/; :a; s/^([^=]*)[_.]([^=]*==)/\1-\2/; ta' "$have" | tr '[:upper:]' '[:lower:]' >"$work/there"
  cp "$work/there" "$work/wanted"
  awk -F== 'FILENAME == ARGV[1] { have[$1]; next } !($1 in have)' "$work/there" constraints.txt \
    >"$work/constraints"
  ((${#excluded[@]} == 0)) || sed -i '/^torch==/d' "$work/constraints"
  printf '%s\n' "${excluded[@]}" >"$work/excluded"
  printf '%s\n' "${names[@]}" >"$work/only.in"
  "$work/venv/bin/uv" pip compile --quiet --no-header --no-annotate --output-file "$work/wanted" \
    --python-version "$version" --python-platform "$(uname -m)-manylinux_2_28" \
    --constraints "$work/constraints" --excludes "$work/excluded" \
    "$( ((${#names[@]})) && echo "$work/only.in" || echo pyproject.toml)"
  awk -F== '{ version = $2; while (sub(/\.0$/, "", version)) {} }
    FILENAME == ARGV[1] { have[$1] = version; next } have[$1] != version' \
    "$work/there" "$work/wanted" >"$work/missing"
  mkdir -p "$output"
  rm -f "$output"/*.whl
  # Published as source alone, and pure Python (DeepSpeed until it compiles its operations).
  local source='^(deepspeed|seqeval)=='
  if grep -E "$source" "$work/missing" >"$work/source"; then
    DS_BUILD_OPS=0 "${pip[@]}" wheel --no-deps --wheel-dir "$output" -r "$work/source"
  fi
  grep -vE "$source" "$work/missing" >"$work/binary" || true
  local platforms=() minor
  for minor in {28..17}; do platforms+=(--platform "manylinux_2_${minor}_$(uname -m)"); done
  [[ ! -s $work/binary ]] || "${pip[@]}" download --no-deps --only-binary :all: --dest "$output" \
    --implementation cp --python-version "$version" "${platforms[@]}" \
    --platform "manylinux2014_$(uname -m)" -r "$work/binary"
  du -ah --apparent-size "$output" | sort -h
}

# Signs of a GPU: nvidia-smi, which may be missing, as in many containers, or be there without a GPU,
# and device files, which may be there for a PyTorch that cannot use them. So where PyTorch is
# installed it decides; before that the signs do.
has_gpu() {
  local devices=${RAPIDBERT_DEV:-/dev} # another folder in tests
  [[ -n ${CUDA_VISIBLE_DEVICES-all} && ${CUDA_VISIBLE_DEVICES-all} != -1 ]] || return 1
  nvidia-smi -L 2>/dev/null | grep -q '^GPU ' ||
    compgen -G "$devices/nvidia[0-9]*" >/dev/null ||
    [[ -e $devices/nvidiactl || -e $devices/dxg || -e $devices/kfd ]] || return 1
  # Asked once: the import takes seconds.
  [[ -n ${torch_sees:-} ]] ||
    torch_sees=$("$python" -c 'import torch; print(torch.cuda.is_available())' 2>/dev/null) || true
  [[ ${torch_sees:-True} == True ]]
}

# GPUs of this machine, or on the CPU two processes, so that the distributed code is what runs.
# The launcher's usual port may be another run's.
free_port() {
  "$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

processes() {
  if has_gpu; then "$python" -c 'import torch; print(torch.cuda.device_count() or 2)'; else echo 2; fi
}

# DEMO=small: every stage at its smallest, for a look at whether all of it works here.
demo() {
  local data=data/demo tasks=data/demo-glue output=runs/demo sequences=9600 chosen=()
  local began=$SECONDS before=0
  # Higher than Table S1's learning rates, which are for models fifty times as large.
  local finetuning=(--learning-rate 4e-4 --epochs 2 --batch-size 16)
  if [[ ${DEMO:-} == small ]]; then
    sequences=160 chosen=(--tasks cola) finetuning+=(--max-train 64)
  fi
  say "1/5  text to tokenizer and token shards, and eight finetuning tasks made from it" 5
  behind "$python" recipes/stand_in_tasks.py --output "$tasks" --train 2000
  "$python" recipes/prepare_data.py --output "$data" --vocab-size 4096 --validation-fraction 0.05
  catch_up
  say "2/5  pretraining of a small model on $sequences sequences, two processes of DeepSpeed;
     ETA in its lines is the time left" 131
  "$venv/bin/deepspeed" --quiet --num_gpus "$(processes)" --master_port "$(free_port)" recipes/pretrain.py \
    --model rapidbert-tiny --data "$data" --output "$output" \
    --deepspeed_config ds_configs/tiny_cpu.json \
    --duration "$sequences" --learning-rate 1.5e-3 \
    --loader-workers 0 --log-every 50 --eval-every 200 --save-every 200
  say "3/5  what it has learned: held-out sentences with a word masked" 7
  # The control: the same architecture on the first task without pretraining.
  behind "$python" recipes/glue.py --checkpoint "$output" --data "$tasks" --seeds 1 --tasks cola \
    --from-scratch -- "${finetuning[@]}"
  "$python" recipes/fill_mask.py --checkpoint "$output" --data "$data"
  say "4/5  finetuning on the eight tasks (stand-ins, not GLUE), and on one without pretraining" 93
  "$python" recipes/glue.py --checkpoint "$output" --data "$tasks" --seeds 1 "${chosen[@]}" \
    -- "${finetuning[@]}"
  catch_up
  say "5/5  the report, and the model in plain transformers" 6
  behind env HF_HUB_OFFLINE=1 TQDM_DISABLE=1 "$python" -c "$(in_transformers "$output/export")"
  "$python" recipes/report.py "$output"
  printf '\nIn Python, with transformers alone:\n\n'
  in_transformers "$output/export" | sed 's/^/    /'
  echo
  catch_up
  cat <<END

Done in $(((SECONDS - began) / 60)) min $(((SECONDS - began) % 60)) s. What there is:
  report     $output/report.html (open it in a browser), $output/report.md
  model      $output/export (a directory of transformers)
  scores     $output/glue/scores.md; without pretraining: $output/glue-from-scratch/scores.md
Next:
  source $venv/bin/activate
  tensorboard --logdir runs
  python recipes/prepare_data.py --input YOUR_FOLDER --output data/mine --vocab-size 4096
  deepspeed --quiet recipes/pretrain.py --model rapidbert-tiny --data data/mine --output runs/mine \\
      --deepspeed_config ds_configs/tiny_cpu.json --duration 10000 --learning-rate 1.5e-3
docs/your-own-domain.md goes on from there; every command explains itself with --help.
END
}

in_transformers() {
  cat <<END
from transformers import pipeline
fill = pipeline("fill-mask", "$1", trust_remote_code=True)
for guess in fill("return [MASK] if the file exists.", top_k=3):
    print(f"{guess['score']:.0%}", guess["sequence"])
END
}

# A stage's title, and how long it takes: $2 are the seconds on two idle cores
# (docs/results/demo_cpu.json). Once stages of 60 s or more are done, what they took here scales it.
say() {
  local about="took $2 s on two idle cores"
  if [[ ${DEMO:-} == small ]]; then
    about="not measured at this size"
  elif has_gpu; then
    about+="; on this GPU not measured"
  elif ((before >= 60)); then
    about=$(($2 * (SECONDS - began) / before))
    about=$( ((about < 100)) && echo "about $about s" || echo "about $(((about + 30) / 60)) min")
    about+=", judged by the stages before"
  fi
  before=$((before + $2))
  printf '\n== %s (%s)\n' "$1" "$about"
}

# `behind COMMAND` runs it beside what follows; `catch_up` waits for it and shows what it said. A
# command that failed ends the script.
behind() {
  held=$(mktemp)
  "$@" >"$held" 2>&1 &
  behind=$!
  # shellcheck disable=SC2064  # the process of now
  trap "kill $behind 2>/dev/null; rm -f '$held'" EXIT
}

catch_up() {
  local status=0
  wait "$behind" || status=$?
  cat "$held"
  rm -f "$held"
  trap - EXIT
  return "$status"
}

command=${1:-demo}
[[ $# -gt 0 ]] && shift
case $command in
  demo) setup demo ;;
  test | bench | cram | setup | lint) setup ;;
  wheels) check_python ;;
esac
if ! has_gpu; then
  [[ -z ${torch_sees:-} ]] ||
    echo "run.sh: this machine has signs of a GPU that PyTorch cannot use; going on on the CPU" >&2
  export DS_ACCELERATOR=cpu # otherwise DeepSpeed looks for devices in every process, aloud
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
fi
case $command in
  setup) ;;
  demo) demo ;;
  # Two processes; a file's tests stay together, since they share what was trained for them. The
  # slowest files come first, as tests/conftest.py orders them.
  test) exec "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@" ;;
  bench) exec "$python" recipes/benchmark.py all --output docs/results "$@" ;;
  cram) exec "$python" recipes/cram.py "$@" ;;
  wheels) wheels "$@" ;;
  lint)
    "$venv/bin/ruff" format --check .
    "$venv/bin/ruff" check .
    "$venv/bin/mypy"
    "$venv/bin/lint-imports" --no-cache >/dev/null || "$venv/bin/lint-imports" --no-cache
    git ls-files -z '*.sh' .ci/run | xargs -0 "$venv/bin/shellcheck"
    ;;
  -h | --help | help) sed -n '2,12s/^# \{0,1\}//p' run.sh ;;
  *)
    echo "run.sh: unknown command '$command'; see ./run.sh help" >&2
    exit 2
    ;;
esac
