#!/usr/bin/env python3
"""Writes dashboards/headroom.json: the rows and panels below, laid out on Grafana's grid of 24 columns.

    docker/grafana/make_dashboard.py            writes the file
    docker/grafana/make_dashboard.py --check    exit status 1 if the file is not what this writes

A panel is (title, what it answers, kind, unit, width, [(expression, legend)], extras). `@` in an expression stands for the selection of
model and instance. tests/e2e/dashboards.py runs every expression against a real server.
"""

import json
import pathlib
import sys

FILE = pathlib.Path(__file__).parent / "dashboards/headroom.json"
SELECTION = 'model_name=~"$model_name", instance=~"$instance"'
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
GRID_WIDTH = 24
CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768)
MODEL = "{{model_name}}"


def quantiles(histogram):
    rate = f"sum by (model_name, le) (rate({histogram}_bucket{{@}}[$__rate_interval]))"
    return [(f"histogram_quantile({q}, {rate})", f"{MODEL} p{round(100 * q)}") for q in (0.5, 0.95, 0.99)]


def rate(counter, by="model_name"):
    return f"sum by ({by}) (rate({counter}[$__rate_interval]))"


def full_in():
    """Seconds until the pool is full at the present pace; nothing while it does not fill."""
    left = "headroom_kv_available_tokens{@}"
    return f"{left} / (-deriv({left}[$__rate_interval]) > 0)"


# Context lengths in the order of numbers along the x axis, a bar for each server.
BY_CONTEXT = [
    {"id": "convertFieldType", "options": {"conversions": [{"targetField": "context_tokens", "destinationType": "number"}], "fields": {}}},
    {"id": "sortBy", "options": {"fields": {}, "sort": [{"field": "context_tokens", "desc": False}]}},
    {"id": "convertFieldType", "options": {"conversions": [{"targetField": "context_tokens", "destinationType": "string"}], "fields": {}}},
    {"id": "groupingToMatrix", "options": {"columnField": "model_name", "rowField": "context_tokens", "valueField": "Value"}},
]
# KV bytes of one request at each length, as a table of (model_name, context_tokens): the label is made from the number.
BYTES_AT = " or ".join(f'label_replace(headroom_kv_token_bytes{{@}} * {n}, "context_tokens", "{n}", "", "")' for n in CONTEXTS)
LONGEST = {"thresholds": [("green", None), ("orange", 0.8), ("red", 0.95)]}

