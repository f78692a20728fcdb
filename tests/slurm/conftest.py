"""A private SLURM on this machine: a controller and four nodes with GPUs that are only declared."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from pretrain_scenarios import free_port

ROOT = Path(__file__).resolve().parents[2]
NODES = 4

CONFIGURATION = """
ClusterName=rapidbert
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=2
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=10
InactiveLimit=0
KillWait=3
MinJobAge=300
JobRequeue=1
MaxNodeCount=10
{nodes}
PartitionName=test Nodes=n[0-{last}] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


@dataclass
class Cluster:
    """Commands to the private SLURM."""

    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        return {
            **clean,
            "SLURM_CONF": str(self.directory / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
        }

    def command(self, *words: str, **settings: str) -> str:
        """Run one of SLURM's commands in the repository; what it printed."""
        done = subprocess.run(
            words,
            cwd=ROOT,
            env=self.environment | settings,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, script: str, *options: str, **settings: str) -> str:
        """Submit an unmodified script of the repository; the job's id."""
        small = ("--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1")
        log = f"--output={self.directory}/%x-%j.log"
        return self.command("sbatch", "--parsable", *small, log, *options, script, **settings)

    def job(self, job: str) -> dict[str, str]:
        """What SLURM says about a job."""
        words = self.command("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def hurry(self, job: str) -> dict[str, str]:
        """As `job`; a requeued one, of which nothing runs any more, need not wait two minutes."""
        known = self.job(job)
        if known["JobState"] == "PENDING" and known["Reason"] == "BeginTime":
            passed = datetime.now() - datetime.fromisoformat(known["SubmitTime"])
            if passed < timedelta(seconds=6):
                return known
            self.command("scontrol", "update", f"jobid={job}", "StartTime=now")
        return known

    def jobs(self) -> list[str]:
        """Ids of the jobs that wait or run."""
        return self.command("squeue", "-h", "-o", "%i").split()

    def wait_for(self, job: str, *states: str, seconds: float = 240) -> dict[str, str]:
        """Wait until the job is in one of the states, or has ended; what SLURM says then."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            known = self.job(job) if states else self.hurry(job)
            if known["JobState"] in (*states, *([] if states else ends)):
                return known
            time.sleep(0.3)
        raise TimeoutError(f"job {job}: {self.job(job)}\n{self.log(job)}")

    def log(self, job: str) -> str:
        return "".join(
            f"--- {path}\n{path.read_text()}" for path in self.directory.glob(f"*-{job}*.log")
        )


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    missing = [name for name in ("slurmctld", "slurmd", "munged") if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and SLURM (apt-get install slurm-wlm munge); missing: {missing}")
    directory = tmp_path_factory.mktemp("slurm")
    directory.chmod(0o755)  # munged wants every directory above its socket closed to others' writes
    nodes = []
    for number in range(NODES):
        (directory / f"spool-n{number}").mkdir()
        nodes.append(
            f"NodeName=n{number} NodeHostname=localhost NodeAddr=127.0.0.1 Port={free_port()} "
            "CPUs=2 CoresPerSocket=2 RealMemory=4000 Gres=gpu:1"
        )
    (directory / "state").mkdir()
    (directory / "gres.conf").write_text(f"NodeName=n[0-{NODES - 1}] Name=gpu File=/dev/null\n")
    (directory / "slurm.conf").write_text(
        CONFIGURATION.format(
            controller_port=free_port(),
            directory=directory,
            nodes="\n".join(nodes),
            last=NODES - 1,
        )
    )
    key = directory / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    found = Cluster(directory)
    started: list[subprocess.Popen[Any]] = []

    def start(*words: str) -> None:
        with (directory / f"{words[0]}-output.log").open("ab") as output:
            started.append(
                subprocess.Popen(words, env=found.environment, stdout=output, stderr=output)
            )

    try:
        munge = ("--force", "--foreground", f"--key-file={key}")
        munge += (f"--socket={directory}/munge.socket", f"--pid-file={directory}/munged.pid")
        munge += (f"--seed-file={directory}/munge.seed", f"--log-file={directory}/munged.log")
        start("munged", *munge)
        wait_until((directory / "munge.socket").exists, "munged")
        start("slurmctld", "-D")
        for number in range(NODES):
            start("slurmd", "-D", "-N", f"n{number}")
        wait_until(lambda: idle(found) == NODES, f"{NODES} nodes; see {directory}")
        yield found
    finally:
        for process in started:
            if psutil.pid_exists(process.pid):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
        for process in reversed(started):
            process.kill()
            process.wait()
        # Steps have managers of their own, which outlive slurmd.
        for process in psutil.process_iter(["cmdline", "environ"]):
            if (process.info["environ"] or {}).get("SLURM_CONF") == str(directory / "slurm.conf"):
                process.kill()


def idle(cluster: Cluster) -> int:
    words = ("sinfo", "-h", "-N", "-t", "idle", "-o", "%n")
    done = subprocess.run(words, env=cluster.environment, capture_output=True, text=True)
    return len(done.stdout.split())


def wait_until(holds: Any, what: str, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.1)
