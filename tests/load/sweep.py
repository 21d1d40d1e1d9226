#!/usr/bin/env python3
"""Drives servers over context × concurrency and records what it took: time to first token, time of a token, throughput, KV bytes.

    tests/load/sweep.py mha=http://127.0.0.1:8001 gqa=http://127.0.0.1:8002 mqa=http://127.0.0.1:8003 \\
        --contexts 1024,2048,4096,8192,16384,32768 --concurrency 1 --saturate 4096 --json sweep.json --plot sweep.svg
    tests/load/sweep.py … --plot sweep.svg --from sweep.json     draws what was recorded
    tests/load/sweep.py … --forever                              all servers at the same time, for a dashboard to look at

A cell is `concurrency` requests at once, each with a prompt of its own (random tokens: nothing is shared) of context − tokens, which then
generate `tokens`. With --repeat it is asked for again: the prompts are then found in the prefix cache, and the shortest time of a token counts. The time of a token is their mean while all of them decode (nothing, where they never do: take more tokens). A request that a server refuses because it cannot ever fit is a
result, not an error. --saturate sends more requests of that context than a server can hold, and records the most that ran at once (give the
servers --step-tokens-max of that context, so that prompts come in faster than answers end).
Needs aiohttp and tqdm; --plot needs matplotlib.
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
import time

import aiohttp
import tqdm

TOKEN_IDS = range(300, 900)  # ordinary tokens of the demo models' vocabulary, and of any larger one
SAMPLE_SECONDS = 0.05
SATURATE_TOKENS = 96  # few, so that a request is as long as its context while it runs
GAUGES = {"running": "vllm:num_requests_running", "waiting": "vllm:num_requests_waiting", "live_bytes": 'headroom_kv_bytes{state="live"}',
          "usage": "vllm:kv_cache_usage_perc"}
STATIC = {"token_bytes": "headroom_kv_token_bytes", "mha_token_bytes": "headroom_kv_mha_token_bytes", "pool_bytes": "headroom_kv_pool_bytes",
          "longest_request_tokens": "headroom_kv_longest_request_tokens"}


class Refused(Exception):
    """The server says that such a request can never fit."""


class Server:
    def __init__(self, session, name, url):
        self.session, self.name, self.url = session, name, url.rstrip("/")

    async def metrics(self):
        """{name or name{state="…"}: value}; labels of the model are left out."""
        async with self.session.get(self.url + "/metrics") as response:
            text = await response.text()
        found = {}
        for line in text.splitlines():
            if line.startswith("#"):
                continue
            series, value = line.rsplit(" ", 1)
            name = series.split("{")[0]
            state = series.split('state="')[1].split('"')[0] if 'state="' in series else None
            found[f'{name}{{state="{state}"}}' if state else name] = float(value)
        return found

    async def complete(self, prompt, tokens):
        """One streamed request: its times, and the KV that the answer says it took."""
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        began, marks, usage = time.monotonic(), [], None  # marks: when, and how many tokens had come; a chunk may hold several
        async with self.session.post(self.url + "/v1/completions", json=body) as response:
            if response.status == 400:
                raise Refused((await response.json())["error"]["message"])
            if response.status != 200:
                raise RuntimeError(f"{self.url}: {response.status} {(await response.text())[:300]}")
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                usage = event["usage"]
                if event["choices"]:
                    marks.append((time.monotonic(), usage["completion_tokens"]))
        if usage is None or usage["completion_tokens"] != tokens:
            raise RuntimeError(f"{self.url}: the stream ended early")
        return {"began": began, "first": marks[0][0], "last": marks[-1][0], "marks": marks, "kv_bytes": usage["kv_cache"]["bytes"],
                "mha_bytes": usage["kv_cache"]["mha_equivalent_bytes"]}


class Sampler:
    """The highest values of the server's gauges while it runs."""

    def __init__(self, server):
        self.server, self.highest = server, dict.fromkeys(GAUGES, 0.0)

    async def __aenter__(self):
        self.before = await self.server.metrics()
        self.task = asyncio.create_task(self.watch())
        return self

    async def __aexit__(self, *_):
        self.task.cancel()
        self.after = await self.server.metrics()

    async def watch(self):
        while True:
            now = await self.server.metrics()
            for key, name in GAUGES.items():
                self.highest[key] = max(self.highest[key], now[name])
            await asyncio.sleep(SAMPLE_SECONDS)

    def counted(self, name):
        return self.after[name] - self.before[name]


def random_prompt(generator, length):
    return generator.choices(TOKEN_IDS, k=length)


def tokens_at(marks, when):
    return max((tokens for at, tokens in marks if at <= when), default=0)


