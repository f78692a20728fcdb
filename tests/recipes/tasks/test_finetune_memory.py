"""A batch of a finetuning that does not fit the memory is refused."""

from __future__ import annotations

import pytest
import torch

from model.parallel import initialize_parallel
from recipes.common.errors import UserError
from recipes.common.settings import parse
from recipes.engine.world import World
from recipes.tasks.evaluation import encode_all
from recipes.tasks.finetune_memory import check_memory, free_bytes
from recipes.tasks.finetune_settings import Settings
from recipes.tasks.finetuning import resolve

ALONE = World(0, 0, 1, torch.device("cpu"), 0, 1, 1)


def test_a_batch_that_memory_does_not_hold_is_refused_with_one_that_it_does(
    finetune_place, tmp_path, monkeypatch
):
    """Arithmetic against arithmetic: the memory is pretended, what is named then fits."""
    initialize_parallel()
    named = ["--task", "cola", "--data", str(finetune_place / "glue"), "--output", str(tmp_path)]
    named += ["--checkpoint", str(finetune_place / "run"), "--batch-size"]

    def check(batch: int, free: int) -> None:
        monkeypatch.setattr("recipes.tasks.finetune_memory.host_bytes", lambda: free)
        work = resolve(parse(Settings, [*named, str(batch)]), 1)
        check_memory(work, encode_all(work)[0], ALONE)

    check(100_000, 10**9)
    states = 16 * resolve(parse(Settings, [*named, "1"]), 1).config.parameters()
    with pytest.raises(
        UserError, match=r"a batch of 192 examples .* --batch-size \d+ fits"
    ) as error:
        check(100_000, states + 10**6)
    fitting = int(str(error.value).split("--batch-size ")[1].split()[0])
    assert 0 < fitting < 192
    check(fitting, states + 10**6)
    with pytest.raises(UserError, match="give a shorter --max-length"):
        check(1, states)


@pytest.mark.parametrize(("limit", "available"), [(10**9, 10**10), (10**10, 10**9)])
def test_a_containers_limit_and_what_is_left_of_the_machine_both_count(
    monkeypatch, limit, available
):
    initialize_parallel()
    monkeypatch.setattr("recipes.tasks.finetune_memory.device_bytes", lambda device: limit)
    monkeypatch.setattr("recipes.tasks.finetune_memory.host_bytes", lambda: available)
    assert free_bytes(ALONE) == [10**9]
