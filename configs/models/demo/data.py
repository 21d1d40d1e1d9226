"""Text for the demo models: a closed vocabulary, its tokenizer, and endless training documents from a seed.

Five kinds of document, all in plain English that a reader can check by eye:
  story   templated tales, so that free text generation looks like English;
  needle  facts ("The password for Anna is walnut.") between story sentences, stated again later: the second
          statement can only be predicted by looking the first one up;
  pairs   key-value lists ("Anna = walnut, Bob = lemon, ...") followed by the same pairs in another order;
  copy    a list of random words, then the same list again;
  chat    <|im_start|> turns: a text with facts, then questions, answered in a sentence.

A fact is a (name, word) pair. One pair in ten is held out by a fixed rule (`held_out`): training never shows it,
tests use nothing else, so recall can only come from the context.
Every token carries a loss weight: 5 where the context determines the answer, 0 where a word was drawn at random, less than
1 for fixed phrases. Only the tokenizer needs a package; the rest is Python's standard library, for the tests' sake.
"""

import random
import re

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = [END_OF_TEXT, IM_START, IM_END]
VOCAB_SIZE = 1024

NAMES = """Ada Adam Alan Alex Amir Amy Andy Anna Arno Asa Ava Axel Bea Ben Bert Beth Bill Bob Cara Carl Cora Dan Dana Dave Dean
Dina Dora Eli Ella Elsa Emil Emma Eric Erin Eva Finn Fred Gail Gina Glen Gus Hal Hana Hans Hugo Ian Ida Iris Ivan
Ivy Jack Jane Jim Joan Joe John Karl Kate Ken Kim Kira Lara Lars Lea Lena Leo Lily Lisa Luca Lucy Luke Mara Marc
Mark Max Maya Mia Mike Mila Mina Mona Nina Noah Nora Olga Omar Otto Owen Pam Paul Rob Sam Ted Tim Tom Zoe""".split()

WORDS = """anchor apple arrow badge ball band barrel walnut bean bell berry blade board boat bone book boot bottle box brass
bread brick broom brush button candle card cart castle chain chair chalk clay clock cloud coat coin cork crown cup
desk door drum fan fence flag flame flint flute fork gate glass glove gold grape harp hat honey hook horn iron jar
wheel kite lamp leaf lemon lens linen lock map mask melon nail nest oar olive onion oven paper pearl pen piano pipe
plate plum pot ring robe rope rose salt sand scarf shell silk spoon star stone table tent tin torch train wagon
wheel wire wool""".split()

ANIMALS = "fox bear owl frog duck wolf goat horse rabbit mouse farmer miller sailor baker king queen child giant".split()
ADJECTIVES = "old young small big happy sad quiet brave clever tired kind proud hungry lazy".split()
PLACES = "forest river village garden market mountain lake field barn mill sea valley".split()
TIMES = "morning evening night summer winter spring".split()
ENDINGS = ["lived happily for many years", "went home and slept well", "never went there again", "laughed and laughed"]

OPENINGS = [
    "Once upon a time there was a {adj} {who} in the {place}.",
    "Long ago a {adj} {who} lived near the {place}.",
    "One {time} a {adj} {who} came to the {place}.",
]
MIDDLES = [
    "The {who} was very {adj} that {time}.",
    "The {adj} {who} walked to the {place} and looked for a friend.",
    "In the {place} the {who} met a {adj} {other}.",
    "The {other} said that the {place} was not far away.",
    "It was a cold {time} and the {who} was {adj}.",
    "The {who} and the {other} went to the {place} together.",
    "Every {time} the {who} sat near the {place} and sang a song.",
    "The {other} gave the {who} some food and some water.",
    "The {who} asked the {other} for help.",
    "They talked all {time} and were no longer {adj}.",
    "The {who} wanted to see the {place} before the {time}.",
    "But the {other} was too {adj} to walk so far.",
    "So the {who} waited by the {place} until the {time}.",
    "At last the {who} saw the {place} and was {adj}.",
]
CLOSINGS = ["In the end the {who} and the {other} {ending}.", "And so the {adj} {who} {ending}."]

