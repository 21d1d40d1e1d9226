#!/usr/bin/env python3
"""Style as a test: layers, sizes, banned calls, tests that are not in the build. Prints every violation as FILE:LINE: what to do.

Usage: tests/tidy.py [ROOT]      exit status 1 when anything is found
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parents[1])

# A folder or file may include only what stands to its right (besides itself). The longest matching prefix counts.
LAYERS = {
    "kernels/": ["kernels/"],
    "engine/files/": ["engine/files/", "kernels/check.h"],
    "engine/tokenizer/": ["engine/tokenizer/", "engine/files/", "kernels/check.h"],
    "engine/model/": ["engine/model/", "engine/files/", "kernels/"],
    "engine/kv/page_allocator": ["engine/kv/page_allocator", "engine/ids.h", "engine/kv/huge_page_allocator.h",
                                 "engine/tokenizer/token_id.h", "kernels/check.h"],
    "engine/kv/prefix_cache": ["engine/kv/", "engine/ids.h", "engine/tokenizer/token_id.h", "kernels/check.h"],
    "engine/kv/kv_cache": ["engine/kv/kv_cache", "engine/ids.h", "engine/model/", "kernels/"],
    "engine/fair_queue": ["engine/fair_queue", "engine/sequence.h", "engine/ids.h", "kernels/check.h"],
    "engine/scheduler": ["engine/scheduler", "engine/fair_queue.h", "engine/sequence", "engine/kv/page_allocator.h", "engine/kv/prefix_cache.h",
                         "engine/ids.h", "engine/tokenizer/token_id.h", "kernels/check.h"],
    "engine/sequence": ["engine/sequence", "engine/kv/", "engine/ids.h", "engine/tokenizer/token_id.h", "kernels/check.h"],
    "engine/": ["engine/", "kernels/"],
    "server/": ["server/", "engine/", "kernels/"],
}
FORBIDDEN_INCLUDES = {  # header pattern: the only files that may see it
    r"<httplib\.h>": ["server/http_server.cc"],
    r"<prometheus/": ["server/metrics.cc"],
    r"[<\"]hwy/": ["kernels/cpu/"],
    r"<CLI/": ["server/main.cc", "server/options.cc", "server/command_"],
}
BANNED = {  # pattern: what to use
    r"\bstd::regex\b": "PCRE2, or a hand-written scan: std::regex overflows the stack on long input",
    r"\bassert\s*\(": "CHECK, which stays on in release builds",
    r"\bstd::endl\b": "'\\n'",
    r"\b(strcpy|strcat|sprintf|gets|atoi|atof|strtok)\s*\(": "a bounded function (std::string, std::from_chars, snprintf)",
    r"(?<![\w:.>])s?rand\s*\(": "a seeded generator",
    r"\bstd::this_thread::sleep_for\b": "a condition variable or poll with a deadline",
    r"\bsystem_clock\b|\bgettimeofday\b|\bCLOCK_REALTIME\b|\btime\((nullptr|NULL|0)\)": "std::chrono::steady_clock: the wall clock jumps",
    r"#\s*if(def|ndef)?\b.*(__CUDACC__|__CUDA_ARCH__|HEADROOM_CUDA)": "separate files: the build chooses",
    r"\b(TODO|FIXME|XXX)\b": "finish it, or say in the README what is missing",
    r"\bDISABLED_": "a test that runs",
    r"GTEST_SKIP\(\)\s*;": "GTEST_SKIP() << \"SKIPPED: reason\"",
}
SLEEP_ALLOWED = ("tests/",)  # tests may wait for a server
WALL_CLOCK_ALLOWED = ("server/command_serve.cc", "tests/")  # what an answer says of when it was made
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 75
SOURCE_SUFFIXES = {".cc", ".h", ".cu", ".cuh"}

violations = []
checks = 0


def report(path, line, text):
    violations.append(f"{path}:{line}: {text}")


def sources():
    try:
        names = subprocess.run(["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"],
                               check=True, capture_output=True, text=True).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):  # a tree without git: all but what was built
        names = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.relative_to(ROOT).parts[0] not in ("build", ".git")]
    return sorted(n for n in names if pathlib.Path(n).suffix in SOURCE_SUFFIXES and (ROOT / n).exists())


def layer_of(path):
    prefixes = [p for p in LAYERS if path.startswith(p)]
    return max(prefixes, key=len) if prefixes else None


def check_includes(path, lines, graph):
    layer = layer_of(path)
    for number, line in enumerate(lines, 1):
        quoted = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
        if quoted:
            included = quoted.group(1)
            if included.startswith("hwy/"):  # Highway's own way; checked below
                continue
            graph.setdefault(path, []).append(included)
            if layer and not any(included.startswith(p) for p in LAYERS[layer]):
                report(path, number, f"{layer}* may not include {included}; allowed: {', '.join(LAYERS[layer])}")
            if path.startswith("kernels/cpu/") and included.startswith("kernels/cuda/") or \
                    path.startswith("kernels/cuda/") and included.startswith("kernels/cpu/"):
                report(path, number, "the backends do not see each other")
        for pattern, allowed in FORBIDDEN_INCLUDES.items():
            if re.search(r"#\s*include\s+" + pattern, line) and not path.startswith("tests/") \
                    and not any(path.startswith(a) for a in allowed):
                report(path, number, f"only {', '.join(allowed)} may include this")


def check_cycles(graph):
    state = {}

    def visit(node, trail):
        state[node] = "open"
        for target in graph.get(node, []):
            if state.get(target) == "open":
                report(node, 1, "include circle: " + " -> ".join(trail[trail.index(target):] + [target]) if target in trail
                       else f"include circle with {target}")
            elif target not in state:
                visit(target, trail + [target])
        state[node] = "done"

    for node in list(graph):
        if node not in state:
            visit(node, [node])


def check_sizes(path, lines):
    if len(lines) > FILE_LINES_MAX:
        report(path, len(lines), f"{len(lines)} lines; at most {FILE_LINES_MAX}: make two rooms of it")
    start = None
    for number, line in enumerate(lines, 1):
        if start is None and re.match(r"[A-Za-z_].*\{\s*$", line) and not re.match(
                r"(namespace|class|struct|enum|union|extern|template|constexpr .*=|const .*=|static .*=|inline .*=|BENCHMARK|TEST)", line):
            start = number
        elif line.startswith("}"):
            if start is not None and number - start > FUNCTION_LINES_MAX and not path.startswith("tests/"):
                report(path, start, f"function of {number - start} lines; at most {FUNCTION_LINES_MAX}: take pure leaves out of it")
            start = None


def check_banned(path, lines):
    for number, line in enumerate(lines, 1):
        code = line.split("//")[0] if "TODO" not in line and "FIXME" not in line else line
        for pattern, instead in BANNED.items():
            if "sleep_for" in pattern and path.startswith(SLEEP_ALLOWED) or "system_clock" in pattern and path.startswith(WALL_CLOCK_ALLOWED):
                continue
            if re.search(pattern, code):
                report(path, number, f"'{re.search(pattern, code).group(0).strip()}' is banned; use {instead}")


def check_tests_are_built(paths):
    cmake = (ROOT / "tests/CMakeLists.txt").read_text()
    for path in paths:
        if path.startswith("tests/") and path.endswith(("_test.cc", "_bench.cc")):
            name = path[len("tests/"):-len(".cc")]
            if not re.search(rf"\b{re.escape(name)}\b", cmake):
                report(path, 1, f"is not in tests/CMakeLists.txt: add headroom_test({name} …)")


def main():
    paths = sources()
    graph = {}
    for path in paths:
        lines = (ROOT / path).read_text().split("\n")
        check_includes(path, lines, graph)
        check_sizes(path, lines)
        check_banned(path, lines)
        if path.endswith((".h", ".cuh")) and not path.endswith("-inl.h") and "#pragma once" not in lines:
            report(path, 1, "a header begins with a comment that says what it is, then #pragma once")
    check_cycles(graph)
    check_tests_are_built(paths)
    bad = {v.split(":")[0] for v in violations}
    for violation in violations:
        print(violation)
    print(f"CHECKS {len(paths) - len(bad)} passed, {len(bad)} failed   (files held against the style)")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
