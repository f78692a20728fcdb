"""Megatron's configuration, with what our own modules read beside it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import BACKENDS, check_backend
from .config import ModelConfig, ModelOptions
from .kernels import KERNELS, check_kernels
from .megatron import TransformerConfig
from .parallel import ensure_parallel, parallel_size


@dataclass(kw_only=True)
class MegatronConfig(TransformerConfig):  # type: ignore[misc]  # Megatron: Any
    """Megatron's configuration with ours in it: modules in Megatron's slots get nothing else."""

    model: ModelConfig
    options: ModelOptions


def megatron_config(config: ModelConfig, options: ModelOptions) -> MegatronConfig:
    """Return Megatron's configuration for `config`. Weights are fp32 and made on the CPU.

    On the CPU Megatron builds the whole matrix and cuts out the rank's part, so that one seed
    gives one model whatever the device and the tensor-parallel size.

    Raises:
        ValueError: the attention backend or the kernels are unknown.
        RuntimeError: as `model.parallel.ensure_parallel`.
    """
    if options.attention not in BACKENDS:
        check_backend(options.attention, "cpu")
    if options.kernels not in KERNELS:
        check_kernels(options.kernels, "cpu")
    ensure_parallel()

    def init_method(weight: Tensor) -> Tensor:
        return nn.init.normal_(weight, std=config.initializer_range)

    with warnings.catch_warnings():
        # Said about the default of a setting of CUDA graphs, which this model does not use.
        warnings.filterwarnings("ignore", message="full scope is deprecated")
        return MegatronConfig(
            model=config,
            options=options,
            num_layers=config.num_layers,
            hidden_size=config.hidden_size,
            ffn_hidden_size=config.ffn_size,
            num_attention_heads=config.num_heads,
            layernorm_epsilon=config.layernorm_eps,
            hidden_dropout=config.hidden_dropout,
            attention_dropout=config.attention_dropout,
            activation_func=F.gelu,
            add_bias_linear=True,
            init_method=init_method,
            output_layer_init_method=init_method,
            use_cpu_initialization=True,
            tensor_model_parallel_size=parallel_size(),
        )
