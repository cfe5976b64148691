#!/usr/bin/env bash
# Writes the list of parts of an environment in CycloneDX 1.6: every package with its release and licence. Needs a package
# index for the tool.
#
#     docker/parts.sh                                       # of .venv, to parts.cdx.json
#     docker/parts.sh /opt/venv/bin/python image.cdx.json   # in an image's environment
set -euo pipefail
root=$(realpath "$(dirname "$0")/..")
python=${1:-$root/.venv/bin/python}
out=${2:-parts.cdx.json}
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m venv "$tools"
"$tools/bin/pip" install --quiet --disable-pip-version-check 'cyclonedx-bom==7.5.0'
"$tools/bin/cyclonedx-py" environment --pyproject "$root/pyproject.toml" --mc-type application --spec-version 1.6 \
    --output-reproducible --validate --output-file "$out" "$python"
echo "$out"
