"""Compares Headroom's chat templates with Jinja2, over a folder of published templates.

    python3 tests/golden/check_templates.py build/tests/render_template FOLDER

Each *.jinja file is rendered with each conversation of template_reference.py by both. Where Jinja2 gives a text, the
texts must be equal; where it raises, Headroom must refuse. Needs Python with transformers and jinja2. Exit code 1 if
anything differs.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import template_reference


def render_all(program, requests):
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run([program], input=lines.encode(), stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def describe(expected, error, actual):
    if expected is None:
        return f"Jinja2 raises ({error}), Headroom renders {actual['text'][:200]!r}"
    if "error" in actual:
        return f"Headroom refuses: {actual['error']}"
    text = actual["text"]
    at = next((i for i, (a, b) in enumerate(zip(expected, text)) if a != b), min(len(expected), len(text)))
    begin = max(at - 60, 0)
    return f"differs at {at}:\n  expected …{expected[begin:at + 80]!r}\n  actual   …{text[begin:at + 80]!r}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", help="the test tool render_template")
    parser.add_argument("folder", type=pathlib.Path, help="folder of *.jinja files")
    arguments = parser.parse_args()

    files = sorted(arguments.folder.glob("**/*.jinja"))
    if not files:
        sys.exit(f"no *.jinja file in {arguments.folder}")
    equal_files = equal = rendered = refused = total = 0
    for path in files:
        cases = [(name, dict(case, template=path.read_text())) for name, case in template_reference.conversations()]
        answers = render_all(arguments.program, [request for _, request in cases])
        bad = 0
        for (name, request), answer in zip(cases, answers):
            expected, error = template_reference.reference(request)
            total += 1
            rendered += expected is not None
            refused += expected is None
            if answer.get("text") == expected:
                equal += 1
                continue
            bad += 1
            print(f"{path.name} [{name}]: {describe(expected, error, answer)}")
        equal_files += bad == 0
    print(f"{equal} of {total} renderings equal ({rendered} texts, {refused} refusals); "
          f"{equal_files} of {len(files)} templates equal throughout")
    sys.exit(equal != total)


if __name__ == "__main__":
    main()