async def run_cell(server, context, concurrency, tokens, repetition, seed):
    """One row of the record; None for what could not be measured."""
    row = {"server": server.name, "context": context, "concurrency": concurrency, "tokens": tokens, "repetition": repetition}
    generator = random.Random(f"{seed} {context} {concurrency}")
    prompts = [random_prompt(generator, context - tokens) for _ in range(concurrency)]
    async with Sampler(server) as sampler:
        done = await asyncio.gather(*(server.complete(prompt, tokens) for prompt in prompts), return_exceptions=True)
    for failure in (result for result in done if isinstance(result, BaseException)):
        if isinstance(failure, Refused):
            return {**row, "refused": str(failure)}
        raise failure
    begin, end = max(r["first"] for r in done), min(r["last"] for r in done)  # all decode, nothing is prefilled
    decoded = sum(tokens_at(r["marks"], end) - tokens_at(r["marks"], begin) for r in done) if end > begin else 0
    whole = max(r["last"] for r in done) - min(r["began"] for r in done)
    return {**row, "ttft_seconds": statistics.median(r["first"] - r["began"] for r in done),
            "token_seconds": concurrency * (end - begin) / decoded if decoded else None,
            "decode_tokens_per_second": decoded / (end - begin) if decoded else None,
            "tokens_per_second": concurrency * tokens / whole, "kv_bytes_of_a_request": max(r["kv_bytes"] for r in done),
            "mha_bytes_of_a_request": max(r["mha_bytes"] for r in done), **{f"most_{key}": value for key, value in sampler.highest.items()},
            "preemptions": sampler.counted("vllm:num_preemptions_total")}


async def saturate(server, context, generator, requests):
    """More requests than fit, at once."""
    prompts = [random_prompt(generator, context - SATURATE_TOKENS) for _ in range(requests)]
    began = time.monotonic()
    async with Sampler(server) as sampler:
        await asyncio.gather(*(server.complete(prompt, SATURATE_TOKENS) for prompt in prompts))
    seconds = time.monotonic() - began
    return {"server": server.name, "context": context, "requests": requests, "most_at_once": sampler.highest["running"],
            "most_usage": sampler.highest["usage"], "preemptions": sampler.counted("vllm:num_preemptions_total"),
            "tokens_per_second": requests * SATURATE_TOKENS / seconds, "seconds": seconds}


async def describe(server):
    found = await server.metrics()
    return {key: found[name] for key, name in STATIC.items()}


async def drive(server, options):
    """Again and again, with prompts that the server has not seen, through its restarts."""
    for seed in itertools.count(options.seed):
        try:
            await sweep([server], argparse.Namespace(**{**vars(options), "seed": seed}))
        except (aiohttp.ClientError, RuntimeError) as error:
            print(f"sweep: {server.name}: {error}", file=sys.stderr, flush=True)
            await asyncio.sleep(2)


