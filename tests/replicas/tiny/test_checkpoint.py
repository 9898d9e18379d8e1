"""The released weights: small, in the released layout, and right on prompts never trained on."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from policies.vocabulary import AR, Mode, Plan
from replicas.engine import Request
from replicas.tiny import CHECKPOINT
from replicas.tiny.batches import Batches, Documents
from replicas.tiny.checkpoint import save_checkpoint
from replicas.tiny.evaluate import LIMITS, decode
from replicas.tiny.progress import evaluate_batch
from replicas.tiny.tasks import OPEN_ENDED, TASKS, correct, held_out_set
from replicas.tiny.tokenizer import build_tokenizer
from replicas.tiny.train_model import Shape, TrainModel, rotary_table, yarn_inverse_frequencies
from replicas.torch_engine.batch import Packer, Rows
from replicas.torch_engine.checkpoint import Checkpoint, load_checkpoint
from replicas.torch_engine.loader import LoadOptions, build_engine
from replicas.torch_engine.sequence import Sequence

DETERMINED = sorted(set(TASKS) - OPEN_ENDED)
PROMPTS_PER_TASK = 4


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(CHECKPOINT)


def test_the_checkpoint_is_at_most_12_megabytes() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= 12_000_000


def test_tensors_have_the_released_names_and_the_configured_shapes() -> None:
    config = json.loads((CHECKPOINT / "config.json").read_text())
    hidden, head = config["hidden_size"], config["head_dim"]
    queries, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    mlp, vocab = config["intermediate_size"], config["vocab_size"]
    expected = {
        "encoder.embed_tokens.weight": [vocab, hidden],
        "encoder.norm.weight": [hidden],
        "diffusion_head.weight": [vocab, hidden],
    }
    per_layer = {
        "input_layernorm": [hidden],
        "self_attn.q_proj": [queries, hidden],
        "self_attn.k_proj": [kv, hidden],
        "self_attn.v_proj": [kv, hidden],
        "self_attn.o_proj": [hidden, queries],
        "post_attention_layernorm": [hidden],
        "mlp.gate_proj": [mlp, hidden],
        "mlp.up_proj": [mlp, hidden],
        "mlp.down_proj": [hidden, mlp],
    }
    for layer in range(config["num_hidden_layers"]):
        expected |= {f"encoder.layers.{layer}.{n}.weight": s for n, s in per_layer.items()}
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as file:
        assert {name: file.get_slice(name).get_shape() for name in file.keys()} == expected  # noqa: SIM118
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


def test_rotary_frequencies_are_those_of_transformers() -> None:
    shape = Shape(vocab=16)
    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_positions,
        rope_parameters=json.loads((CHECKPOINT / "config.json").read_text())["rope_parameters"],
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](config, device=None)
    assert factor == 1.0
    torch.testing.assert_close(yarn_inverse_frequencies(shape), frequencies)


def test_the_engine_computes_what_the_training_network_does(tmp_path) -> None:
    """One noisy block and its clean prefix, through both implementations, in float32."""
    torch.manual_seed(0)
    built = build_tokenizer()
    trained = TrainModel(Shape(vocab=built.get_vocab_size(), layers=2)).eval()
    for parameter in trained.parameters():
        parameter.data = parameter.data.bfloat16().float()
    save_checkpoint(trained, built, tmp_path)
    tokens = torch.randint(6, 800, (1, 12))
    causal = torch.full((8, 8), -1e4).triu(1)[None, None]
    seen = torch.zeros(1, 1, 4, 12)
    with torch.no_grad():
        cos, sin = rotary_table(trained.shape, 12)
        x = trained.embedding(tokens)
        for layer in trained.layers:
            x = layer(x, cos, sin, 8, causal, seen)
        norm = torch.nn.functional.rms_norm(x, (256,), trained.norm, trained.shape.norm_eps)
        expected = trained.logits(norm)
    checkpoint = load_checkpoint(tmp_path)
    expected[..., checkpoint.config.mask_token_id] = -torch.inf
    engine = build_engine(checkpoint, LoadOptions(device="cpu", threads=1, limits=LIMITS))
    sequence = Sequence(
        request=Request("a", tuple(tokens[0].tolist())),
        arrival=0,
        seed=0,
        eos_token_ids=frozenset(),
        row=0,
    )
    packer = Packer(engine.pool, groups=2, dtype=torch.float32, device=torch.device("cpu"))
    rows = Rows([sequence], tokens[:, :8], causal=True)
    clean = engine.model.forward(packer.pack([rows]), engine.pool.layers)
    sequence.cached = 8
    rows = Rows([sequence], tokens[:, 8:], causal=False)
    block = engine.model.forward(packer.pack([rows]), engine.pool.layers)
    torch.testing.assert_close(torch.cat([clean, block]), expected[0], atol=1e-3, rtol=1e-3)


def test_a_training_batch_hides_the_future_and_gives_finite_losses() -> None:
    built = build_tokenizer()
    batches = Batches(Documents(built, seed=3), rows=2, seed=3)
    model = TrainModel(Shape(vocab=built.get_vocab_size(), layers=1))
    for block in (4, 8, 16, 32):
        batch = batches.next(block)
        assert (batch.clean_bias.float().triu(1) < 0).triu(1).sum() == (
            torch.ones_like(batch.clean_bias).triu(1).sum()
        )
        assert not batch.masked.view(2, -1, block)[:, :, 0].any()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outcome = evaluate_batch(model, batch)
        assert torch.isfinite(outcome.ar)
        assert torch.isfinite(outcome.diffusion)


@pytest.mark.parametrize("task", DETERMINED)
@pytest.mark.parametrize("plan", ["ar", "diffusion/8"])
def test_held_out_prompts_are_answered_exactly(
    checkpoint: Checkpoint, task: str, plan: str
) -> None:
    samples = held_out_set(task, PROMPTS_PER_TASK)
    answers, _ = decode(checkpoint, [s.prompt for s in samples], Plan.parse(plan))
    for sample, answer in zip(samples, answers, strict=True):
        assert correct(sample, answer.text or ""), sample.prompt


@pytest.mark.parametrize("block", [4, 8, 16, 32])
def test_self_speculation_is_identical_to_ar_and_takes_fewer_iterations(
    checkpoint: Checkpoint, block: int
) -> None:
    prompts = [s.prompt for task in TASKS for s in held_out_set(task, 2)]
    ar, one_per_step = decode(checkpoint, prompts, AR)
    fast, per_round = decode(checkpoint, prompts, Plan(Mode.SELF_SPECULATION, block))
    assert [answer.tokens for answer in fast] == [answer.tokens for answer in ar]
    assert one_per_step == 1
    assert per_round > 2
