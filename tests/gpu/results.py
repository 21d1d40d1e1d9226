#!/usr/bin/env python3
"""What tests/gpu/run measured: its bounds, its Markdown, and the README's part of it.

Usage: tests/gpu/results.py [--readme]      checks that the README shows the newest results and says whether they are of today's
                                            kernels; --readme puts them into the README
"""
import hashlib
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests/gpu/results"
SECTION = re.compile(r"(<!-- gpu:.*?-->\n)(.*?)(<!-- /gpu -->)", re.S)
LARGE_KV_BYTES = 128e6  # of a launch: from here on the time of a launch itself does not count
ATTENTION_GOAL = 0.85
PAGING_GOAL = 0.01
# shape, KV heads (0: its own), batch, context in tokens, tokens per second
DECODE_GOALS = [("llama-3-8b", 0, 1, 1024, 240), ("llama-3-8b", 0, 1, 32768, 185), ("llama-3-8b", 0, 1, 131072, 110),
                ("mistral-7b-v0.3", 0, 1, 1024, 255), ("llama-3.2-1b", 0, 1, 1024, 1200), ("qwen2.5-0.5b", 0, 1, 1024, 2000),
                ("llama-3-8b", 8, 64, 8192, 2700)]
SCHEDULING = ("llama-3.2-1b", 1, 1024)  # shape, batch, context: a short step, beside which the host's work counts most
DECODE_PEERS = {"sdpa": "SDPA", "flashinfer": "FlashInfer"}
PREFILL_GOAL = 0.55  # of the matrix peak
HEADLINE = [(32, "MHA, 32"), (8, "GQA, 8"), (1, "MQA, 1")]
HEADLINE_CONTEXT = 8192


