"""Where jobs run: GPUs and cores are shared among them."""

from __future__ import annotations

import os

import pytest

from recipes.common.errors import UserError
from recipes.tasks.jobs import slots


def test_slots_share_gpus_and_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [(slot.gpu, slot.threads) for slot in slots(None)] == [("4", 8), ("6", 8)]
    assert [slot.gpu for slot in slots(3)] == ["4", "6", "4"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert [(slot.gpu, slot.threads) for slot in slots(None)] == [(None, 4)] * 4
    assert [slot.threads for slot in slots(1)] == [16]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert [slot.threads for slot in slots(None)] == [1, 1]


def test_a_users_own_number_of_threads_is_kept_where_cores_suffice(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    for said, threads in (("3", 3), ("2,1", 2), ("64", 16), ("", 16)):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        [slot] = slots(1)
        assert slot.threads == threads
        assert slot.environment()["OMP_NUM_THREADS"] == str(threads)
    for said in ("abc", "0", "-3", "1.5"):  # before any job starts, not in each of them
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        with pytest.raises(UserError, match=f"OMP_NUM_THREADS={said}: must be a whole number, 1"):
            slots(1)
