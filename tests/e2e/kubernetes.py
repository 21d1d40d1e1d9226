#!/usr/bin/env python3
"""Holds docker/k8s against Kubernetes' own schemas, and against the server: paths, ports, labels and times that must agree.

    tests/e2e/kubernetes.py --server build/cpu-release/headroom
"""

import argparse
import copy
import json
import os
import sys

from harness import ROOT, Server, Skipped, run_tests, use_venv

FOLDER = os.path.join(ROOT, "docker/k8s")

# The parts of the two custom resources that are used, after their published definitions (prometheus-operator's PodMonitor v1, the Gateway
# API Inference Extension's InferencePool v1). Nothing else is allowed, so that a typing error shows.
LABELS = {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string", "maxLength": 63}}
SELECTOR = {"type": "object", "required": ["matchLabels"], "additionalProperties": False, "properties": {"matchLabels": LABELS}}
PORT = {"type": "object", "required": ["number"], "additionalProperties": False,
        "properties": {"number": {"type": "integer", "minimum": 1, "maximum": 65535}}}
CUSTOM = {
    ("monitoring.coreos.com/v1", "PodMonitor"): {
        "required": ["selector", "podMetricsEndpoints"], "additionalProperties": False, "properties": {
            "selector": SELECTOR,
            "podMetricsEndpoints": {"type": "array", "minItems": 1, "items": {
                "type": "object", "additionalProperties": False, "properties": {
                    "port": {"type": "string"}, "path": {"type": "string", "pattern": "^/"},
                    "interval": {"type": "string", "pattern": r"^(\d+h)?(\d+m)?(\d+s)?(\d+ms)?$"}}}}}},
    ("inference.networking.k8s.io/v1", "InferencePool"): {
        "required": ["selector", "targetPorts"], "additionalProperties": False, "properties": {
            "selector": SELECTOR, "targetPorts": {"type": "array", "minItems": 1, "maxItems": 8, "items": PORT},
            "endpointPickerRef": {"type": "object", "required": ["name"], "additionalProperties": False, "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 253}, "group": {"type": "string"}, "kind": {"type": "string"},
                "port": PORT, "failureMode": {"enum": ["FailOpen", "FailClose"]}}}}},
}


def libraries():
    try:
        import jsonschema
        import kubernetes_validate
        import yaml
    except ImportError:
        raise Skipped("the package kubernetes-validate is not installed; ./dev test installs it into build/venv") from None
    return jsonschema, kubernetes_validate, yaml


def manifests():
    with open(os.path.join(FOLDER, "headroom.yaml")) as file:
        return {document["kind"]: document for document in libraries()[2].safe_load_all(file)}


def validate(document):
    jsonschema, kubernetes_validate, _ = libraries()
    schema = CUSTOM.get((document["apiVersion"], document["kind"]))
    if schema is None:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    else:
        jsonschema.validate(document["spec"], {"type": "object", **schema})
        assert set(document) == {"apiVersion", "kind", "metadata", "spec"}, document


def is_valid(document):
    try:
        validate(document)
    except Exception as error:  # noqa: B902: either library's own
        assert type(error).__module__.startswith(("kubernetes_validate", "jsonschema")), error
        return False
    return True


def tests(binary):
    def every_manifest_is_valid():
        found = manifests()
        assert set(found) == {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "PodMonitor", "InferencePool"}
        for document in found.values():
            validate(document)
            changed = copy.deepcopy(document)  # what it must notice
            changed["spec"]["selectr"] = {}
            assert not is_valid(changed), document["kind"]
        wrong_type = copy.deepcopy(found["Deployment"])
        wrong_type["spec"]["replicas"] = "two"
        unknown_port = copy.deepcopy(found["InferencePool"])
        unknown_port["spec"]["targetPorts"][0]["number"] = 70000
        assert not is_valid(wrong_type) and not is_valid(unknown_port)

    def they_agree_with_each_other():
        found = manifests()
        pod = found["Deployment"]["spec"]["template"]
        container = pod["spec"]["containers"][0]
        labels = pod["metadata"]["labels"].items()
        for kind, path in (("Deployment", ("selector", "matchLabels")), ("Service", ("selector",)), ("PodDisruptionBudget", ("selector", "matchLabels")),
                           ("PodMonitor", ("selector", "matchLabels")), ("InferencePool", ("selector", "matchLabels"))):
            selected = found[kind]["spec"]
            for key in path:
                selected = selected[key]
            assert selected.items() <= labels, (kind, selected)
        port = container["ports"][0]
        assert found["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["port"] == found["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
        assert found["InferencePool"]["spec"]["targetPorts"][0]["number"] == port["containerPort"]
        target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) == ("Deployment", found["Deployment"]["metadata"]["name"])
        with open(os.path.join(ROOT, "configs/server/container.json")) as file:
            drain_seconds = json.load(file)["drain_seconds_max"]
        assert pod["spec"]["terminationGracePeriodSeconds"] > container["lifecycle"]["preStop"]["sleep"]["seconds"] + drain_seconds

    def they_agree_with_the_server():
        found = manifests()
        container = found["Deployment"]["spec"]["template"]["spec"]["containers"][0]
        with open(os.path.join(FOLDER, "prometheus-adapter.yaml")) as file:
            rule = libraries()[2].safe_load(file)["rules"]["custom"][0]
        assert rule["name"]["as"] == found["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]["metric"]["name"]
        model = container["args"][container["args"].index("--model") + 1].replace("/models", "configs/models")
        with Server(binary, model, "--kv-memory", "16MiB") as server:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert server.request("GET", container[probe]["httpGet"]["path"])[0] == 200, probe
            assert server.request("GET", found["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["path"])[0] == 200
            assert server.metric(rule["seriesQuery"].split("{")[0]) == 0

    checks = [every_manifest_is_valid, they_agree_with_each_other, they_agree_with_the_server]
    return [("kubernetes: " + check.__name__.replace("_", " "), check) for check in checks]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="the program headroom")
    use_venv("kubernetes_validate")
    return run_tests(tests(os.path.abspath(parser.parse_args().server)))


if __name__ == "__main__":
    sys.exit(main())
