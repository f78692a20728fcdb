"""How the processes of one launch find each other: the launcher's variables, and the first meeting.

Variables that a shell has kept from an earlier launch, and ranks that nobody has started, are said
at once.
"""

from __future__ import annotations

import math
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from recipes.common.errors import MachineError, UserError
from recipes.common.launcher import launchers

# Start-up includes reading shards and compiling on a cold file system; afterwards a rank that is
# silent for this long is gone.
TIMEOUT = timedelta(minutes=30)
# A launcher starts all processes at once; only their imports differ, from a cold file system.
JOIN_TIMEOUT = timedelta(minutes=10)
JOIN_SECONDS_UNSAID = 15.0
LAUNCH_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched_world_size() -> int:
    """Processes this launch has, before any of them has talked to another.

    Raises:
        UserError: the launcher's variables contradict each other, or are left over from another.
    """
    return int(launch_environment().get("WORLD_SIZE", 1))


def launch_environment() -> dict[str, str]:
    """RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT as the launcher set them.

    `deepspeed` and `torchrun` set them themselves; under `srun` (more than one task) they follow
    from SLURM's variables; a plain `python` is a world of one and gets none.

    Raises:
        UserError: they do not describe a launch.
    """
    found = {name: os.environ[name] for name in LAUNCH_VARIABLES if name in os.environ}
    if "RANK" in found:
        if faults := _launch_faults(found):
            raise UserError(*faults, *(() if launchers() else (_way_out(found),)))
        return found
    if not os.environ.get("SLURM_NTASKS", "").isdecimal() or int(os.environ["SLURM_NTASKS"]) <= 1:
        return {}
    if "SLURM_PROCID" not in os.environ or "SLURM_STEP_ID" not in os.environ:
        return {}
    return found | _started_by_srun(found)


_NUMBERS_OF_SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID")


def _started_by_srun(found: dict[str, str]) -> dict[str, str]:
    """The launch that the variables of a SLURM step describe; address and port may be set."""
    said = {name: os.environ.get(name, "") for name in _NUMBERS_OF_SRUN}
    faults = [
        f"{name}={value}: srun sets a whole number; to start one process without it: "
        "unset SLURM_STEP_ID"
        for name, value in said.items()
        if not value.isdecimal()
    ]
    given = {name: found[name] for name in ("MASTER_PORT",) if found.get(name)}
    if faults := faults + _number_faults(given):
        raise UserError(*faults)
    rank, local_rank, world_size, job = said.values()
    address = found.get("MASTER_ADDR") or _first_node(os.environ.get("SLURM_STEP_NODELIST", ""))
    # Two jobs on one node must not meet: the port follows from the job.
    port = found.get("MASTER_PORT") or str(20000 + int(job) % 20000)
    return dict(zip(LAUNCH_VARIABLES, (rank, local_rank, world_size, address, port), strict=True))


def _first_node(nodes: str) -> str:
    """The first of the nodes of a SLURM step, gpu07 of gpu[07-08]."""
    if re.fullmatch(r"[\w.-]+", nodes):
        return nodes
    asked = ["scontrol", "show", "hostnames", nodes]
    try:
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise UserError(
            f"{' '.join(asked)}: failed ({error}), as in a container without SLURM's commands; set "
            "MASTER_ADDR to the first node's name (slurm/cluster.sh)"
        ) from None


def _number_faults(found: dict[str, str]) -> list[str]:
    least = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": 1}
    most = {"MASTER_PORT": 65_535}
    return [
        f"{name}={found[name]}: must be a whole number, {low} "
        + (f"to {most[name]}" if name in most else "or more")
        for name, low in least.items()
        if name in found
        and not (found[name].isdecimal() and low <= int(found[name]) <= most.get(name, math.inf))
    ]


