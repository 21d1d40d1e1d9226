"""The API as clients see it: the official OpenAI client, and what it never sends."""

import json

from harness import JSON_HEADERS, Skipped, raw_request, open_socket

PROMPT = "The password for Anna is walnut. What is the password for Anna?"
GREEDY = {"temperature": 0, "max_tokens": 16}


def client_of(server):
    try:
        import openai
    except ImportError:
        raise Skipped("the package openai is not installed; ./dev test installs it into build/venv") from None
    return openai.OpenAI(base_url=server.base_url + "/v1", api_key="none", max_retries=0, timeout=120)


def model_of(server):
    return json.loads(server.request("GET", "/v1/models")[2])["data"][0]["id"]


def tests(server):
    client = lambda: client_of(server)  # noqa: E731
    model = model_of(server)

    def models():
        listed = client().models.list().data
        assert [m.id for m in listed] == [model], listed
        assert client().models.retrieve(model).id == model

    def completion_whole_equals_streamed():
        whole = client().completions.create(model=model, prompt=PROMPT, **GREEDY)
        assert whole.object == "text_completion" and whole.choices[0].finish_reason in ("stop", "length")
        usage = whole.usage
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.completion_tokens <= 16
        chunks = list(client().completions.create(model=model, prompt=PROMPT, stream=True, stream_options={"include_usage": True}, **GREEDY))
        assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
        assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == usage.completion_tokens
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason

    def chat_whole_equals_streamed():
        messages = [{"role": "user", "content": PROMPT}]
        whole = client().chat.completions.create(model=model, messages=messages, **GREEDY)
        assert whole.object == "chat.completion" and whole.choices[0].message.role == "assistant"
        chunks = list(client().chat.completions.create(model=model, messages=messages, stream=True, **GREEDY))
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
        parts = [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]
        assert client().chat.completions.create(model=model, messages=parts, **GREEDY).choices[0].message.content == whole.choices[0].message.content

    def logprobs():
        whole = client().completions.create(model=model, prompt=PROMPT, logprobs=3, **GREEDY).choices[0].logprobs
        assert len(whole.tokens) == len(whole.token_logprobs) == len(whole.top_logprobs) <= 16
        for own, top in zip(whole.token_logprobs, whole.top_logprobs):
            assert own <= 0 and abs(max(top.values()) - own) < 1e-5, "the greedy token is the likeliest"
        chat = client().chat.completions.create(model=model, messages=[{"role": "user", "content": PROMPT}], logprobs=True, top_logprobs=2, **GREEDY)
        for entry in chat.choices[0].logprobs.content:
            assert len(entry.top_logprobs) == 2 and entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob
        echoed = client().completions.create(model=model, prompt=PROMPT, echo=True, logprobs=1, temperature=0, max_tokens=1).choices[0]
        assert echoed.text.startswith(PROMPT) and echoed.logprobs.token_logprobs[0] is None
        assert len(echoed.logprobs.tokens) == server.complete(PROMPT, max_tokens=1)["usage"]["prompt_tokens"] + 1

    def several_choices():
        whole = client().completions.create(model=model, prompt=PROMPT, n=3, temperature=1.0, seed=7, max_tokens=12)
        assert [c.index for c in whole.choices] == [0, 1, 2] and whole.usage.completion_tokens <= 36
        alone = client().completions.create(model=model, prompt=PROMPT, n=1, temperature=1.0, seed=7, max_tokens=12)
        assert alone.choices[0].text == whole.choices[0].text, "choice 0 does not depend on how many others there are"
        two = client().completions.create(model=model, prompt=[PROMPT, "Other."], **GREEDY)
        assert [c.index for c in two.choices] == [0, 1]

    def stop_strings_and_ids():
        full = server.complete(PROMPT, ignore_eos=True, **GREEDY)["choices"][0]["text"]
        assert len(full) > 4, full
        stop = full[2:4]
        cut = client().completions.create(model=model, prompt=PROMPT, stop=[stop], extra_body={"ignore_eos": True}, **GREEDY).choices[0]
        assert cut.text == full[:full.index(stop)] and cut.finish_reason == "stop", (full, cut)
        streamed = client().completions.create(model=model, prompt=PROMPT, stop=[stop], stream=True, extra_body={"ignore_eos": True}, **GREEDY)
        assert "".join(c.choices[0].text for c in streamed) == cut.text
        kept = server.complete(PROMPT, stop=[stop], include_stop_str_in_output=True, ignore_eos=True, **GREEDY)["choices"][0]["text"]
        assert kept == full[:full.index(stop) + len(stop)]

    def seeds_determine():
        ask = lambda seed: server.complete(PROMPT, temperature=1.5, seed=seed, max_tokens=24, ignore_eos=True)["choices"][0]["text"]  # noqa: E731
        first = [ask(seed) for seed in range(6)]
        assert [ask(seed) for seed in range(6)] == first
        assert len(set(first)) > 1, "different seeds, different texts"

    def token_id_prompts_and_round_trip():
        text = "Hello, Anna! \u00e9\u4e2d\U0001f600 \n  spaces"
        status, tokens = server.post("/tokenize", {"prompt": text})
        assert status == 200 and tokens["count"] == len(tokens["tokens"])
        status, back = server.post("/detokenize", {"tokens": tokens["tokens"]})
        assert status == 200 and back["prompt"] == text, back
        ids = server.post("/tokenize", {"prompt": PROMPT})[1]["tokens"]
        assert server.complete(ids, **GREEDY)["choices"][0]["text"] == server.complete(PROMPT, **GREEDY)["choices"][0]["text"]

    def usage_counts_the_pages_held():
        page_tokens, token_bytes = 16, server.metric("headroom_kv_token_bytes")
        mha_token_bytes = server.metric("headroom_kv_mha_token_bytes")
        for length in (1, 15, 16, 17, 100):
            usage = server.complete([5] * length, max_tokens=20, temperature=0, ignore_eos=True, cache_salt=f"usage {length}")["usage"]
            kv = usage["kv_cache"]
            written = length + 20 - 1  # the last token is not computed
            assert usage["prompt_tokens"] == length and usage["completion_tokens"] == 20
            assert kv["pages"] == -(-written // page_tokens), (length, kv)
            assert kv["bytes"] == kv["pages"] * page_tokens * token_bytes
            assert kv["mha_equivalent_bytes"] == kv["pages"] * page_tokens * mha_token_bytes
            assert usage["prompt_tokens_details"]["cached_tokens"] == 0
        again = server.complete([5] * 100, max_tokens=1, temperature=0, cache_salt="usage 100")["usage"]
        assert again["prompt_tokens_details"]["cached_tokens"] == 96, "six whole pages of the prompt"

    def bytes_by_state_sum_to_the_pool():
        metrics = server.metrics()
        total = sum(value for series, value in metrics.items() if series.startswith("headroom_kv_bytes{"))
        pool = server.metric("headroom_kv_pool_bytes")
        assert total == pool == server.metric("headroom_memory_predicted_bytes", part="kv_pool"), (total, pool)

    def bad_requests():
        completions, chat = "/v1/completions", "/v1/chat/completions"
        messages = [{"role": "user", "content": "x"}]
        cases = [
            (completions, {}, 400), (completions, [], 400), (completions, {"prompt": 5}, 400), (completions, {"prompt": None}, 400),
            (completions, {"prompt": []}, 400), (completions, {"prompt": [[]]}, 400), (completions, {"prompt": [-1]}, 400),
            (completions, {"prompt": [2**31]}, 400), (completions, {"prompt": [10**9]}, 400), (completions, {"prompt": [1.5]}, 400),
            (completions, {"prompt": "x", "max_tokens": 0}, 400), (completions, {"prompt": "x", "max_tokens": -1}, 400),
            (completions, {"prompt": "x", "max_tokens": 2**40}, 400), (completions, {"prompt": "x", "max_tokens": "many"}, 400),
            (completions, {"prompt": "x", "max_tokens": True}, 400), (completions, {"prompt": "x", "n": 0}, 400),
            (completions, {"prompt": "x", "n": 10**6}, 400), (completions, {"prompt": "x", "temperature": -1}, 400),
            (completions, {"prompt": "x", "temperature": "hot"}, 400), (completions, {"prompt": "x", "top_p": 0}, 400),
            (completions, {"prompt": "x", "top_p": 1.1}, 400), (completions, {"prompt": "x", "logprobs": 10**6}, 400),
            (completions, {"prompt": "x", "stop": 5}, 400), (completions, {"prompt": "x", "stop": ["a"] * 10**5}, 400),
            (completions, {"prompt": "x", "logit_bias": {"x": 1}}, 400), (completions, {"prompt": "x", "logit_bias": {"999999999": 1}}, 400),
            (completions, {"prompt": "x", "model": "no-such-model"}, 404), (completions, {"prompt": "x " * 10**5}, 400),
            (completions, {"prompt": [5] * 40000}, 400), (chat, {}, 400), (chat, {"messages": []}, 400), (chat, {"messages": "x"}, 400),
            (chat, {"messages": [{"content": "x"}]}, 400), (chat, {"messages": [{"role": "user", "content": 5}]}, 400),
            (chat, {"messages": messages, "top_logprobs": 5}, 400), (chat, {"messages": messages, "stream": "yes"}, 400),
            ("/tokenize", {}, 400), ("/detokenize", {"tokens": ["x"]}, 400), ("/detokenize", {"tokens": [-5]}, 400), ("/nothing", {}, 404),
        ]
        for path, body, wanted in cases:
            shown = (path, str(body)[:80])
            status, answer = server.post(path, body)
            assert status == wanted, (shown, status, answer)
            assert set(answer["error"]) >= {"message", "type", "param", "code"}, (shown, answer)
            assert "exception" not in answer["error"]["message"], (shown, answer)
        for body in (b"", b"{", b"nul", b"[" * 200000, b'{"prompt":"\xff"}', b'{"prompt":"\\ud800"}', b'{"prompt":"x"} x', b'{"prompt":"x","n":1e999}'):
            status, _, answer = server.request("POST", completions, body)
            assert status == 400 and b'"error"' in answer, (body[:40], status, answer)
        assert server.request("POST", completions, b"{}", headers={})[0] == 415
        assert server.request("POST", completions, b"x" * (17 << 20))[0] == 413
        assert server.request("GET", completions)[0] == 405
        assert server.request("GET", "/v1/models", headers={"X": "y" * 50000})[0] == 431
        status, answer = server.post(completions, {"prompt": "x", "max_tokens": 1, "a_field_of_tomorrow": {"x": [1]}})
        assert status == 200, answer

    def client_raises_the_right_errors():
        official = client()
        import openai
        for body, error in (({"temperature": -1}, openai.BadRequestError), ({"model": "no-such-model"}, openai.NotFoundError)):
            try:
                official.completions.create(**{"model": model, "prompt": "x", **body})
                raise AssertionError(f"{body} was accepted")
            except error as raised:
                assert raised.body["message"], raised

    def ids_and_probes():
        status, headers, _ = server.request("GET", "/livez", headers={"X-Request-Id": "my-id.7"})
        assert status == 200 and headers["X-Request-Id"] == "my-id.7"
        for path in ("/readyz", "/health", "/version"):
            assert server.request("GET", path)[0] == 200, path
        _, headers, _ = server.request("GET", "/metrics")
        assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8", headers

    def stream_format():
        connection = open_socket(server.port)
        body = {"prompt": PROMPT, "stream": True, **GREEDY}
        connection.sendall(raw_request("POST", "/v1/completions", body).replace(b"\r\nHost", b"\r\nConnection: close\r\nHost", 1))
        received = b""
        while part := connection.recv(65536):
            received += part
        head, _, rest = received.partition(b"\r\n\r\n")
        assert b"Content-Type: text/event-stream" in head and b"Transfer-Encoding: chunked" in head, head
        assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"), rest[-80:]
        assert JSON_HEADERS["Content-Type"].encode() not in head

    checks = [models, completion_whole_equals_streamed, chat_whole_equals_streamed, logprobs, several_choices, stop_strings_and_ids,
              seeds_determine, token_id_prompts_and_round_trip, usage_counts_the_pages_held, bytes_by_state_sum_to_the_pool, bad_requests,
              client_raises_the_right_errors, ids_and_probes, stream_format]
    return [("api: " + check.__name__.replace("_", " "), check) for check in checks]
