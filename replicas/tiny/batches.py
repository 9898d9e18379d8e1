"""Training batches: packed conversations, and noisy copies of pieces of their answers."""

from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from replicas.tiny.tasks import TASKS, Sample, draw
from replicas.tiny.tokenizer import ASSISTANT, EOS, MASK, SYSTEM, SYSTEM_LINES, USER, token_id

ROW = 128  # clean tokens in a row
NOISY = 64  # noisy tokens in a row: NOISY // block blocks
BLOCKED = -1e4  # additive attention bias of a key that may not be seen


@dataclass
class Document:
    """One conversation: its tokens, and per answer (task index, first token, its <|eos|>)."""

    tokens: list[int]
    answers: list[tuple[int, int, int]]


@dataclass
class Batch:
    """Rows B; clean width T = ROW; noisy width N = NOISY; A answer tokens; M masked tokens."""

    tokens: Tensor  # [B, T + N]
    positions: Tensor  # [B, T + N]
    clean_bias: Tensor  # [B, 1, T, T]
    noisy_bias: Tensor  # [B, 1, N, T + N]
    ar_at: Tensor  # [B, T] bool, positions whose next token is an answer token
    ar_targets: Tensor  # [A]
    ar_answer: Tensor  # [A] number of the answer each target belongs to
    answer_task: Tensor  # [answers in the batch]
    masked: Tensor  # [B, N] bool
    noisy_targets: Tensor  # [M]
    noisy_weights: Tensor  # [M]
    draft_task: Tensor  # [M] task if the block is all masks and inside the answer, else -1
    clean_tokens: int


