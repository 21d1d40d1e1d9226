#!/usr/bin/env python3
"""Writes tests/golden/models: a tiny random checkpoint of every supported family with the logits of the reference implementation.

    python3 tests/golden/make_model_goldens.py          (needs torch, transformers, safetensors)

Each folder is a checkpoint in Hugging Face layout and golden.safetensors:
  tokens [T] i32, logits [T, V] f32 at every position, greedy [32] i32 that follow,
  served_context_tokens [1] i32 (which of LongRoPE's two factor lists applies).
Weights, norms and biases are random and large enough for every op to matter: attention is peaked, biases are not small, norms are
not 1. The reference runs in fp32 from the weights as stored, without a KV cache, with eager attention. A seed is taken only if no
greedy step is a near tie, so that the 32 tokens do not hang on the last bit, and at least 6 of the 32 differ.
"""
import copy
import json
import math
import pathlib
import shutil

import torch
import transformers
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parent / "models"
VOCAB, TEXT_TOKENS, GREEDY_TOKENS, CONTEXT = 96, 96, 32, 256
TIE_MARGIN, DISTINCT_MIN = 2e-3, 6

SHAPE = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=CONTEXT, bos_token_id=1, eos_token_id=2, pad_token_id=0,
             tie_word_embeddings=False)
YARN = dict(rope_type="yarn", rope_theta=1000.0, factor=4.0, original_max_position_embeddings=32)


def longrope(original):
    return dict(rope_type="longrope", rope_theta=10000.0, original_max_position_embeddings=original,
                short_factor=[1.0, 1.02, 1.05, 1.1, 1.3, 1.6], long_factor=[1.0, 1.3, 2.0, 3.5, 6.0, 8.0])


# name: (family, config, how it is stored)
CASES = {
    "llama2_mha": ("Llama", dict(num_key_value_heads=4, rope_parameters=dict(rope_type="default", rope_theta=10000.0)), {}),
    "llama3_gqa": ("Llama", dict(rms_norm_eps=1e-5, rope_parameters=dict(rope_type="default", rope_theta=500000.0)),
                   dict(legacy=True)),
    # Text past the original 32 tokens; wavelengths on both sides of, and between, the two bounds.
    "llama31_rope": ("Llama", dict(num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True, rope_parameters=dict(
        rope_type="llama3", rope_theta=200.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32)), dict(legacy=True)),
    "tinyllama_mqa_head_dim": ("Llama", dict(num_attention_heads=8, num_key_value_heads=1, head_dim=8), {}),
    "smollm2_group3": ("Llama", dict(hidden_size=48, num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True,
                                     rope_parameters=dict(rope_type="default", rope_theta=100000.0)), dict(legacy=True)),
    "llama_linear_biases": ("Llama", dict(attention_bias=True, mlp_bias=True, rope_parameters=dict(
        rope_type="linear", rope_theta=10000.0, factor=4.0)), dict(legacy=True)),
    "llama_yarn_mscale": ("Llama", dict(head_dim=16, rope_parameters=dict(
        YARN, rope_theta=50.0, mscale=1.2, mscale_all_dim=0.8, truncate=False, beta_fast=4, beta_slow=1)), {}),
    "llama_bf16": ("Llama", dict(num_attention_heads=4), dict(dtype=torch.bfloat16)),
    "llama_sharded": ("Llama", dict(), dict(shard="24KB")),
    "smollm3_nope": ("SmolLM3", dict(num_hidden_layers=3, no_rope_layers=[1, 0, 1], tie_word_embeddings=True,
                                     use_sliding_window=False, rope_parameters=dict(rope_type="default", rope_theta=5e6)), {}),
    "mistral_window": ("Mistral", dict(sliding_window=24), dict(legacy=True)),
    "mistral_nemo_head_dim": ("Mistral", dict(head_dim=16, sliding_window=None, rope_parameters=dict(
        rope_type="default", rope_theta=1000000.0)), {}),
    # The window is there and switched off.
    "qwen2_group7": ("Qwen2", dict(hidden_size=56, num_attention_heads=7, num_key_value_heads=1, tie_word_embeddings=True,
                                   use_sliding_window=False, sliding_window=8, max_window_layers=0), dict(legacy=True)),
    "qwen2_yarn": ("Qwen2", dict(rope_parameters=YARN), dict(legacy=True)),
    "qwen2_window": ("Qwen2", dict(use_sliding_window=True, sliding_window=16, max_window_layers=0), {}),
    "qwen3_head_dim": ("Qwen3", dict(head_dim=16, tie_word_embeddings=True, attention_bias=True), {}),
    "qwen3_fp16": ("Qwen3", dict(head_dim=24), dict(dtype=torch.float16)),
    "phi3_window": ("Phi3", dict(num_key_value_heads=4, sliding_window=40), dict(legacy=True)),
    # Text past the original 32 tokens, so the long factors; rotary_dim 12 of 16.
    "phi3_longrope_partial": ("Phi3", dict(hidden_size=48, num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True,
                                           original_max_position_embeddings=32,
                                           rope_parameters=dict(longrope(32), partial_rotary_factor=0.75)), dict(legacy=True)),
    # Within the original 192 tokens, so the short ones.
    "phi3_longrope_short": ("Phi3", dict(hidden_size=32, num_attention_heads=2, num_key_value_heads=2,
                                         original_max_position_embeddings=192,
                                         rope_parameters=dict(longrope(192), partial_rotary_factor=0.75)), dict(served=192)),
}


