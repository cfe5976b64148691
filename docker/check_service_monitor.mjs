// Whether a ServiceMonitor, JSON on standard input, fits the schema of the operator's CustomResourceDefinition.
// docker/check_manifests.sh copies it to where the package is installed, since Node looks there.
import { readFileSync } from "node:fs";
import { ServiceMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";

const monitor = new ServiceMonitor(JSON.parse(readFileSync(0, "utf8")));
monitor.validate();
console.log(`servicemonitor/${monitor.metadata.name} fits its schema`);
