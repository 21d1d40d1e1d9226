"""API keys with the real server: who may ask, whose prefixes are shared, and that nothing of a client is told to anybody else."""

import contextlib
import hashlib
import json
import tempfile

from api_tests import GREEDY, PROMPT
from harness import JSON_HEADERS, Server, open_socket

SECRET = "canary7f3a"  # in everything that a client sends


@contextlib.contextmanager
def key_file(**keys):
    """NAME="key limit=1 …" for each; the path of a file with their digests."""
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as file:
        for name, text in keys.items():
            key, *limits = text.split()
            file.write(" ".join((name, hashlib.sha256(key.encode()).hexdigest(), *limits)) + "\n")
        file.flush()
        yield file.name


def with_key(key):
    return {**JSON_HEADERS, "Authorization": "Bearer " + key}


def tests(binary, model):
    def prefixes_are_shared_within_a_name_alone():
        with key_file(alice="key-of-alice", bob="key-of-bob") as keys, Server(binary, model, "--kv-memory", "64MiB", "--api-keys-file", keys) as server:
            for path in ("/v1/models", "/version", "/tokenize", "/nothing", "/metrics", "/health"):
                assert server.request("GET", path)[0] == 401, path
            assert server.request("GET", "/livez")[0] == 200 and server.request("GET", "/readyz")[0] == 200

            def cached(key, **fields):
                status, answer = server.post("/v1/completions", {"prompt": PROMPT * 4, **GREEDY, **fields}, headers=with_key(key))
                assert status == 200, answer
                return answer["usage"]["prompt_tokens_details"]["cached_tokens"], answer["usage"]["prompt_tokens"]

            of_alice = [cached("key-of-alice")[0] for _ in range(5)]
            of_bob = [cached("key-of-bob")[0]]
            of_bob += [cached("key-of-bob", cache_salt="x")[0], cached("key-of-bob", cache_salt="alice")[0]]
            assert of_alice[0] == 0 and min(of_alice[1:]) > 0, of_alice
            assert of_bob == [0, 0, 0], "the prefix of another key was found"
            assert cached("key-of-bob")[0] == of_alice[1], "its own prefix is not found"
            text = server.request("GET", "/metrics", headers=with_key("key-of-bob"))[2].decode()
            seen = {tenant: float(line.rsplit(" ", 1)[1]) for tenant in ("alice", "bob") for line in text.splitlines()
                    if line.startswith("headroom_tenant_tokens_total") and f'tenant="{tenant}"' in line and 'kind="cached"' in line}
            assert seen == {"alice": sum(of_alice), "bob": of_alice[1]}, seen
            return f"{sum(of_alice[1:]) // 4} tokens of {cached('key-of-alice')[1]} found by the same key, 0 by another"

    def nothing_of_a_client_is_told():
        for log_format in ("text", "json"):
            with key_file(alice=SECRET + "-key") as keys, Server(binary, model, "--kv-memory", "16MiB", "--api-keys-file", keys, "--log-level", "debug",
                                                                 "--log-format", log_format, "--introspection", "true", "--queue-requests-max", "1",
                                                                 "--context-tokens", "512") as server:
                refusals = ask_everything(server)
                told = {"log": server.log(), "metrics": server.request("GET", "/metrics", headers=with_key(SECRET + "-key"))[2].decode(),
                        "live": server.request("GET", "/v1/live?once", headers=with_key(SECRET + "-key"))[2].decode(), **refusals}
                for where, text in told.items():
                    assert SECRET not in text, (where, [line for line in text.splitlines() if SECRET in line][:3])
                assert "/v1/completions" in told["log"], "the log has no lines to look at"
                if log_format == "json":
                    for line in told["log"].splitlines():
                        assert set(json.loads(line)) == {"time", "level", "message"}, line
        return f"{len(refusals)} refusals"

    checks = [prefixes_are_shared_within_a_name_alone, nothing_of_a_client_is_told]
    return [("tenant: " + check.__name__.replace("_", " "), check) for check in checks]


def ask_everything(server):
    """Sends the secret in every field of every route, in right and wrong forms. Returns the bodies of what was refused, by what was sent."""
    refusals = {}
    key = SECRET + "-key"

    def ask(path, body, method="POST", headers=None):
        text = body if isinstance(body, str) else json.dumps(body)
        status, _, answer = server.request(method, path, text.encode(), {**with_key(key), **(headers or {})})
        if status >= 400:
            refusals[f"{method} {path} {status} {text[:200]}"] = answer.decode(errors="replace")
        return status

    whole = {"prompt": SECRET, "stop": [SECRET], "cache_salt": SECRET, "user": SECRET, SECRET: SECRET, "max_tokens": 2}
    talk = {**whole, "messages": [{"role": "user", "content": SECRET, "name": SECRET}], "tools": [{"type": "function", "function": {"name": SECRET}}]}
    for path, body in (("/v1/completions", whole), ("/v1/chat/completions", talk), ("/tokenize", whole), ("/v1/attention", {"prompt": SECRET})):
        assert ask(path, body) == 200, (path, refusals)
        if "completions" in path:
            assert ask(path, {**body, "stream": True, "n": 2, "logprobs": 1 if path == "/v1/completions" else True, "echo": True}) == 200, refusals
        for field in (*talk, "model", "temperature", "seed", "n", "logit_bias", "response_format", "stream_options", "top_k", "layer", "chat_template_kwargs"):
            for value in (SECRET, [SECRET], {SECRET: SECRET}, [[SECRET]], [{SECRET: SECRET}], [{"role": SECRET, "content": [{"type": SECRET}]}]):
                ask(path, {**body, field: value})
        for broken in (f'{{"prompt": "{SECRET}', f'{{"prompt": {SECRET}}}', f'"{SECRET}"', f'{{"prompt": "{SECRET}"}} {SECRET}', f'{{"prompt": "{SECRET}\\ud800"}}',
                       "[" * 100 + SECRET, json.dumps({"prompt": f"{SECRET} " * 5000, "messages": [{"role": "user", "content": f"{SECRET} " * 5000}]})):
            assert ask(path, broken) == 400, (path, broken[:80])
        ask(path, whole, headers={"Content-Type": SECRET})
        ask(path, whole, headers={"X-Request-Id": SECRET + " \t;", "traceparent": SECRET, "User-Agent": SECRET, "Cookie": SECRET})
        ask(path, whole, headers={"Authorization": "Bearer " + SECRET})
        ask(path, whole, headers={"Authorization": SECRET})
        ask(path, whole, method="DELETE")
    ask("/v1/completions", {"prompt": [SECRET] * 3, "max_tokens": 1})  # more than the queue has places
    ask("/v1/completions", {"prompt": "x", "max_tokens": 10**6, "cache_salt": SECRET})
    ask("/detokenize", {"tokens": SECRET})
    ask("/" + SECRET, whole)
    for raw in (f"GET /{SECRET} HTTP/1.1\r\nHost: {SECRET}\r\n\r\n", f"{SECRET}\r\n\r\n", f"GET / HTTP/1.1\r\n{SECRET}\r\n\r\n",
                f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: {SECRET}\r\n\r\n"):
        with contextlib.closing(open_socket(server.port)) as connection:
            connection.sendall(raw.encode())
            refusals[raw] = connection.recv(65536).decode(errors="replace")
    # Streams that are left, and what is cut off when the server ends.
    body = json.dumps({**whole, "stream": True, "max_tokens": 400, "ignore_eos": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(3):
        with contextlib.closing(open_socket(server.port)) as connection:
            connection.sendall(head.encode() + body)
            connection.recv(100)
    return refusals
