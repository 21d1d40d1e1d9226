#!/usr/bin/env python3
"""Tests what tests/gpu/run does around the device: limits, failures, what is kept of a step that fails, bounds, tables, staleness.

Usage: tests/gpu/run_test.py
"""
import contextlib
import importlib.machinery
import importlib.util
import io
import json
import pathlib
import shutil
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import results  # noqa: E402

loader = importlib.machinery.SourceFileLoader("gpu_run", str(HERE / "run"))
run = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_run", loader))
sys.modules["gpu_run"] = run
loader.exec_module(run)

passed = failed = 0


def check(what, is_so):
    global passed, failed
    passed, failed = passed + bool(is_so), failed + (not is_so)
    if not is_so:
        print(f"FAILED: {what}", file=sys.stderr)


def new_run(folder, seconds=60):
    return run.Run({"device": {"name": "NVIDIA Test 9"}, "date": "2000-01-01 00:00 UTC", "sources": "0"}, pathlib.Path(folder), seconds)


def printing(text, then=""):
    return [sys.executable, "-u", "-c", f"print({text!r}); {then}"]


def steps_are_judged():
    with tempfile.TemporaryDirectory() as folder:
        a_run = new_run(folder)
        outcomes = {}
        for step in [
            run.Step("good lines", printing('noise\n{"a": 1}\n{"a": 2}\n{broken}'), 20, "lines"),
            run.Step("hangs", printing('{"a": 3}', "import time; time.sleep(60)"), 2.5, "lines"),
            run.Step("fails", printing('{"a": 4}', "raise SystemExit(3)"), 20, "lines"),
            run.Step("is not there", ["/nowhere/program"], 20, "lines"),
            run.Step("says nothing", printing("nothing"), 20, "lines"),
            run.Step("tests", printing("[  PASSED  ] 7 tests."), 20, "tests"),
            run.Step("failing tests", printing("[  PASSED  ] 6 tests.\n 1 FAILED TEST", "raise SystemExit(1)"), 20, "tests"),
            run.Step("skipping tests", printing("[  PASSED  ] 0 tests.\n[  SKIPPED ] 7 tests, listed below:"), 20, "tests"),
            run.Step("no device", printing("SKIPPED: no device\n[  PASSED  ] 17 tests."), 20, "tests"),
            run.Step("no tests", printing("[==========] 0 tests"), 20, "tests"),
            run.Step("clean", printing("[  PASSED  ] 1 test.\n========= ERROR SUMMARY: 0 errors"), 20, "clean"),
            run.Step("races", printing("[  PASSED  ] 1 test.\n========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)"), 20, "clean"),
            run.Step("no summary", printing("[  PASSED  ] 1 test."), 20, "clean"),
            run.Step("bench", printing('loading\n{\n "results": [], "kv_token_bytes": 1\n}'), 20, "bench", {"shape": "s", "kv_heads": 1}),
            run.Step("no bench", printing("loading"), 20, "bench", {"shape": "s", "kv_heads": 1}),
        ]:
            start = time.monotonic()
            a_run.one(step)
            outcomes[step.name] = json.loads((pathlib.Path(folder) / "nvidia-test-9.json").read_text())["phases"][step.name]["status"]
            check(f"{step.name} ends in time", time.monotonic() - start < step.limit_seconds + 5)
        check("outcomes", outcomes == {
            "good lines": "ok", "hangs": "ran past its limit", "fails": "exit status 3", "is not there": "exit status 127",
            "says nothing": "no figures", "tests": "ok", "failing tests": "exit status 1", "skipping tests": "skipped tests",
            "no device": "skipped tests", "no tests": "no test ran",
            "clean": "ok", "races": "found errors", "no summary": "no summary", "bench": "ok", "no bench": "no figures"})
        found = json.loads((pathlib.Path(folder) / "nvidia-test-9.json").read_text())
        check("what was measured before a failure counts", [line["a"] for line in found["lines"]] == [1, 2, 3, 4])
        check("tests are counted", found["tests"]["failing tests"] == {"passed": 6, "failed": 1, "skipped": 0})
        check("labels", found["bench"] == [{"step": "bench", "shape": "s", "kv_heads": 1, "results": [], "kv_token_bytes": 1}])
        a_run.one(run.Step("hangs", printing('{"a": 5}'), 20, "lines"))
        check("a step that runs again replaces what it found", sorted(line["a"] for line in a_run.found["lines"]) == [1, 2, 4, 5])
        check("the log has the output", "noise" in (pathlib.Path(folder) / "run.log").read_text())
        check("what is wrong is named", "failing tests (exit status 1)" in (pathlib.Path(folder) / "nvidia-test-9.md").read_text())


