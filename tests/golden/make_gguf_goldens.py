#!/usr/bin/env python3
"""Writes tests/golden/gguf with the reference package for GGUF, from the checkpoints of tests/golden/models.

    pip install gguf==0.17.1
    python3 tests/golden/make_gguf_goldens.py           (needs gguf, numpy, safetensors, tokenizers, transformers)

Models: <case>.gguf is the checkpoint of the same name in tests/golden/models, so its logits must be those of that directory, to the bit.
<case>.quantized.gguf has blocks made or read by the package, and <case>.values.gguf what the package says they stand for, as F32.
Names and metadata are those of llama.cpp's converter, with its order of the rows of q and k.
Tokenizers: <name>.vocabulary.gguf holds the arrays of tests/golden/tokenizer/<name>.json and no tensors; tokenizers.golden.json has the ids
that `tokenizers` gives for the texts of strings.json. For the SentencePiece style the merges are those that transformers derives
from scores.
"""
import json
import pathlib

import gguf
import numpy as np
import tokenizers
from gguf import GGMLQuantizationType as Type
from safetensors import safe_open
from transformers.convert_slow_tokenizer import generate_merges

HERE = pathlib.Path(__file__).parent
OUT = HERE / "gguf"
ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3",
                 "Phi3ForCausalLM": "phi3", "SmolLM3ForCausalLM": "smollm3"}
PERMUTED = {"llama", "smollm3"}
CASES = ["llama3_gqa", "llama_bf16", "llama31_rope", "llama_linear_biases", "smollm2_group3", "mistral_window", "qwen2_group7",
         "qwen2_yarn", "qwen3_fp16", "phi3_window", "phi3_longrope_partial", "smollm3_nope"]


def read_checkpoint(folder):
    """Names to (array, type). bf16 comes as its bits."""
    tensors = {}
    for path in sorted(folder.glob("model*.safetensors")):
        header_bytes = int.from_bytes(path.read_bytes()[:8], "little")
        header = json.loads(path.read_bytes()[8:8 + header_bytes])
        data = path.read_bytes()[8 + header_bytes:]
        for name, info in header.items():
            if name == "__metadata__":
                continue
            begin, end = info["data_offsets"]
            dtype, kind = {"F32": (np.float32, Type.F32), "F16": (np.float16, Type.F16), "BF16": (np.uint16, Type.BF16)}[info["dtype"]]
            tensors[name] = (np.frombuffer(data[begin:end], dtype).reshape(info["shape"]), kind)
    return tensors


