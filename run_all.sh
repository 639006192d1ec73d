#!/usr/bin/env bash
# Set up what is missing, then execute the notebooks (./run_all.sh --help), the tests (tests), JupyterLab (lab) or a batch job (slurm).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export PYTHONNOUSERSITE=1 CONDA_ALWAYS_YES=true MAMBA_ALWAYS_YES=true # packages of the user's own would shadow the pins
python=.venv/bin/python

step() { # step NAME ADVICE COMMAND...: run one step of the set-up; say which one failed and what to do
    local name=$1 advice=$2
    shift 2
    echo "set-up: $name" >&2
    "$@" </dev/null >.setup.log 2>&1 && return
    tail -n 15 .setup.log >&2 || true
    printf '\nset-up failed: %s\n  %s\n  All output: .setup.log. The next call goes on from this step.\n' "$name" "$advice" >&2
    exit 1
}

satisfies() { # satisfies PYTHON: does it hold every package that environment.yml pins?
    "$1" - <<'END' 2>/dev/null
import re, sys
from importlib.metadata import version
pins = re.findall(r"^ +- ([\w.-]+)==([\w.]+)", open("environment.yml").read(), flags=re.MULTILINE)
sys.exit(sys.version_info < (3, 11) or any(version(name).split("+")[0] != pin for name, pin in pins))
END
}

find_python() { # the first Python of this machine that is new enough and can make an environment
    local name
    for name in python3.11 python3.12 python3.13 python3 python; do
        "$name" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v "$name" && return
    done
    false
}

set_up_with_conda() {
    local verb=create
    [ -d .venv/conda-meta ] && verb=update
    step "conda environment in .venv ($verb)" "Is the network there, the disk full? To use pip instead: rm -rf .venv, and hide conda from PATH." \
        "$conda" env "$verb" --prefix ./.venv --file environment.yml
}

set_up_with_pip() {
    local pins network="Is the network there, the disk full (4 GB are needed)? Then call again."
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        step "Python 3.11 or newer" "Install python3.11 with its venv module (Debian, Ubuntu: apt install python3.11-venv), or conda." find_python
        step "environment .venv" "Is the disk full? rm -rf .venv, then call again." "$(find_python)" -m venv --clear .venv
    fi
    pins=$(sed -n 's/^ *- \([A-Za-z][^ ]*==[^ ]*\).*/\1/p' environment.yml)
    # torch first and alone: nothing that comes after may ask for another
    step "torch" "$network" "$python" -m pip install --constraint environment.lock "$(grep -x 'torch==.*' <<<"$pins")"
    step "packages" "$network" "$python" -m pip install --constraint environment.lock $pins
    step "this project" "$network" "$python" -m pip install --no-deps --editable .
}

wanted=$(cat environment.yml environment.lock | cksum)
if [ -n "${CONDA_PREFIX:-}" ] && satisfies "$CONDA_PREFIX/bin/python"; then
    python=$CONDA_PREFIX/bin/python
elif [ "$(cat .venv/.set-up-for 2>/dev/null)" != "$wanted" ]; then
    conda=$(command -v mamba || command -v conda || true)
    if [ -n "$conda" ] && { [ -d .venv/conda-meta ] || [ ! -e .venv ]; }; then set_up_with_conda; else set_up_with_pip; fi
    echo "$wanted" >.venv/.set-up-for # written last: a set-up that was cut short is gone on with
fi

case "${1:-}" in
tests) exec "$python" -m pytest "${@:2}" ;;
slurm)
    command -v sbatch >/dev/null || { echo "refused: there is no sbatch here; call this on a login node of a Slurm cluster" >&2; exit 2; }
    exec sbatch lib/knowledge/slurm.sh "${@:2}"
    ;;
--fill) PYTHONPATH=$PWD exec "$python" -m tests.fill "${@:2}" ;;
lab) JUPYTER_PREFER_ENV_PATH=1 PYTHONPATH=$PWD exec "$python" -m jupyterlab "${@:2}" ;;
*) exec "$python" -m lib.batch "$@" ;;
esac
