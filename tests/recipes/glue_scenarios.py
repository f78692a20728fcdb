"""A script of a few lines in place of the finetuning, for the tests of what starts it."""

from __future__ import annotations

import json
from pathlib import Path

# Writes a result like finetune.py's and, as that does, nothing where it is there with the same
# settings. What it does instead is in a file next to the results, by the name of the job.
FAKE = """\
import json, os, subprocess, sys, time
from pathlib import Path

words = [word for word in sys.argv[1:] if word != "--from-scratch"]
given = dict(zip(words[::2], words[1::2]))
scratch = "--from-scratch" in sys.argv
output, task, seed = Path(given["--output"]), given["--task"], int(given["--seed"])
name = f"{task}-seed{seed}"
result = output / f"{name}.json"
orders = output / "orders.json"
order = json.loads(orders.read_text()).get(name) if orders.exists() else None
began = time.time()
if order == "fail":
    print("first line")
    sys.exit("error: no such luck")
if order == "no result":
    sys.exit(0)
if order == "meet":
    (output / f"{name}.here").touch()
    while len(list(output.glob("*.here"))) < 2:
        time.sleep(0.02)
if order == "hang":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (output / "pids").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)
settings = {"epochs": given.get("--epochs"), "checkpoint": given["--checkpoint"]}
if result.exists() and json.loads(result.read_text())["settings"] == settings:
    print("done already")
    sys.exit()
time.sleep(0.3)
metrics = {"accuracy": 0.5}
(output / name).mkdir(exist_ok=True)
result.write_text(json.dumps({
    "task": task, "seed": seed, "score": 0.5, "metrics": metrics, "stand_in": False,
    "seconds": 0.3, "dollars": 0.0, "checkpoint": given["--checkpoint"], "settings": settings,
    "from_scratch": scratch, "notes": [], "began": began, "ended": time.time(),
    "environment": {k: os.environ.get(k) for k in
                    ("RANK", "WORLD_SIZE", "MASTER_PORT", "OMP_NUM_THREADS")},
}))
"""


def orders(output: Path, **by_job: str) -> None:
    output.mkdir(parents=True, exist_ok=True)
    named = {name.replace("_", "-"): order for name, order in by_job.items()}
    (output / "orders.json").write_text(json.dumps(named))


def results(output: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in output.glob("*-seed*.json")}
