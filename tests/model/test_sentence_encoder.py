"""Sentence vectors and their loss against sentence-transformers, and over the ranks of a batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F

from model.config import ModelConfig
from model.padding import unpad
from model.parallel import initialize_parallel
from model.sentence_encoder import RapidBertForSentenceEmbedding, contrastive_loss

CONFIG = ModelConfig("tiny", num_layers=2, hidden_size=32, num_heads=2, ffn_size=64, vocab_size=128)


def vectors(columns: int, records: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(columns)
    return torch.randn(columns, records, 8, generator=generator)


def distinct(columns: int, records: int) -> torch.Tensor:
    return torch.arange(columns * records).view(columns, records)


@pytest.mark.parametrize("columns", [2, 3], ids=["pairs", "hard negatives"])
def test_loss_and_gradients_equal_sentence_transformers(columns):
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    ours, theirs = (vectors(columns, 5).requires_grad_() for _ in range(2))
    reference = MultipleNegativesRankingLoss(model=torch.nn.Identity())
    expected = reference.compute_loss_from_embeddings(list(theirs), torch.zeros(5))
    loss = contrastive_loss(ours, distinct(columns, 5))
    torch.testing.assert_close(loss / 5, expected)
    (loss / 5).backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def by_hand(vectors: torch.Tensor, candidates: list[list[tuple[int, int]]]) -> torch.Tensor:
    """The loss where each anchor has these candidates, (column, record), its positive first."""
    loss = torch.zeros(())
    for anchor, of in zip(vectors[0], candidates, strict=True):
        others = torch.stack([vectors[place] for place in of])
        similarity = 20 * F.cosine_similarity(anchor.unsqueeze(0), others)
        loss = loss + F.cross_entropy(similarity.unsqueeze(0), torch.zeros(1, dtype=torch.long))
    return loss


def test_what_is_known_to_go_with_an_anchor_is_no_negative_of_it():
    given = vectors(3, 4)
    texts = torch.tensor(
        [
            [0, 1, 0, 3],  # record 2 asks what record 0 asks
            [10, 10, 12, 0],  # record 1 has the positive of record 0; record 3 that question
            [20, 21, 22, 10],  # and a hard negative which is the positive of 0 and 1
        ]
    )
    expected = by_hand(
        given,
        [
            [(1, 0), (2, 0), (2, 1), (2, 2)],
            [(1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2)],
            [(1, 2), (1, 1), (2, 0), (2, 1), (2, 2), (2, 3)],
            [(1, 3), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (2, 3)],
        ],
    )
    torch.testing.assert_close(contrastive_loss(given, texts), expected)


def test_empty_records_do_not_count():
    given = vectors(2, 3)
    whole = contrastive_loss(given, distinct(2, 3))
    padded = F.pad(given, (0, 0, 0, 2)).requires_grad_()
    texts = F.pad(distinct(2, 3), (0, 2), value=-1)
    loss = contrastive_loss(padded, texts)
    torch.testing.assert_close(loss, whole)
    loss.backward()
    assert padded.grad.isfinite().all() and not padded.grad[:, 3:].any()


def test_a_lone_pair_has_nothing_to_learn_from():
    assert contrastive_loss(vectors(2, 1), distinct(2, 1)).item() == 0.0


def test_vectors_are_the_means_of_the_encoder_and_of_sentence_transformers():
    from sentence_transformers.sentence_transformer.modules import Pooling

    torch.manual_seed(0)
    model = RapidBertForSentenceEmbedding(CONFIG).eval()
    mask = (torch.arange(9) < torch.tensor([[5], [9], [1]])).long()
    ids = torch.randint(5, 128, mask.shape) * mask
    rows, offsets = unpad(mask)
    found = model.embed(ids, attention_mask=mask)
    pooled = Pooling(32, pooling_mode="mean")(
        {"token_embeddings": model.encoder(ids, attention_mask=mask), "attention_mask": mask}
    )
    torch.testing.assert_close(found, pooled["sentence_embedding"])
    tokens = torch.cat([ids.flatten()[rows], torch.tensor([7, 7])])  # rows of no sequence
    packed = model.embed(tokens, F.pad(offsets, (0, 1), value=15), 9)
    torch.testing.assert_close(packed[:3], found)
    assert not packed[3].any()


def rank_of_two(rank: int, folder: Path) -> None:
    """Half of the batch on each of two processes; the sums of what they find in `folder`."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", rank=rank, world_size=2, store=store)
    initialize_parallel()
    # Records as a batch deals them, one in two; the second rank has one less.
    mine = torch.arange(rank, 5, 2)
    given = F.pad(vectors(3, 5)[:, mine], (0, 0, 0, 3 - len(mine))).requires_grad_()
    texts = F.pad(TEXTS[:, mine], (0, 3 - len(mine)), value=-1)
    loss = contrastive_loss(given, texts)
    loss.backward()
    torch.save((loss.detach(), given.grad[:, : len(mine)], mine), folder / f"{rank}.pt")
    dist.destroy_process_group()


TEXTS = torch.tensor([[0, 1, 2, 0, 4], [5, 6, 6, 8, 9], [10, 11, 12, 13, 5]])


def test_two_ranks_compute_the_loss_and_gradients_of_one(tmp_path):
    torch.multiprocessing.spawn(rank_of_two, (tmp_path,), nprocs=2)
    whole = vectors(3, 5).requires_grad_()
    loss = contrastive_loss(whole, TEXTS)
    loss.backward()
    total, gradient = torch.zeros(()), torch.zeros_like(whole)
    for rank in range(2):
        part, of, mine = torch.load(tmp_path / f"{rank}.pt")
        total += part
        gradient[:, mine] = of
    torch.testing.assert_close(total, loss.detach())
    torch.testing.assert_close(gradient, whole.grad)
