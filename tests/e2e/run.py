#!/usr/bin/env python3
"""End-to-end tests: the real server with a demo model, over real sockets, with the official OpenAI client.

    tests/e2e/run.py --server build/cpu-release/headroom [--only TEXT]

The client comes from build/venv, if it is not installed otherwise: ./dev test makes it. Prints a line per test and
"E2E n passed, m failed"; exit status 1 if one failed.
"""

import argparse
import os
import sys

from harness import ROOT, Server, run_tests, use_venv

import api_tests
import capacity_tests
import fault_tests
import format_tests
import load_tests
import page_tests
import start_tests
import tenant_tests


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="the program headroom")
    parser.add_argument("--model", default=os.path.join(ROOT, "configs/models/demo-gqa"))
    parser.add_argument("--only", default="", help="run the tests whose name holds this text")
    arguments = parser.parse_args()
    use_venv("openai")
    binary = os.path.abspath(arguments.server)
    wanted = lambda tests: [(name, test) for name, test in tests if arguments.only in name]  # noqa: E731

    own_server = wanted(start_tests.tests(binary, arguments.model) + capacity_tests.tests(binary) + format_tests.tests(binary) +
                        load_tests.tests_with_own_server(binary, arguments.model) + fault_tests.tests(binary, arguments.model) + tenant_tests.tests(binary, arguments.model) +
                        page_tests.tests(binary, os.path.join(os.path.dirname(binary), "screenshots")))
    with Server(binary, arguments.model, "--kv-memory", "64MiB") as server:
        shared = wanted(api_tests.tests(server) + load_tests.tests(server))
        return run_tests(own_server + shared)


if __name__ == "__main__":
    sys.exit(main())
