#!/usr/bin/env python3
"""Makes tests/golden/tokenizer/ with the reference library: pip install tokenizers==0.23.3, then run this file.

For each style of tokenizer.json in use it trains a small tokenizer on generated text, and records what the library
makes of 20,000 strings. The strings come from a generator that tests/unit/tokenizer_golden_test.cc repeats (splitmix64
over the fragments of strings.json), so that only a hash of each block of results and a few whole cases are stored.
"""

import json
import pathlib
import random
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = pathlib.Path(__file__).resolve().parent / "tokenizer"
MASK = (1 << 64) - 1
STRINGS = 20_000
BLOCK_STRINGS = 200
WHOLE_CASES = 40

PATTERNS = {
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    "cl100k": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
    r"|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "tekken": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "deepseek": r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "bloom": r" ?[^(\s|[.,!?…。，、।۔،])]+",
}

WORDS = (
    "the of and to in a is that it was for on are with as his they be at one have this from or had by hot word but what "
    "some we can out other were all there when up use your how said an each she which do their time if will way about "
    "many then them write would like so these her long make thing see him two has look more day could go come did "
    "number sound no most people my over know water than call first who may down side been now find head cache token "
    "memory attention kernel page request stream return void const int struct for while Überraschung naïve façade "
    "don't we'll I've you're it's HTTP GPU KV GQA PrometheusMetrics camelCase snake_case"
).split()

FRAGMENTS = WORDS + [
    " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n", "\n ", "    ", "\u00a0", "\u180e", "\u200b", "\u2028", "\u3000",
    "\u0085", "\u200d", "\ufeff", "\u0000", "\u007f", "0", "7", "42", "2024", "3.14", "1,000,000", "0x1F", "\u0663\u0664",
    "\u216b", "\u00bd", "\u00b2", "\uff11\uff12", ".", ",", "!", "?", "...", "--", "=>", "{}", "[0]", "();", "//", "#",
    "'", "'s", "'S", "'\u017f", "'ll", "'RE", "\u2019s", "\"", "<", ">", "|", "<|", "|>", "</", "<s", "s>", "_", "\u2581",
    "\u2581\u2581", "\u0120", "\u010a", "<0x41>", "<0xE2>", "<unk>", "caf\u00e9", "cafe\u0301", "\u0301\u0323", "\u0323\u0301",
    "\u1e69", "s\u0307\u0323", "\u01c4", "\u01c5", "\u212a", "\u017f", "\ufb01", "\u0130", "\u00df", "\u03a3\u03c2", "\u0416\u0438\u0437\u043d\u044c",
    "\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u3053\u3093\u306b\u3061\u306f", "\uac00\uac01", "\u1100\u1161\u11a8", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "\U0001d54f", "\U00010400", "\u0f73\u0f71", "\u2126", "\u00c5", "\u212b", "\ufdfa",
]


# Long runs of one thing, which make one piece of many symbols.
RUN_UNITS = ["a", "A", " ", "\n", " \n", "\r\n", "7", "'", "_", "<", "\u2581", "\u0301", "\u0301\u0323", "\U0001f600", "\u00e9",
             "\u4f60", "ab", "the", "a ", "\u180e", "\u00a0"]
RUN_LENGTH = 20_000


def assigned_ranges():
    """Ranges of characters that every Unicode version of the last twenty years agrees to have assigned."""
    ranges = []
    for code in range(0x20000):
        old = unicodedata.ucd_3_2_0.category(chr(code))
        new = unicodedata.category(chr(code))
        if old != new or old in ("Cn", "Cs", "Co") and not 0x1F300 <= code <= 0x1F64F:
            continue
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    ranges = [r for r in ranges if r[1] - r[0] >= 4]
    return ranges + [[0x1F300, 0x1F320], [0x1F600, 0x1F64F]]


class SplitMix64:
    def __init__(self, seed):
        self.state = seed & MASK

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, bound):
        return self.next() % bound


class Hash:
    """64 bits over a sequence of 64-bit words."""

    def __init__(self):
        self.state = 0xCBF29CE484222325

    def add(self, word):
        h = ((self.state ^ (word & MASK)) * 0x100000001B3) & MASK
        self.state = h ^ (h >> 32)

    def add_ids(self, ids):
        self.add(len(ids))
        for i in ids:
            self.add(i)

    def add_text(self, text):
        data = text.encode()
        self.add(len(data))
        for at in range(0, len(data), 8):
            self.add(int.from_bytes(data[at : at + 8], "little"))