async def sweep(servers, options):
    record = {"servers": {s.name: await describe(s) for s in servers}, "cells": [], "saturation": []}
    cells = [(s, context, n, r) for context in options.contexts for n in options.concurrency for r in range(options.repeat) for s in servers]
    with tqdm.tqdm(cells, unit="cell", disable=options.forever or None) as bar:
        for server, context, concurrency, repetition in bar:
            bar.set_description(f"{server.name} {context} × {concurrency}")
            record["cells"].append(await run_cell(server, context, concurrency, min(options.tokens, context // 2), repetition, options.seed))
    if options.saturate:
        for server in tqdm.tqdm(servers, desc="saturate", disable=None):
            facts = record["servers"][server.name]
            # A few more than the pool can hold, so that some wait.
            requests = int(facts["pool_bytes"] // (facts["token_bytes"] * options.saturate)) + 4
            record["saturation"].append(await saturate(server, options.saturate, random.Random(options.seed), requests))
    return record


def best(record):
    """One row per (server, context, concurrency): the repetition with the shortest time of a token, which neighbours disturbed least; with
    the time to the first token when nothing was cached, and when the prompt was."""
    groups = {}
    for cell in record["cells"]:
        groups.setdefault((cell["server"], cell["context"], cell["concurrency"]), []).append(cell)
    rows = []
    for group in groups.values():
        fastest = min(group, key=lambda cell: cell.get("token_seconds") or float("inf"))
        cached = min((cell["ttft_seconds"] for cell in group[1:] if "ttft_seconds" in cell), default=None)
        rows.append({**fastest, "ttft_seconds": group[0].get("ttft_seconds"), "ttft_cached_seconds": cached})
    return rows


def number(value, factor=1.0, digits=1):
    return "–" if value is None else f"{value * factor:,.{digits}f}"


def print_tables(record):
    print("| server | context | at once | KV of a request, KiB | first token, s | prompt cached, s | a token, ms | decode, tokens/s | preempted |")
    print("|---|---|---|---|---|---|---|---|---|")
    for cell in best(record):
        head = f"| {cell['server']} | {cell['context']:,} | {cell['concurrency']} |"
        if "refused" in cell:
            print(f"{head} does not fit | – | – | – | – | – |")
            continue
        print(f"{head} {number(cell['kv_bytes_of_a_request'], 1 / 1024, 0)} | {number(cell['ttft_seconds'], 1, 2)} | "
              f"{number(cell['ttft_cached_seconds'], 1, 3)} | {number(cell['token_seconds'], 1e3, 2)} | "
              f"{number(cell['decode_tokens_per_second'], 1, 0)} | {cell['preemptions']:.0f} |")
    print("\n| server | KV bytes per token | pool, MiB | tokens that fit | longest request | most requests at once, of | tokens/s | preempted |")
    print("|---|---|---|---|---|---|---|---|")
    saturation = {row["server"]: row for row in record["saturation"]}
    for name, facts in record["servers"].items():
        row = saturation.get(name)
        held = f"{row['most_at_once']:.0f}, {row['context']:,} tokens | {row['tokens_per_second']:,.0f} | {row['preemptions']:.0f}" if row else "– | – | –"
        fit = facts["pool_bytes"] // facts["token_bytes"]
        print(f"| {name} | {facts['token_bytes']:,.0f} | {facts['pool_bytes'] / 2**20:,.0f} | {fit:,.0f} | {facts['longest_request_tokens']:,.0f} | {held} |")


def draw(record, path):
    import matplotlib
    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    from matplotlib import ticker

    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "headroom", "font.family": "sans-serif", "font.size": 9,
                         "axes.spines.top": False, "axes.spines.right": False})
    names = list(record["servers"])
    colors = dict(zip(names, ("#c44e52", "#4c72b0", "#55a868", "#8172b3", "#937860")))
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    fewest = min(cell["concurrency"] for cell in record["cells"])
    for name in names:
        rows = [c for c in best(record) if c["server"] == name and c["concurrency"] == fewest and "refused" not in c]
        contexts = [c["context"] for c in rows]
        axes[0].plot(contexts, [c["kv_bytes_of_a_request"] / 2**20 for c in rows], "o-", color=colors[name], label=name)
        timed = [c for c in rows if c["token_seconds"]]
        axes[1].plot([c["context"] for c in timed], [c["token_seconds"] * 1e3 for c in timed], "o-", color=colors[name], label=name)
    for axis, title, unit in ((axes[0], "KV of one request", "MiB"), (axes[1], "time of a token", "ms")):
        axis.set(title=title, ylabel=unit, xlabel="context, tokens", xscale="log", yscale="log")
        ticks = sorted({c["context"] for c in record["cells"]})
        axis.xaxis.set_major_locator(ticker.FixedLocator(ticks))
        axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value / 1024:.0f}K"))
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.grid(alpha=0.25)
        axis.legend(frameon=False)
    bars = axes[2].bar([row["server"] for row in record["saturation"]], [row["most_at_once"] for row in record["saturation"]],
                       color=[colors[row["server"]] for row in record["saturation"]])
    axes[2].bar_label(bars, fmt="%.0f")
    if record["saturation"]:
        pool = next(iter(record["servers"].values()))["pool_bytes"] / 2**20
        axes[2].set(title=f"requests of {record['saturation'][0]['context']:,} tokens at once\nin a KV pool of {pool:.0f} MiB")
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def parse_options(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("servers", nargs="+", metavar="NAME=URL")
    parser.add_argument("--contexts", type=numbers, default=[1024, 2048, 4096, 8192])
    parser.add_argument("--concurrency", type=numbers, default=[1])
    parser.add_argument("--tokens", type=int, default=64, help="generated by each request")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--saturate", type=int, default=0, metavar="CONTEXT")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="where to write the record")
    parser.add_argument("--plot", metavar="FILE.svg")
    parser.add_argument("--from", dest="source", metavar="FILE", help="a record to print and draw again, instead of asking servers")
    parser.add_argument("--forever", action="store_true", help="again and again, without a record")
    options = parser.parse_args(arguments)
    bad = [text for text in options.servers if "=http" not in text]
    if bad:
        parser.error(f"{bad[0]}: say NAME=URL, for example gqa=http://127.0.0.1:8000")
    if min(options.contexts) < 16 or min(options.concurrency) < 1 or options.tokens < 4 or options.repeat < 1:
        parser.error("a context is 16 tokens at least, concurrency and --repeat 1, --tokens 4")
    if options.saturate and options.saturate <= SATURATE_TOKENS:
        parser.error(f"--saturate must be over {SATURATE_TOKENS}, the tokens that each of its requests generates")
    return options


async def main():
    options = parse_options(sys.argv[1:])
    if options.source:
        with open(options.source) as file:
            record = json.load(file)
    else:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, read_bufsize=1 << 20) as session:
            servers = [Server(session, *text.split("=", 1)) for text in options.servers]
            if options.forever:
                await asyncio.gather(*(drive(server, options) for server in servers))
            record = await sweep(servers, options)
    print_tables(record)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(record, file, indent=1)
    if options.plot:
        draw(record, options.plot)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except (aiohttp.ClientError, RuntimeError) as error:
        sys.exit(f"sweep: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
