#!/usr/bin/env python3
"""Writes tests/golden/quantized: small checkpoints packed by the code that published ones were packed by, and what they stand for.

    pip install torch transformers safetensors numpy compressed-tensors==0.20.0 loguru
    pip install --no-deps auto-gptq==0.7.1 autoawq==0.2.9
    python3 tests/golden/make_quantized_goldens.py

<case>/ is a checkpoint with quantization_config; <case>.values/ has the same weights as F32: (code - zero) * scale, in fp32, of codes, zeros
and scales drawn here (of compressed-tensors: what its own decompress() gives). So both must give the same logits, to the bit, wherever
kernels can hold the codes.
"""
import importlib
import importlib.util
import json
import pathlib
import sys
import types

import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parent / "quantized"
HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, LAYERS, VOCAB = 64, 96, 4, 2, 16, 1, 64
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN,
          "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "num_hidden_layers": LAYERS,
          "vocab_size": VOCAB, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
          "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float16"}
LINEAR = {"self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN), "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
          "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN), "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
          "mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN), "mlp.down_proj": (HIDDEN, FFN)}


def import_alone(name):
    """A module of a package, without what the packages around it want to import."""
    if name in sys.modules:
        return sys.modules[name]
    path = name.split(".")
    for depth in range(1, len(path)):
        parent = types.ModuleType(".".join(path[:depth]))
        if depth == 1:
            parent.__path__ = list(importlib.util.find_spec(path[0]).submodule_search_locations)
        else:
            parent.__path__ = [f"{folder}/{path[depth - 1]}" for folder in sys.modules[".".join(path[:depth - 1])].__path__]
        sys.modules.setdefault(parent.__name__, parent)
    return importlib.import_module(name)


def plain_tensors(random):
    tensors = {"model.embed_tokens.weight": random.normal(size=(VOCAB, HIDDEN)), "lm_head.weight": random.normal(size=(VOCAB, HIDDEN)) / 8,
               "model.norm.weight": 1 + 0.1 * random.normal(size=HIDDEN)}
    for layer in range(LAYERS):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = 1 + 0.1 * random.normal(size=HIDDEN)
    return {name: torch.tensor(array, dtype=torch.float16) for name, array in tensors.items()}


def draw_codes(random, rows, cols, bits, group, symmetric):
    """Codes [N, K], zeros [N, G] and fp16 scales [N, G]: what a quantiser leaves behind."""
    groups = cols // group
    codes = torch.tensor(random.integers(0, 2**bits, size=(rows, cols)))
    zeros = torch.full((rows, groups), 2**(bits - 1)) if symmetric else torch.tensor(random.integers(1, 2**bits, size=(rows, groups)))
    scales = torch.tensor(random.uniform(0.5, 2.0, size=(rows, groups)) * 0.4 / 2**(bits - 1), dtype=torch.float16)
    return codes, zeros, scales


def spread(values, group_of_column):
    return values[:, group_of_column]


def gptq(random, bits=4, group=32, symmetric=True, act_order=False, v2=False):
    quant_linear = import_alone("auto_gptq.nn_modules.qlinear.qlinear_cuda").QuantLinear
    packed, values = {}, {}
    for layer in range(LAYERS):
        for name, (rows, cols) in LINEAR.items():
            size = cols if group == -1 else group
            codes, zeros, scales = draw_codes(random, rows, cols, bits, size, symmetric)
            order = torch.tensor(np.arange(cols) // size, dtype=torch.int32)
            if act_order:
                order = order[torch.tensor(random.permutation(cols))]
            value = (codes - spread(zeros, order)).float() * spread(scales, order).float()
            linear = torch.nn.Linear(cols, rows, bias=False)
            linear.weight.data = value
            module = quant_linear(bits, size, cols, rows, False, weight_dtype=torch.float32)
            module.pack(linear, scales.float(), zeros.float(), order)
            prefix = f"model.layers.{layer}.{name}"
            packed |= {f"{prefix}.qweight": module.qweight, f"{prefix}.qzeros": module.qzeros,
                       f"{prefix}.scales": module.scales.half(), f"{prefix}.g_idx": order}
            if v2:  # stores zeros as they are
                places = torch.arange(0, 32, bits, dtype=torch.int64)
                words = (zeros.t().reshape(zeros.shape[1], -1, 32 // bits) << places).sum(-1)
                packed[f"{prefix}.qzeros"] = torch.tensor(words.numpy().astype(np.uint32).view(np.int32))
            values[f"{prefix}.weight"] = value
    quantization = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act_order, "sym": symmetric}
    if v2:
        quantization["checkpoint_format"] = "gptq_v2"
    return packed, values, quantization


def awq(random, group=32):
    wq_linear = import_alone("awq.modules.linear.gemm").WQLinear_GEMM
    packed, values = {}, {}
    for layer in range(LAYERS):
        for name, (rows, cols) in LINEAR.items():
            codes, zeros, scales = draw_codes(random, rows, cols, 4, group, False)
            order = np.arange(cols) // group
            value = (codes - spread(zeros, order)).float() * spread(scales, order).float()
            linear = torch.nn.Linear(cols, rows, bias=False)
            linear.weight.data = value
            module = wq_linear.from_linear(linear, 4, group, scales=scales.float().t().contiguous(), zeros=zeros.float().t().contiguous())
            prefix = f"model.layers.{layer}.{name}"
            packed |= {f"{prefix}.qweight": module.qweight, f"{prefix}.qzeros": module.qzeros, f"{prefix}.scales": module.scales}
            values[f"{prefix}.weight"] = value
    return packed, values, {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}


def compressed(random, compression, bits=4, group=32, symmetric=True):
    strategy = {"strategy": "channel"} if group is None else {"strategy": "group", "group_size": group}
    args = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, **strategy)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(compression)
    packed, values = {}, {}
    for layer in range(LAYERS):
        for name, (rows, cols) in LINEAR.items():
            codes, zeros, scales = draw_codes(random, rows, cols, bits, group or cols, symmetric)
            order = np.arange(cols) // (group or cols)
            scales = scales.to(torch.bfloat16)  # as most are published
            state = {"weight": (codes - spread(zeros, order)).float() * spread(scales, order).float(), "weight_scale": scales.float()}
            if not symmetric:
                state["weight_zero_point"] = (zeros - 2**(bits - 1)).to(torch.int8)
            stored = compressor.compress(state, scheme)
            value = compressor.decompress(stored, scheme)["weight"].float()
            assert torch.equal(value, state["weight"]), name
            prefix = f"model.layers.{layer}.{name}"
            packed |= {f"{prefix}.{key}": tensor for key, tensor in stored.items()} | {f"{prefix}.weight_scale": scales}
            values[f"{prefix}.weight"] = value
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, **strategy}
    group_of_modules = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return packed, values, {"quant_method": "compressed-tensors", "format": compression, "quantization_status": "compressed",
                            "ignore": ["lm_head"], "config_groups": {"group_0": group_of_modules}}


def write(name, tensors, quantization=None):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors")
    config = CONFIG | ({"quantization_config": quantization} if quantization else {"torch_dtype": "float32"})
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


CASES = {
    "gptq_sym": lambda random: gptq(random),
    "gptq_zeros_one_group": lambda random: gptq(random, group=-1, symmetric=False),
    "gptq_act_order": lambda random: gptq(random, symmetric=False, act_order=True),
    "gptq_v2": lambda random: gptq(random, symmetric=False, v2=True),
    "gptq_int8": lambda random: gptq(random, bits=8),
    "awq": awq,
    "packed_sym": lambda random: compressed(random, "pack-quantized"),
    "packed_zeros": lambda random: compressed(random, "pack-quantized", symmetric=False),
    "packed_int8_zeros": lambda random: compressed(random, "pack-quantized", bits=8, group=None, symmetric=False),
    "int8_channel": lambda random: compressed(random, "int-quantized", bits=8, group=None),
}


def main():
    for seed, (name, make) in enumerate(CASES.items()):
        random = np.random.default_rng(seed)
        plain = plain_tensors(random)
        packed, values, quantization = make(random)
        write(name, plain | packed, quantization)
        write(name + ".values", {key: tensor.float() for key, tensor in (plain | values).items()})
        print(name)


if __name__ == "__main__":
    main()
