#!/usr/bin/env bash
# Writes docker/lock.txt: the exact release of every package that the images install by default, with the SHA-256 of its
# files. torch is left out, and what its builds for CUDA bring: its wheel depends on the package index, so constraints.txt
# and constraints-gpu.txt pin its release. No address of an index gets into the file. Needs a package index.
#
#     docker/lock.sh                # newest releases, as pip would take them
#     docker/lock.sh --check        # says what of pyproject.toml the file does not hold, and changes nothing
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m venv "$tools"
"$tools/bin/pip" install --quiet --disable-pip-version-check uv==0.13.9
of_torch=(torch triton)
compile() {
    local excluded=()
    for name in "${of_torch[@]}"; do excluded+=(--no-emit-package "$name"); done
    "$tools/bin/uv" pip compile pyproject.toml --quiet --constraint constraints.txt --generate-hashes --no-annotate \
        --no-emit-index-url --no-emit-find-links --no-header --python-version 3.11 \
        --python-platform x86_64-manylinux_2_28 "${excluded[@]}" --output-file "$1"
}
# The packages for CUDA have names of their own; nvidia-ml-py is ours.
compile "$tools/all.txt"
mapfile -t cuda < <(sed -nE 's/^((nvidia|cuda)-[a-z0-9-]+)==.*/\1/p' "$tools/all.txt" | grep -vx nvidia-ml-py)
of_torch+=("${cuda[@]}")
if [[ ${1:-} == --check ]]; then
    cp docker/lock.txt "$tools/lock.txt"
    compile "$tools/lock.txt"  # keeps the releases that are in the file, as long as they fit
    tail -n +3 docker/lock.txt | diff - "$tools/lock.txt" && echo "docker/lock.txt fits pyproject.toml."
    exit
fi
compile "$tools/lock.txt"
{
    echo "# Written by docker/lock.sh: every package of the images but torch. Python 3.11 on Linux."
    echo
    cat "$tools/lock.txt"
} > docker/lock.txt
