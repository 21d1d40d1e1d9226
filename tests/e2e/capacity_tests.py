"""What `headroom plan` predicts is what the running server measures: for MHA, GQA and MQA, to the byte."""

import json
import os
import subprocess
import tempfile
import xml.etree.ElementTree

from harness import ROOT, Server

POOL = "16MiB"
WORDS = "The password for Anna is walnut. " * 20


def plan(binary, *arguments):
    done = subprocess.run([binary, "plan", *arguments], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout


def keys(value):
    """The names of all fields, with the path to them."""
    if isinstance(value, dict):
        return {name for key, inner in value.items() for name in [key, *(f"{key}.{path}" for path in keys(inner))]}
    if isinstance(value, list):
        return {path for inner in value for path in keys(inner)}
    return set()


def tests(binary):
    def predicted_is_measured(kind, kv_heads, kv_type="bf16", head_bytes=32 * 2):
        model = os.path.join(ROOT, "configs/models", f"demo-{kind}")
        options = ["--kv-memory", POOL, "--kv", kv_type]
        predicted = json.loads(plan(binary, model, *options, "--json"))
        budget = predicted["planned"]["budgets"][0]
        with Server(binary, model, *options) as server:
            assert predicted["kv_heads"] == kv_heads and predicted["mha"]["token_bytes"] == 3 * 2 * 8 * head_bytes
            assert server.metric("headroom_kv_token_bytes") == predicted["planned"]["token_bytes"] == 3 * 2 * kv_heads * head_bytes
            assert server.metric("headroom_kv_pool_bytes") == budget["pool_bytes"]
            states = [server.metric("headroom_kv_bytes", state=state) for state in ("live", "cached", "free")]
            assert sum(states) == budget["pool_bytes"]
            for source in ("predicted", "allocated"):
                assert server.metric(f"headroom_memory_{source}_bytes", part="kv_pool") == budget["pool_bytes"], source

            for prompt_words in (5, 30, 120):
                answer = server.complete(" ".join(WORDS.split()[:prompt_words]), max_tokens=9, ignore_eos=True, temperature=0)
                usage = answer["usage"]
                # The last token is given out and never written.
                written = usage["total_tokens"] - 1
                one = json.loads(plan(binary, model, *options, "--context", str(written), "--json"))
                kv = usage["kv_cache"]
                assert kv["bytes"] == one["planned"]["request_bytes"], (kv, one["planned"])
                assert kv["pages"] == one["planned"]["request_pages"]
                assert kv["mha_equivalent_bytes"] == one["mha"]["request_bytes"]

            context = predicted["planned"]["budgets"][0]["longest_request_tokens"]
            status, _, body = server.request("GET", f"/v1/capacity?context={context}")
            answered = json.loads(body)
            again = json.loads(plan(binary, model, *options, "--context", str(context), "--json"))
            assert status == 200 and keys(answered) == keys(again)
            for part in ("planned", "mha", "mqa"):
                for capacity in (answered, again):  # the server counts from the pool that it has, in whole pages
                    capacity[part]["budgets"][0].pop("pool_bytes_max")
            assert answered["planned"] == again["planned"], (answered["planned"], again["planned"])
            assert answered["heatmap"] == again["heatmap"]
            served_context = json.loads(server.request("GET", "/v1/models")[2])["data"][0]["max_model_len"]
            assert served_context == context
        return f"{predicted['planned']['token_bytes']} bytes per token, pool {budget['pool_bytes']}"

    def converted_heads_answer_the_same():
        gqa = os.path.join(ROOT, "configs/models/demo-gqa")
        asked = {"prompt": WORDS + "What is the password for Anna?", "max_tokens": 8, "temperature": 0, "logprobs": 5}
        with tempfile.TemporaryDirectory() as folder:
            mha = os.path.join(folder, "mha")
            done = subprocess.run([binary, "convert", "--kv-heads", "8", gqa, mha], capture_output=True, text=True, check=True)
            assert "8 KV heads, 3072 KV bytes per token" in done.stdout, done.stdout
            answers = []
            for model in (gqa, mha):
                with Server(binary, model, "--kv-memory", POOL) as server:
                    answers.append(server.complete(**asked))
        first, second = answers
        assert first["choices"] == second["choices"], (first["choices"], second["choices"])
        assert second["usage"]["kv_cache"]["bytes"] == 4 * first["usage"]["kv_cache"]["bytes"] > 0
        return f"{first['choices'][0]['text']!r} at 4 times the KV bytes"

    def the_picture_is_xml():
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "plan.svg")
            plan(binary, "gemma-3-27b", "--svg", path)
            root = xml.etree.ElementTree.parse(path).getroot()
            cells = root.findall("{http://www.w3.org/2000/svg}rect")
            assert root.get("aria-label").startswith("gemma-3-27b") and len(cells) == 6 * 8, len(cells)

    return [("plan: predicted is measured, MHA", lambda: predicted_is_measured("mha", 8)),
            ("plan: predicted is measured, GQA", lambda: predicted_is_measured("gqa", 2)),
            ("plan: predicted is measured, MQA", lambda: predicted_is_measured("mqa", 1)),
            ("plan: predicted is measured, GQA, int8", lambda: predicted_is_measured("gqa", 2, "int8", 32 + 4)),
            ("convert: repeated heads answer the same", converted_heads_answer_the_same),
            ("plan: the picture is XML", the_picture_is_xml)]
