#!/usr/bin/env python3
"""Holds the shipped binary, by readelf, to its protections: a random address, all relocations done and read-only before main, no
executable stack; canaries, checked calls of libc and containers, and each of its sources compiled with the flags that ask for them;
and `headroom version --json` to the libraries that the binary loads.

Usage: tests/binary.py HEADROOM
"""
import json
import os
import platform
import re
import subprocess
import sys

# Libraries of the C and C++ run time: they come with the distribution's compiler, whose version is printed.
RUN_TIME = {"libc", "libm", "libstdc++", "libgcc_s", "libpthread", "libdl", "librt", "libz", "ld-linux-x86-64", "ld-linux-aarch64"}
SONAMES = {"cpp-httplib": "libcpp-httplib", "spdlog": "libspdlog", "fmt": "libfmt", "prometheus-cpp": "libprometheus-cpp-core",
           "Highway": "libhwy", "PCRE2": "libpcre2-8", "utf8proc": "libutf8proc"}

# What the compiler notes of itself in each object (DW_AT_producer).
FLAGS = ["-fstack-protector-strong", "-fstack-clash-protection"] + (["-fcf-protection"] if platform.machine() == "x86_64" else [])


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}).stdout


def compiled_without(binary):
    """(number of sources of this project in the binary, those of them that lack one of FLAGS)."""
    units = re.findall(r"DW_AT_producer\s*:(.*)\n(?:.*\n)??.*DW_AT_name\s*:.*:\s(\S+)", output("readelf", "--wide", "--debug-dump=info", "--dwarf-depth=1", binary))
    ours = [(flags, name) for flags, name in units if re.search(r"(^|/)(server|engine|kernels)/", name)]
    return len(ours), sorted(name for flags, name in ours if not all(flag in flags for flag in FLAGS))


def start_file_has(feature):
    """Whether the file that a program begins with has it: the linker notes only what all of its inputs have."""
    path = output("g++", "-print-file-name=Scrt1.o").strip()
    return os.path.exists(path) and feature in output("readelf", "--notes", path)


def main():
    binary = sys.argv[1]
    header = output("readelf", "--wide", "--file-header", binary)
    segments = output("readelf", "--wide", "--program-headers", binary)
    dynamic = output("readelf", "--wide", "--dynamic", binary)
    symbols = output("readelf", "--wide", "--dyn-syms", binary)
    sources, unprotected = compiled_without(binary)
    stack = re.search(r"GNU_STACK(?:\s+0x\w+){5}\s+([RWE ]+?)\s+0x", segments)
    loaded = set(re.findall(r"NEEDED.*\[([^\]]+?)\.so", dynamic))
    listed = json.loads(output(binary, "version", "--json"))
    versions = {component["name"]: component["version"] for component in listed["components"]}
    named = {SONAMES.get(name, name) for name in versions}
    checks = {
        "it is position-independent (-pie)": re.search(r"Type:\s+DYN", header) and "PIE" in dynamic,
        "its relocations become read-only (-z relro)": "GNU_RELRO" in segments,
        "all of them are done before main (-z now)": re.search(r"FLAGS_1.*\bNOW\b", dynamic),
        "its stack is not executable (-z noexecstack)": stack and "E" not in stack.group(1),
        "nothing is both writable and executable": not re.search(r"LOAD(?:\s+0x\w+){5}\s+RWE", segments),
        "it names no directory to load libraries from": not re.search(r"\((RPATH|RUNPATH)\)", dynamic),
        "functions with arrays have canaries": "__stack_chk_fail" in symbols,
        "calls of libc know how much fits (_FORTIFY_SOURCE)": len(set(re.findall(r"\b__(\w+)_chk\b", symbols))) >= 3,
        "indices into containers are checked (_GLIBCXX_ASSERTIONS)": "glibcxx_assert_fail" in symbols,
        f"each of its sources was compiled with {' '.join(FLAGS)} (not: {unprotected[:3]})": sources > 100 and not unprotected,
        "its indirect jumps are marked for the CPU": "IBT, SHSTK" in output("readelf", "--notes", binary) or not start_file_has("IBT"),
        f"each library that it loads is in `version --json` (not: {sorted(loaded - named - RUN_TIME)})": loaded - named <= RUN_TIME,
        "each dependency has a version": versions and all(re.match(r"\d+\.\d", version) for version in versions.values()),
    }
    for what, holds in checks.items():
        if not holds:
            print(f"{binary}: does not hold: {what}")
    failed = sum(not holds for holds in checks.values())
    print(f"CHECKS {len(checks) - failed} passed, {failed} failed   (the shipped binary)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
