"""Starts: how fast, how much memory, and what a start that cannot succeed says."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time

from harness import ROOT, Server, in_threads, not_with_a_sanitizer


def tests(binary, model):
    def failed_start(*arguments, wanted, command="serve"):
        done = subprocess.run([binary, command, *arguments], capture_output=True, text=True, timeout=60, cwd=ROOT)
        lines = done.stderr.strip().split("\n")
        assert done.returncode != 0 and len(lines) == 1 and done.stdout == "", (arguments, done)
        assert wanted in lines[0], (arguments, lines[0])

    def bad_starts_say_one_line():
        failed_start(wanted="set --model")
        failed_start("--model", "/nowhere", wanted="/nowhere is not a directory")
        failed_start("--model", model, "--kv-memroy", "1GiB", wanted="did you mean --kv-memory?")
        failed_start("--model", model, "--port", "99999", wanted="from 0 to 65535")
        failed_start("--model", model, "--port", "0", "--kv-memory", "1KiB", wanted="set --kv-memory to at least")
        failed_start("--model", model, "--port", "0", "--kv-memory", "1MiB", "--context-tokens", "32768", wanted="or --context-tokens to at most")
        failed_start("--model", model, "--port", "0", "--context-tokens", "1000000", wanted="more than the model's")
        failed_start("--model", model, "--config", "/nowhere.json", wanted="/nowhere.json cannot be read")
        failed_start("--model", model, "--host", "192.0.2.1", wanted="set --host")
        failed_start(wanted="did you mean serve?", command="srve")
        failed_start("--model", "/nowhere\x1b[31m\nforged", wanted="/nowhere?[31m forged is not a directory")
        failed_start("--model", model, "--api-keys-file", "/dev/zero", wanted="the file of API keys /dev/zero is larger than 1 MiB")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            failed_start("--model", model, "--port", port, wanted=f"port {port} of 127.0.0.1 is in use")

    def errors_of_the_options_file_say_one_line():
        """It is read once, at start: there is no reload that could fail later."""
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            for text, wanted in (("", "line 1 is not valid JSON"), ('{"port": 1,\n"threads": 1', "line 2 is not valid JSON"), ("[]", "must be a JSON object"),
                                 ("[" * 200000, "not valid JSON"), ('{"port": 0}\0x', "holds a zero byte"), (" " * (1 << 20) + "{}", "is larger than 1 MiB"),
                                 ('{"prot": 1}', "option prot is not known; did you mean port?"), ('{"config": "x.json"}', "option config is not known"),
                                 ('{"port": 70000}', "from 0 to 65535"), ('{"port": 1.5}', "from 0 to 65535"), ('{"port": null}', "port must be"),
                                 ('{"prefix_cache": "maybe"}', "must be true or false"), ('{"kv_memory": "1KiB", "port": 0}', "set --kv-memory to at least")):
                file.seek(0)
                file.truncate()
                file.write(text)
                file.flush()
                failed_start("--model", model, "--config", file.name, wanted=wanted)
        failed_start("--model", model, "--config", "/tmp", wanted="/tmp cannot be read")
        failed_start("--model", model, "--config", "/dev/zero", wanted="/dev/zero is larger than 1 MiB")

    def broken_models_say_one_line():
        def with_file(name, change, wanted):
            with tempfile.TemporaryDirectory() as folder:
                copy = os.path.join(folder, "model")
                shutil.copytree(model, copy)
                path = os.path.join(copy, name)
                with open(path, "rb") as file:
                    content = file.read()
                changed = change(content)
                if changed is None:
                    os.remove(path)
                else:
                    with open(path, "wb") as file:
                        file.write(changed)
                failed_start("--model", copy, "--port", "0", wanted=wanted)

        def architecture(content):
            return json.dumps({**json.loads(content), "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3"}).encode()

        with_file("config.json", lambda content: content[:50], "config.json")
        with_file("config.json", lambda content: None, "config.json")
        with_file("config.json", architecture, "Gemma3ForCausalLM")
        for method in ("bitsandbytes", "fp8"):
            with_file("config.json", lambda content, method=method: json.dumps(
                {**json.loads(content), "quantization_config": {"quant_method": method}}).encode(), f"quant_method {method} is not supported; supported: gptq, awq, compressed-tensors")
        vocabulary = os.path.join(ROOT, "tests/golden/gguf/gpt2.vocabulary.gguf")
        failed_start("--model", vocabulary, "--port", "0", wanted="gpt2.vocabulary.gguf: llama.embedding_length is missing")
        failed_start("--model", "/nowhere.gguf", "--port", "0", wanted="/nowhere.gguf: cannot open")
        with_file("tokenizer.json", lambda content: b"{}", "tokenizer.json")
        with_file("tokenizer.json", lambda content: content[:1000], "tokenizer.json")
        with_file("model.safetensors", lambda content: content[:1000], "safetensors")
        with_file("model.safetensors", lambda content: content[:-1], "safetensors")
        with_file("model.safetensors", lambda content: None, "safetensors")

    def what_is_no_file_is_not_read():
        """A model that was unpacked from an archive may hold pipes, devices and folders under the names of its files."""
        def a_huge_file(path):
            with open(path, "wb") as file:
                file.truncate(1 << 40)

        names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors")
        kinds = {"a pipe": os.mkfifo, "a device": lambda path: os.symlink("/dev/zero", path), "a folder": os.mkdir, "a tebibyte": a_huge_file,
                 "a link to itself": lambda path: os.symlink(path, path)}
        for name in names:
            for kind, make in kinds.items():
                with tempfile.TemporaryDirectory() as folder:
                    copy = os.path.join(folder, "model")
                    shutil.copytree(model, copy)
                    path = os.path.join(copy, name)
                    with contextlib.suppress(FileNotFoundError):
                        os.remove(path)
                    make(path)
                    failed_start("--model", copy, "--port", "0", wanted=name)
        return f"{len(names)} files, {len(kinds)} kinds each"

    def names_of_files_forge_no_line():
        with tempfile.TemporaryDirectory() as folder:
            named = os.path.join(folder, "a\x1b[2Jb\n2026-01-01 00:00:00.000 info forged\u009bc")
            os.symlink(model, named)
            with Server(binary, named, "--kv-memory", "16MiB") as server:
                log = server.log()
                assert "model a?[2Jb?2026-01-01" in log and "forged??c:" in log and "\x1b" not in log, log
                assert not any(line.startswith("2026-01-01") for line in log.splitlines()), log

    def ready_within_a_second():
        best = 99.0
        for _ in range(5):  # other programs may take the processor; the best of five is the server's own time
            with Server(binary, model) as server:
                best = min(best, server.ready_seconds)
            if best <= 1:
                break
        assert best <= 1, best
        return f"{best:.3f} s"

    def memory_is_weights_and_pool_and_little_more():
        not_with_a_sanitizer("it keeps what was freed")
        with Server(binary, model, "--kv-memory", "64MiB") as server:
            allowed = (server.metric("headroom_memory_allocated_bytes", part="weights") +
                       server.metric("headroom_memory_allocated_bytes", part="kv_pool") + (64 << 20))
            at_start = server.memory_bytes()
            server.complete([7] * 2000, max_tokens=200, ignore_eos=True)
            assert max(at_start, server.memory_bytes("VmHWM")) <= allowed, (at_start, allowed)
            return f"{at_start / 2**20:.0f} MiB at start, {server.memory_bytes('VmHWM') / 2**20:.0f} MiB at most, {allowed / 2**20:.0f} MiB allowed"

    def the_start_shows_the_pool():
        with Server(binary, model, "--kv-memory", "64MiB", "--served-model-name", "one,two") as server:
            log = server.log()
            for part in ("bytes per token", "longest request", "full requests", "MHA", "weights", "backend", "ready at http://127.0.0.1:"):
                assert part in log, (part, log)
            assert [m["id"] for m in json.loads(server.request("GET", "/v1/models")[2])["data"]] == ["one", "two"]

    def the_same_by_a_file_and_json_logs():
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({"kv_memory": "32MiB", "log_format": "json", "step_tokens_max": 64}, file)
            file.flush()
            with Server(binary, model, "--config", file.name) as server:
                assert server.metric("headroom_kv_pool_bytes") <= 32 << 20
                for line in server.log().splitlines():
                    assert set(json.loads(line)) == {"time", "level", "message"}, line

    def health_says_whether_a_server_is_ready():
        ask = lambda *options: subprocess.run([binary, "health", *options], capture_output=True, text=True, timeout=30)  # noqa: E731
        with Server(binary, model, "--kv-memory", "16MiB") as server:
            assert ask("--port", str(server.port)).returncode == 0
            assert ask("--host", "localhost", "--port", str(server.port)).returncode == 0, "of its addresses one may be another's"
        gone = ask("--port", str(server.port))
        assert gone.returncode == 1 and f"no server at 127.0.0.1:{server.port}" in gone.stderr, gone
        wrong = ask("--port", "0")
        assert wrong.returncode == 1 and "--port" in wrong.stderr and "headroom health --help" in wrong.stderr, wrong
        assert ask("--host", "no such host").returncode == 1
        for answer in (b"HTTP/1.1 503 Service Unavailable\r\n\r\nloading", b"", b"nonsense"):
            with socket.create_server(("127.0.0.1", 0)) as listener:
                said = in_threads(2, lambda index: ask("--port", str(listener.getsockname()[1])) if index else answer_once(listener, answer))[1]
                assert said.returncode == 1 and ("loading" if answer.startswith(b"HTTP") else "no answer from") in said.stderr, said

    def the_report_is_a_file_that_needs_nothing_else():
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "report.html")
            done = subprocess.run([binary, "report", "--model", model, "--output", path, "--context-tokens", "2048"], capture_output=True,
                                  text=True, timeout=300, cwd=ROOT)
            assert done.returncode == 0 and done.stdout == "" and "[7/7]" in done.stderr, done
            with open(path, encoding="utf-8") as file:
                page = file.read()
            failed = subprocess.run([binary, "report", "--model", model, "--output", path, "--prompt", ""], capture_output=True, text=True, timeout=60, cwd=ROOT)
            assert failed.returncode == 1 and os.listdir(folder) == ["report.html"], failed
            with open(path, encoding="utf-8") as file:
                assert file.read() == page, "what was there stays when another cannot be made"
            assert page.startswith("<!doctype html>") and page.endswith("</html>\n") and "655,360" in page and "differs</span>" not in page
            return f"{done.stderr.splitlines()[-1].split()[-2]} s, {len(page.encode()) >> 10} KiB"

    def the_benchmark_is_paired_with_other_programs():
        """Two that print what is known, in two formats: whose turn it was, what they were asked, and the ratios."""
        with tempfile.TemporaryDirectory() as folder:
            log = os.path.join(folder, "log")
            first = (f"echo first {{prompt}} {{batch}} {{depth}} {{steps}} {{threads}} >> {log}; "
                     f"echo $(( $(grep -c first {log}) * 100 ))")  # 100, 200, 300 tokens per second
            second = (f"echo second >> {log}; "
                      'echo \'{"n_prompt": {prompt}, "n_gen": {steps}, "n_depth": {depth}, "avg_ts": 8, "samples_ts": [7, 5, 50]}\'')
            arguments = ["bench", "--model", model, "--threads", "1", "--repetitions", "3", "--steps", "2", "--batch", "1", "--depth", "32"]
            done = subprocess.run([binary, *arguments, "--prompt", "64", "--compare", first, "--compare", second, "--json"], capture_output=True,
                                  text=True, timeout=300, cwd=ROOT)
            assert done.returncode == 0, done
            with open(log, encoding="utf-8") as file:
                turns = file.read().splitlines()
            assert turns == ["first 64 1 0 0 1", "second"] * 3 + ["first 0 1 32 2 1", "second"] * 3, turns
            results = json.loads(done.stdout)["results"]
            for row, tokens, theirs in zip(results, (64, 1), ([100, 200, 300], [400, 500, 600])):
                for peer, speeds in zip(row["peers"], (theirs, [7, 7, 7])):
                    ratios = sorted(tokens / seconds / speed for seconds, speed in zip(row["step_seconds"], speeds))
                    assert peer["tokens_per_second"] == speeds, peer
                    found = [peer["ratio_min"], peer["ratio_median"], peer["ratio_max"]]
                    assert all(abs(a / b - 1) < 1e-9 for a, b in zip(found, ratios)), (peer, ratios)
            assert len(results) == 2 and all(len(row["peers"]) == 2 for row in results)
            table = subprocess.run([binary, *arguments, "--prompt", "0", "--compare", "echo 12.5"], capture_output=True, text=True, timeout=300, cwd=ROOT)
            assert table.returncode == 0 and " 12.5 " in table.stdout and table.stdout.rstrip().endswith("echo 12.5"), table
            for command, wanted in (("exit 4", "ended with status 4"), ("echo fast", "neither a number"), ("true", "printed nothing"),
                                    ('echo \'{"n_gen": 3, "n_depth": 32, "avg_ts": 8}\'', "it has: 3 decode steps, depth 32")):
                done = subprocess.run([binary, *arguments, "--prompt", "0", "--compare", command], capture_output=True, text=True, timeout=60, cwd=ROOT)
                assert done.returncode != 0 and done.stdout == "" and wanted in done.stderr.splitlines()[-1], (command, done)
            only_prefill = "[ {prompt} = 64 ] && echo 12.5"
            done = subprocess.run([binary, *arguments, "--prompt", "64", "--compare", only_prefill], capture_output=True, text=True, timeout=60, cwd=ROOT)
            assert done.returncode != 0 and "prefill" in done.stdout and "decode" not in done.stdout, "what was measured before is shown: " + str(done)

    def what_cannot_be_printed_is_an_error_and_no_end():
        plan = [binary, "plan", "llama-3-8b", "--json"]
        with open("/dev/full", "w", encoding="utf-8") as full:
            done = subprocess.run(plan, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
        assert done.returncode == 1 and done.stderr.startswith("headroom: cannot print: ") and done.stderr.count("\n") == 1, done
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "report.html")
            command = f'exec "{binary}" report --model "{model}" --output "{path}" --context-tokens 128 2>&-'
            done = subprocess.run(command, shell=True, timeout=120, cwd=ROOT)
            with open(path, encoding="utf-8") as file:
                assert done.returncode == 0 and file.read(15) == "<!doctype html>", "what goes to a closed descriptor must not land in a file"
            log = os.path.join(folder, "log")
            command = f'ulimit -f 8; exec "{binary}" serve --model "{model}" --port 0 --kv-memory 16MiB --log-level debug 2>"{log}"'
            with subprocess.Popen(command, shell=True) as process:
                port, deadline = None, time.monotonic() + 30
                while port is None and time.monotonic() < deadline:
                    time.sleep(0.05)
                    with open(log, encoding="utf-8") as file:
                        found = re.search(r"ready at http://[^ ]*:(\d+)", file.read())
                    port = int(found.group(1)) if found else None
                for _ in range(100):
                    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                        assert connection.recv(12) == b"HTTP/1.1 200"
                assert os.path.getsize(log) in (4096, 8192), "so much is allowed by a shell that counts half or whole KiB"
                process.terminate()
                assert process.wait(30) == 0

    def answer_once(listener, answer):
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(answer)

    checks = [bad_starts_say_one_line, errors_of_the_options_file_say_one_line, broken_models_say_one_line, what_is_no_file_is_not_read, names_of_files_forge_no_line, ready_within_a_second, memory_is_weights_and_pool_and_little_more,
              the_start_shows_the_pool, the_report_is_a_file_that_needs_nothing_else, the_benchmark_is_paired_with_other_programs, health_says_whether_a_server_is_ready,
              the_same_by_a_file_and_json_logs, what_cannot_be_printed_is_an_error_and_no_end]
    return [("start: " + check.__name__.replace("_", " "), check) for check in checks]
