#!/usr/bin/env bash
# Checks a machine with an NVIDIA GPU: runs the tests marked gpu, then `mae bench --compare` (torch as a baseline, and the
# roofline) for three sizes of model. Takes at most ten minutes; exits with 1 if anything failed, with 2 if it could not
# start.
#
#   docker/gpu_check.sh                          on the host, in the project's environment (.venv, or PYTHON=…), made by
#                                                `make test` and `.venv/bin/pip install -e '.[tensorrt]'`
#
#   docker run --rm --gpus all --volume "$PWD:/checkout" --workdir /checkout --user "$(id -u):$(id -g)" \
#       --env HOME=/tmp --env MAE_ENGINE_CACHE=/tmp/engines IMAGE docker/gpu_check.sh
#                                                in the gpu image, with a checkout of the same version, since the image
#                                                holds no tests. The base image's pip fetches pytest and httpx; without
#                                                a network, put them there before:
#                                                pip install --target gpu-check-tools pytest httpx
#
# OUT         folder for the results (gpu-check-DATE)
# TOOLS       folder with pytest and httpx, for an environment without them (gpu-check-tools)
# BUDGET      seconds in total (600); each step has a limit of its own, and the last one gets the remaining time
# BACKEND     engine to measure (tensorrt)
# PROVE=1     tries this script on a machine without a GPU: no nvidia-smi, and the tests run on BACKEND, 200 batches
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

BACKEND=${BACKEND:-tensorrt}
OUT=${OUT:-gpu-check-$(date +%Y%m%d-%H%M%S)}
TOOLS=${TOOLS:-gpu-check-tools}
BUDGET=${BUDGET:-600}
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python3
    [[ ! -x .venv/bin/python ]] || PYTHON=.venv/bin/python
fi
PYTHON=$(command -v "$PYTHON") || { echo "there is no $PYTHON" >&2; exit 2; }
MAE=$(dirname "$PYTHON")/mae
[[ -x $MAE ]] || MAE=$(command -v mae) || { echo "there is no mae beside $PYTHON, nor on the path" >&2; exit 2; }
mkdir -p "$OUT" || exit 2
# This checkout's code, whatever is installed: tests and code have to be of one version.
unset MAE_MODEL MAE_WEIGHTS # each benchmark names its own
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

if ! "$PYTHON" -c 'import pytest, httpx' 2>/dev/null; then
    if [[ ! -d $TOOLS ]]; then
        # The environment of an image has no pip, but the Python that it was made from has.
        base=$("$PYTHON" -c 'import sys; print(sys.base_prefix)')/bin/python3
        "$base" -m pip install --quiet --target "$TOOLS" pytest httpx >"$OUT/tools.log" 2>&1 ||
            { cat "$OUT/tools.log" >&2; echo "pytest and httpx are missing: see the head of $0" >&2; exit 2; }
    fi
    export PYTHONPATH=$PYTHONPATH:$PWD/$TOOLS
    "$PYTHON" -c 'import pytest, httpx' || exit 2
fi

failed=()
step() { # step NAME SECONDS COMMAND…: runs it for at most SECONDS, within the budget; shows and keeps its output
    local name=$1 limit=$2 remaining code
    shift 2
    remaining=$((BUDGET - SECONDS))
    ((limit <= remaining)) || limit=$remaining
    printf '\n== %s: %s\n' "$name" "$*" | tee -a "$OUT/log.txt"
    if ((limit <= 0)); then
        code="no time was left"
    else
        timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$OUT/$name.txt" | tee -a "$OUT/log.txt"
        code=${PIPESTATUS[0]}
        ((code != 124 && code != 137)) || code="not finished after $limit s"
    fi
    if [[ $code != 0 ]]; then
        failed+=("$name")
        echo "FAILED $name: $code" | tee -a "$OUT/log.txt"
    fi
}
bench() { # bench PRESET SECONDS
    step "bench-$1" "$2" "$MAE" bench --model "$1" --backend "$BACKEND" --compare --seconds 0.2 --json "$OUT/$1.json"
}

tests=("$PYTHON" -m pytest -m gpu tests/gpu -p no:cacheprovider --durations 10)
if [[ -n ${PROVE:-} ]]; then
    tests+=(--gpu-backend "$BACKEND" --gpu-batches 200)
else
    step nvidia-smi 20 nvidia-smi
    # Without a GPU all tests would be skipped, and nothing would fail.
    step cuda 60 "$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "torch finds no GPU"; print(
        torch.__version__, torch.version.cuda, torch.cuda.get_device_name(), torch.cuda.get_device_capability())'
fi
step tests 270 "${tests[@]}"
bench mae_tiny 90
bench mae_base 130
bench mae_large "$BUDGET"

printf '\n%s s, results in %s\n' "$SECONDS" "$OUT" | tee -a "$OUT/log.txt"
if ((${#failed[@]})); then
    echo "FAILED: ${failed[*]}" | tee -a "$OUT/log.txt"
    exit 1
fi
echo "all passed" | tee -a "$OUT/log.txt"
