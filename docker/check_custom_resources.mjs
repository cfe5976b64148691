// Checks resources, a list in JSON on standard input, against the schemas of their operators' CustomResourceDefinitions.
// docker/check_manifests.sh copies this file next to the installed packages, where Node looks for them.
import { readFileSync } from "node:fs";
import { ScaledObject } from "@kubernetes-models/keda/keda.sh/v1alpha1";
import { ServiceMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";

const kinds = { ScaledObject, ServiceMonitor };
for (const resource of JSON.parse(readFileSync(0, "utf8"))) {
  new kinds[resource.kind](resource).validate();
  console.log(`${resource.kind.toLowerCase()}/${resource.metadata.name} fits its schema`);
}