ROWS = [
    ("How full, how much longer, how many more users", [
        ("Pool in use", "Live pages of all pages. Cached pages are room: they go when a request needs them.", "gauge", "percentunit", 4,
         [("headroom:kv_usage:ratio{@}", MODEL)], {"min": 0, "max": 1, **LONGEST}),
        ("Tokens left", "Tokens that the pool can still take in, free and evictable pages together.", "stat", "short", 4,
         [("headroom_kv_available_tokens{@}", MODEL)], {}),
        ("Full in", "At the present pace.", "stat", "s", 4, [(full_in(), MODEL)], {"noValue": "not filling"}),
        ("Users now", "Requests that run, and those that wait for room.", "stat", "short", 4,
         [("vllm:num_requests_running{@}", f"{MODEL} running"), ("vllm:num_requests_waiting{@}", f"{MODEL} waiting")], {}),
        ("More users like those", "More requests of the mean length of those that run now.", "stat", "short", 4,
         [("headroom:more_requests:count{@}", MODEL)], {"decimals": 0, "noValue": "nobody runs"}),
        ("More users at full context", "More requests of the longest length that is served.", "stat", "short", 4,
         [("headroom_kv_more_full_requests{@}", MODEL)], {}),
    ]),
    ("KV cache", [
        ("KV bytes by state", "Their sum is the pool, always.", "timeseries", "bytes", 8,
         [("sum by (state) (headroom_kv_bytes{@})", "{{state}}")], {"stack": True}),
        ("Against multi-head attention", "What the live pages would take with as many KV heads as query heads, beside the pool: where the "
         "line crosses the pool, MHA would have stopped.", "timeseries", "bytes", 8,
         [('sum by (model_name) (headroom_kv_bytes{@, state="live"})', f"{MODEL} live"),
          ('sum by (model_name) (headroom_kv_mha_equivalent_bytes{@, state="live"})', f"{MODEL} as MHA"),
          ("sum by (model_name) (headroom_kv_pool_bytes{@})", f"{MODEL} pool")], {}),
        ("Pool that MHA would need", "Over 100 %: the same requests would not have fitted.", "timeseries", "percentunit", 8,
         [("headroom:kv_mha_usage:ratio{@}", f"{MODEL} as MHA"), ("headroom:kv_usage:ratio{@}", MODEL)], {"min": 0}),
        ("Saved share", "Of the KV bytes of MHA.", "stat", "percentunit", 4, [("headroom_kv_saving_ratio{@}", MODEL)], {}),
        ("Bytes per token", "KV bytes of one token; beside it with as many KV heads as query heads.", "stat", "bytes", 4,
         [("headroom_kv_token_bytes{@}", MODEL), ("headroom_kv_mha_token_bytes{@}", f"{MODEL} as MHA")], {}),
        ("Written of what is allocated", "Live bytes that hold nothing yet: the ends of last pages.", "timeseries", "percentunit", 8,
         [("headroom_kv_fragmentation_ratio{@}", f"{MODEL} not written")], {"min": 0}),
        ("Prefix cache", "Bytes of KV that were found instead of computed again, per second, and the share of looked-up tokens found.",
         "timeseries", "Bps", 8,
         [(rate("headroom_prefix_reused_bytes_total{@}"), f"{MODEL} reused"),
          (f"{rate('vllm:prefix_cache_hits_total{@}')} / {rate('vllm:prefix_cache_queries_total{@}')}", f"{MODEL} hits")],
         {"right_axis": ("hits", "percentunit")}),
        ("Pressure", "Sequences that gave their pages back, tokens computed again for it, and cached pages taken for new content, per second.",
         "timeseries", "short", 12,
         [(rate("vllm:num_preemptions_total{@}"), f"{MODEL} preemptions"),
          (rate("headroom_recomputed_tokens_total{@}"), f"{MODEL} recomputed tokens"),
          (rate("headroom_evicted_pages_total{@}"), f"{MODEL} evicted pages")], {}),
        ("Memory, predicted and allocated", "Arithmetic from config.json and the options, beside what was allocated.", "timeseries", "bytes", 12,
         [("headroom_memory_predicted_bytes{@}", f"{MODEL} {{{{part}}}} predicted"),
          ("headroom_memory_allocated_bytes{@}", f"{MODEL} {{{{part}}}} allocated"),
          ("process_resident_memory_bytes{instance=~\"$instance\"}", "{{instance}} resident")], {}),
    ]),
    ("MHA, GQA and MQA against the length of the context", [
        ("KV bytes of one request", "At each length of context, by server.", "barchart", "bytes", 8, [(BYTES_AT, "")],
         {"table": True, "transformations": BY_CONTEXT, "x": "context_tokens\\model_name"}),
        ("Time of a token", "Mean over the last five minutes, by the length of the context that the token attended to.", "barchart", "s", 8,
         [('headroom:token_seconds_by_context:mean5m{@, context_tokens!="more"}', "")],
         {"table": True, "transformations": BY_CONTEXT, "x": "context_tokens\\model_name"}),
        ("In the same pool", "What fits: tokens, and requests of the longest length.", "timeseries", "short", 8,
         [("sum by (model_name) (headroom_kv_tokens{@})", f"{MODEL} tokens"), ("headroom_kv_full_requests{@}", f"{MODEL} full requests"),
          ("headroom_kv_longest_request_tokens{@}", f"{MODEL} longest request")], {"log": True}),
        ("Context of those that run", "Mean tokens of a running request.", "timeseries", "short", 6,
         [("headroom:request_context:tokens{@}", MODEL)], {}),
        ("Live KV bytes", "For the same load.", "timeseries", "bytes", 6, [('headroom_kv_bytes{@, state="live"}', MODEL)], {}),
        ("Tokens generated per second", "For the same load.", "timeseries", "short", 6, [("headroom:generated_tokens:rate1m{@}", MODEL)], {}),
        ("Time of a token, over time", "By server and context class.", "timeseries", "s", 6,
         [('headroom:token_seconds_by_context:mean5m{@, context_tokens!="more"}', f"{MODEL} ≤ {{{{context_tokens}}}}")], {}),
    ]),
    ("Requests", [
        ("Time to first token", "From arrival; waiting and prefill.", "timeseries", "s", 8, quantiles("vllm:time_to_first_token_seconds"), {}),
        ("Between tokens", "From one token of a request to the next.", "timeseries", "s", 8, quantiles("vllm:inter_token_latency_seconds"), {}),
        ("Whole requests", "From arrival to the end.", "timeseries", "s", 8, quantiles("vllm:e2e_request_latency_seconds"), {}),
        ("Tokens per second", "Computed prompts, prompts found in the cache, generated tokens.", "timeseries", "short", 8,
         [(rate("vllm:prompt_tokens_by_source_total{@}", "model_name, source"), f"{MODEL} {{{{source}}}}"),
          (rate("vllm:generation_tokens_total{@}"), f"{MODEL} generated")], {}),
        ("Running and waiting", "Requests.", "timeseries", "short", 8,
         [("vllm:num_requests_running{@}", f"{MODEL} running"), ("vllm:num_requests_waiting{@}", f"{MODEL} waiting")], {"min": 0}),
        ("Ended by reason", "Requests per second.", "timeseries", "reqps", 8,
         [(rate("vllm:request_success_total{@}", "model_name, finished_reason"), f"{MODEL} {{{{finished_reason}}}}")], {}),
    ]),
    ("Engine and process", [
        ("Time of a step", "By phase.", "timeseries", "s", 8,
         [(f"{rate('headroom_step_seconds_sum{@}', 'model_name, phase')} / {rate('headroom_step_seconds_count{@}', 'model_name, phase')}",
           f"{MODEL} {{{{phase}}}}")], {}),
        ("Tokens of a step", "Prefill and decode together.", "timeseries", "short", 8,
         [(f"{rate('vllm:iteration_tokens_total_sum{@}')} / {rate('vllm:iteration_tokens_total_count{@}')}", MODEL)], {}),
        ("HTTP answers", "Per second, by class of status.", "timeseries", "reqps", 8,
         [('sum by (status) (rate(http_requests_total{instance=~"$instance"}[$__rate_interval]))', "{{status}}")], {"stack": True}),
        ("CPU", "Cores.", "timeseries", "short", 6, [('rate(process_cpu_seconds_total{instance=~"$instance"}[$__rate_interval])', "{{instance}}")], {}),
        ("File descriptors", "Of the limit.", "timeseries", "percentunit", 6,
         [('process_open_fds{instance=~"$instance"} / process_max_fds{instance=~"$instance"}', "{{instance}}")], {"min": 0}),
        ("Start-up", "Seconds by phase, of the last start.", "timeseries", "s", 6,
         [("headroom_startup_seconds{@}", f"{MODEL} {{{{phase}}}}")], {}),
        ("Ready", "1: why not.", "timeseries", "short", 6, [("headroom_not_ready{@}", f"{MODEL} {{{{reason}}}}")], {"min": 0, "max": 1}),
    ]),
]
HEIGHTS = {"stat": 5, "gauge": 5, "timeseries": 8, "barchart": 8}


