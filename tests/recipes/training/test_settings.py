"""Which settings are a run's identity, and that every setting says what it is."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from recipes.common.settings import flat, help_of
from recipes.engine.kernel_choice import KernelChoice
from recipes.training.settings import Adjustable, Identity, Places, Rehearsal, Settings

# As recorded by runs that are going on: a name that is added, lost or changed refuses to resume
# them.
RECORDED = {
    *("model", "duration", "minutes", "sequence_length", "documents", "mask_probability"),
    *("learning_rate", "warmup_fraction", "final_lr_fraction", "beta1", "beta2", "eps"),
    *("weight_decay", "seed", "tensor_parallel"),
}


def test_the_identity_has_the_names_that_running_runs_have_recorded():
    assert {field.name for field in fields(Identity)} == RECORDED


def test_no_setting_is_in_two_groups_and_each_has_its_sentence():
    groups = (Places, Identity, Adjustable, Rehearsal, KernelChoice)
    names = [field.name for group in groups for field in fields(group)]
    names.remove("kernel_choice")
    settings = Settings(Places(Path(), Path(), Path()), Identity("rapidbert-tiny"))
    assert sorted(names) == sorted(flat(settings))
    told = {name: text for group in groups for name, text in help_of(group).items()}
    assert told.keys() == set(names)
    assert all(text.rstrip().endswith(".") for text in told.values())
