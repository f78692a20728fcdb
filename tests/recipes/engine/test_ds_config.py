"""The DeepSpeed JSON: the recipe's own are right, and every fault is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.common.errors import UserError
from recipes.engine.ds_config import precision, read_config

CONFIGS = sorted((Path(__file__).resolve().parents[3] / "ds_configs").glob("*.json"))
BATCHES = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 4}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_configurations_of_the_recipe(path):
    config = read_config(path, batch_sizes=not path.name.startswith("finetune"))
    expected = "fp32" if path.stem.endswith("_cpu") else "bf16"
    assert precision(config) == expected


FAULTS = {
    '"train_batchsize": 8': "'train_batchsize' (did you mean 'train_batch_size'?)",
    '"optimizer": {"type": "Adam"}': "--learning-rate, --weight-decay",
    '"scheduler": {}': "--warmup-fraction",
    '"gradient_clipping": 1.0': "without clipping",
    '"gradient_accumulation_steps": 2': "follows from the batch sizes",
    '"tensorboard": {}': "writes TensorBoard itself",
    '"fp16": {"enabled": true}': "bf16 or fp32",
    '"torch_autocast": {"enabled": true}': "'torch_autocast' has no place",
    '"bf16": {"enabled": "maybe"}': "bf16.enabled",
    '"bf16": {"enabled": "false"}': "bf16.enabled must be bool",
    '"bf16": {"enable": true}': "bf16.enable",
    '"bf16": true': "bf16 must be an object",
    '"zero_optimization": {"stages": 1}': "zero_optimization.stages",
    '"zero_optimization": {"stage": 4}': "zero_optimization.stage must be 0, 1 or 2, got 4",
    '"zero_optimization": {"stage": "1"}': "zero_optimization.stage must be 0, 1 or 2, got '1'",
    '"zero_optimization": {"stage": 3}': "must be 0, 1 or 2, got 3; 3 shards the weights",
    '"zero_optimization": {"offload_optimizer": {"device": "cpu"}}': "offload_optimizer",
    '"zero_optimization": []': "zero_optimization must be an object",
    '"data_types": {"grad_accum_dtype": "fp8"}': "data_types.grad_accum_dtype must be 'fp32' or",
    '"data_types": {"grad_acum_dtype": "fp32"}': "'data_types.grad_acum_dtype'; known: grad_accum",
    '"comms_logger": {"enabled": 1}': "comms_logger.enabled must be bool",
    '"communication_data_type": "fp8"': "communication_data_type must be 'fp32' or 'bf16'",
    '"prescale_gradients": "yes"': "prescale_gradients must be bool",
    '"gradient_predivide_factor": true': "gradient_predivide_factor must be float",
    '"steps_per_print": "never"': "steps_per_print must be int",
    '"bf16": {"enabled": true}': "needs ZeRO",
    '"bf16": {}, "bf16": {}': "key bf16 given twice",
    '"zero_optimization": {"stage": 1, "stage": 2}': "key stage given twice",
}


@pytest.mark.parametrize("faulty", FAULTS, ids=lambda text: text.replace('"', ""))
def test_a_faulty_configuration_is_refused(tmp_path, faulty):
    path = tmp_path / "config.json"
    path.write_text(f"{json.dumps(BATCHES)[:-1]}, {faulty}}}")
    with pytest.raises(UserError) as caught:
        read_config(path)
    assert len(caught.value.faults) == 1
    assert str(path) in str(caught.value) and FAULTS[faulty] in str(caught.value)


@pytest.mark.parametrize("wrong", [0, -8, 8.0, "8", True, None, [8], 10**20, float("inf")])
def test_batch_sizes_are_positive_whole_numbers(tmp_path, wrong):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**BATCHES, "train_batch_size": wrong}))
    with pytest.raises(UserError, match="train_batch_size must be a positive whole number"):
        read_config(path)


def test_all_faults_of_a_configuration_at_once(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"train_batch_size": 0, "optimizer": {}, "bf61": {}, "steps_per_print": []}')
    with pytest.raises(UserError) as caught:
        read_config(path)
    assert len(caught.value.faults) == 5  # the micro-batch is missing


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "not JSON"), (b"\xff\xfe", "not JSON"), (b"[]", "must be a JSON object")],
)
def test_a_file_that_is_no_configuration(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_config(path)


def test_a_missing_configuration_is_told_which_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(CONFIGS[0].parents[1])
    with pytest.raises(UserError, match="No such file or directory; there are .*base.json"):
        read_config(tmp_path / "absent.json")
