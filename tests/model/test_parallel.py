"""Process groups, attention dropout's random numbers, tensor parallelism against one process."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from megatron.core import parallel_state
from plain_bert import PaddedBatch, randomise

from model.config import ModelConfig, ModelOptions
from model.masked_lm import RapidBertForMaskedLM
from model.parallel import initialize_parallel, seed_dropout
from model.weights import gather_state, scatter_state

SIZES: dict[str, Any] = dict(
    num_layers=2, hidden_size=32, num_heads=4, ffn_size=24, vocab_size=128, max_positions=12
)
NO_DROPOUT: dict[str, Any] = dict(hidden_dropout=0.0, attention_dropout=0.0, ffn_dropout=0.0)
CONFIGS = {
    "fused_glu": ModelConfig("fused_glu", **SIZES, **NO_DROPOUT),
    "glu": ModelConfig("glu", **SIZES, **NO_DROPOUT, feed_forward="glu"),
    "bert": ModelConfig(
        "bert", **SIZES, **NO_DROPOUT, feed_forward="standard", positions="learned"
    ),
}

DROPPING = ModelConfig("dropping", **SIZES, hidden_dropout=0.5, ffn_dropout=0.5)


def train_step(model: RapidBertForMaskedLM) -> dict[str, Any]:
    """Logits, mean loss and whole gradients, as plain tensors."""
    batch = PaddedBatch.random([7, 1, 12, 4], SIZES["vocab_size"])
    targets = batch.packed_targets
    keys = torch.arange(4)
    loss = model(**batch.packed_inputs, **targets, sequence_keys=keys) / len(targets["labels"])
    loss.backward()
    with torch.no_grad():
        logits = model.eval().logits(**batch.packed_inputs)
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    return {"logits": logits.detach(), "loss": loss.detach(), "gradients": gather_state(model)}


def tensor_parallel_rank(rank: int, folder: Path) -> None:
    """What one of two tensor-parallel processes does; it leaves its results in `folder`."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", rank=rank, world_size=2, store=store)
    initialize_parallel(tensor_parallel=2)
    results: dict[str, Any] = {}
    for kind, config in CONFIGS.items():
        torch.manual_seed(0)
        model = RapidBertForMaskedLM(config)
        result: dict[str, Any] = {"initial": gather_state(model)}
        try:
            scatter_state(model, result["initial"] | {"head.decoder_bias": torch.zeros(1)})
        except ValueError as error:
            result["fault"] = str(error)
        scatter_state(model, torch.load(folder / f"{kind}.pt"))
        result["local_parameters"] = sum(p.numel() for p in model.parameters())
        result["gathered"] = gather_state(model)
        results[kind] = result | train_step(model)

    torch.manual_seed(rank)  # masks do not hang on the ranks' own random numbers
    model = RapidBertForMaskedLM(DROPPING)
    scatter_state(model, torch.load(folder / "fused_glu.pt"))
    results["dropout"] = train_step(model.train())
    if not torch.cuda.is_available():  # there Triton's interpreter is off, and these are CPU ranks
        model = RapidBertForMaskedLM(DROPPING, ModelOptions("triton", "triton"))
        scatter_state(model, torch.load(folder / "fused_glu.pt"))
        results["dropout, triton"] = train_step(model.train())
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, single_process) -> list[dict]:
    folder = tmp_path_factory.mktemp("tensor-parallel")
    for kind, config in CONFIGS.items():
        model = RapidBertForMaskedLM(config)
        randomise(model)
        torch.save(gather_state(model), folder / f"{kind}.pt")
    torch.multiprocessing.spawn(tensor_parallel_rank, (folder,), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", CONFIGS)
def test_two_tensor_parallel_ranks_equal_one_process(kind, two_ranks):
    model = RapidBertForMaskedLM(CONFIGS[kind])
    randomise(model)
    whole = {name: p.detach().clone() for name, p in model.named_parameters()}
    expected = train_step(model)
    for rank in two_ranks:
        result = rank[kind]
        assert result["fault"].endswith("head.decoder_bias is [1], the model has [128]")
        assert result["local_parameters"] < 0.6 * CONFIGS[kind].parameters()
        for name in whole:
            assert torch.equal(result["gathered"][name], whole[name]), name
        for key in ("logits", "loss", "gradients"):
            torch.testing.assert_close(result[key], expected[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_one_seed_gives_one_model_at_any_tensor_parallel_size(kind, two_ranks):
    torch.manual_seed(0)
    single = gather_state(RapidBertForMaskedLM(CONFIGS[kind]))
    for rank in two_ranks:
        for name in single:
            assert torch.equal(rank[kind]["initial"][name], single[name]), name


def test_two_tensor_parallel_ranks_drop_the_units_that_one_process_drops(two_ranks):
    model = RapidBertForMaskedLM(DROPPING)
    randomise(model)
    expected = train_step(model.train())
    assert abs(expected["loss"] - two_ranks[0]["fused_glu"]["loss"]) > 1e-3
    for rank in two_ranks:
        found = [result for kind, result in rank.items() if kind.startswith("dropout")]
        for result, key in product(found, ("loss", "gradients")):
            torch.testing.assert_close(result[key], expected[key], rtol=0, atol=1e-5)


def test_initialising_twice_is_harmless_but_not_at_another_size():
    initialize_parallel()
    initialize_parallel()
    with pytest.raises(ValueError, match="groups of 1 exist already, not 2"):
        initialize_parallel(tensor_parallel=2)


@pytest.fixture
def nothing_set_up(single_process) -> Iterator[None]:
    """No process groups, as in a script that only wants a model."""
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
    yield
    initialize_parallel()


def test_a_model_makes_its_world_of_one_process(nothing_set_up):
    model = RapidBertForMaskedLM(CONFIGS["fused_glu"])
    assert dist.get_world_size() == parallel_state.get_tensor_model_parallel_world_size() == 1
    assert model.encoder(torch.tensor([[1, 2, 3]])).shape == (1, 3, 32)


def test_one_of_several_processes_must_say_how_it_shares_the_model(nothing_set_up, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RuntimeError, match="by 4 processes.*initialize_parallel"):
        RapidBertForMaskedLM(CONFIGS["fused_glu"])
    assert not dist.is_initialized()


def test_a_size_that_does_not_divide_the_world():
    parallel_state.destroy_model_parallel()
    try:
        with pytest.raises(ValueError, match="size 3 does not divide the world size 1"):
            initialize_parallel(tensor_parallel=3)
    finally:
        initialize_parallel()


def draws(*where: int) -> tuple[float, ...]:
    seed_dropout(*where)
    return tuple(torch.rand(4).tolist())


def test_dropout_is_a_function_of_where_the_run_stands():
    here = (17, 1000, 3, 5)
    first = draws(*here)
    torch.rand(100)
    assert draws(*here) == first


def test_no_two_places_share_their_dropout():
    places = [
        (seed, step, micro_step, rank)
        for seed in (0, 1)
        for step in range(6)
        for micro_step in range(6)
        for rank in range(6)
    ]
    assert len({draws(*place) for place in places}) == len(places)
