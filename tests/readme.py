#!/usr/bin/env python3
"""Holds the README's table of options against the program's own.

Usage: tests/readme.py HEADROOM [--write]      HEADROOM: the binary; --write puts the table into the README
"""
import pathlib
import re
import subprocess
import sys

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"
TABLE = re.compile(r"(<!-- options:.*?-->\n)(.*?)(<!-- /options -->)", re.S)


def main():
    table = subprocess.run([sys.argv[1], "options", "--markdown"], check=True, capture_output=True, text=True).stdout
    text = README.read_text()
    found = TABLE.search(text)
    if "--write" in sys.argv:
        README.write_text(text[:found.start(2)] + table + text[found.end(2):])
        return 0
    same = found is not None and found.group(2) == table
    if not same:
        print(f"the README's table of options differs from `headroom options --markdown`: run {sys.argv[0]} {sys.argv[1]} --write")
    print(f"CHECKS {int(same)} passed, {int(not same)} failed   (the README's table of options)")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
