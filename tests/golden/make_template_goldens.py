"""Writes the expected texts of tests/golden/templates with Jinja2, as transformers sets it up.

    python3 tests/golden/make_template_goldens.py

- cases.json: each *.jinja file of the folder with each conversation of template_reference.py.
- snippets.json: small expressions and statements, each with what Jinja2 prints, or null where it raises.
"""

import json
import pathlib

import template_reference
from template_snippets import SNIPPETS, VARIABLES

FOLDER = pathlib.Path(__file__).parent / "templates"


def dump(path, header, items):
    lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
    path.write_text("{" + header + "\n" + lines + "\n]}\n")


def main():
    cases = []
    conversations = dict(template_reference.conversations())
    for path in sorted(FOLDER.glob("*.jinja")):
        for name, request in conversations.items():
            text, _ = template_reference.reference(dict(request, template=path.read_text()))
            cases.append({"template": path.name, "conversation": name, "text": text})
    requests = json.dumps(conversations, ensure_ascii=False)
    dump(FOLDER / "cases.json", f'"conversations": {requests},\n"cases": [', cases)

    snippets = []
    for source in SNIPPETS:
        request = {"template": source, "messages": [], "extra": VARIABLES}
        text, error = template_reference.reference(request)
        snippets.append({"source": source, "text": text})
        if text is None:
            print(f"refused: {source}: {error}")
    variables = json.dumps(VARIABLES, ensure_ascii=False)
    dump(FOLDER / "snippets.json", f'"variables": {variables},\n"snippets": [', snippets)
    print(f"{len(cases)} cases, {len(snippets)} snippets")


if __name__ == "__main__":
    main()