def target(index, expression, legend, table):
    made = {"refId": chr(ord("A") + index), "datasource": DATASOURCE, "expr": expression.replace("@", SELECTION), "legendFormat": legend}
    return {**made, "instant": True, "format": "table"} if table else made


def options_of(kind, extras):
    if kind in ("stat", "gauge"):
        reduced = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "orientation": "auto"}
        return {**reduced, "colorMode": "value", "graphMode": "area", "textMode": "auto"} if kind == "stat" else reduced
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    if kind == "barchart":
        return {"legend": legend, "xField": extras["x"], "orientation": "vertical", "showValue": "never"}
    return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def panel(title, description, kind, unit, expressions, extras):
    defaults = {"unit": unit, **{key: extras[key] for key in ("min", "max", "decimals", "noValue") if key in extras}}
    if "thresholds" in extras:
        defaults["thresholds"] = {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in extras["thresholds"]]}
    custom = {}
    if kind == "timeseries":
        custom = {"fillOpacity": 20 if extras.get("stack") else 5, "showPoints": "never"}
    if extras.get("stack"):
        custom["stacking"] = {"mode": "normal", "group": "A"}
    if extras.get("log"):
        custom["scaleDistribution"] = {"type": "log", "log": 10}
    if custom:
        defaults["custom"] = custom
    overrides = []
    if "right_axis" in extras:
        text, right_unit = extras["right_axis"]
        overrides = [{"matcher": {"id": "byRegexp", "options": f"/{text}$/"},
                      "properties": [{"id": "unit", "value": right_unit}, {"id": "custom.axisPlacement", "value": "right"}]}]
    made = {"type": kind, "title": title, "description": description, "datasource": DATASOURCE,
            "targets": [target(i, *pair, extras.get("table", False)) for i, pair in enumerate(expressions)],
            "fieldConfig": {"defaults": defaults, "overrides": overrides}, "options": options_of(kind, extras)}
    if "transformations" in extras:
        made["transformations"] = extras["transformations"]
    return made


