#!/usr/bin/env python3
"""PyTorch, and FlashInfer where it is installed, on the same device in the same run: what to stand beside. Prints one JSON object per
line as soon as it is known.

Usage: tests/gpu/peers.py peak|linear|sdpa|flashinfer|transformers [--tiny]    --tiny: on the CPU, with small sizes, to try the program itself

Times are medians by the device's own events, after warming up, over more data than its caches hold. Contents are random.
"""
import json
import pathlib
import sys
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = "--tiny" in sys.argv
DEVICE = torch.device("cpu" if TINY else "cuda")
COLD_BYTES = 1 << 16 if TINY else 256 << 20
WEIGHTS = [(48, 64)] if TINY else [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)]
ROWS = [1, 9] if TINY else [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048, 8192]
ATTENTION = [(2, 40, 1)] if TINY else [(g, n, b) for g in (32, 8, 1) for n in (8192, 32768, 131072) for b in (1, 16, 64)]
KV_BYTES_MAX = 36e9
MODELS = [("demo-gqa/config", 32)] if TINY else [("llama-3-8b", 1024), ("llama-3.2-1b", 1024), ("qwen2.5-0.5b", 1024)]


def say(**line):
    print(json.dumps(line), flush=True)


def noise(*shape):
    return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16)


def synchronize():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(launch, samples=15, sample_seconds=1e-5 if TINY else 5e-3):
    """Median time of a launch; `launch` gets a running number, to take turns over its data."""
    turn = 0

    def sample(launches):
        nonlocal turn
        synchronize()
        if DEVICE.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
        start = time.perf_counter()
        for _ in range(launches):
            launch(turn)
            turn += 1
        if DEVICE.type == "cuda":
            end.record()
            synchronize()
            return begin.elapsed_time(end) / 1e3 / launches
        return (time.perf_counter() - start) / launches

    sample(3)
    launches = max(2, min(2000, int(sample_seconds / max(sample(4), 1e-9))))
    return sorted(sample(launches) for _ in range(samples))[samples // 2]


def copies_of(make, nbytes):
    return [make() for _ in range(max(2, -(-COLD_BYTES // nbytes)))]


def copy_rate():
    a = noise(1 << 16 if TINY else 1 << 29)
    b = torch.empty_like(a)
    return 2 * a.nbytes / seconds_of(lambda _: b.copy_(a))


def peak():
    n = 64 if TINY else 8192
    a, b = noise(n, n), noise(n, n)
    say(peer="matrix peak", n=n, flops_per_second=2 * n**3 / seconds_of(lambda _: a @ b, sample_seconds=1e-5 if TINY else 0.05))
    say(peer="copy", copy_bytes_per_second=copy_rate(), torch=torch.__version__)


def linear():
    for outputs, inputs in WEIGHTS:
        weights = copies_of(lambda: noise(outputs, inputs), 2 * outputs * inputs)
        rows = [m for m in ROWS if outputs <= 100000 or m <= 512]
        x = noise(max(rows), inputs)
        everything = torch.nn.functional.linear(x, weights[0])
        for m in rows:
            part = x[:m].clone()
            same = torch.equal(torch.nn.functional.linear(part, weights[0]), everything[:m])
            seconds = seconds_of(lambda i: torch.nn.functional.linear(part, weights[i % len(weights)]))
            say(peer="linear", outputs=outputs, inputs=inputs, rows=m, seconds=seconds, same_bits_as_all_rows=same)


def sdpa():
    rate = copy_rate()
    for kv_heads, context, batch in ATTENTION:
        nbytes = 4 * batch * kv_heads * context * 128
        if nbytes > KV_BYTES_MAX:
            continue
        try:
            pairs = copies_of(lambda: (noise(batch, kv_heads, context, 128), noise(batch, kv_heads, context, 128)), nbytes)
            q = noise(batch, 32, 1, 128)

            def attend(i):
                k, v = pairs[i % len(pairs)]
                torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=kv_heads != 32)
            say(peer="sdpa", kv_heads=kv_heads, context_tokens=context, batch=batch, kv_bytes=nbytes, seconds=seconds_of(attend, samples=9),
                copy_bytes_per_second=rate)
        except torch.OutOfMemoryError:
            say(peer="sdpa does not fit", kv_heads=kv_heads, context_tokens=context, batch=batch)
        pairs = q = None
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()


def flashinfer():
    """Decode from pages of 16 tokens in any order. Its kernels are compiled when they are first asked for."""
    try:
        import flashinfer as fi
    except ImportError as error:
        say(peer="flashinfer is not there", why=str(error))
        return
    if DEVICE.type != "cuda":
        say(peer="flashinfer is not there", why="it needs a device")
        return
    rate, page = copy_rate(), 16
    room = torch.zeros(256 << 20, device=DEVICE, dtype=torch.uint8)
    for kv_heads, context, batch in ATTENTION:
        nbytes, pages = 4 * batch * kv_heads * context * 128, batch * context // page
        if nbytes > KV_BYTES_MAX:
            continue
        try:
            caches = copies_of(lambda: noise(pages, 2, page, kv_heads, 128), nbytes)
            q = noise(batch, 32, 128)
            begin = torch.arange(batch + 1, device=DEVICE, dtype=torch.int32) * (pages // batch)
            decode = fi.BatchDecodeWithPagedKVCacheWrapper(room, "NHD", use_tensor_cores=kv_heads != 32)
            decode.plan(begin, torch.randperm(pages, device=DEVICE).int(), torch.full((batch,), page, device=DEVICE, dtype=torch.int32), 32, kv_heads,
                        128, page, q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16)
            seconds = seconds_of(lambda i: decode.run(q, caches[i % len(caches)]), samples=9)
            say(peer="flashinfer", kv_heads=kv_heads, context_tokens=context, batch=batch, kv_bytes=nbytes, seconds=seconds,
                copy_bytes_per_second=rate, version=fi.__version__)
        except torch.OutOfMemoryError:
            say(peer="flashinfer does not fit", kv_heads=kv_heads, context_tokens=context, batch=batch)
        caches = q = None
        torch.cuda.empty_cache()


@torch.no_grad()
def transformers():
    import transformers as hf
    for name, context in MODELS:
        path = ROOT / f"configs/models/{name}.json"
        config = hf.AutoConfig.from_pretrained(path)
        with DEVICE:
            model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        cache = hf.DynamicCache()
        ids = torch.randint(0, config.vocab_size, (1, context), device=DEVICE)
        token = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        steps = []
        for _ in range(4 if TINY else 48):
            synchronize()
            start = time.perf_counter()
            token = model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
            synchronize()
            steps.append(time.perf_counter() - start)
        say(peer="transformers", shape=path.stem, batch=1, context_tokens=context, tokens_per_second=1 / sorted(steps)[len(steps) // 2],
            transformers=hf.__version__)
        del model, cache
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    {"peak": peak, "linear": linear, "sdpa": sdpa, "flashinfer": flashinfer, "transformers": transformers}[sys.argv[1]]()
