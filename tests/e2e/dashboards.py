#!/usr/bin/env python3
"""Holds docker/prometheus and docker/grafana against the real thing: three servers under load, scraped by a real Prometheus.

    tests/e2e/dashboards.py --server build/cpu-release/headroom [--only TEXT]

Every expression of every panel, recording rule and alert must name metrics that the server exports, and return data. Rates are asked
for over 5 seconds (what stands for Grafana's $__rate_interval), with a scrape each second. An alert is silent on a healthy server, so each
side of its comparisons must return data; that it fires is for `promtool test rules`. Prometheus and promtool come from build/tools or PATH.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

from harness import ROOT, Server, Skipped, free_port, run_tests, use_venv

DOCKER = os.path.join(ROOT, "docker")
DASHBOARD = os.path.join(DOCKER, "grafana/dashboards/headroom.json")
RULES = os.path.join(DOCKER, "prometheus/rules.yml")
SECONDS_MAX = 90  # until every expression has returned data
SUBSTITUTES = {"$model_name": ".*", "$instance": ".*", "$__rate_interval": "5s"}
OF_PROMETHEUS = {"up"}  # metrics that Prometheus itself makes

# What vLLM's published dashboards query (examples/observability: Grafana and Perses of 0.33, then Overview and Instances), without the
# rows of features that this server has not: LoRA, external and multimodal caches, sleep mode, FLOP estimates, KV connectors.
PUBLISHED = {
    "performance statistics": "vllm:e2e_request_latency_seconds_bucket vllm:e2e_request_latency_seconds_count "
    "vllm:e2e_request_latency_seconds_sum vllm:generation_tokens_total vllm:inter_token_latency_seconds_bucket "
    "vllm:inter_token_latency_seconds_count vllm:inter_token_latency_seconds_sum vllm:iteration_tokens_total_count vllm:prompt_tokens_total "
    "vllm:time_to_first_token_seconds_bucket vllm:time_to_first_token_seconds_count vllm:time_to_first_token_seconds_sum",
    "query statistics": "vllm:e2e_request_latency_seconds_bucket vllm:generation_tokens_total vllm:prompt_tokens_total "
    "vllm:request_prompt_tokens_bucket vllm:request_success_total vllm:kv_cache_usage_perc vllm:num_requests_running vllm:num_requests_waiting",
    "prometheus_grafana": "vllm:kv_cache_usage_perc vllm:num_requests_running vllm:num_requests_waiting vllm:request_decode_time_seconds_sum "
    "vllm:request_generation_tokens_bucket vllm:request_max_num_generation_tokens_sum vllm:request_prefill_time_seconds_sum "
    "vllm:request_prompt_tokens_bucket vllm:request_queue_time_seconds_sum vllm:request_success_total "
    "vllm:request_time_per_output_token_seconds_bucket vllm:request_time_per_output_token_seconds_count "
    "vllm:request_time_per_output_token_seconds_sum",
    "overview": "vllm:num_requests_waiting_by_reason vllm:num_preemptions_total vllm:prefix_cache_hits_total vllm:prefix_cache_queries_total "
    "vllm:prompt_tokens_by_source_total vllm:iteration_tokens_total_bucket vllm:iteration_tokens_total_sum "
    "vllm:request_queue_time_seconds_bucket vllm:request_queue_time_seconds_count vllm:request_prefill_time_seconds_count "
    "vllm:request_decode_time_seconds_count vllm:request_prompt_tokens_sum vllm:request_generation_tokens_count http_requests_total "
    "http_request_duration_seconds_sum http_request_duration_seconds_count",
    "instances": "process_start_time_seconds process_cpu_seconds_total process_resident_memory_bytes process_open_fds process_max_fds "
    "vllm:cache_config_info vllm:prompt_tokens_cached_total",
}


def tool(name):
    for path in (os.path.join(ROOT, "build/tools/usr/bin", name), shutil.which(name)):
        if path and os.access(path, os.X_OK):
            return path
    raise Skipped(f"{name} is not here (Debian's packages prometheus and promtool); ./dev test unpacks it into build/tools")


def read_yaml(path):
    try:
        import yaml
    except ImportError:
        raise Skipped("the package pyyaml is not installed; ./dev test installs it into build/venv") from None
    with open(path) as file:
        return yaml.safe_load(file)


# ---- expressions ----

def panels():
    with open(DASHBOARD) as file:
        return [panel for panel in json.load(file)["panels"] if panel["type"] != "row"]


def panel_expressions():
    return [(f"panel {panel['title']!r} {target['refId']}", target["expr"]) for panel in panels() for target in panel["targets"]]


def rules():
    return [rule for group in read_yaml(RULES)["groups"] for rule in group["rules"]]


def sides(expression):
    """What stands on either side of the outermost comparisons and `and`: a > 1 and on (x) b == 0 gives a, b."""
    parts, depth, begin, index = [], 0, 0, 0
    operator = re.compile(r"\s+(?:(?:and|unless)(?:\s+on\s*\([^)]*\))?|==|!=|>=|<=|>|<)\s+")
    while index < len(expression):
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(expression[index], 0)
        found = operator.match(expression, index) if depth == 0 else None
        if found:
            parts.append(expression[begin:index])
            begin = index = found.end()
        else:
            index += 1
    return [part for part in parts + [expression[begin:]] if not re.fullmatch(r"\s*[\d.]+\s*", part)]


def rule_expressions():
    found = []
    for rule in rules():
        if "record" in rule:
            found.append((f"rule {rule['record']}", rule["expr"]))
        else:
            found += [(f"alert {rule['alert']}", side) for side in sides(rule["expr"])]
    return found


def metric_names(expression):
    """The series that an expression reads."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    words = re.findall(r"[a-zA-Z_][a-zA-Z0-9_:]*(?!\s*\(|[a-zA-Z0-9_:])", bare)
    return {word for word in words if word not in ("and", "or", "unless", "bool", "offset")}


def unknown_names(expressions, exported):
    known = exported | OF_PROMETHEUS | {rule["record"] for rule in rules() if "record" in rule}
    return sorted((where, name) for where, expression in expressions for name in metric_names(expression) - known)


# ---- the real thing ----

class Prometheus:
    """The repository's configuration, with the targets and intervals of this test."""

    def __init__(self, targets):
        config = read_yaml(os.path.join(DOCKER, "prometheus/prometheus.yml"))  # says so where there is no yaml
        import yaml
        self.folder = tempfile.mkdtemp(prefix="headroom-prometheus-")
        job = config["scrape_configs"][0]
        del job["dns_sd_configs"], job["relabel_configs"]
        job["static_configs"] = [{"targets": targets}]
        config.update({"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [RULES], "scrape_configs": [job]})
        with open(os.path.join(self.folder, "prometheus.yml"), "w") as file:
            yaml.safe_dump(config, file)
        self.url = f"http://127.0.0.1:{free_port()}"
        with open(os.path.join(self.folder, "log"), "w") as log:
            self.process = subprocess.Popen(
                [tool("prometheus"), f"--config.file={self.folder}/prometheus.yml", f"--storage.tsdb.path={self.folder}/data",
                 f"--web.listen-address={self.url[7:]}"], stdout=log, stderr=log)
        self.began = time.time()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)

    def get(self, path, **parameters):
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as response:
            return json.load(response)["data"]

    def series(self, expression):
        """The series of the whole test with at least one number in them."""
        for name, value in SUBSTITUTES.items():
            expression = expression.replace(name, value)
        found = self.get("/api/v1/query_range", query=expression, start=self.began, end=time.time(), step="1s")["result"]
        return [series["metric"] for series in found if any(value not in ("NaN", "+Inf", "-Inf") for _, value in series["values"])]

    def wait_ready(self):
        deadline = time.monotonic() + 30
        while True:
            try:
                return self.get("/api/v1/status/runtimeinfo")
            except (urllib.error.URLError, OSError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    with open(os.path.join(self.folder, "log")) as log:
                        raise AssertionError("Prometheus did not start:\n" + log.read()) from None
                time.sleep(0.1)


@contextlib.contextmanager
def load_on(servers):
    """Requests of growing length against each server until the context ends; some wait, some share a prefix."""
    ended = threading.Event()

    def drive(server, lane):
        turn = 0
        while not ended.is_set():
            turn += 1
            length = 40 + 160 * (turn % 9) + lane
            status, answer = server.post("/v1/completions", {"prompt": [5 + lane] * length, "max_tokens": 12, "temperature": 0, "ignore_eos": True})
            assert status == 200, answer

    lanes = [threading.Thread(target=drive, args=(server, lane)) for server in servers for lane in range(4)]
    for lane in lanes:
        lane.start()
    try:
        yield
    finally:
        ended.set()
        for lane in lanes:
            lane.join()


def exported_names(server):
    return {series.split("{")[0] for series in server.metrics()}


def without_data(prometheus, expressions):
    return [(where, expression) for where, expression in expressions if not prometheus.series(expression)]


def files_tests():
    def the_dashboard_is_what_its_script_writes():
        made = subprocess.run([sys.executable, os.path.join(DOCKER, "grafana/make_dashboard.py"), "--check"], capture_output=True, text=True)
        assert made.returncode == 0, made.stdout

    def grafana_reads_the_dashboard():
        try:
            from grafana_foundation_sdk.cog import plugins
            from grafana_foundation_sdk.cog.encoder import JSONEncoder
            from grafana_foundation_sdk.models.dashboard import Dashboard
        except ImportError:
            raise Skipped("the package grafana-foundation-sdk is not installed; ./dev test installs it into build/venv") from None
        plugins.register_default_plugins()
        read = lambda source: json.loads(json.dumps(Dashboard.from_json(source), cls=JSONEncoder))  # noqa: E731

        def lost(source, kept, path=""):
            """Fields that Grafana's types do not know, or read as something else."""
            if isinstance(source, dict):
                for key, value in source.items():
                    yield from lost(value, kept[key], f"{path}.{key}") if key in kept else [f"{path}.{key}"]
            elif isinstance(source, list):
                for index, pair in enumerate(zip(source, kept, strict=True)):
                    yield from lost(*pair, f"{path}[{index}]")
            elif source != kept:
                yield path

        with open(DASHBOARD) as file:
            dashboard = json.load(file)
        assert not list(lost(dashboard, read(dashboard)))
        dashboard["panels"][1]["options"]["colourMode"] = "value"  # what it must notice
        assert list(lost(dashboard, read(dashboard))) == [".panels[1].options.colourMode"]

    def panels_lie_side_by_side_and_ask_the_provisioned_source():
        with open(DASHBOARD) as file:
            every = json.load(file)["panels"]
        source = read_yaml(os.path.join(DOCKER, "grafana/provisioning/datasources/prometheus.yml"))["datasources"][0]
        provider = read_yaml(os.path.join(DOCKER, "grafana/provisioning/dashboards/headroom.yml"))["providers"][0]
        assert source["type"] == "prometheus" and source["url"] and provider["type"] == "file" and provider["options"]["path"]
        cells = [(x, y) for grid in (p["gridPos"] for p in every) for x in range(grid["x"], grid["x"] + grid["w"])
                 for y in range(grid["y"], grid["y"] + grid["h"])]
        assert len(cells) == len(set(cells)) and all(0 <= x < 24 for x, _ in cells), "panels overlap or leave the grid"
        assert len({p["id"] for p in every}) == len(every)
        assert all(t["datasource"]["uid"] == source["uid"] for p in panels() for t in p["targets"])

    def promtool_accepts_configuration_and_rules():
        promtool = tool("promtool")
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(RULES, folder)
            with open(os.path.join(DOCKER, "prometheus/prometheus.yml")) as file, open(os.path.join(folder, "prometheus.yml"), "w") as copy:
                copy.write(file.read().replace("/etc/prometheus/", ""))
            for command in (["check", "config", f"{folder}/prometheus.yml"], ["test", "rules", os.path.join(DOCKER, "prometheus/rules_test.yml")]):
                done = subprocess.run([promtool, *command], capture_output=True, text=True)
                assert done.returncode == 0, done.stdout + done.stderr
        cases = [case for test in read_yaml(os.path.join(DOCKER, "prometheus/rules_test.yml"))["tests"] for case in test["alert_rule_test"]]
        fired = {case["alertname"] for case in cases if case.get("exp_alerts")}
        assert fired == {rule["alert"] for rule in rules() if "alert" in rule}, "an alert that no test in rules_test.yml lets fire"

    return [the_dashboard_is_what_its_script_writes, grafana_reads_the_dashboard, panels_lie_side_by_side_and_ask_the_provisioned_source,
            promtool_accepts_configuration_and_rules]


def live_tests(binary):
    def start(stack, shape):
        model = os.path.join(ROOT, "configs/models/demo-" + shape)
        return stack.enter_context(Server(binary, model, "--kv-memory", "32MiB", "--running-sequences-max", "3", "--threads", "1"))

    def every_name_is_exported():
        with contextlib.ExitStack() as stack:
            exported = exported_names(start(stack, "gqa"))
        expressions = panel_expressions() + rule_expressions()
        assert not unknown_names(expressions, exported), unknown_names(expressions, exported)
        used = set().union(*(metric_names(expression) for _, expression in expressions)) & exported
        for name in used:  # a metric that is renamed in the server must be missed
            assert any(missed == name for _, missed in unknown_names(expressions, exported - {name})), name
        missing = {board: set(names.split()) - exported for board, names in PUBLISHED.items() if set(names.split()) - exported}
        assert not missing, f"vLLM's published dashboards would be empty: {missing}"
        return f"{len(expressions)} expressions, {len(used)} metrics; each one, renamed, was missed; {len(PUBLISHED)} boards of vLLM"

    def every_expression_returns_data():
        tool("prometheus")
        with contextlib.ExitStack() as stack:
            servers = [start(stack, shape) for shape in ("mha", "gqa", "mqa")]
            prometheus = stack.enter_context(Prometheus([server.base_url[7:] for server in servers]))
            prometheus.wait_ready()
            stack.enter_context(load_on(servers))
            began, left = time.monotonic(), panel_expressions() + rule_expressions()
            count = len(left)
            while left and time.monotonic() - began < SECONDS_MAX:
                time.sleep(1)
                left = without_data(prometheus, left)
            assert not left, "no data for:\n" + "\n".join(f"  {where}: {expression}" for where, expression in left)
            seconds = time.monotonic() - began
            renamed = re.sub(r"\b(headroom_kv_bytes|headroom:kv_usage:ratio)\b", r"\1_renamed", "\n".join(
                expression for _, expression in panel_expressions())).split("\n")
            changed = [(where, new) for (where, old), new in zip(panel_expressions(), renamed) if old != new]
            assert len(changed) >= 3 and len(without_data(prometheus, changed)) == len(changed), "a renamed metric was not noticed"
            unhealthy = [(rule["name"], rule.get("lastError")) for group in prometheus.get("/api/v1/rules")["groups"]
                         for rule in group["rules"] if rule["health"] != "ok"]
            assert not unhealthy, unhealthy
            compare_three(prometheus, began + SECONDS_MAX)
        return f"{count} expressions in {seconds:.0f} s; {len(changed)} renamed ones returned nothing"

    def compare_three(prometheus, deadline):
        """Panels of the comparison row show a series for each of the three servers, once each has been scraped often enough."""
        with open(DASHBOARD) as file:
            every = json.load(file)["panels"]
        begin = next(i for i, p in enumerate(every) if p["type"] == "row" and p["title"].startswith("MHA, GQA and MQA"))
        row = []
        for panel in every[begin + 1:]:
            if panel["type"] == "row":
                break
            row.append(panel)
        assert len(row) >= 6
        left = [(panel["title"], target["expr"]) for panel in row for target in panel["targets"]]
        while True:
            shown = [{series.get("model_name") for series in prometheus.series(expression)} for _, expression in left]
            left = [asked for asked, models in zip(left, shown) if models != {"demo-mha", "demo-gqa", "demo-mqa"}]
            if not left:
                return
            assert time.monotonic() < deadline, f"not all three servers show in: {left}"
            time.sleep(1)

    def an_endpoint_picker_reads_what_it_needs():
        """The model server protocol of the Gateway API Inference Extension: three gauges, and the geometry of the cache in labels."""
        with contextlib.ExitStack() as stack:
            server = start(stack, "gqa")
            types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", server.request("GET", "/metrics")[2].decode(), re.M))
            gauges = ("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:cache_config_info")
            assert all(types[name] == "gauge" for name in gauges), types
            assert [server.metric(name) for name in gauges[:3]] == [0, 0, 0]
            info = next(series for series in server.metrics() if series.startswith("vllm:cache_config_info{"))
            labels = dict(re.findall(r'(\w+)="([^"]*)"', info))
            assert int(labels["block_size"]) == 16
            assert int(labels["num_gpu_blocks"]) == sum(server.metric("headroom_kv_pages", state=s) for s in ("live", "cached", "free"))
            highest = [0.0, 0.0, 0.0]
            with load_on([server]):
                deadline = time.monotonic() + 30
                while (not all(highest) or highest[1] < 3) and time.monotonic() < deadline:
                    highest = [max(old, server.metric(name)) for old, name in zip(highest, gauges)]
            assert highest[0] >= 1 and highest[1] == 3 and 0 < highest[2] <= 1, highest  # four clients, three sequences
        return f"up to {highest[0]:.0f} waiting, {highest[1]:.0f} running, {highest[2]:.1%} of the pool"

    return [every_name_is_exported, every_expression_returns_data, an_endpoint_picker_reads_what_it_needs]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="the program headroom")
    parser.add_argument("--only", default="", help="run the tests whose name holds this text")
    arguments = parser.parse_args()
    use_venv("grafana_foundation_sdk")
    named = [("dashboards: " + test.__name__.replace("_", " "), test) for test in files_tests() + live_tests(os.path.abspath(arguments.server))]
    return run_tests([(name, test) for name, test in named if arguments.only in name])


if __name__ == "__main__":
    sys.exit(main())
