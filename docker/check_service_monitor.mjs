// Checks a ServiceMonitor, JSON on standard input, against the schema of the operator's CustomResourceDefinition.
// docker/check_manifests.sh copies this file next to the installed package, where Node looks for it.
import { readFileSync } from "node:fs";
import { ServiceMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";

const monitor = new ServiceMonitor(JSON.parse(readFileSync(0, "utf8")));
monitor.validate();
console.log(`servicemonitor/${monitor.metadata.name} fits its schema`);