def permute(rows, heads):
    """The order of llama.cpp's converter: the two halves of a head interleaved."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def rope_of(config):
    rope = dict(config.get("rope_parameters") or {})
    rope.update(config.get("rope_scaling") or {})
    return (rope.get("rope_type") or rope.get("type") or "default"), rope, rope.get("rope_theta", config.get("rope_theta", 10000.0))


def llama3_factors(rope, theta, head_dim):
    factors = []
    for frequency in 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim):
        wavelength = 2 * np.pi / frequency
        original, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(rope["factor"])
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def add_configuration(writer, config, architecture):
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    kind, rope, theta = rope_of(config)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads", heads))
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    writer.add_rope_dimension_count(int(head_dim * partial))
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    if config.get("architectures", [""])[0] in ("MistralForCausalLM", "Phi3ForCausalLM") and config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
        if kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    elif kind == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(rope, theta, head_dim))
    elif kind == "longrope":
        original = config.get("original_max_position_embeddings") or rope["original_max_position_embeddings"]
        scale = config["max_position_embeddings"] / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(scale) / np.log(original))))
        writer.add_tensor("rope_factors_long.weight", np.array(rope["long_factor"], np.float32))
        writer.add_tensor("rope_factors_short.weight", np.array(rope["short_factor"], np.float32))
    else:
        assert kind == "default", kind


def add_tensors(writer, config, architecture, tensors):
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, architecture.upper(), gguf.MODEL_ARCH.LLAMA), config["num_hidden_layers"])
    for name, (array, kind) in tensors.items():
        if architecture in PERMUTED and ".q_proj." in name:
            array = permute(array, config["num_attention_heads"])
        elif architecture in PERMUTED and ".k_proj." in name:
            array = permute(array, config["num_key_value_heads"])
        if array.ndim == 1 and kind != Type.F32:  # vectors are always F32
            array = (array.astype(np.uint32) << 16).view(np.float32) if kind == Type.BF16 else array.astype(np.float32)
            kind = Type.F32
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert gguf_name, name
        writer.add_tensor(gguf_name, array.view(np.uint8) if kind == Type.BF16 else np.ascontiguousarray(array), raw_dtype=kind)


def write(path, architecture, config, tensors):
    writer = gguf.GGUFWriter(path, architecture)
    add_configuration(writer, config, architecture)
    add_tensors(writer, config, architecture, tensors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def copy_case(name):
    folder = HERE / "models" / name
    config = json.loads((folder / "config.json").read_text())
    write(OUT / f"{name}.gguf", ARCHITECTURES[config["architectures"][0]], config, read_checkpoint(folder))


def k_blocks(kind, shape, random):
    """Blocks of the K types, which the package can only read: random quants and scales of a size that keeps rows in range."""
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (shape[0] * shape[1] // block_elements, block_bytes), dtype=np.uint8)
    scale = np.float16(0.0005)
    if kind == Type.Q4_K:
        blocks[:, 0:2] = np.frombuffer(scale.tobytes(), np.uint8)
        blocks[:, 2:4] = np.frombuffer(np.float16(0.004).tobytes(), np.uint8)
    else:
        blocks[:, 208:210] = np.frombuffer(np.float16(0.00004).tobytes(), np.uint8)
    return blocks.reshape(shape[0], -1)


def quantized_case(name, config, kinds, seed):
    """Two files: of blocks, and of their values as the package reads them."""
    random = np.random.default_rng(seed)
    d, f, k = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * k, config["num_key_value_heads"] * k
    shapes = {"self_attn.q_proj": (q, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d), "self_attn.o_proj": (d, q),
              "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f)}
    names = {f"model.layers.0.{part}.weight": shape for part, shape in shapes.items()}
    names["model.embed_tokens.weight"] = (config["vocab_size"], d)
    blocks, values = {}, {}
    for norm in ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"):
        blocks[norm + ".weight"] = values[norm + ".weight"] = (random.normal(1, 0.2, d).astype(np.float32), Type.F32)
    for tensor, shape in names.items():
        kind = next(kind for part, kind in kinds.items() if part in tensor)
        if kind in (Type.Q4_K, Type.Q6_K):
            stored = k_blocks(kind, shape, random)
        else:
            stored = gguf.quants.quantize((random.normal(0, 1.3, shape) / np.sqrt(shape[1])).astype(np.float32), kind)
        blocks[tensor] = (stored, kind)
        values[tensor] = (gguf.quants.dequantize(stored, kind).astype(np.float32), Type.F32)
    write(OUT / f"{name}.quantized.gguf", "llama", config, blocks)
    write(OUT / f"{name}.values.gguf", "llama", config, values)


def add_vocabulary(writer, root, style):
    model, vocab = root["model"], root["model"]["vocab"]
    added = {token["id"]: token for token in root["added_tokens"]}
    size = max([*vocab.values(), *added]) + 1
    texts = {i: text for text, i in vocab.items()} | {i: token["content"] for i, token in added.items()}
    types = []
    for i in range(size):
        if i in added:
            kind = gguf.TokenType.CONTROL if added[i]["special"] else gguf.TokenType.USER_DEFINED
            kind = gguf.TokenType.UNKNOWN if style == "llama" and added[i]["content"] == "<unk>" else kind
        elif style == "llama" and texts[i].startswith("<0x"):
            kind = gguf.TokenType.BYTE
        else:
            kind = gguf.TokenType.NORMAL if i in texts else gguf.TokenType.UNUSED
        types.append(kind)
    writer.add_tokenizer_model(style)
    writer.add_token_list([texts.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types(types)
    return texts, types


def make_strings():
    fragments = json.loads((HERE / "tokenizer" / "strings.json").read_text())["fragments"]
    random = np.random.default_rng(11)
    separators = [" ", "", "  ", "\n", " \n\n ", "\t", "-", "'s ", "…", " <s> ", "<|im_end|>", "1234567", "é", "e\u0301", "▁"]
    return ["", " ", "   a", "<s>"] + ["".join(fragments[random.integers(len(fragments))] + separators[random.integers(len(separators))]
                                              for _ in range(random.integers(1, 9))) for _ in range(400)]


def vocabulary_case(name, style, pre, strings, golden):
    root = json.loads((HERE / "tokenizer" / f"{name}.json").read_text())
    writer = gguf.GGUFWriter(OUT / f"{name}.vocabulary.gguf", "llama")
    texts, types = add_vocabulary(writer, root, style)
    if style == "llama":
        # A score for each piece by its first merge, as SentencePiece has them; the reference's merges follow from the scores.
        rank = {}
        for i, merge in enumerate(root["model"]["merges"]):
            rank.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), i + 1)
        scores = [-float(rank.get(texts[i], 10_000 + i)) if kind == gguf.TokenType.NORMAL else 0.0 for i, kind in enumerate(types)]
        writer.add_token_scores(scores)
        writer.add_add_space_prefix(True)
        normal = {texts[i]: i for i, kind in enumerate(types) if kind == gguf.TokenType.NORMAL}
        root["model"]["merges"] = [list(merge) for merge in generate_merges(normal, {texts[i]: scores[i] for i in normal.values()})]
    else:
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in root["model"]["merges"]])
    bos = next((t["id"] for t in root["added_tokens"] if t["content"] in ("<s>", "<|begin_of_text|>")), None)
    if bos is not None:
        writer.add_bos_token_id(bos)
    writer.add_add_bos_token(bos is not None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    reference = tokenizers.Tokenizer.from_str(json.dumps(root))
    golden[name] = [encoded.ids for encoded in reference.encode_batch(strings)]


def main():
    OUT.mkdir(exist_ok=True)
    for name in CASES:
        copy_case(name)
    small = dict(vocab_size=40, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
                 head_dim=16, max_position_embeddings=128, bos_token_id=1, eos_token_id=2)
    quantized_case("q8_0", small, {"": Type.Q8_0}, 1)
    quantized_case("q4_0", small, {"embed": Type.Q8_0, "": Type.Q4_0}, 2)
    quantized_case("mixed", small, {"v_proj": Type.Q8_0, "up_proj": Type.Q8_0, "": Type.Q4_0}, 3)
    wide = dict(small, hidden_size=256, intermediate_size=32, num_attention_heads=2)
    quantized_case("k", wide, {"embed": Type.Q6_K, "v_proj": Type.Q6_K, "o_proj": Type.Q8_0, "down": Type.Q8_0, "": Type.Q4_K}, 4)
    golden, strings = {}, make_strings()
    for name, style, pre in (("gpt2", "gpt2", "gpt-2"), ("llama3", "gpt2", "llama-bpe"), ("qwen2", "gpt2", "qwen2"),
                             ("smollm2", "gpt2", "smollm"), ("tekken", "gpt2", "tekken"), ("llama2", "llama", "")):
        vocabulary_case(name, style, pre, strings, golden)
    (OUT / "tokenizers.golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    (OUT / "strings.json").write_text(json.dumps(strings, ensure_ascii=False) + "\n")
    print("gguf", gguf.__file__, sum(path.stat().st_size for path in OUT.iterdir()) / 1024, "KiB")


if __name__ == "__main__":
    main()