def make_string(index, ranges, specials):
    """String `index`: up to 16 parts, each a fragment, a random character, a run of one, or a special token or most of it."""
    rng = SplitMix64(index)
    text = ""
    for _ in range(1 + rng.below(16)):
        kind = rng.below(8)
        if kind < 4:
            text += FRAGMENTS[rng.below(len(FRAGMENTS))]
            if rng.below(2):
                text += " "
        elif kind == 4:
            first, last = ranges[rng.below(len(ranges))]
            text += chr(first + rng.below(last - first + 1))
        elif kind == 5:
            text += chr(0x20 + rng.below(0x5F))
        elif kind == 6:
            text += FRAGMENTS[rng.below(len(FRAGMENTS))][0] * (1 + rng.below(60))
        else:
            special = specials[rng.below(len(specials))]
            text += special if rng.below(4) else special[: rng.below(len(special) + 1)]
    return text


def corpus():
    rng = random.Random(20240)
    extra = [f for f in FRAGMENTS if len(f) > 1]
    for _ in range(6000):
        words = [rng.choice(WORDS) for _ in range(rng.randint(3, 12))]
        if rng.random() < 0.3:
            words.insert(rng.randrange(len(words)), rng.choice(extra))
        if rng.random() < 0.2:
            words.insert(rng.randrange(len(words)), str(rng.randrange(10**6)))
        line = " ".join(words)
        yield (line[0].upper() + line[1:] + rng.choice([".", "?", "!", ";", ")\n", "\n\n", "  "])) * rng.randint(1, 2)


def special(content, **options):
    return AddedToken(content, special=True, normalized=False, **options)


def train(tokenizer, vocabulary=900, specials=(), alphabet=(), limit=None):
    options = {"limit_alphabet": limit} if limit else {}
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=list(specials), initial_alphabet=list(alphabet),
                                  show_progress=False, **options)
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def byte_level(pre_tokenizer, specials, normalizer=None, **model):
    tokenizer = Tokenizer(models.BPE(**model))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return train(tokenizer, specials=specials, alphabet=pre_tokenizers.ByteLevel.alphabet())


def split_then_bytes(pattern):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])


def begin_with(tokenizer, bos, *others):
    tokenizer.post_processor = processors.Sequence(list(others) + [
        processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B:1",
                                      special_tokens=[(bos, tokenizer.token_to_id(bos))])])


def gpt2():
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), [special("<|endoftext|>")])


def gpt2_prefix_space():
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), [special("<|endoftext|>")])


def llama3():
    names = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = byte_level(split_then_bytes(PATTERNS["llama3"]), [special(n) for n in names], ignore_merges=True)
    begin_with(tokenizer, "<|begin_of_text|>", processors.ByteLevel(trim_offsets=False))
    return tokenizer


def cl100k():
    return byte_level(split_then_bytes(PATTERNS["cl100k"]), [special("<|endoftext|>"), special("<|endofprompt|>")])


