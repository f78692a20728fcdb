"""Counts what each choice of attention's tiles comes to in compiled code; no GPU need be here.

    PYTHONPATH=. python tests/model/kernels/count_tiles.py RECORD.json

Warp-instructions and barriers are those of a whole program, with the passes that its loop makes
over 128 tokens (short kernels) or 512 (tiled ones). A multiprocessor issues four warp-instructions
a clock and holds as many programs as registers and shared memory allow; while a program waits, only
the others compute.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from typing import Any

import torch
import triton
from compile_kernels import Code, attend, compiling

from model.kernels import attention_short, attention_tiled

SHORT = [(q, w, m) for q in (16, 32, 64, 128) for w in (4, 8) for m in (None, 128)]
TILED = [(64, 64, 4, 2), (128, 64, 4, 2), (128, 64, 8, 2), (64, 128, 4, 2), (128, 128, 8, 1)]
SHARED_BYTES = {80: 164 * 1024, 90: 228 * 1024}
REGISTERS, MOST_WARPS, DRIVER_BYTES = 65_536, 64, 1024


def programs(code: Code, capability: int) -> int:
    """As many as a multiprocessor holds."""
    return min(
        REGISTERS // (max(32, code.registers) * 32 * code.warps),
        SHARED_BYTES[capability] // (code.shared_bytes + DRIVER_BYTES),
        MOST_WARPS // code.warps,
    )


def counted(code: Code, passes: int, capability: int) -> dict[str, Any]:
    again = passes - 1
    return {
        **asdict(code),
        "programs_per_multiprocessor": programs(code, capability),
        "warp_instructions": code.warps * (code.instructions + again * code.loop_instructions),
        "barriers_passed": code.barriers + again * code.loop_barriers,
    }


def short(capability: int) -> Iterator[dict[str, Any]]:
    for queries, warps, most_registers in SHORT:
        tiles: dict[str, Any] = dict(KEYS=128, QUERIES=queries, num_warps=warps, num_stages=1)
        if most_registers:
            tiles["maxnreg"] = most_registers
        attention_short._tiles = lambda *_, tiles=tiles, **__: tiles  # type: ignore[assignment]
        with compiling(capability) as found:
            attend(128)
        for code in found:
            yield {"tiles": tiles, **counted(code, 128 // queries, capability)}


def tiled(capability: int) -> Iterator[dict[str, Any]]:
    for queries, keys, warps, stages in TILED:
        tiles = dict(QUERIES=queries, KEYS=keys, num_warps=warps, num_stages=stages)
        attention_tiled._tiles = lambda *_, tiles=tiles, **__: tiles  # type: ignore[assignment]
        with compiling(capability) as found:
            attend(512)
        for code in found:
            step = queries if code.name == "_backward_keys" else keys
            yield {"tiles": tiles, **counted(code, 512 // step, capability)}


def main() -> None:
    rows = [
        {"compute_capability": capability, **row}
        for capability in SHARED_BYTES
        for rows_of in (short, tiled)
        for row in rows_of(capability)
    ]
    record = {
        "what": "attention's tiles as compiled code; nothing was timed",
        "date": date.today().isoformat(),
        "device": f"none (compiled on {platform.machine()})",
        "versions": {"triton": triton.__version__, "torch": torch.__version__},
        "heads": 12,
        "head_dim": 64,
        "rows": rows,
    }
    with open(sys.argv[1], "w") as file:
        file.write(json.dumps(record, indent=1) + "\n")
    for row in rows:
        numbers = ("spilled_bytes", "programs_per_multiprocessor", "warp_instructions")
        tiles = " ".join(f"{k}={v}" for k, v in row["tiles"].items())
        print(
            f"sm_{row['compute_capability']} {row['name']:18} {tiles:60}",
            *(f"{row[name]:7,}" for name in (*numbers, "barriers_passed")),
        )


if __name__ == "__main__":
    main()