def sources_hash(root=ROOT):
    digest = hashlib.sha256()
    for path in sorted((root / "kernels").glob("*.h")) + sorted(p for p in (root / "kernels/cuda").iterdir() if p.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def newest(folder=RESULTS):
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")] if folder.is_dir() else []
    return max((r for r in found if not r.get("dry")), key=lambda r: r["date"], default=None)


# ---- Bounds: no step is faster than its bytes at the bandwidth of a copy, or its operations at the peak of the matrix unit.

def decode_seconds_min(weight_bytes, kv_bytes, linear_flops, bandwidth, peak):
    """Weights are read while the matrix unit works; every sequence's KV is read beside."""
    return max(weight_bytes / bandwidth, linear_flops / peak if peak else 0) + kv_bytes / bandwidth


def median(values):
    return sorted(values)[len(values) // 2]


def decode_rows(results, launched_ahead=True):
    """Every decode row of `headroom bench`, as it is by default or with steps that are waited for, with its shape, its rate and its bound."""
    for bench in results.get("bench", []):
        for row in bench["results"]:
            if row["test"] != "decode" or bench.get("async_scheduling", True) != launched_ahead:
                continue
            bandwidth, peak = row["limit_bytes_per_second"], results.get("matrix_flops_per_second")
            bound = decode_seconds_min(row["step_weight_bytes"], row["step_kv_bytes"], row["step_flops"] - row["step_attention_flops"],
                                       bandwidth, peak)
            yield {"shape": bench["shape"], "kv_heads": bench["kv_heads"], "batch": row["batch"], "context": context_of(row),
                   "rate": row["tokens_per_second"], "bound": row["batch"] / bound, "memory": bench.get("device_memory"),
                   "kv_token_bytes": bench["kv_token_bytes"], "weight_bytes": bench["weight_bytes"]}


def context_of(row):
    """The context that a row was asked for: its depth, or the power of two that its last step reaches."""
    depth = row["depth_tokens"]
    return next((power for power in (1024, 8192, 32768, 131072) if power - 64 <= depth <= power), depth)


def find(rows, shape, kv_heads, context, batch=None):
    """`batch` None: the largest one."""
    found = [r for r in rows if (r["shape"], r["kv_heads"], r["context"]) == (shape, kv_heads, context) and batch in (None, r["batch"])]
    return max(found, key=lambda r: r["batch"], default=None)


# ---- Markdown.

def number(value, digits=0):
    return "not measured" if value is None else f"{value:,.{digits}f}"


def percent(value):
    return "not measured" if value is None else f"{100 * value:.0f} %"


def table(heads, rows):
    return "\n".join(["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)] + ["| " + " | ".join(r) + " |" for r in rows])


def kilo(tokens):
    return f"{tokens // 1024}K" if tokens % 1024 == 0 else str(tokens)


def goal_rows(results):
    decode = list(decode_rows(results))
    rows = []
    for shape, kv_heads, batch, context, goal in DECODE_GOALS:
        row = find(decode, shape, kv_heads, context, batch)
        name = f"{shape}, batch {batch}, context {kilo(context)}, tokens/s"
        rows.append([name, f"≥ {goal:,}", number(row and row["rate"]), number(row["bound"]) if row else "-"])
    prefill = best_prefill(results)
    rows.append(["llama-3-8b, prefill of 8K, share of the matrix peak", f"≥ {percent(PREFILL_GOAL)}", percent(prefill), "100 %" if prefill else "-"])
    least = [share_of(row) for row in results.get("attention", []) if row.get("kv_bytes", 0) > LARGE_KV_BYTES]
    rows.append(["decode attention, KV of a launch above 128 MB, share of the copy bandwidth: the least", f"≥ {percent(ATTENTION_GOAL)}",
                 percent(min(least, default=None)), "100 %" if least else "-"])
    paging = paging_cost(results.get("attention", []))
    rows.append(["decode attention, pages in any order against pages in a row, more time at most", f"≤ {percent(PAGING_GOAL)}",
                 "not measured" if paging is None else f"{100 * paging:.1f} %", "0 %" if paging is not None else "-"])
    ratio = scheduling_ratio(results)
    rows.append([f"{SCHEDULING[0]}, batch {SCHEDULING[1]}, context {kilo(SCHEDULING[2])}, time of a step: launched ahead / waited for", "-",
                 number(ratio, 2), "-"])
    return rows


def paging_cost(attention):
    def key(row):
        return row["kv_heads"], row["context_tokens"], row["batch"], row["page_tokens"]
    any_order = {key(row): row["seconds"] for row in attention if row.get("pages") == "shuffled"}
    costs = [any_order[key(row)] / row["seconds"] - 1 for row in attention if row.get("pages") == "in order" and key(row) in any_order]
    return max(costs, default=None)


def scheduling_ratio(results):
    shape, batch, context = SCHEDULING
    ahead, waited = (find(decode_rows(results, mode), shape, 0, context, batch) for mode in (True, False))
    return waited["rate"] / ahead["rate"] if ahead and waited else None


def best_prefill(results):
    peak = results.get("matrix_flops_per_second")
    rows = [row for bench in results.get("bench", []) for row in bench["results"]
            if row["test"] == "prefill" and bench["shape"] == "llama-3-8b"]
    return max((row["step_flops"] / median(row["step_seconds"]) / peak for row in rows), default=None) if peak else None


def share_of(row):
    return row["kv_bytes"] / row["seconds"] / row["copy_bytes_per_second"]


def headline(results):
    decode, rows = list(decode_rows(results)), []
    for kv_heads, name in HEADLINE:
        row = find(decode, "llama-3-8b", kv_heads, HEADLINE_CONTEXT)
        if row is None or row["memory"] is None:
            rows.append([name, "not measured", "not measured", "not measured", "-"])
            continue
        per_sequence = row["kv_token_bytes"] * HEADLINE_CONTEXT
        predicted = int((0.95 * row["memory"]["total_bytes"] - row["weight_bytes"]) // per_sequence)
        rows.append([name, f"{predicted:,}", f"{row['batch']:,}", number(row["rate"]), number(row["bound"])])
    return table(["KV heads", "largest batch: 95 % of the memory less the weights", "reached", "tokens/s", "bound"], rows)


def attention_table(results):
    rows = []
    for kv_heads in (32, 8, 1):
        for context in sorted({r["context_tokens"] for r in results["attention"]}):
            cells = []
            for batch in sorted({r["batch"] for r in results["attention"]}):
                for page in (16, 64):
                    row = next((r for r in results["attention"] if (r["kv_heads"], r["context_tokens"], r["batch"], r["page_tokens"])
                                == (kv_heads, context, batch, page) and r.get("pages") != "in order"), None)
                    cells.append("-" if row is None else "does not fit" if row.get("does_not_fit") else
                                 f"{row['seconds'] * 1e6:,.0f} µs, {percent(share_of(row))}")
            rows.append([str(kv_heads), kilo(context)] + cells)
    heads = [f"batch {b}, pages of {p}" for b in sorted({r["batch"] for r in results["attention"]}) for p in (16, 64)]
    return table(["KV heads", "context"] + heads, rows)


def gemm_table(results):
    peers = {(r["outputs"], r["inputs"], r["rows"]): r for r in results.get("peers", []) if r.get("peer") == "linear"}
    peak, rows = results.get("matrix_flops_per_second"), []
    for r in results["gemm"]:
        peer = peers.get((r["outputs"], r["inputs"], r["rows"]))
        rows.append([f"{r['outputs']} × {r['inputs']}", str(r["rows"]), f"{r['seconds'] * 1e6:,.1f}",
                     percent(r["bytes"] / r["seconds"] / r["copy_bytes_per_second"]),
                     percent(r["flops"] / r["seconds"] / peak) if peak else "-", f"{peer['seconds'] * 1e6:,.1f}" if peer else "-",
                     "-" if not peer else "yes" if peer["same_bits_as_all_rows"] else "no"])
    return table(["weight", "rows", "µs", "of the copy bandwidth", "of the matrix peak", "torch, µs",
                  "torch: a row's bits independent of the others"], rows)


def other_peers(results):
    rows = []
    for r in results.get("peers", []):
        if r.get("peer") in DECODE_PEERS:
            rows.append([f"{DECODE_PEERS[r['peer']]} decode, {r['kv_heads']} KV heads, context {kilo(r['context_tokens'])}, batch {r['batch']}",
                         f"{r['seconds'] * 1e6:,.0f} µs", f"{percent(share_of(r))} of the copy bandwidth"])
        elif r.get("peer") == "flashinfer is not there":
            rows.append(["FlashInfer decode", "not installed", ""])
        elif r.get("peer") == "transformers":
            rows.append([f"transformers, {r['shape']}, batch {r['batch']}, context {kilo(r['context_tokens'])}", f"{r['tokens_per_second']:,.0f} tokens/s", ""])
    return table(["peer, same run", "", ""], rows) if rows else ""


def markdown(results):
    """All of it; without results, the goals beside "not measured"."""
    goals = table(["what", "goal", "measured", "bound at the measured bandwidth and peak"], goal_rows(results or {}))
    if results is None:
        return ("Not measured so far: no device was at hand. `tests/gpu/run` on a machine with one writes what follows.\n\n" + goals + "\n\n" +
                headline({}) + "\n")
    device = results["device"]
    copy, peak = results.get("copy_bytes_per_second"), results.get("matrix_flops_per_second")
    parts = [f"{device['name']}, driver {device.get('driver', '?')}, {results['date']}, clocks as found ({device.get('clocks', 'not known')}). In the "
             f"same run: a copy within the device {number(copy and copy / 1e9)} GB/s, torch's matrix product {number(peak and peak / 1e12)} TFLOP/s.",
             goals, "llama-3-8b at a context of 8K:", headline(results)]
    tests = results.get("tests", {})
    counts = "; ".join(f"{n} {t['passed']} passed, {t['failed']} failed, {t['skipped']} skipped" for n, t in tests.items())
    parts += [f"Tests on the device: {counts}."] if tests else []
    if results.get("attention"):
        parts += ["Decode attention alone, 32 query heads of 128, bf16: time of a launch, share of the copy bandwidth.", attention_table(results)]
    if results.get("gemm"):
        parts += ["Gemm alone, bf16.", gemm_table(results)]
    parts += [other_peers(results)] if other_peers(results) else []
    not_ok = {name: p["status"] for name, p in results.get("phases", {}).items() if p["status"] != "ok"}
    parts += ["Not as it should be: " + ", ".join(f"{n} ({s})" for n, s in not_ok.items()) + "."] if not_ok else []
    return "\n\n".join(parts) + "\n"


def main():
    results, readme = newest(), ROOT / "README.md"
    text = readme.read_text()
    found = SECTION.search(text)
    if "--readme" in sys.argv:
        readme.write_text(text[:found.start(2)] + markdown(results) + text[found.end(2):])
        return 0
    same = found is not None and found.group(2) == markdown(results)
    if not same:
        print("the README's figures of a GPU are not those of the newest file in tests/gpu/results: run tests/gpu/results.py --readme")
    if results is None:
        print("GPU figures: no results yet: not measured")
    elif results["sources"] != sources_hash():
        print(f"GPU figures: stale: the kernels have changed since {results['date']}; run tests/gpu/run on a machine with a device")
    else:
        print(f"GPU figures: of today's kernels, {results['device']['name']}, {results['date']}")
    print(f"CHECKS {int(same)} passed, {int(not same)} failed   (the README's figures of a GPU)")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
