#!/usr/bin/env bash
# Measures everything that matters on a machine with an NVIDIA GPU, in six minutes at most, from this checkout; the host
# needs no network. docker/README.md, "On a GPU", says what to run before, and how to read the table.
#
#   docker/gpu_check.sh            on the host
#   docker run --rm --gpus all --volume "$PWD:/checkout" --workdir /checkout --user "$(id -u):$(id -g)" \
#       --env HOME=/tmp --env MAE_ENGINE_CACHE=/tmp/engines --env BACKEND=tensorrt IMAGE docker/gpu_check.sh
#                                  in the gpu image, with a checkout of the same version; the image lacks two packages:
#                                  docker/gpu_wheels.sh --python 3.11 --with pytest --with httpx
#
# WHEELS      folder that docker/gpu_wheels.sh has filled (gpu-wheels); without it, the environment must have everything
# OUT         folder for the results, five files (gpu-check-DATE); it must be new or empty
# BUDGET      seconds in total (360)
# BACKEND     engine to measure: torch (the default) or tensorrt
# IMAGES      photographs for the pretraining, anything that `mae pretrain` takes; by default JPEGs are generated
# PYTHON      python3, or .venv/bin/python where that exists
# PROVE=1     runs every step with small numbers on the CPU, which shows that the check works and nothing about speed
#
# Exit code: 0 if nothing failed, 1 if something did, 2 if the check could not start, 143 or 130 if SIGTERM or SIGINT
# ended it. A step that a bound cuts off does not fail: the table names what was left out.
set -uo pipefail
case ${1-} in
    -h | --help)
        sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
esac
[[ $# -eq 0 ]] || { echo "gpu_check.sh takes no argument but --help, and this is one: $1" >&2; exit 2; }
cd "$(dirname "$0")/.." || exit 2
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python3
    [[ ! -x .venv/bin/python ]] || PYTHON=.venv/bin/python
fi
command -v "$PYTHON" >/dev/null || { echo "there is no $PYTHON" >&2; exit 2; }
export PYTHONPATH=$PWD/docker${PYTHONPATH:+:$PYTHONPATH}
exec "$PYTHON" -m gpu_check
