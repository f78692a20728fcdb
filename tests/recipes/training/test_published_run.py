"""`--paper`: every value against the publication, written down here a second time."""

from __future__ import annotations

from pathlib import Path

import pytest
from pretrain_scenarios import write_config, write_data

from recipes.common.errors import UserError
from recipes.common.settings import flat
from recipes.corpus.mlm_batches import MlmBatches
from recipes.training.run import resolve
from recipes.training.schedule import adamw_weight_decay
from recipes.training.settings import Adjustable, Identity, Places, Rehearsal, Settings

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("prepared") / "data")


def resolved(data, output, model="rapidbert-base", config=None, gpus=8, *, paper=True, **given):
    size = model.rpartition("-")[2]
    config = config or ROOT / "ds_configs" / f"{size}.json"
    settings = Settings(
        Places(data, output, config),
        Identity(model, **given),
        Adjustable(paper=paper),
        Rehearsal(dry_run=True, gpus=gpus),
    )
    return resolve(settings, gpus)


@pytest.mark.parametrize(
    "model, learning_rate, masked, attention_dropout, ffn_dropout",
    [
        ("rapidbert-base", 5e-4, 0.30, 0.0, 0.1),
        ("rapidbert-large", 2e-4, 0.30, 0.0, 0.1),
        ("bert-base", 5e-4, 0.15, 0.1, 0.0),
        ("bert-large", 2e-4, 0.15, 0.1, 0.0),
    ],
)
def test_every_value_is_the_published_one(
    data, tmp_path, model, learning_rate, masked, attention_dropout, ffn_dropout
):
    run = resolved(data, tmp_path / "run", model=model)
    options = run.identity
    assert (options.documents, options.sequence_length) == ("truncate", 128)
    assert run.plan.global_batch == 4096
    assert run.total_steps == 70_000 and run.total_steps * 4096 == 286_720_000
    assert (options.beta1, options.beta2, options.eps) == (0.9, 0.98, 1e-6)
    assert options.learning_rate == learning_rate
    assert options.mask_probability == masked
    # Decoupled, published as a share per step at the peak; for Base the value for AdamW is 0.02.
    assert options.weight_decay == 1e-5
    handed = adamw_weight_decay(options.weight_decay, options.learning_rate)
    assert handed == pytest.approx({5e-4: 0.02, 2e-4: 0.05}[learning_rate])
    assert (options.warmup_fraction, options.final_lr_fraction) == (0.06, 0.02)
    assert run.deepspeed["bf16"]["enabled"] is True
    assert run.model.hidden_dropout == 0.1
    assert run.model.attention_dropout == attention_dropout
    assert run.model.ffn_dropout == ffn_dropout
    assert run.model.layernorm_eps == 1e-12


def test_a_document_is_one_sequence_of_at_most_128_tokens(data, tmp_path):
    run = resolved(data, tmp_path / "run")
    batches = MlmBatches(
        run.train,
        sequence_length=run.identity.sequence_length,
        documents=run.identity.documents,
        seed=0,
        micro_batch=1,
    )
    assert len(batches.index) == run.train.manifest["splits"]["train"]["documents"]


def test_the_longer_published_run_is_the_papers_too(data, tmp_path):
    run = resolved(data, tmp_path / "run", duration="178k-steps")
    assert run.total_steps == 178_000


def test_only_documents_differ_from_the_defaults(data, tmp_path):
    """So that the README may say so."""
    paper = flat(resolved(data, tmp_path / "run").settings)
    default = flat(resolved(data, tmp_path / "run", paper=False).settings)
    assert {name for name in paper if paper[name] != default[name]} == {"documents", "paper"}


def test_whatever_else_is_asked_for_is_refused_at_once(data, tmp_path):
    config = write_config(tmp_path, 64, 8)
    with pytest.raises(UserError) as caught:
        resolved(
            *(data, tmp_path / "run"),
            model="rapidbert-tiny",
            config=config,
            documents="split",
            seed=5,
            learning_rate=1e-3,
            duration="4096",
            mask_probability=0.15,
        )
    message = str(caught.value)
    assert "--documents split: with --paper it is truncate; leave out --documents or" in message
    assert "--learning-rate 0.001: with --paper it is 0.0005" in message
    assert "--duration 4096: with --paper it is 70k-steps or 178k-steps" in message
    assert "--mask-probability 0.15: with --paper it is 0.3" in message
    assert "not rapidbert-tiny" in message
    assert "a global batch of 64 sequences, the paper's is 4,096" in message
    assert "precision fp32, the paper's is bf16" in message
    assert len(caught.value.faults) == 7
    with pytest.raises(UserError, match="a global batch of 4,000"):  # 200 GPUs do not divide 4,096
        resolved(data, tmp_path / "run", gpus=200)
    with pytest.raises(UserError, match="leave out --minutes"):
        resolved(data, tmp_path / "run", minutes=5)
