"""Rows, kernel classes, the search for the largest micro-batch, and a record of the smallest."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from benchmark_scenarios import run_benchmark

from model.config import PRESETS
from recipes.benchmarks import profile as benchmark_profile
from recipes.benchmarks import throughput
from recipes.benchmarks.profile import CLASSES, COLORS, IDLE, OTHER, kernel_class
from recipes.benchmarks.training_step import Setup
from recipes.common.errors import UserError
from recipes.common.settings import parse


def test_rows_and_all_their_faults_at_once():
    assert throughput.parse_row("rapidbert-base:512:4096") == ("rapidbert-base", 512, 4096)
    words = ["bert-base:8", "bert-base:96:256", "bert-base:x:8", "bert-base:0:8", "bert-bas:8:8"]
    with pytest.raises(UserError) as error:
        parse(throughput.Settings, ["--rows", *words])
    first, second, third, fourth, fifth = error.value.faults
    assert "not MODEL:MICRO:GLOBAL" in first and "not MODEL" in third and "not MODEL" in fourth
    assert "did you mean bert-base?" in fifth
    assert "256 / 96 = 2.67 micro-batches; the nearest global batch is 288" in second


def test_default_rows_are_whole_batches_of_known_models():
    for model, micro_batch, global_batch in throughput.ROWS + throughput.TOY_ROWS:
        assert model in PRESETS and global_batch % micro_batch == 0
    # Table S2's batches are among them.
    assert {("rapidbert-base", micro, 4096) for micro in (512, 128, 64)} <= set(throughput.ROWS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nvjet_sm90_tst_192x192_64x4_2x1_v_bz_coopA_TNT", "matmul"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matmul"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16>", "matmul"),
        ("aten::addmm", "matmul"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention"),
        ("void flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128>>", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("_forward_whole", "attention"),
        ("_backward_queries", "attention"),
        ("_residual_norm_backward", "norm, residual, dropout"),
        ("triton_red_fused_add_native_layer_norm_3", "norm, residual, dropout"),
        (
            "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel",
            "norm, residual, dropout",
        ),
        (
            "void at::native::(anonymous namespace)::fused_dropout_kernel_vec",
            "norm, residual, dropout",
        ),
        ("_gated_gelu_forward", "GLU, GELU"),
        ("triton_poi_fused_gelu_mul_split_1", "GLU, GELU"),
        ("_cross_entropy_backward", "loss"),
        ("void (anonymous namespace)::cunn_SoftMaxForward<LogSoftMaxForwardEpilogue>", "loss"),
        ("_VocabParallelCrossEntropy", "loss"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("aten::_fused_adamw_", "optimizer"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("void at::native::elementwise_kernel<128, 4, direct_copy_kernel_cuda>", "copies"),
        ("aten::index_select", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add<float>>", OTHER),
    ],
)
def test_kernel_classes(name, expected):
    assert kernel_class(name) == expected


def test_every_class_has_a_colour_of_its_own():
    assert set(COLORS) == {*CLASSES, OTHER, IDLE}
    assert len(set(COLORS.values())) == len(COLORS)


def test_device_time_is_that_of_kernels_and_the_rest_is_idle(monkeypatch):
    """On a GPU: operators launch kernels, named ranges span them, and neither counts."""
    cuda, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU

    def event(key, device_type, microseconds, annotation=False):
        return SimpleNamespace(
            key=key,
            device_type=device_type,
            self_device_time_total=microseconds,
            self_cpu_time_total=1e9,
            is_user_annotation=annotation,
        )

    events = [
        event("aten::mm", cpu, 3e5),
        event("nvjet_tst_128x256", cuda, 3e5),
        event("_residual_norm_forward", cuda, 1e5),
        event("forward pass", cuda, 4e5, annotation=True),
        event("ProfilerStep*", cuda, 4e5),
    ]
    taken = contextlib.nullcontext(SimpleNamespace(key_averages=lambda: events))
    monkeypatch.setattr(benchmark_profile, "profile", lambda activities: taken)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    found = benchmark_profile.breakdown(lambda: None, 0.5, torch.device("cuda"))
    spent = {kind: seconds for kind, seconds in found["seconds"].items() if seconds}
    assert spent == pytest.approx({"matmul": 0.3, "norm, residual, dropout": 0.1, IDLE: 0.1})
    assert [item["name"] for item in found["longest"]] == [events[1].key, events[2].key]


@pytest.mark.parametrize(("room", "expected"), [(100, 64), (64, 64), (20, 16), (7, 4), (0, 0)])
def test_the_largest_micro_batch_is_the_last_that_fitted(monkeypatch, room, expected):
    """On a device with room for so many sequences, searched from 16 on."""

    class Trainer(contextlib.nullcontext):
        def __init__(self, setup, micro_batch, global_batch, batches, world):
            assert batches[0].sequences == micro_batch
            if micro_batch > room:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        def __enter__(self):
            return self

        def step(self):
            pass

    monkeypatch.setattr(throughput, "Trainer", Trainer)
    monkeypatch.setattr(throughput, "release_memory", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 5e9)
    setup = Setup(PRESETS["rapidbert-tiny"], {}, "sdpa", "torch")
    world = type("World", (), {"device": torch.device("cpu")})
    found = throughput.largest_micro_batch(setup, 16, world)
    assert found["micro_batch"] == expected
    assert all((gb is None) == (size > room) for size, gb in found["reserved_gb"].items())


def test_a_record_of_the_smallest_size(tmp_path):
    rows = ["--rows", "probe-tiny:2:4", "probe-tiny:4:4"]
    record = run_benchmark(tmp_path, "throughput", *rows, WARM_UP_STEPS=1, STEPS=3)
    first, second = record["rows"]
    assert (first["micro_batch"], first["global_batch"]) == (2, 4)
    assert first["step_seconds"]["repeats"] == second["step_seconds"]["repeats"] == 3
    assert first["sequences_per_step"] == second["sequences_per_step"] == 4
    # The same sequences, however they are cut; smaller buckets pad less.
    assert first["masked_tokens_per_step"] == pytest.approx(
        second["masked_tokens_per_step"], rel=0.3
    )
    assert first["real_tokens_per_step"] <= first["padded_tokens_per_step"]
    (parts,) = record["breakdowns"].values()
    assert sum(parts["seconds"].values()) == pytest.approx(first["step_seconds"]["median"])
    assert parts["seconds"]["matmul"] > 0 and parts["seconds"]["attention"] > 0
    settings = record["settings"]["setups"]["probe-tiny"]
    assert settings["attention"] == "sdpa" and settings["kernels"] == "torch"
