"""The same weights in two formats answer alike: a GGUF file, with its own tokenizer and chat template, as the directory it came from."""

import json
import os
import shutil
import tempfile

from harness import ROOT, Server, Skipped

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
          "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False, "eos_token_id": 2, "bos_token_id": None,
          "torch_dtype": "float16"}
TOKENIZER = os.path.join(ROOT, "configs/models/demo-gqa")
GGUF_NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
              "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
              "post_attention_layernorm": "ffn_norm"}
PROMPT = "The password for Anna is walnut. What is the password for Anna?"


def random_tensors(numpy, vocab):
    random = numpy.random.default_rng(3)
    d, f = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    kv = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    shapes = {"self_attn.q_proj": (d, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d), "self_attn.o_proj": (d, d),
              "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f)}
    tensors = {"model.embed_tokens.weight": random.normal(size=(vocab, d)), "lm_head.weight": random.normal(size=(vocab, d)) / 4,
               "model.norm.weight": random.normal(1, 0.1, d)}
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors |= {f"{prefix}{name}.weight": random.normal(size=shape) / 6 for name, shape in shapes.items()}
        tensors |= {f"{prefix}{name}.weight": random.normal(1, 0.1, d) for name in ("input_layernorm", "post_attention_layernorm")}
    return {name: array.astype(numpy.float16) for name, array in tensors.items()}


def write_directory(folder, tensors, vocab):
    os.mkdir(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(TOKENIZER, name), folder)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(CONFIG | {"vocab_size": vocab}, file)
    header, data = {}, b""
    for name, array in tensors.items():
        kind = {"float16": "F16", "float32": "F32"}[array.dtype.name]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    text = json.dumps(header).encode()
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + data)


def gguf_name(name):
    whole = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight", "model.norm.weight": "output_norm.weight"}
    if name in whole:
        return whole[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[part]}.weight"


def pair_halves(rows, heads):
    """The order of the format's converter for q and k of llama: the two halves of a head interleaved."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(gguf, path, tensors, root, template, kind):
    """Returns the values that stand in the file, by the names of the directory."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONFIG["max_position_embeddings"])
    writer.add_embedding_length(CONFIG["hidden_size"])
    writer.add_block_count(CONFIG["num_hidden_layers"])
    writer.add_feed_forward_length(CONFIG["intermediate_size"])
    writer.add_head_count(CONFIG["num_attention_heads"])
    writer.add_head_count_kv(CONFIG["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    writer.add_rope_freq_base(CONFIG["rope_theta"])
    writer.add_rope_dimension_count(CONFIG["head_dim"])
    special = {token["id"]: token["content"] for token in root["added_tokens"]}
    texts = {index: text for text, index in root["model"]["vocab"].items()} | special
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([texts[index] for index in range(len(texts))])
    writer.add_token_types([gguf.TokenType.CONTROL if index in special else gguf.TokenType.NORMAL for index in range(len(texts))])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in root["model"]["merges"]])
    writer.add_eos_token_id(CONFIG["eos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)
    values = {}
    for name, array in tensors.items():
        heads = {"q_proj": CONFIG["num_attention_heads"], "k_proj": CONFIG["num_key_value_heads"]}.get(name.split(".")[-2])
        values[name] = array
        if array.ndim == 2 and kind != gguf.GGMLQuantizationType.F16:
            stored = gguf.quants.quantize(array.astype("float32"), kind)
            values[name] = gguf.quants.dequantize(stored, kind).astype("float32")
            writer.add_tensor(gguf_name(name), pair_halves(stored, heads) if heads else stored, raw_dtype=kind)
        else:
            array = array.astype("float32") if array.ndim == 1 else array
            writer.add_tensor(gguf_name(name), pair_halves(array, heads) if heads else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def answers(server):
    """What must not depend on the format: texts, probabilities, counts of tokens."""
    completion = server.complete(PROMPT, max_tokens=24, temperature=0, logprobs=5, seed=1)
    status, chat = server.post("/v1/chat/completions", {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}],
                                                        "max_tokens": 24, "temperature": 0.8, "seed": 7})
    assert status == 200, chat
    return {"completion": completion["choices"], "chat": [choice["message"] for choice in chat["choices"]],
            "tokens": [completion["usage"], chat["usage"]]}


def tests(binary):
    def gguf_answers_as_its_checkpoint():
        try:
            import gguf
            import numpy
        except ImportError as error:
            raise Skipped(f"the package gguf is not here ({error})") from error
        with open(os.path.join(TOKENIZER, "tokenizer.json"), encoding="utf-8") as file:
            root = json.load(file)
        with open(os.path.join(TOKENIZER, "tokenizer_config.json"), encoding="utf-8") as file:
            template = json.load(file)["chat_template"]
        vocab = len(root["model"]["vocab"])
        tensors = random_tensors(numpy, vocab)
        with tempfile.TemporaryDirectory() as folder:
            for name in ("F16", "Q8_0", "Q4_0"):
                path, directory = os.path.join(folder, f"{name}.gguf"), os.path.join(folder, name)
                values = write_gguf(gguf, path, tensors, root, template, getattr(gguf.GGMLQuantizationType, name))
                write_directory(directory, values, vocab)
                # One type of KV, which by default is that of the weights, and one of activations: these differ.
                same = ("--kv", "fp16", "--activations", "fp32")
                with Server(binary, path, *same) as of_file, Server(binary, directory, *same) as of_directory:
                    assert answers(of_file) == answers(of_directory), name
                    assert of_file.post("/tokenize", {"prompt": PROMPT}) == of_directory.post("/tokenize", {"prompt": PROMPT})

    return [("formats: a GGUF file, with its tokenizer and template, answers as the checkpoint it was written from", gguf_answers_as_its_checkpoint)]