def time_is_bounded():
    with tempfile.TemporaryDirectory() as folder:
        a_run = new_run(folder, seconds=4)
        start = time.monotonic()
        check("a step that takes longer is stopped", not a_run.one(run.Step("long", ["sleep", "60"], 50)))
        check("when the time of the run is over", time.monotonic() - start < 12)
        a_run.one(run.Step("late", ["true"], 50))
        check("then none", a_run.found["phases"]["late"]["status"] == "no time left")
        # A child of a child goes too.
        marker = pathlib.Path(folder) / "alive"
        new_run(folder).one(run.Step("family", ["sh", "-c", f"(sleep 4; touch {marker}) & wait"], 1))
        time.sleep(4.5)
        check("nothing that a step started outlives its limit", not marker.exists())


# The bounds of a shape, from its published sizes: Llama 3 8B, bf16, at 4.3 TB/s and 788 TFLOP/s.
def bounds_are_right():
    def rate(kv_heads, batch, context):
        layer = 4096 * 4096 * 2 + 2 * 4096 * 128 * kv_heads + 3 * 4096 * 14336
        parameters = 32 * layer + 128256 * 4096
        seconds = results.decode_seconds_min(2 * parameters, batch * context * 2 * 32 * kv_heads * 128 * 2, 2 * parameters * batch, 4.3e12, 788e12)
        return batch / seconds
    for kv_heads, batch, context, expected in [(8, 1, 1024, 284), (8, 1, 32768, 223), (8, 1, 131072, 134), (32, 1, 8192, 206), (8, 1, 8192, 267),
                                               (1, 1, 8192, 293), (8, 64, 8192, 3287), (1, 64, 8192, 11898), (1, 256, 8192, 20135)]:
        check(f"bound of {kv_heads} KV heads, batch {batch}, {context}: {rate(kv_heads, batch, context):.1f}, not {expected}",
              abs(rate(kv_heads, batch, context) - expected) <= 0.002 * expected + 0.5)
    attention = {"kv_bytes": 4e9, "seconds": 1e-3, "copy_bytes_per_second": 8e12}
    check("share of the bandwidth", results.share_of(attention) == 0.5)


def synthetic(kv_heads, batch, depth, seconds, fill):
    return {"shape": "llama-3-8b", "kv_heads": kv_heads, "weight_bytes": 16e9, "kv_token_bytes": 16384 * kv_heads,
            "device_memory": {"total_bytes": 100e9, "free_bytes_before": 99e9, "free_bytes_after": 5e9, "pool_bytes": fill},
            "results": [{"test": "decode", "batch": batch, "depth_tokens": depth, "tokens_per_second": batch / seconds, "step_seconds": [seconds] * 3,
                         "step_weight_bytes": 15e9, "step_kv_bytes": batch * depth * 16384 * kv_heads, "step_flops": 1e10, "step_attention_flops": 0,
                         "limit_bytes_per_second": 1e12}]}


def waited_for(bench):
    return {**bench, "shape": "llama-3.2-1b", "async_scheduling": False}


