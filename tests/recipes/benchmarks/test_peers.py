"""Contenders at the smallest size, and what happens where memory is short."""

import pytest
import torch
from benchmark_scenarios import run_benchmark
from torch import nn

from recipes.benchmarks.peers import Peer


def test_a_record_of_the_smallest_size(tmp_path):
    record = run_benchmark(
        tmp_path,
        "peers",
        TOY_MODELS=("probe-tiny",),
        TOY_SEQUENCES=2,
        ROUNDS=3,
    )
    contenders = record["contenders"]
    assert list(contenders) == [
        "probe-tiny",
        "HF BERT, eager",
        "HF BERT, SDPA",
        "HF ModernBERT",
        "RapidBERT, padded in each layer",
    ]
    assert record["not_run"] == {"HF ModernBERT, flash": "flash-attn is not installed"}
    tokens = record["settings"]["real_tokens_per_step"]
    assert tokens <= record["settings"]["packed_rows_per_step"]
    assert record["settings"]["padded_rows_per_step"] == 2 * 128
    for name, found in contenders.items():
        # Rates and times are of the same steps.
        assert found["tokens_per_second"]["max"] == pytest.approx(
            tokens / found["step_seconds"]["min"]
        )
        assert found["ratio"]["repeats"] == 3 and found["one_step_alone_seconds"] > 0
        assert (found["ratio"]["median"] == 1) == (name == "probe-tiny")


class Bounded(nn.Module):
    """A model that two sequences fit into."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, input_ids, attention_mask, labels):
        if len(input_ids) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        self.seen.append(len(input_ids))
        return self.weight * attention_mask.sum()


def test_a_peer_takes_the_largest_micro_batch_that_fits(batch):
    model = Bounded()
    peer = Peer(lambda: model, [batch], 4, torch.device("cpu"))
    assert peer.fits()
    assert peer.micro_batch == 2 and model.seen == [2, 2]
    peer.step()
    assert model.seen == [2, 2, 2, 2]


def test_one_step_updates_with_the_whole_batch(batch):
    """However it is cut: the mean over micro-batches."""
    model = Bounded()
    gradients = []
    peer = Peer(lambda: model, [batch], 2, torch.device("cpu"))
    peer.optimizer.register_step_pre_hook(lambda *_: gradients.append(model.weight.grad.clone()))
    peer.step()
    assert gradients == [batch.real_tokens / 2] and model.weight.grad is None
