"""Tiny models with weights we chose, and transformers' own implementation of the same backbone.

Greedy comparisons between kernels of different widths need clear winners: two logits closer than
the rounding error of float32 (about 1e-6 here) may come out in either order. `greedy_reference`
therefore reports the smallest gap between the best and the second-best logit on its way, and
`clear_prompts` keeps only prompts whose gap is two orders of magnitude above that error.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from transformers import Ministral3Config, Ministral3ForCausalLM

from replicas.engine import Request
from replicas.torch_engine.batch import Packer, Rows
from replicas.torch_engine.checkpoint import expected_shapes
from replicas.torch_engine.engine import EngineLimits, TorchEngine, positions_needed
from replicas.torch_engine.kv_cache import KVPool
from replicas.torch_engine.model import Model
from replicas.torch_engine.model_config import ModelConfig, RopeConfig
from replicas.torch_engine.sequence import Sequence

CPU = torch.device("cpu")
CLEAR_GAP = 1e-4

TINY = ModelConfig(
    vocab_size=48,
    hidden_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=40,
    rms_norm_eps=1e-5,
    max_positions=1024,
    rope=RopeConfig(theta=10000.0),
    mask_token_id=1,
    bos_token_id=0,
    eos_token_ids=(2,),
)


def random_weights(config: ModelConfig, seed: int = 0, scale: float = 0.3) -> dict:
    """Normal weights under the released names; norms near one."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in expected_shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        weights[name] = 1.0 + 0.1 * noise if len(shape) == 1 else scale * noise
    return weights


def build_model(config: ModelConfig, weights: dict, max_positions: int = 1024) -> Model:
    return Model(config, weights, max_positions=max_positions, dtype=torch.float32, device=CPU)


COPYING = replace(
    TINY, hidden_size=48, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=32,
    intermediate_size=16,
)  # fmt: skip
PERIOD = 12


