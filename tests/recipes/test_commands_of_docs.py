"""Every command of the documentation, as it stands there, run at toy size."""

from __future__ import annotations

import importlib
import itertools
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from finetune_scenarios import GOOD, make_text, write_tasks
from pretrain_scenarios import Outcome, run_world, values

ROOT = Path(__file__).resolve().parents[2]
# docs/your-own-domain.md has a test of its own, which looks at what its commands make.
PAGES = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "docs/results/README.md")
] + sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != "your-own-domain.md")
NOT_OURS = ("source", "pip", "python3", "tar", "tensorboard", "touch", "$EDITOR")
# What the pages say for a real run, and what is run instead: the size, and what the network has.
TOY = {
    "--input allenai/c4 --config en": "--input my_corpus --vocab-size 300 --workers 1",
    "--input my_corpus/": "--input my_corpus --vocab-size 300 --workers 1",
    "--output runs/base --deepspeed_config": (
        "--duration 32 --eval-sequences 8 --sequence-length 32 --log-every 1 --output runs/base "
        "--deepspeed_config"
    ),
    "--model rapidbert-base": "--model probe-tiny",
    # A rehearsal: the published run has one size.
    "--model probe-tiny --data data/c4 --output runs/published --deepspeed_config ds_configs/": (
        "--dry-run --gpus 8 --model rapidbert-base --data data/c4 --output runs/published "
        f"--deepspeed_config {ROOT}/ds_configs/"
    ),
    "recipes/glue.py --checkpoint runs/base": (
        "recipes/glue.py --dry-run --checkpoint runs/base --data glue --tasks cola --seeds 1"
    ),
    "--seeds 1 --output runs/base/glue": "--seeds 1 --output runs/base/glue -- --epochs 1",
    "--task rte": "--task rte --data glue --epochs 1",
    "--output runs/base/mine": "--output runs/base/mine --epochs 1",
    "step-000010000": "step-000000002",
}


def commands() -> list[str]:
    """The command lines of all pages, each once, in the pages' order."""
    found: dict[str, None] = {}
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                line = re.sub(r"(^|\s)#.*$", "", line).strip()
                if line:
                    found.setdefault(re.sub(" +", " ", line))
    return list(found)


def of(*starters: str) -> list[str]:
    return [c for c in commands() if re.sub(r"^(\w+=\S+ )+", "", c).split()[0] in starters]


def test_every_command_is_run_somewhere_or_is_not_ours():
    rest = set(commands()) - set(of("python", "deepspeed", "sbatch", "./run.sh", *NOT_OURS))
    assert not rest, "add it to the tests here"


def at_toy_size(command: str) -> list[str]:
    for real, toy in TOY.items():
        command = command.replace(real, toy)
    starter, *words = shlex.split(command)
    assert starter in ("python", "deepspeed")
    if words[0] == "--quiet":  # the launcher's
        words.pop(0)
    return list(itertools.chain.from_iterable(as_a_shell_would(word) for word in words))


def as_a_shell_would(word: str) -> list[str]:
    return sorted(map(str, Path().glob(word))) if word.endswith("/*") else [word]


def follow(place: str, command: str) -> int | None:
    """Run a command in a folder, in this process; returns its exit status."""
    os.chdir(place)
    script, *words = at_toy_size(command)
    if script == "-c":
        exec(words[0], {})
        return 0
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    sys.argv = [script, *words]
    return module.main()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, Outcome]:
    """How each command ended, run in the order of the pages: later ones use what earlier made.

    They run in a folder with what a reader has: text, labelled examples, tasks, the JSON files.
    """
    folder = tmp_path_factory.mktemp("docs")
    (folder / "my_corpus").mkdir()
    pairs = [f"{one} {two}" for one, two in itertools.pairwise(make_text(300))]
    (folder / "my_corpus" / "all.txt").write_text("\n\n".join(pairs))
    (folder / "texts.txt").write_text("\n".join(pairs[:20]))
    for name in ("train", "dev", "new"):
        rows = [f"{text},{int(bool(set(text.split()) & set(GOOD)))}" for text in pairs[:40]]
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *rows]))
    write_tasks(folder / "glue")
    [gpu] = re.findall(
        r"```json\n(.*?)```", (ROOT / "docs/cluster.md").read_text("utf-8"), re.DOTALL
    )
    (folder / "mine.json").write_text(gpu)
    shutil.copytree(ROOT / "ds_configs", folder / "ds_configs")
    shutil.copy(ROOT / "ds_configs" / "tiny_cpu.json", folder / "ds_configs" / "base.json")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    ended = {}
    for command in of("python", "deepspeed"):
        if "runs/scaling/" in command:  # what slurm/scaling_sweep.sh leaves
            point = folder / "runs" / "scaling" / "rapidbert-large" / "gpus-1-batch-16"
            shutil.copytree(folder / "runs" / "base", point)
        [ended[command]] = run_world(1, follow, str(folder), command)
    return ended


@pytest.mark.parametrize("command", of("python", "deepspeed"))
def test_a_command_does_its_work(outcomes, command):
    assert values([outcomes[command]]) in ([0], [None])


@pytest.mark.parametrize("command", of("sbatch"))
def test_a_job_exists_and_takes_what_it_is_given(command):
    """The jobs themselves run in `tests/slurm`."""
    *words, script = command.split()
    header = (ROOT / script).read_text("utf-8").split("set -euo pipefail")[0]
    for word in words:
        if "=" in word and not word.startswith("-"):
            assert re.search(rf"^#   {word.split('=')[0]} ", header, re.MULTILINE), word
        elif word != "sbatch":
            assert f"#SBATCH {word.split('=')[0]}=" in header, word


@pytest.mark.parametrize("command", of("./run.sh"))
def test_run_sh_knows_the_word(command):
    """Its words run in `tests/test_run_sh.py`."""
    word = re.sub(r"^.*\./run\.sh ?", "", command).partition(" ")[0]
    usage = (ROOT / "run.sh").read_text("utf-8").split("set -euo pipefail")[0]
    assert re.search(rf"^#   \./run\.sh {word}".rstrip() + r"\b", usage, re.MULTILINE)