def tables_show_what_was_found():
    nothing = results.markdown(None)
    check("without results nothing is measured", nothing.count("not measured") >= 12)
    found = {"device": {"name": "Test 9"}, "date": "2000-01-01", "matrix_flops_per_second": 1e14, "copy_bytes_per_second": 1e12,
             "bench": [synthetic(8, 64, 8175, 0.1, 1e9), synthetic(8, 78, 8175, 0.125, 1e9), synthetic(0, 1, 1024, 0.02, 1e9),
                      {**synthetic(0, 1, 1024, 0.003, 1e9), "shape": "llama-3.2-1b"}, waited_for(synthetic(0, 1, 1024, 0.004, 1e9))],
             "attention": [{"kv_heads": 8, "context_tokens": 8192, "batch": 16, "page_tokens": 16, "pages": "shuffled", "kv_bytes": 5e8,
                            "seconds": 1e-3, "copy_bytes_per_second": 1e12},
                           {"kv_heads": 8, "context_tokens": 8192, "batch": 16, "page_tokens": 16, "pages": "in order", "kv_bytes": 5e8,
                            "seconds": 0.8e-3, "copy_bytes_per_second": 1e12},
                           {"kv_heads": 8, "context_tokens": 131072, "batch": 64, "page_tokens": 16, "does_not_fit": True}],
             "gemm": [{"outputs": 48, "inputs": 64, "rows": 1, "bytes": 1e6, "flops": 1e6, "seconds": 1e-5, "copy_bytes_per_second": 1e12}],
             "peers": [{"peer": "flashinfer", "kv_heads": 8, "context_tokens": 8192, "batch": 16, "kv_bytes": 5e8, "seconds": 2e-3, "copy_bytes_per_second": 1e12},
                       {"peer": "flashinfer is not there", "why": "x"}, {"peer": "linear", "outputs": 48, "inputs": 64, "rows": 1, "seconds": 2e-5, "same_bits_as_all_rows": False}],
             "phases": {"x": {"status": "ok"}, "y": {"status": "no time left"}}}
    text = results.markdown(found)
    for what in ("| llama-3-8b, batch 64, context 8K, tokens/s | ≥ 2,700 | 640 |", "| llama-3-8b, batch 1, context 1K, tokens/s | ≥ 240 | 50 |",
                 "| llama-3.2-1b, batch 1, context 1K, tokens/s | ≥ 1,200 | 333 |", "launched ahead / waited for | - | 0.75 | - |",
                 "the least | ≥ 85 % | 50 % | 100 % |", "more time at most | ≤ 1 % | 25.0 % | 0 % |", "1,000 µs, 50 %", "does not fit", "y (no time left)", "| 48 × 64 | 1 | 10.0 | 10 % |", "| no |",
                 "| FlashInfer decode, 8 KV heads, context 8K, batch 16 | 2,000 µs | 25 % of the copy bandwidth |", "| FlashInfer decode | not installed |",
                 # (0.95 · 100 GB − 16 GB) / (8192 · 131072 B) = 73.6
                 "| GQA, 8 | 73 | 78 | 624 |", "| MQA, 1 | not measured |"):
        check(f"the tables have {what}", what in text)


def staleness_is_seen():
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        (root / "kernels").mkdir()
        for path in (results.ROOT / "kernels").glob("*.h"):
            shutil.copy(path, root / "kernels")
        shutil.copytree(results.ROOT / "kernels/cuda", root / "kernels/cuda")
        check("the same sources", results.sources_hash(root) == results.sources_hash())
        gemm = root / "kernels/cuda/gemm.cu"
        gemm.write_text(gemm.read_text() + "\n")
        check("a kernel that changed", results.sources_hash(root) != results.sources_hash())
        (root / "a.json").write_text(json.dumps({"date": "2000-01-02", "dry": False}))
        (root / "b.json").write_text(json.dumps({"date": "2000-01-01", "dry": False}))
        (root / "c.json").write_text(json.dumps({"date": "2000-01-03", "dry": True}))
        check("the newest, and no dry run", results.newest(root)["date"] == "2000-01-02")
        check("none", results.newest(root / "kernels") is None)
        earlier = {"date": "2001-01-01", "dry": False, "sources": "s", "device": {"name": "d"}, "gemm": [1]}
        (root / "d.json").write_text(json.dumps(earlier))
        today = {"date": "2001-01-02", "dry": False, "sources": "s", "device": {"name": "d"}}
        check("a part adds to a whole", run.with_earlier(today, root) == {**earlier, "date": "2001-01-02"})
        check("of the same kernels", run.with_earlier({**today, "sources": "t"}, root) == {**today, "sources": "t"})


def steps_fit_together():
    steps = list(run.figures("B")) + run.quick_tests("B") + run.long_tests("B", "S") + list(run.peers("B"))
    names = [step.name for step in steps]
    check("names are unique", len(set(names)) == len(names))
    for step in steps:
        shapes = [a for a in step.command if str(a).startswith("configs/")]
        check(f"{step.name}: {shapes} is there", all((results.ROOT / s).exists() for s in shapes))
    check("the tests of the CUDA backend", {"ops_test", "paged_attention_test", "model_golden_cuda_test", "properties_test"} <= set(run.DEVICE_TESTS))
    for test in run.DEVICE_TESTS:
        source = next(results.ROOT.glob(f"tests/*/{test}.cc")).read_text()
        for name in run.SANITIZED.get(test, "").split(":"):
            suite, _, case = name.replace("*", "").partition(".")
            check(f"{test} has {name}", suite in source and case in source)
    for shape, _, _, _, _ in results.DECODE_GOALS:
        check(f"{shape} is measured", any(step.labels.get("shape") == shape for step in steps))


def main():
    # What the steps under test print looks like results of tests of its own: it is not for those who count ours.
    with contextlib.redirect_stdout(io.StringIO()):
        for test in (steps_are_judged, time_is_bounded, bounds_are_right, tables_show_what_was_found, staleness_is_seen, steps_fit_together):
            test()
    print(f"CHECKS {passed} passed, {failed} failed   (tests/gpu/run without a device)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
