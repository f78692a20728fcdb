#!/usr/bin/env bash
# RapidBERT, from a fresh clone: ./run.sh sets up and runs everything; ./run.sh help lists the rest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

venv=.venv
python=$venv/bin/python

# Everything below runs in .venv. The stamp holds the checksum of what was installed, so that a
# changed pin installs again and an unchanged one costs nothing.
setup() {
  local base=${PYTHON:-python3} stamp=$venv/.installed wanted
  "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "run.sh: Python 3.11 or newer is needed, $base is $("$base" -V 2>&1). Set PYTHON=/path/to/python3.11." >&2
    exit 1
  }
  wanted=$(cat pyproject.toml constraints.txt | sha256sum)
  [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && return
  echo "run.sh: installing into $venv (about 2 minutes) ..."
  [[ -x $python ]] || "$base" -m venv "$venv"
  local pip=("$python" -m pip --disable-pip-version-check install --quiet)
  local torch
  torch=$(grep '^torch==' constraints.txt)
  # The package index gives the CUDA build (several GB). Without a GPU take PyTorch's own CPU build.
  if ! "$python" -c 'import torch' 2>/dev/null && ! command -v nvidia-smi >/dev/null; then
    "${pip[@]}" --retries 0 --timeout 10 --index-url https://download.pytorch.org/whl/cpu "$torch" 2>/dev/null ||
      echo "run.sh: PyTorch's CPU index is out of reach; taking $torch from the default index." >&2
  fi
  "${pip[@]}" "$torch"
  "${pip[@]}" -c constraints.txt -e '.[dev]'
  printf '%s\n' "$wanted" >"$stamp"
}

case ${1:-demo} in
  setup) setup ;;
  *) echo "run.sh: unknown command '$1'" >&2; exit 2 ;;
esac