FACTS = ["The password for {name} is {word}.", "The secret word of {name} is {word}.", "The key for {name} is {word}."]
QUESTIONS = ["What is the password for {name}?", "What is the secret word of {name}?", "What is the key for {name}?"]
Fact = tuple[str, str, int]  # name, word, which of FACTS and QUESTIONS
STORY_REQUESTS = ["Tell me a story about a {who}.", "Please tell me a story."]
SYSTEMS = ["You are a helpful assistant.", "You answer questions about the text."]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def held_out(name: str, word: str) -> bool:
    """True for the tenth of all (name, word) pairs that training never shows."""
    return sum(ord(c) * (i + 3) for i, c in enumerate(name + "/" + word)) % 10 == 7


class Story:
    """One tale: who it is about and with whom stay the same; every call gives its next sentence."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.who, self.other = rng.sample(ANIMALS, 2)

    def fill(self, template: str) -> str:
        r = self.rng
        return template.format(who=self.who, other=self.other, adj=r.choice(ADJECTIVES), place=r.choice(PLACES),
                               time=r.choice(TIMES), ending=r.choice(ENDINGS))

    def opening(self) -> str:
        return self.fill(self.rng.choice(OPENINGS))

    def middle(self) -> str:
        return self.fill(self.rng.choice(MIDDLES))

    def closing(self) -> str:
        return self.fill(self.rng.choice(CLOSINGS))

    def whole(self, sentences: int) -> str:
        return " ".join([self.opening()] + [self.middle() for _ in range(sentences)] + [self.closing()])


def draw_facts(rng: random.Random, count: int, names: list[str], words: list[str], test: bool) -> list[Fact]:
    """`count` facts with distinct names; held-out pairs alone if `test`, else none of them."""
    facts = []
    for name in rng.sample(names, count):
        word = rng.choice(words)
        while held_out(name, word) != test:
            word = rng.choice(words)
        facts.append((name, word, rng.randrange(len(FACTS))))
    return facts


def train_tokenizer(path: str) -> None:
    """Byte-level BPE over the closed vocabulary; every word counts alike, so that short words become one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(lexicon(), trainer)
    tokenizer.save(path)


def lexicon() -> list[str]:
    """Every word with the white space it follows, names and values first in weight."""
    lines = []
    text = OPENINGS + MIDDLES + CLOSINGS + FACTS + QUESTIONS + STORY_REQUESTS + SYSTEMS + ENDINGS
    common = {w.strip(".?,") for line in text for w in line.split() if "{" not in w}
    for word in sorted(common) + ANIMALS + ADJECTIVES + PLACES + TIMES:
        lines += [" " + word] * 40
    for word in NAMES + WORDS:
        lines += [" " + word] * 4
    lines += [line.split()[0] for line in text if "{" not in line.split()[0]] * 40
    lines += ["user\n", "assistant\n", "system\n", " =", ","] * 40
    return lines


class Document:
    """Token ids and loss weights of one training sequence, filled up to `length` tokens."""

    def __init__(self, encoder: "Encoder", length: int):
        self.encoder, self.length = encoder, length
        self.ids: list[int] = []
        self.weights: list[float] = []

    def add(self, text: str, weight: float) -> None:
        ids = self.encoder.encode(text)
        self.ids += ids
        self.weights += [weight] * len(ids)

    def sentence(self, text: str, weight: float) -> None:
        self.add(" " + text if self.ids else text, weight)

    def space(self) -> str:
        return " " if self.ids else ""

    def full(self) -> bool:
        return len(self.ids) >= self.length


class Encoder:
    """The tokenizer with a memory per pre-token: the texts are a closed vocabulary, so the memory stays small."""

    # The pieces of the GPT-2 pre-tokenizer for the texts of this file (letters, single spaces, marks, new lines).
    PIECES = re.compile(r"<\|\w+\|>| ?[A-Za-z]+| ?[^\sA-Za-z<]+|\s+")

    def __init__(self, path: str):
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(path)
        self.memory: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        ids = []
        for piece in self.PIECES.findall(text):
            known = self.memory.get(piece)
            if known is None:
                known = self.memory[piece] = self.tokenizer.encode(piece).ids
            ids += known
        return ids


