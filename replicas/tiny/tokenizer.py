"""Build the tokenizer: one token per value word, number and template piece, bytes for the rest.

A value word has one token wherever it stands (`"Rome"`, `=Rome`, ` Rome`, `get_name`), so one copy
circuit in the model serves prose, JSON, SQL, CSV and tables alike. Text splits into pieces; a piece
that is in the vocabulary is one token, any other piece becomes its UTF-8 bytes. No merges are
learned: the tasks are generated, so their pieces are known, and any other text is foreign anyway.
"""

import json
import re
from collections import Counter
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from replicas.tiny.tasks import TASKS, draw
from replicas.tiny.words import MAX_NUMBER, VALUE_WORDS

PAD, MASK, EOS, SYSTEM, USER, ASSISTANT = (
    "<|pad|>", "<|mask|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>",
)  # fmt: skip
SPECIALS = [PAD, MASK, EOS, SYSTEM, USER, ASSISTANT]

SYSTEM_LINES = [
    "You are a helpful assistant.",
    "You are a helpful assistant. Be brief.",
    "Answer with the result only.",
    "You write code and short texts.",
]

# Left-to-right alternatives: value word, number of at most 199, lone digit, other word with its
# leading space, run of anything else. A space before a value word is a piece of its own.
_VALUE = "(?:" + "|".join(sorted(VALUE_WORDS, key=len, reverse=True)) + ")(?![A-Za-z])"
PIECES = (
    f"(?<![A-Za-z]){_VALUE}"
    r"|(?<![0-9])(?:1[0-9][0-9]|[1-9]?[0-9])(?![0-9])|[0-9]"
    f"| (?!{_VALUE})[A-Za-z]+|[A-Za-z]+|[^A-Za-z0-9]+?(?= (?!{_VALUE})[A-Za-z])|[^A-Za-z0-9]+"
)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ '<|system|>' + message['content'] }}"
    "{%- elif message['role'] == 'user' -%}{{ '<|user|>' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{ '<|assistant|>' + message['content'] + '<|eos|>' }}"
    "{%- else -%}{{ raise_exception('unknown role: ' + message['role']) }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def _template_pieces(least: int = 8, samples_per_task: int = 1500) -> list[str]:
    """Every piece of generated text that is neither a value word, a number, nor rare."""
    rng = Random(7)
    texts = SYSTEM_LINES * least
    for task in TASKS:
        for _ in range(samples_per_task):
            sample = draw(rng, task)
            texts += [sample.prompt, sample.answer]
    known = {*VALUE_WORDS, *map(str, range(MAX_NUMBER + 1))}
    seen = Counter(piece for text in texts for piece in re.findall(PIECES, text))
    return sorted(p for p, n in seen.items() if n >= least and p not in known and len(p) > 1)


def build_tokenizer() -> Tokenizer:
    """The tokenizer; special tokens have ids 0 to 5, and the vocabulary is a multiple of 16."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    entries = [*VALUE_WORDS, *map(str, range(MAX_NUMBER + 1)), *_template_pieces()]
    spelled = [byte_level.pre_tokenize_str(entry)[0][0] for entry in entries]
    tokens = list(dict.fromkeys([*SPECIALS, *sorted(byte_level.alphabet()), *spelled]))
    tokens += [f"<|unused_{i}|>" for i in range(-len(tokens) % 16)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    # ignore_merges: a piece that is in the vocabulary is taken whole.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that must exist."""
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise KeyError(token)
    return found


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, which transformers loads as they are."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "mask_token": MASK,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
