#!/usr/bin/env python3
"""Holds the shipped binary, by readelf, to its protections: a random address, all relocations done and read-only before main, no
executable stack; and `headroom version --json` to the libraries that the binary loads.

Usage: tests/binary.py HEADROOM
"""
import json
import re
import subprocess
import sys

# Libraries of the C and C++ run time: they come with the distribution's compiler, whose version is printed.
RUN_TIME = {"libc", "libm", "libstdc++", "libgcc_s", "libpthread", "libdl", "librt", "libz", "ld-linux-x86-64", "ld-linux-aarch64"}
SONAMES = {"cpp-httplib": "libcpp-httplib", "spdlog": "libspdlog", "fmt": "libfmt", "prometheus-cpp": "libprometheus-cpp-core",
           "Highway": "libhwy", "PCRE2": "libpcre2-8", "utf8proc": "libutf8proc"}


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main():
    binary = sys.argv[1]
    header = output("readelf", "--wide", "--file-header", binary)
    segments = output("readelf", "--wide", "--program-headers", binary)
    dynamic = output("readelf", "--wide", "--dynamic", binary)
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