def randomise(model, tied, generator):
    """Values that make every weight, norm and bias visible in the logits."""
    done = set()
    for name, parameter in model.named_parameters():
        if parameter.data_ptr() in done:
            continue
        done.add(parameter.data_ptr())
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            value = 0.3 * noise
        elif "norm" in name:
            value = 1.0 + 0.3 * noise
        elif "embed" in name:
            value = (0.25 if tied else 0.6) * noise  # tied and large, a token would only ever predict itself
        else:
            gain = 1.5 if any(part in name for part in ("q_proj", "k_proj", "qkv_proj")) else 1.0
            value = gain * noise / math.sqrt(parameter.shape[-1])
        parameter.data.copy_(value)


def reference(model, tokens):
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].to(torch.float32)


def greedy(model, tokens):
    """The next tokens, or None if one of them is a near tie or they hardly vary."""
    text = list(tokens)
    for _ in range(GREEDY_TOKENS):
        best = torch.topk(reference(model, text)[-1], 2)
        if best.values[0] - best.values[1] < TIE_MARGIN:
            return None
        text.append(int(best.indices[0]))
    following = text[len(tokens):]
    return following if len(set(following)) >= DISTINCT_MIN else None


def to_legacy(path):
    """The spelling of older configs: rope_theta, partial_rotary_factor and rope_scaling.type outside, torch_dtype."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:
            config[key] = rope.pop(key)
    rope["type"] = rope.pop("rope_type")
    config["rope_scaling"] = None if rope["type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def make(name, family, overrides, storage):
    config_class = getattr(transformers, family + "Config")
    model_class = getattr(transformers, family + "ForCausalLM")
    folder = OUT / name
    for seed in range(1, 100):
        generator = torch.Generator().manual_seed(seed)
        config = config_class(**{**SHAPE, **json.loads(json.dumps(overrides))}, attn_implementation="eager")
        model = model_class(config).eval()
        randomise(model, config.tie_word_embeddings, generator)
        stored = storage.get("dtype", torch.float32)
        for parameter in model.parameters():  # what a reader of the stored weights computes with; never the RoPE's angles
            parameter.data = parameter.data.to(stored).to(torch.float32)
        tokens = torch.randint(0, VOCAB, (TEXT_TOKENS,), generator=generator).tolist()
        following = greedy(model, tokens)
        if following is not None:
            break
    logits = reference(model, tokens)
    error = (reference(copy.deepcopy(model).to(torch.float64), tokens) - logits).abs().max()
    model = model.to(stored)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size=storage.get("shard", "1GB"))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if storage.get("legacy"):
        to_legacy(folder / "config.json")
    save_file({"tokens": torch.tensor(tokens, dtype=torch.int32), "logits": logits.contiguous(),
               "greedy": torch.tensor(following, dtype=torch.int32),
               "served_context_tokens": torch.tensor([storage.get("served", CONTEXT)], dtype=torch.int32)},
              folder / "golden.safetensors")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name:24} seed {seed:2} |logit| ≤ {logits.abs().max():6.2f}  fp32 − fp64 ≤ {error:.1e}  {size / 1024:6.1f} KiB  "
          f"distinct greedy {len(set(following))}", flush=True)
    return size


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print("transformers", transformers.__version__, "torch", torch.__version__)
    total = sum(make(name, *case) for name, case in CASES.items())
    print(f"total {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
