"""What a launcher's variables mean, and ranks that nobody has started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from recipes.common.errors import MachineError, UserError
from recipes.engine import rendezvous

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def launched(monkeypatch):
    """Replaces everything that a launcher may have set by the given variables."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MASTER_")) or name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)

    def launch(**variables: str) -> dict[str, str]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return rendezvous.launch_environment()

    return launch


def test_plain_python_is_a_world_of_one(launched):
    assert launched() == {}
    assert rendezvous.launched_world_size() == 1


def test_torchrun_and_deepspeed_set_it_themselves(launched):
    variables = {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "29500",
    }
    # An allocation around the launcher changes nothing.
    assert launched(**variables, SLURM_NTASKS="8", SLURM_PROCID="0") == variables
    assert rendezvous.launched_world_size() == 4


SRUN = {
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "123456",
}


def test_srun(launched, tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        '#!/bin/sh\n[ "$*" = "show hostnames gpu[07-08]" ] && printf "gpu07\\ngpu08"'
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert launched(**SRUN) == {
        "RANK": "9",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "16",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": str(20000 + 123456 % 20000),
    }
    assert rendezvous.launched_world_size() == 16


@pytest.mark.parametrize(
    ("variables", "messages"),
    [
        (
            {"SLURM_PROCID": "x", "SLURM_LOCALID": "", "SLURM_JOB_ID": "a"},
            ["SLURM_PROCID=x: srun sets a whole number", "SLURM_LOCALID=:", "SLURM_JOB_ID=a:"],
        ),
        ({}, ["scontrol show hostnames gpu[07-08]: failed"]),
    ],
)
def test_what_srun_and_its_commands_do_not_say_is_named(launched, monkeypatch, variables, messages):
    """In a container there may be no scontrol; this was a traceback."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError) as caught:
        launched(**{**SRUN, **variables})
    for fault, message in zip(caught.value.faults, messages, strict=True):
        assert message in fault
    assert "MASTER_ADDR" in fault or "unset SLURM_STEP_ID" in fault


def test_one_node_needs_no_scontrol(launched, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert launched(**{**SRUN, "SLURM_STEP_NODELIST": "gpu07"})["MASTER_ADDR"] == "gpu07"
    assert launched(**SRUN, MASTER_ADDR="here", MASTER_PORT="7")["MASTER_PORT"] == "7"
    with pytest.raises(UserError, match="MASTER_PORT=99999: must be a whole number, 1 to 65535"):
        launched(**SRUN, MASTER_ADDR="here", MASTER_PORT="99999")


def test_one_task_of_an_allocation_is_a_world_of_one(launched):
    """A shell of `salloc`, or `sbatch` without `srun`: nothing was started as one of several."""
    assert launched(SLURM_NTASKS="16", SLURM_JOB_ID="1") == {}
    assert launched(**{**SRUN, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}) == {}


@pytest.mark.parametrize(
    ("variables", "messages"),
    [
        ({"RANK": "zero"}, ["RANK=zero: must be a whole number"]),
        (
            {"RANK": "-1", "WORLD_SIZE": "two", "MASTER_PORT": "0", "LOCAL_RANK": ""},
            ["RANK=-1", "LOCAL_RANK=:", "WORLD_SIZE=two", "MASTER_PORT=0"],
        ),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, ["0 to WORLD"]),
        (
            {"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "99999"},
            ["MASTER_PORT=99999: must be a whole number, 1 to 65535"],
        ),
        ({"RANK": "1", "MASTER_ADDR": "node1"}, ["RANK=1 with no WORLD_SIZE"]),
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            ["MASTER_ADDR is not set, but WORLD_SIZE=2", "MASTER_PORT is not set"],
        ),
    ],
)
def test_variables_that_describe_no_launch_are_named_with_the_way_out(
    launched, variables, messages
):
    with pytest.raises(UserError) as caught:
        launched(**variables)
    assert len(caught.value.faults) == len(messages) + 1
    for fault, message in zip(caught.value.faults, messages, strict=False):
        assert message in fault
    assert f"unset {' '.join(n for n in rendezvous.LAUNCH_VARIABLES if n in variables)}" in str(
        caught.value
    )


def test_a_rank_without_a_gpu_of_its_own_is_refused(launched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="LOCAL_RANK=2, but this machine shows 2 GPUs"):
        launched(RANK="0", LOCAL_RANK="2")


def test_what_a_launcher_has_set_is_not_blamed_on_the_shell(launched, monkeypatch):
    """More processes than GPUs, the commonest: there is nothing to unset."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(rendezvous, "launchers", lambda: [os.getppid()])
    with pytest.raises(UserError) as caught:
        launched(RANK="0", LOCAL_RANK="2")
    (fault,) = caught.value.faults
    assert fault.endswith("this machine shows 2 GPUs: start at most 2 processes on it")


def test_variables_without_a_rank_are_no_launch(launched):
    assert launched(MASTER_ADDR="node1", MASTER_PORT="29500", WORLD_SIZE="4") == {}


WAIT = """
import os, sys
from datetime import timedelta
from recipes.engine import rendezvous
rendezvous.JOIN_TIMEOUT = timedelta(seconds=2)
rendezvous.join("gloo", rendezvous.launch_environment())
"""


@pytest.mark.parametrize("rank", ["0", "1"])
def test_ranks_that_nobody_has_started_are_named_at_once_and_waited_for_only_so_long(rank):
    """torch itself takes twice its time-out, and more, where nothing answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = dict(RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    waiting = f"waiting at 127.0.0.1:{port}, where 2 processes are to meet"
    assert any(waiting in line for line in process.stdout)  # libraries may have said something
    began = time.monotonic()
    printed = process.stdout.read()
    process.wait(60)
    assert time.monotonic() - began < 2 * timedelta(seconds=2).total_seconds()
    assert "unset RANK" in printed and " WORLD_SIZE MASTER_ADDR MASTER_PORT" in printed
    assert process.returncode == 74
    reason = "not all of them came" if rank == "0" else "Connection refused"
    assert f"could not join the 2 processes at 127.0.0.1:{port}: {reason}, for 0.0333" in printed


def test_a_port_that_another_run_has_is_named_with_the_way_out(launched):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        variables = dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
        environment = launched(**variables, MASTER_PORT=port)
        with pytest.raises(MachineError, match="Another run.* the port.*--master_port") as error:
            rendezvous.join("gloo", environment)
    assert port in str(error.value) and "MASTER_ADDR" not in str(error.value)