class Documents:
    """An endless, never repeated supply of conversations; `weights` set the mix of tasks."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.tokenizer = tokenizer
        self.rng = Random(seed)
        self.weights = [1.0] * len(TASKS)
        self.buffer: list[Document] = []
        self.system, self.user, self.assistant, self.eos = (
            token_id(tokenizer, token) for token in (SYSTEM, USER, ASSISTANT, EOS)
        )

    def conversation(self, turns: list[Sample], system: str | None = None) -> Document:
        tokens: list[int] = []
        answers: list[tuple[int, int, int]] = []
        if system is not None:
            tokens += [self.system, *self.tokenizer.encode(system).ids]
        for turn in turns:
            tokens += [self.user, *self.tokenizer.encode(turn.prompt).ids, self.assistant]
            first = len(tokens)
            tokens += [*self.tokenizer.encode(turn.answer).ids, self.eos]
            answers.append((TASKS.index(turn.task), first, len(tokens) - 1))
        return Document(tokens, answers)

    def _refill(self, count: int = 400) -> None:
        for task in self.rng.choices(TASKS, self.weights, k=count):
            turns = [draw(self.rng, task)]
            if self.rng.random() < 0.1:
                turns.insert(0, draw(self.rng, self.rng.choice(TASKS)))
            system = self.rng.choice(SYSTEM_LINES) if self.rng.random() < 0.1 else None
            document = self.conversation(turns, system)
            if len(document.tokens) <= ROW:
                self.buffer.append(document)

    def row(self) -> list[Document]:
        """Documents for one row: the oldest first, then the largest of the next 60 that fits."""
        if len(self.buffer) < 100:
            self._refill()
        chosen = [self.buffer.pop(0)]
        left = ROW - len(chosen[0].tokens)
        while True:
            fits = [i for i in range(60) if len(self.buffer[i].tokens) <= left]
            if not fits:
                return chosen
            best = max(fits, key=lambda i: len(self.buffer[i].tokens))
            chosen.append(self.buffer.pop(best))
            left -= len(chosen[-1].tokens)


def _mask_pattern(blocks: tuple[int, int], size: int, noise: torch.Generator) -> Tensor:
    """Which tokens of each block are masked, [*blocks, size]; the first token, the seed, never is.

    Half of the blocks are all masks (a draft, or the first denoising pass). A quarter is masked at
    random with t ~ U. A quarter looks like the middle of decoding: a revealed prefix, then a
    scatter of revealed tokens.
    """
    kind = torch.rand(*blocks, 1, generator=noise)
    ratio = torch.rand(*blocks, 1, generator=noise) * 0.98 + 0.02
    scatter = torch.rand(*blocks, size, generator=noise) < ratio
    prefix = torch.rand(*blocks, 1, generator=noise) * size
    tail = torch.rand(*blocks, size, generator=noise) < 0.5 + 0.5 * ratio
    pattern = torch.where(kind < 0.75, scatter, tail & (torch.arange(size) >= prefix))
    pattern = pattern | (kind < 0.5)
    pattern[..., 0] = False
    return pattern


def collate(rows: list[list[Document]], block: int, mask_id: int, noise: torch.Generator) -> Batch:
    """Pack documents into rows, isolated from each other, and draw noisy blocks of their answers.

    A block starts at any answer token; past the answer's end its targets are <|eos|>. It sees
    itself both ways and the clean tokens of its own document before it, as when decoding.
    """
    count, blocks = len(rows), NOISY // block
    clean = np.zeros((count, ROW), np.int64)
    owner = np.full((count, ROW), -1, np.int64)
    position = np.zeros((count, ROW), np.int64)
    answer_of = np.full((count, ROW), -1, np.int64)
    starts = np.zeros((count, blocks), np.int64)
    ends = np.zeros((count, blocks), np.int64)
    block_task = np.zeros((count, blocks), np.int64)
    tasks: list[int] = []
    offset_rng = torch.rand(count, generator=noise).tolist()
    for r, documents in enumerate(rows):
        at = 0
        candidates: list[tuple[int, int, int]] = []
        for d, document in enumerate(documents):
            size = len(document.tokens)
            clean[r, at : at + size] = document.tokens
            owner[r, at : at + size] = d
            position[r, at : at + size] = np.arange(size)
            for task, first, end in document.answers:
                answer_of[r, at + first - 1 : at + end] = len(tasks)
                tasks.append(task)
                candidates += [(at + p, at + end, task) for p in range(first, end)]
            at += size
        # Evenly spread starts: every answer of the row gets its share of blocks.
        for b in range(blocks):
            pick = candidates[int((b + offset_rng[r]) / blocks * len(candidates))]
            starts[r, b], ends[r, b], block_task[r, b] = pick

    x, own, pos, answer, start, last = map(
        torch.from_numpy, (clean, owner, position, answer_of, starts, ends)
    )
    inside = torch.arange(block)
    source = start[:, :, None] + inside
    past_end = source > last[:, :, None]
    target = x.gather(1, source.minimum(last[:, :, None]).reshape(count, -1))
    masked = _mask_pattern((count, blocks), block, noise)
    is_draft = masked[:, :, 1:].all(-1, keepdim=True)
    weight = torch.where(past_end, 0.2, 1.0).reshape(count, NOISY)
    draft = torch.from_numpy(block_task)[:, :, None].expand(-1, -1, block)
    draft = torch.where(is_draft & ~past_end, draft, -1).reshape(count, NOISY)
    masked = masked.view(count, NOISY)
    noisy_pos = (pos.gather(1, start)[:, :, None] + inside).reshape(count, NOISY)

    order = torch.arange(ROW)
    causal = (own[:, :, None] == own[:, None, :]) & (order[:, None] >= order)
    prefix = (own.gather(1, start)[:, :, None] == own[:, None]) & (order < start[:, :, None])
    prefix = prefix[:, :, None].expand(-1, -1, block, -1).reshape(count, NOISY, ROW)
    number = torch.arange(NOISY) // block
    same_block = (number[:, None] == number).expand(count, -1, -1)

    def bias(visible: Tensor) -> Tensor:
        return torch.where(visible, 0.0, BLOCKED).bfloat16()[:, None]

    ar_at = answer >= 0
    return Batch(
        tokens=torch.cat([x, torch.where(masked, mask_id, target)], 1),
        positions=torch.cat([pos, noisy_pos], 1),
        clean_bias=bias(causal),
        noisy_bias=bias(torch.cat([prefix, same_block], 2)),
        ar_at=ar_at,
        ar_targets=x.roll(-1, 1)[ar_at],
        ar_answer=answer[ar_at],
        answer_task=torch.tensor(tasks),
        masked=masked,
        noisy_targets=target[masked],
        noisy_weights=weight[masked],
        draft_task=draft[masked],
        clean_tokens=int((own >= 0).sum()),
    )


class Batches:
    """Batches of `rows` rows from one stream of documents."""

    def __init__(self, documents: Documents, rows: int, seed: int) -> None:
        self.documents = documents
        self.rows = rows
        self.noise = torch.Generator().manual_seed(seed)
        self.mask_id = token_id(documents.tokenizer, MASK)

    def next(self, block: int) -> Batch:
        rows = [self.documents.row() for _ in range(self.rows)]
        return collate(rows, block, self.mask_id, self.noise)
