"""The demo transformer (the SmolLM3 block) in plain PyTorch, and its export in the Hugging Face layout.

Layers 0 and 1 use RoPE (order and nearness), layer 2 has no positions: it finds a fact by content alone, at any distance.
"""

import json
import os

import torch
import torch.nn.functional as F
from torch import nn

import data

D, Q, K, FFN = 128, 8, 32, 256  # model dim, query heads, head_dim, ffn dim
ROPE_LAYERS = [1, 1, 0]
THETA, EPS = 10000.0, 1e-6
POSITIONS_MAX = 32768


class Block(nn.Module):
    def __init__(self, kv_heads: int):
        super().__init__()
        self.kv_heads = kv_heads
        self.norm1, self.norm2 = nn.Parameter(torch.ones(D)), nn.Parameter(torch.ones(D))
        self.qkv = nn.Parameter(torch.randn((Q + 2 * kv_heads) * K, D) * D**-0.5)
        self.o = nn.Parameter(torch.randn(D, Q * K) * (Q * K) ** -0.5 * 0.5)
        self.gate_up = nn.Parameter(torch.randn(2 * FFN, D) * D**-0.5)
        self.down = nn.Parameter(torch.randn(D, FFN) * FFN**-0.5 * 0.5)

    def forward(self, x, rope):  # x [B, T, D]
        b, t, _ = x.shape
        h = F.linear(F.rms_norm(x, (D,), self.norm1, EPS), self.qkv).view(b, t, -1, K).transpose(1, 2)
        if rope is not None:
            g = Q + self.kv_heads  # queries and keys turn, values do not
            cos, sin = rope
            qk, v = h[:, :g], h[:, g:]
            qk = qk * cos + torch.cat((-qk[..., K // 2 :], qk[..., : K // 2]), -1) * sin
            q, k = qk[:, :Q], qk[:, Q:]
        else:
            q, k, v = h.split([Q, self.kv_heads, self.kv_heads], 1)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.kv_heads != Q)
        x = x + F.linear(a.transpose(1, 2).reshape(b, t, Q * K), self.o)
        gate, up = F.linear(F.rms_norm(x, (D,), self.norm2, EPS), self.gate_up).split(FFN, -1)
        return x + F.linear(F.silu(gate) * up, self.down)


class Model(nn.Module):
    def __init__(self, kv_heads: int, vocab: int):
        super().__init__()
        self.kv_heads = kv_heads
        self.embedding = nn.Parameter(torch.randn(vocab, D) * 0.5)
        self.blocks = nn.ModuleList(Block(kv_heads) for _ in ROPE_LAYERS)
        self.norm = nn.Parameter(torch.full((D,), 0.1))
        self.ropes: dict[int, tuple] = {}

        self.start_with_lookup()

    @torch.no_grad()
    def start_with_lookup(self) -> None:
        """Starts query heads 0 and 1 near a look-up, so that training takes minutes on a CPU instead of hours.

        After mimetic initialisation (Trockman and Kolter 2023): only the start differs, every weight is trained.
        Layer 0: head 0 leans to the previous token, head 1 to the one before that; each writes that token's code into a
        subspace of its own. Last layer: the queries read the first subspace and the keys the second, so that "Anna is"
        finds the word after an earlier "Anna is"; what is found is copied towards the output.
        """
        basis = torch.linalg.qr(torch.randn(D, D))[0].T  # orthonormal rows
        constant = basis[0]
        self.embedding += constant * (0.25 * D**0.5)  # a direction that every token shares: queries and keys by position
        code = torch.linalg.qr(torch.randn(D, D))[0].T[:K]
        code = code - (code @ constant)[:, None] * constant
        subspaces = [basis[1 : K + 1], basis[K + 1 : 2 * K + 1]]
        first, last, rotary = self.blocks[0], self.blocks[-1], torch.zeros(K)
        rotary[:4] = 1.2  # the four fastest frequencies tell neighbours apart
        speed = THETA ** (-torch.arange(0, K, 2).float() / K)
        for head, subspace in enumerate(subspaces):
            group = head * self.kv_heads // Q
            key, value = (Q + group) * K, (Q + self.kv_heads + group) * K
            back = -(head + 1) * speed  # turns the query to face `head + 1` tokens back
            query = torch.cat((rotary[: K // 2] * back.cos(), rotary[: K // 2] * back.sin()))
            first.qkv[head * K : (head + 1) * K] = torch.outer(query, constant)
            first.qkv[key : key + K] = torch.outer(rotary, constant)
            first.qkv[value : value + K] = code
            first.o[:, head * K : (head + 1) * K] = subspace.T
            last.qkv[head * K : (head + 1) * K] = 1.4 * subspaces[0]
            last.qkv[key : key + K] = 1.4 * subspaces[1]
            last.o[:, head * K : (head + 1) * K] = last.qkv[value : value + K].T

    def rope(self, tokens: int):
        if tokens not in self.ropes:
            angle = torch.outer(torch.arange(tokens).float(), THETA ** (-torch.arange(0, K, 2).float() / K))
            angle = torch.cat((angle, angle), -1)
            self.ropes[tokens] = (angle.cos(), angle.sin())
        return self.ropes[tokens]

    def forward(self, ids, rows):
        """ids [B, T] -> logits [len(rows), V] at the flat positions `rows` alone: the others carry no loss."""
        x = self.embedding[ids]
        for block, rotary in zip(self.blocks, ROPE_LAYERS):
            x = block(x, self.rope(ids.shape[1]) if rotary else None)
        x = x.reshape(-1, D)[rows]
        return F.linear(F.rms_norm(x, (D,), self.norm, EPS), self.embedding)

    def matrices(self):
        """The hidden matrices, cut where one array holds several: what the Muon optimiser takes."""
        kv = self.kv_heads * K
        for block in self.blocks:
            yield block.qkv, [Q * K, kv, kv]
            yield block.o, [D]
            yield block.gate_up, [FFN, FFN]
            yield block.down, [D]


def hf_weights(model: Model) -> dict[str, torch.Tensor]:
    out = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.norm}
    for i, block in enumerate(model.blocks):
        q, k, v = block.qkv.split([Q * K, model.kv_heads * K, model.kv_heads * K])
        gate, up = block.gate_up.split(FFN)
        layer = {"input_layernorm": block.norm1, "post_attention_layernorm": block.norm2, "self_attn.q_proj": q,
                 "self_attn.k_proj": k, "self_attn.v_proj": v, "self_attn.o_proj": block.o, "mlp.gate_proj": gate,
                 "mlp.up_proj": up, "mlp.down_proj": block.down}
        out |= {f"model.layers.{i}.{name}.weight": weight for name, weight in layer.items()}
    return {name: weight.detach().to(torch.bfloat16).contiguous().clone() for name, weight in out.items()}


def export(model: Model, out: str, tokenizer_path: str) -> None:
    """Writes the directory that servers load. Each file is replaced whole: a reader never sees half of one."""
    from safetensors.torch import save

    os.makedirs(out, exist_ok=True)
    vocab = model.embedding.shape[0]
    ids = {token: i for i, token in enumerate(data.SPECIAL)}
    config = {
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "hidden_size": D,
        "intermediate_size": FFN,
        "num_hidden_layers": len(ROPE_LAYERS),
        "num_attention_heads": Q,
        "num_key_value_heads": model.kv_heads,
        "head_dim": K,
        "no_rope_layers": ROPE_LAYERS,
        "no_rope_layer_interval": len(ROPE_LAYERS),
        "vocab_size": vocab,
        "max_position_embeddings": POSITIONS_MAX,
        "rope_theta": THETA,
        "rope_scaling": None,
        "rms_norm_eps": EPS,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "bos_token_id": None,
        "eos_token_id": ids[data.IM_END],
        "pad_token_id": ids[data.END_OF_TEXT],
        "torch_dtype": "bfloat16",
    }
    generation = {"do_sample": False, "eos_token_id": [ids[data.IM_END], ids[data.END_OF_TEXT]],
                  "pad_token_id": ids[data.END_OF_TEXT]}
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    tokenizer_config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): {"content": token, **special} for token, i in ids.items()},
        "bos_token": None,
        "chat_template": data.CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": data.IM_END,
        "model_max_length": POSITIONS_MAX,
        "pad_token": data.END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    with open(tokenizer_path, "rb") as f:
        tokenizer = f.read()
    files = {"model.safetensors": save(hf_weights(model), metadata={"format": "pt"}), "tokenizer.json": tokenizer}
    for name, value in (("config.json", config), ("generation_config.json", generation),
                        ("tokenizer_config.json", tokenizer_config)):
        files[name] = (json.dumps(value, indent=2) + "\n").encode()
    for name, content in files.items():
        with open(os.path.join(out, name + ".new"), "wb") as f:
            f.write(content)
        os.replace(os.path.join(out, name + ".new"), os.path.join(out, name))
