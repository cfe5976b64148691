#!/usr/bin/env bash
# Fills a folder with the packages that docker/gpu_check.sh needs on a host without a network, in parts of at most
# 20 MiB; --help lists the options.
#
#   docker/gpu_wheels.sh --python 3.12                  here, where there is a network: fills gpu-wheels
#   docker/gpu_wheels.sh --join gpu-wheels -o joined    there, if the parts came one by one (gpu_check.sh joins a folder
#                                                       that has all of them by itself)
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_check/wheels.py" "$@"