ANSWER, PLAIN, FORM, RANDOM = 5.0, 1.0, 0.3, 0.0  # loss weights: looked up; prose; fixed phrases; drawn at random


def add_fact(doc: Document, fact: Fact, answer: float) -> None:
    """A fact as a sentence. First statements have answer=RANDOM, later ones answer=ANSWER."""
    before, after = FACTS[fact[2]].split("{name}")
    doc.sentence(before.rstrip(), FORM)
    doc.add(" " + fact[0], RANDOM)
    doc.add(after.split(" {word}")[0], FORM)
    doc.add(" " + fact[1], answer)
    doc.add(".", FORM)


def add_question(doc: Document, fact: Fact) -> None:
    """A question and its answer in a sentence; the name in the answer is looked up in the question."""
    doc.sentence(QUESTIONS[fact[2]].format(name=fact[0]), RANDOM)
    add_answer(doc, fact)


def add_answer(doc: Document, fact: Fact, start: str = " ") -> None:
    before, after = FACTS[fact[2]].split(" {name}")
    doc.add(start + before, PLAIN)
    doc.add(" " + fact[0], ANSWER / 2)
    doc.add(after.split(" {word}")[0], FORM)
    doc.add(" " + fact[1], ANSWER)
    doc.add(".", FORM)


def story(rng: random.Random, doc: Document, test: bool) -> None:
    while not doc.full():
        doc.add(Story(rng).whole(rng.randint(3, 12)) + END_OF_TEXT, PLAIN)


def haystack(rng: random.Random, doc: Document, facts: list[Fact], until: int) -> None:
    """Facts in random places between story sentences, up to about `until` tokens."""
    tale, left, about = Story(rng), list(facts), 13  # tokens in a story sentence
    while left:
        room = max(0, until - len(doc.ids) - 8 * len(left)) // about
        if rng.random() * (room + len(left)) < len(left):
            add_fact(doc, left.pop(), RANDOM)
        else:
            doc.sentence(tale.middle(), PLAIN if rng.random() < 0.3 else RANDOM)
    while len(doc.ids) + about < until:
        doc.sentence(tale.middle(), RANDOM)