def _launch_faults(found: dict[str, str]) -> list[str]:
    """What keeps variables with a RANK among them from describing a launch."""
    if faults := _number_faults(found):
        return faults
    rank, world_size = int(found["RANK"]), int(found.get("WORLD_SIZE", 1))
    if rank >= world_size:
        said = f"WORLD_SIZE={world_size}" if "WORLD_SIZE" in found else "no WORLD_SIZE"
        faults.append(f"RANK={rank} with {said}: ranks are 0 to WORLD_SIZE - 1")
    if world_size > 1:
        absent = [name for name in LAUNCH_VARIABLES if name not in found and name != "LOCAL_RANK"]
        faults += [f"{name} is not set, but WORLD_SIZE={world_size}" for name in absent]
    devices = torch.cuda.device_count()
    if devices and int(found.get("LOCAL_RANK", 0)) >= devices:
        faults.append(
            f"LOCAL_RANK={found['LOCAL_RANK']}, but this machine shows {devices} GPUs: "
            f"start at most {devices} processes on it"
        )
    return faults


def _way_out(found: dict[str, str]) -> str:
    return (
        f"a launcher sets {', '.join(LAUNCH_VARIABLES)} for every process that it starts; here "
        f"{', '.join(found)} came from the shell or its start-up files. To start one process: "
        f"unset {' '.join(found)}"
    )


def join(backend: str, environment: dict[str, str]) -> dist.ProcessGroup | None:
    """Make the group of all processes; returns one of them all for what is on the host."""
    with _joining(environment):
        dist.init_process_group(backend, timeout=JOIN_TIMEOUT)
        host_group: dist.ProcessGroup | None = dist.group.WORLD
        if backend != "gloo":
            host_group = dist.new_group(backend="gloo", timeout=JOIN_TIMEOUT)
    # Nothing public changes the patience of what is there already.
    dist.distributed_c10d._get_default_store().set_timeout(TIMEOUT)
    for group in {dist.group.WORLD, host_group}:
        dist.distributed_c10d._set_pg_timeout(TIMEOUT, group)
    return host_group


@contextmanager
def _joining(environment: dict[str, str]) -> Iterator[None]:
    """While this process waits for the others: say where, and end it when they do not come.

    torch's own time-out is not enough: its store begins a second try when the first has used up
    the time, and after it the groups begin again to count.
    """
    address, port = environment["MASTER_ADDR"], environment["MASTER_PORT"]
    where = f"rank {environment['RANK']} ({socket.gethostname()})"

    def say() -> None:
        meeting = f"{address}:{port}, where {environment['WORLD_SIZE']} processes are to meet"
        print(f"{where}: waiting at {meeting} ...", file=sys.stderr, flush=True)

    def not_joined(why: str) -> MachineError:
        way_out = (
            "Another run on this machine uses the port: give this one another, with deepspeed "
            "--master_port or torchrun --master-port"
            if "EADDRINUSE" in why
            else "If the first node is not reachable by this name, set MASTER_ADDR, and if another "
            "network interface leads there, GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME (on a "
            "cluster in slurm/cluster.sh)"
        )
        return MachineError(
            f"{where} could not join the {environment['WORLD_SIZE']} processes at "
            f"{address}:{port}: {why}. {way_out}"
        )

    def give_up() -> None:
        minutes = JOIN_TIMEOUT.total_seconds() / 60
        why = f"{_unreachable(address, int(port))}, for {minutes:.3g} minutes"
        print(f"error: {not_joined(why)}", file=sys.stderr, flush=True)
        os._exit(MachineError.status)  # the main thread is in a call that does not return

    timers = [threading.Timer(JOIN_TIMEOUT.total_seconds(), give_up)]
    if launchers() or "SLURM_STEP_ID" in os.environ:
        timers.append(threading.Timer(JOIN_SECONDS_UNSAID, say))
    else:  # by hand, or by variables that a shell has kept: nobody may have started the others
        say()
        found = {name: environment[name] for name in LAUNCH_VARIABLES if name in environment}
        print(_way_out(found), file=sys.stderr, flush=True)
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise not_joined(str(error).splitlines()[0].rstrip(".")) from error
    finally:
        for timer in timers:
            timer.cancel()


def _unreachable(address: str, port: int) -> str:
    """Why the processes have not met there."""
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError as error:
        return error.strerror or str(error)
    return "not all of them came"
