"""Where jobs run: GPUs and cores are shared among them."""

from __future__ import annotations

import os

from recipes.tasks.jobs import slots


def test_slots_share_gpus_and_cores(monkeypatch):
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