def qwen2():
    tokenizer = byte_level(split_then_bytes(PATTERNS["qwen2"]), [], normalizer=normalizers.NFC())
    tokenizer.add_special_tokens([special(n) for n in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    tokenizer.add_tokens([AddedToken(n, normalized=False) for n in ("<think>", "</think>", "<tool_call>")])
    return tokenizer


def smollm2():
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return byte_level(pre_tokenizers.Sequence(steps), [special(n) for n in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])


def o200k():
    return byte_level(split_then_bytes(PATTERNS["o200k"]), [special("<|endoftext|>"), special("<|return|>")],
                      ignore_merges=True)


def tekken():
    tokenizer = byte_level(split_then_bytes(PATTERNS["tekken"]), [special(n) for n in ("<unk>", "<s>", "</s>", "[INST]")],
                           ignore_merges=True)
    begin_with(tokenizer, "<s>")
    return tokenizer


def deepseek():
    steps = [
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
        pre_tokenizers.Split(Regex("[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
        pre_tokenizers.Split(Regex(PATTERNS["deepseek"]), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return byte_level(pre_tokenizers.Sequence(steps), [special("<｜begin▁of▁sentence｜>"), special("<｜User｜>")])


def falcon():
    steps = [
        pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ]
    return byte_level(pre_tokenizers.Sequence(steps), [special(">>TITLE<<"), special("<|endoftext|>")])


def bloom():
    steps = [
        pre_tokenizers.Split(Regex(PATTERNS["bloom"]), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return byte_level(pre_tokenizers.Sequence(steps), [special("<s>"), special("<pad>")])


def sentencepiece_tokens():
    return [special(n) for n in ("<unk>", "<s>", "</s>")] + [f"<0x{byte:02X}>" for byte in range(256)]


def sentencepiece(normalizer, pre_tokenizer, decoder, **model):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, **model))
    words = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)  # as SentencePiece trains
    tokenizer.pre_tokenizer = words
    train(tokenizer, vocabulary=1100, specials=sentencepiece_tokens(), limit=120)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]  # byte tokens are plain members of the vocabulary
    tokenizer = Tokenizer.from_str(json.dumps(content))
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    else:
        content = json.loads(tokenizer.to_str())
        content["pre_tokenizer"] = None
        tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = decoder
    begin_with(tokenizer, "<s>")
    return tokenizer


SENTENCEPIECE_DECODERS = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


def llama2():
    steps = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    decoder = decoders.Sequence(SENTENCEPIECE_DECODERS + [decoders.Strip(" ", 1, 0)])
    return sentencepiece(steps, None, decoder, fuse_unk=True)


def mistral():
    decoder = decoders.Sequence(SENTENCEPIECE_DECODERS + [decoders.Strip(" ", 1, 0)])
    return sentencepiece(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), decoder, fuse_unk=True)


def gemma():
    tokenizer = sentencepiece(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"),
                              decoders.Sequence(SENTENCEPIECE_DECODERS), fuse_unk=True)
    tokenizer.add_tokens([AddedToken("\n" * n, normalized=False) for n in (2, 3, 4)])
    tokenizer.add_special_tokens([special("<start_of_turn>"), special("<end_of_turn>")])
    return tokenizer


def metaspace():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=True)
    return train(tokenizer, specials=[special("<unk>"), special("<s>")], limit=100)


def odd():
    """Every option that the others leave alone: stripping tokens, normalised ones, single words, no decoder."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Strip(),
        normalizers.Replace(Regex(r"[\t\v]+"), "~")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("merged_with_next"), pre_tokenizers.Split("0", "removed"),
        pre_tokenizers.Digits(False), pre_tokenizers.Split(Regex("[aeiou]"), "merged_with_previous", invert=True)])
    train(tokenizer, specials=[special("[UNK]")], limit=80)
    tokenizer.add_special_tokens([special("<mask>", lstrip=True), special("<sep>", rstrip=True),
                                  special("<both>", lstrip=True, rstrip=True), AddedToken("<NORM>", special=True)])
    tokenizer.add_tokens([AddedToken("word", single_word=True), AddedToken("Water", single_word=True, normalized=True),
                          AddedToken("at", normalized=True, lstrip=True), AddedToken("<|x", normalized=False)])
    return tokenizer


STYLES = [gpt2, gpt2_prefix_space, llama3, cl100k, qwen2, smollm2, o200k, tekken, deepseek, falcon, bloom, llama2, mistral,
          gemma, metaspace, odd]
LEGACY_MERGES = ("gpt2", "llama2", "qwen2")  # "a b" instead of ["a", "b"]


def save_tokenizer(name, tokenizer):
    content = json.loads(tokenizer.to_str())
    if name in LEGACY_MERGES:
        content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    path = OUT / f"{name}.json"
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")))
    assert path.stat().st_size < 100_000, (name, path.stat().st_size)
    return Tokenizer.from_str(path.read_text())  # what is recorded is what the file does


def random_ids(index, vocabulary, single_bytes):
    """Ids as a model might emit them. Byte-fallback tokens stand alone, see Tokenizer::decode."""
    rng = SplitMix64(index ^ 0x5EED)
    ids = []
    for _ in range(1 + rng.below(12)):
        token = rng.below(vocabulary if single_bytes else vocabulary + 3)  # a few are ids of no token
        if single_bytes and ids and 3 <= ids[-1] < 259 and 3 <= token < 259:
            token = 259 + rng.below(vocabulary - 259)
        ids.append(token)
    return ids


def record(name, tokenizer, ranges):
    specials = sorted(token.content for token in tokenizer.get_added_tokens_decoder().values())
    vocabulary = tokenizer.get_vocab_size()
    byte_fallback = name in ("llama2", "mistral", "gemma")
    streams = ("encode", "encode_plain", "encode_joined", "decode", "decode_skip", "decode_random", "runs")
    hashes = {stream: [] for stream in streams}
    cases = []
    for block in range(STRINGS // BLOCK_STRINGS):
        texts = [make_string(block * BLOCK_STRINGS + i, ranges, specials) for i in range(BLOCK_STRINGS)]
        tokenizer.encode_special_tokens = False
        encoded = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=True)]
        tokenizer.encode_special_tokens = True
        plain = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
        tokenizer.encode_special_tokens = False
        decoded = tokenizer.decode_batch(encoded, skip_special_tokens=False)
        skipped = tokenizer.decode_batch(encoded, skip_special_tokens=True)
        ids = [random_ids(block * BLOCK_STRINGS + i, vocabulary, byte_fallback) for i in range(BLOCK_STRINGS)]
        randoms = tokenizer.decode_batch(ids, skip_special_tokens=False)
        block_hashes = {stream: Hash() for stream in streams[:-1]}
        block_hashes["encode_joined"].add_ids(tokenizer.encode("".join(texts), add_special_tokens=True).ids)
        for i in range(BLOCK_STRINGS):
            block_hashes["encode"].add_ids(encoded[i])
            block_hashes["encode_plain"].add_ids(plain[i])
            block_hashes["decode"].add_text(decoded[i])
            block_hashes["decode_skip"].add_text(skipped[i])
            block_hashes["decode_random"].add_text(randoms[i])
        for stream in streams[:-1]:
            hashes[stream].append(f"{block_hashes[stream].state:016x}")
        if block == 0:
            cases = [{"text": texts[i], "encode": encoded[i], "encode_plain": plain[i], "decode": decoded[i],
                      "decode_skip": skipped[i], "random_ids": ids[i], "decode_random": randoms[i]}
                     for i in range(WHOLE_CASES)]
    for unit in RUN_UNITS:
        run = Hash()
        run.add_ids(tokenizer.encode(unit * RUN_LENGTH, add_special_tokens=False).ids)
        hashes["runs"].append(f"{run.state:016x}")
    golden = {"specials": specials, "byte_fallback": byte_fallback, "vocabulary": vocabulary, "hashes": hashes,
              "cases": cases}
    text = json.dumps(golden, ensure_ascii=True, separators=(",", ":")).replace("},{", "},\n{")
    (OUT / f"{name}.golden.json").write_text(text + "\n")


CLASS_PATTERNS = [r"\s", r"\S", r"\w", r"\W", r"\d", r"\p{L}", r"\p{N}", r"\p{M}", r"\p{P}", r"\p{S}", r"\p{Lu}", r"\p{^Lu}", r"\P{Z}",
                  r"\p{Han}", r"\p{Cyrillic}", r"[^\s\p{L}\p{N}]", r"[^\w\d]", r"(?i:k)", r"(?i:s)", "(?i:\u00e9)",
                  ".", r"[a-z[0-9\p{P}]]", r"[\x{100}-\x{24F}]", r"\v"]
NORMALIZERS = {"NFC": normalizers.NFC(), "NFD": normalizers.NFD(), "NFKC": normalizers.NFKC(), "NFKD": normalizers.NFKD(),
               "Lowercase": normalizers.Lowercase(), "StripAccents": normalizers.StripAccents(),
               "Strip": normalizers.Strip()}


def record_unicode(ranges):
    """What single characters and the 20,000 strings are to each class of characters and to each normalizer."""
    characters = [chr(code) for first, last in ranges for code in range(first, last + 1)]
    golden = {"classes": {}, "pre_tokenizers": {}, "normalizers": {}}
    for pattern in CLASS_PATTERNS:
        split = pre_tokenizers.Split(Regex(pattern), "removed")
        result = Hash()
        for character in characters:
            result.add(not split.pre_tokenize_str(character))
        golden["classes"][pattern] = f"{result.state:016x}"
    for name, step in (("Digits", pre_tokenizers.Digits(True)), ("Punctuation", pre_tokenizers.Punctuation("isolated")),
                       ("Whitespace", pre_tokenizers.Whitespace()), ("WhitespaceSplit", pre_tokenizers.WhitespaceSplit())):
        result = Hash()
        for character in characters:
            pieces = [piece for piece, _ in step.pre_tokenize_str("x" + character + "x")]
            result.add(len(pieces))
            for piece in pieces:
                result.add_text(piece)
        golden["pre_tokenizers"][name] = f"{result.state:016x}"
    specials = ["\u0301\u0323\u0345", " \u00a0\u3000"]
    texts = [make_string(i, ranges, specials) for i in range(STRINGS)]
    for name, normalizer in NORMALIZERS.items():
        result = Hash()
        for text in characters + texts:
            result.add_text(normalizer.normalize_str(text))
        golden["normalizers"][name] = f"{result.state:016x}"
    (OUT / "unicode.golden.json").write_text(json.dumps(golden, indent=1) + "\n")


def main():
    OUT.mkdir(exist_ok=True)
    ranges = assigned_ranges()
    record_unicode(ranges)
    (OUT / "strings.json").write_text(
        json.dumps({"fragments": FRAGMENTS, "ranges": ranges, "strings": STRINGS, "block_strings": BLOCK_STRINGS,
                    "run_units": RUN_UNITS, "run_length": RUN_LENGTH,
                    "styles": [style.__name__ for style in STYLES]}, separators=(",", ":")) + "\n")
    for style in STYLES:
        record(style.__name__, save_tokenizer(style.__name__, style()), ranges)
        print(style.__name__, flush=True)


if __name__ == "__main__":
    main()