@functools.cache
def copying_weights(seed: int = 0, noise: float = 0.7, layer_noise: float = 0.1) -> dict:
    """Weights under which the model repeats what stood `PERIOD` tokens earlier, imperfectly.

    Head 0 of layer 0 attends a fixed distance back: one token less from an ordinary token (which
    predicts the next one) than from a mask (which predicts itself), so drafts are often right for
    several positions; head 1 and layer 1 disturb both kinds of prediction, not always alike. Output
    depends on the content of the cache at many places, so a wrong K/V shows as a wrong token.
    """
    config = COPYING
    hidden, dim, width = config.hidden_size, config.head_dim, 23
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    codes = torch.nn.functional.normalize(rand(config.vocab_size, width), dim=1)
    code, out = slice(2, 2 + width), slice(2 + width, 2 + 2 * width)
    weights = {n: layer_noise * rand(*s) for n, s in expected_shapes(config).items()}
    for name in weights:
        if name.endswith("norm.weight"):
            weights[name] = torch.ones(hidden)
    embedding = torch.zeros(config.vocab_size, hidden)
    embedding[:, code] = codes
    embedding[:, 0] = 1.0
    embedding[config.mask_token_id, :2] = torch.tensor([0.0, 1.0])
    rms = math.sqrt(2.0 / hidden)  # of every embedding row: one flag and one unit code
    key = torch.cat([torch.ones(dim // 2), torch.zeros(dim // 2)])
    sharp = 9.0 / 0.7 * math.sqrt(dim) * rms * rms
    query = torch.zeros(2 * dim, hidden)
    for head, (back, masked) in enumerate([(PERIOD - 1, PERIOD), (4, 7)]):
        rows = slice(head * dim, (head + 1) * dim)
        query[rows, 0] = sharp * _turned(key, -back)
        query[rows, 1] = sharp * _turned(key, -masked)
    keys = torch.zeros(dim, hidden)
    keys[:, 0] = keys[:, 1] = key
    values = torch.zeros(dim, hidden)
    values[:width, code] = torch.eye(width)
    output = torch.zeros(hidden, 2 * dim)
    output[out, :width] = torch.eye(width)
    output[out, dim : dim + width] = noise * rand(width, width) / math.sqrt(width) * 2.0
    head = torch.zeros(config.vocab_size, hidden)
    head[:, out] = codes
    layer = "encoder.layers.0.self_attn"
    weights |= {
        "encoder.embed_tokens.weight": embedding,
        "diffusion_head.weight": head,
        f"{layer}.q_proj.weight": query,
        f"{layer}.k_proj.weight": keys,
        f"{layer}.v_proj.weight": values,
        f"{layer}.o_proj.weight": output,
    }
    return weights


def _turned(vector: torch.Tensor, positions: int) -> torch.Tensor:
    """`vector` as rotary embedding turns it at this position."""
    half = vector.shape[0] // 2
    angles = positions * COPYING.rope.theta ** -(torch.arange(half) / half)
    cos, sin = angles.cos(), angles.sin()
    first, second = vector[:half], vector[half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin])


def transformers_model(config: ModelConfig, weights: dict) -> Ministral3ForCausalLM:
    """transformers' own Ministral 3 with the same weights, mapped by name."""
    rope = config.rope
    parameters = {
        "rope_type": rope.rope_type,
        "rope_theta": rope.theta,
        "original_max_position_embeddings": rope.original_max_positions or 1,
        "llama_4_scaling_beta": rope.query_scaling_beta,
    }
    if rope.rope_type == "yarn":
        parameters |= {
            "factor": rope.factor,
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
            "mscale": rope.mscale,
            "mscale_all_dim": rope.mscale_all_dim,
        }
    model = Ministral3ForCausalLM(
        Ministral3Config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_positions,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters=parameters,
            tie_word_embeddings=False,
            pad_token_id=None,
            attn_implementation="eager",
        )
    )
    names = {
        n: n.replace("encoder.", "model.").replace("diffusion_head", "lm_head") for n in weights
    }
    model.load_state_dict({names[n]: w for n, w in weights.items() if ".lora_" not in n})
    return model.eval()


@torch.inference_mode()
def greedy_reference(
    model: Ministral3ForCausalLM,
    config: ModelConfig,
    prompt: tuple[int, ...],
    tokens: int,
    ends: tuple[int, ...] = (),
) -> tuple[tuple[int, ...], float]:
    """AR continuation by transformers up to a token of `ends`, and its smallest logit gap."""
    fed, cache, gap = torch.tensor([prompt]), None, math.inf
    output = []
    for _ in range(tokens):
        result = model(fed, past_key_values=cache, use_cache=True)
        cache, logits = result.past_key_values, result.logits[0, -1]
        logits[config.mask_token_id] = -math.inf
        best, second = logits.topk(2).values.tolist()
        gap = min(gap, best - second)
        output.append(int(logits.argmax()))
        if output[-1] in ends:
            break
        fed = torch.tensor([[output[-1]]])
    return tuple(output), gap


def random_prompt(generator: torch.Generator, vocab_size: int, length: int) -> tuple[int, ...]:
    """Ids from 3 on: neither the special tokens nor the mask."""
    return tuple(torch.randint(3, vocab_size, (length,), generator=generator).tolist())


def clear_prompts(
    config: ModelConfig, weights: dict, lengths: list[int], tokens: int, seed: int = 0
) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Prompts of these lengths with clear winners all along -> their AR continuations."""
    model = transformers_model(config, weights)
    generator = torch.Generator().manual_seed(seed)
    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    for length in lengths:
        while True:
            prompt = random_prompt(generator, config.vocab_size, length)
            output, gap = greedy_reference(model, config, prompt, tokens)
            if gap > CLEAR_GAP and prompt not in found:
                found[prompt] = output
                break
    return found


class Fed:
    """One sequence of a model, fed piece by piece as the engine would."""

    def __init__(self, config, weights):
        self.model = build_model(config, weights, 288)
        pool_shape = {"num_layers": config.num_layers, "kv_width": config.kv_width}
        self.pool = KVPool(
            **pool_shape, tokens=512, max_context=224, dtype=torch.float32, device=CPU
        )
        self.pool.row_length = self.pool.row_lengths[-1]
        groups = config.num_heads // config.num_kv_heads
        self.packer = Packer(self.pool, groups, torch.float32, CPU)
        self.sequence = Sequence(Request("r", ()), 0, 0, frozenset())
        self.sequence.row = 0

    def feed(
        self, tokens: torch.Tensor, *, causal: bool = True, keep: bool = True, draft: bool = False
    ):
        rows = Rows([self.sequence], tokens[None], causal)
        logits = self.model.forward(self.packer.pack([rows], draft=draft), self.pool.layers)
        self.sequence.cached += len(tokens) if keep else 0
        return logits


def word_tokenizer(vocab_size: int) -> Tokenizer:
    """Token i is two letters and a full stop, so text can be read back into tokens."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = {f"{letters[i // 26]}{letters[i % 26]}.": i for i in range(vocab_size)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="aa."))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def build_engine(model: Model, tokenizer: Tokenizer | None = None, **options) -> TorchEngine:
    """An engine with small limits; options name `EngineLimits` fields or engine arguments."""
    fields = EngineLimits.__dataclass_fields__
    limits = {k: options.pop(k) for k in list(options) if k in fields}
    limits = {"max_context_tokens": 160, "max_sequences": 8, "kv_tokens": 192 * 8} | limits
    built = EngineLimits(**limits)
    assert positions_needed(built) <= model.rope.cos.shape[0]
    return TorchEngine(model, tokenizer, built, **options)