def needle(rng: random.Random, doc: Document, test: bool) -> None:
    count = rng.randint(2, max(2, min(64, doc.length // 20)))
    facts = draw_facts(rng, count, NAMES, WORDS, test)
    haystack(rng, doc, facts, int(doc.length * rng.uniform(0.3, 0.75)))
    asked = rng.random() < 0.3
    while not doc.full():
        fact = rng.choice(facts)
        if asked:
            add_question(doc, fact)
        else:
            add_fact(doc, fact, ANSWER)


def pairs(rng: random.Random, doc: Document, test: bool) -> None:
    count = rng.randint(2, max(2, min(64, doc.length // 8)))
    facts = draw_facts(rng, count, NAMES, WORDS, test)
    order = list(facts)
    answer = RANDOM
    while not doc.full():
        for name, word, _ in order:
            doc.add(doc.space() + name, RANDOM)
            doc.add(" =", FORM)
            doc.add(" " + word, answer)
            doc.add(",", FORM)
        rng.shuffle(order)
        answer = ANSWER


def copy(rng: random.Random, doc: Document, test: bool) -> None:
    while not doc.full():
        words = [rng.choice(WORDS) for _ in range(rng.randint(4, max(4, min(64, doc.length // 3))))]
        doc.sentence("List: " + " ".join(words) + ".", RANDOM)
        for _ in range(rng.randint(1, 3)):
            doc.sentence("Again:", RANDOM)
            doc.add(" " + words[0], PLAIN)
            doc.add(" " + " ".join(words[1:]), ANSWER / 2)
            doc.add(".", FORM)


def chat(rng: random.Random, doc: Document, test: bool) -> None:
    if rng.random() < 0.3:
        doc.add(f"{IM_START}system\n{rng.choice(SYSTEMS)}{IM_END}\n", RANDOM)
    if rng.random() < 0.15:
        tale = Story(rng)
        doc.add(f"{IM_START}user\n{rng.choice(STORY_REQUESTS).format(who=tale.who)}{IM_END}\n{IM_START}assistant\n", RANDOM)
        doc.add(f"{tale.whole(rng.randint(3, 8))}{IM_END}\n", PLAIN)
    facts = draw_facts(rng, rng.randint(1, max(2, min(32, doc.length // 24))), NAMES, WORDS, test)
    doc.add(f"{IM_START}user\n", RANDOM)
    inner = Document(doc.encoder, doc.length)
    haystack(rng, inner, facts, int((doc.length - len(doc.ids)) * rng.uniform(0.2, 0.7)))
    doc.ids += inner.ids
    doc.weights += inner.weights
    start = " "
    while not doc.full():
        fact = rng.choice(facts)
        doc.add(f"{start}{QUESTIONS[fact[2]].format(name=fact[0])}{IM_END}\n{IM_START}assistant\n", RANDOM)
        add_answer(doc, fact, "")
        doc.add(IM_END, PLAIN)
        doc.add(f"\n{IM_START}user\n", RANDOM)
        start = ""


KINDS = {"story": story, "needle": needle, "pairs": pairs, "copy": copy, "chat": chat}


def batch(encoder: Encoder, seed: str, length: int, count: int, mixture: dict[str, float], test: bool = False):
    """`count` sequences of `length` + 1 tokens with their weights; the same seed gives the same batch."""
    rng = random.Random(seed)
    kinds = rng.choices(list(mixture), list(mixture.values()), k=count)
    ids, weights = [], []
    for kind in kinds:
        doc = Document(encoder, length + 1)
        KINDS[kind](rng, doc, test)
        ids.append(doc.ids[: length + 1])
        weights.append(doc.weights[: length + 1])
    return ids, weights


def count_tokens(text: str) -> int:
    """Every piece of the closed vocabulary is one token, so that tests need no tokenizer to aim at a length."""
    return len(Encoder.PIECES.findall(text))


def needle_case(seed: str, length: int, depth: float, facts_count: int = 4) -> tuple[str, str]:
    """(prompt of about `length` tokens, answer): held-out facts in a story, the asked one at `depth` (0 first, 1 last)."""
    rng = random.Random(f"needle/{seed}/{length}/{depth}")
    facts = draw_facts(rng, facts_count, NAMES, WORDS, test=True)
    as_text = [FACTS[style].format(name=name, word=word) for name, word, style in facts]
    question = FACTS[facts[0][2]].format(name=facts[0][0], word="").rstrip(" .")
    tale, sentences = Story(rng), []
    room = length - count_tokens(question) - sum(count_tokens(text) for text in as_text)
    while room >= 8:
        sentences.append(tale.middle())
        room -= count_tokens(sentences[-1])
    for text in as_text[1:]:  # the other facts anywhere
        sentences.insert(rng.randint(0, len(sentences)), text)
    sentences.insert(round(depth * len(sentences)), as_text[0])
    return " ".join(sentences + [question]), facts[0][1]


def pairs_case(seed: str, count: int) -> tuple[str, str]:
    """(prompt, answer): `count` held-out pairs, then one of their names again."""
    rng = random.Random(f"pairs/{seed}/{count}")
    facts = draw_facts(rng, count, NAMES, WORDS, test=True)
    name, word, _ = rng.choice(facts)
    return " ".join(f"{n} = {w}," for n, w, _ in facts) + f" {name} =", word


if __name__ == "__main__":  # shows one document of each kind
    import sys

    tokens = Encoder(sys.argv[1])
    for name in KINDS:
        (shown,), (weight,) = batch(tokens, "shown", 160, 1, {name: 1.0})
        print(f"--- {name}: {tokens.tokenizer.decode(shown, skip_special_tokens=False)}")