def laid_out():
    panels, y = [], 0
    for row_title, row in ROWS:
        panels.append({"type": "row", "title": row_title, "collapsed": False, "gridPos": {"h": 1, "w": GRID_WIDTH, "x": 0, "y": y}, "panels": []})
        y, x, height = y + 1, 0, 0
        for title, description, kind, unit, width, expressions, extras in row:
            if x + width > GRID_WIDTH:
                x, y, height = 0, y + height, 0
            grid = {"h": HEIGHTS[kind], "w": width, "x": x, "y": y}
            panels.append({**panel(title, description, kind, unit, expressions, extras), "gridPos": grid})
            x, height = x + width, max(height, HEIGHTS[kind])
        y += height
    return [{**made, "id": number} for number, made in enumerate(panels, 1)]


def variable(name, label, query):
    return {"type": "query", "name": name, "label": label, "datasource": DATASOURCE, "query": query, "refresh": 2,
            "includeAll": True, "multi": True, "sort": 1, "current": {"text": ["All"], "value": ["$__all"]}}


def dashboard():
    return {
        "uid": "headroom", "title": "Headroom", "tags": ["headroom"], "schemaVersion": 39, "version": 1, "editable": True, "refresh": "5s",
        "description": "The KV cache in bytes: how full, how much longer, how many more users; and what fewer KV heads save.",
        "time": {"from": "now-15m", "to": "now"}, "timezone": "", "graphTooltip": 1,
        "templating": {"list": [
            variable("model_name", "Model", "label_values(headroom_kv_pool_bytes, model_name)"),
            variable("instance", "Instance", 'label_values(headroom_kv_pool_bytes{model_name=~"$model_name"}, instance)')]},
        "panels": laid_out(),
    }


def main():
    text = json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"
    if sys.argv[1:] == ["--check"]:
        if FILE.read_text() == text:
            return 0
        print(f"{FILE} is not what {sys.argv[0]} writes: run it")
        return 1
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
