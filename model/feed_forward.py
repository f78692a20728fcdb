"""The three feed-forwards of appendix G, on Megatron's parallel linears.

(A) `standard`   W2 gelu(W1 x)                    Megatron's own MLP
(B) `glu`        Wo dropout(gelu(Wg x) * (Wv x))  two matmuls
(C) `fused_glu`  the same with [Wg; Wv] in one matmul whose output is sliced

The gated ones have no bias on the first projection and GELU in its erf form. B and C compute the
same function; C starts one matmul instead of two and stores its weight as rows gate|value (under
tensor parallelism each rank holds its own rows of both).
"""

from __future__ import annotations

from torch import Tensor, nn

from .config import ModelConfig
from .kernels.operations import gated_gelu
from .megatron import MLP, ColumnParallelLinear, MLPSubmodules, ModuleSpec, RowParallelLinear
from .megatron_config import MegatronConfig
from .parallel import linear, parallel_rank, parallel_size


class _GatedFeedForward(nn.Module):
    """(B) and (C) share the activation, its dropout and the output projection."""

    def __init__(self, config: MegatronConfig):
        super().__init__()
        self.dropout = config.model.ffn_dropout
        self.kernels = config.options.kernels
        self.inner_width = config.model.ffn_size
        self.linear_out = RowParallelLinear(
            config.ffn_hidden_size,
            config.hidden_size,
            config=config,
            init_method=config.output_layer_init_method,
            bias=True,
            input_is_parallel=True,
            skip_bias_add=True,
        )

    def gate_and_value(self, hidden: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Project [T, 1, hidden] to [T, 1, 2F / TP], or to its halves apart."""
        raise NotImplementedError

    def forward(self, hidden: Tensor, keys: Tensor | None, site: int) -> tuple[Tensor, Tensor]:
        """Return the output without its bias, [T, 1, hidden], and the bias, [hidden].

        Args:
            keys: int64 [T]; site: of the dropout (see `hashed_dropout`).
        """
        inner = gated_gelu(
            self.gate_and_value(hidden),
            self.dropout if self.training else 0.0,
            keys,
            site,
            parallel_rank() * (self.inner_width // parallel_size()),
            self.kernels,
        )  # [T, 1, F / TP]
        return linear(self.linear_out, inner), self.linear_out.bias


class TwoMatmulGLU(_GatedFeedForward):
    """(B) projects gate and value one after the other."""

    def __init__(self, config: MegatronConfig):
        super().__init__(config)
        self.linear_gate = _project_in(config, config.ffn_hidden_size)
        self.linear_value = _project_in(config, config.ffn_hidden_size)

    def gate_and_value(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return linear(self.linear_gate, hidden), linear(self.linear_value, hidden)


class FusedGLU(_GatedFeedForward):
    """(C) projects gate and value in one matmul."""

    def __init__(self, config: MegatronConfig):
        super().__init__(config)
        # stride=2: a tensor-parallel rank gets its part of the gate and its part of the value.
        self.linear_in = _project_in(config, 2 * config.ffn_hidden_size, stride=2)

    def gate_and_value(self, hidden: Tensor) -> Tensor:
        return linear(self.linear_in, hidden)


def _project_in(config: MegatronConfig, width: int, stride: int = 1) -> ColumnParallelLinear:
    return ColumnParallelLinear(
        config.hidden_size,
        width,
        config=config,
        init_method=config.init_method,
        bias=False,
        gather_output=False,
        stride=stride,
    )


def feed_forward_spec(config: ModelConfig) -> ModuleSpec | type:
    """Return the feed-forward's entry in Megatron's layer spec."""
    if config.feed_forward == "glu":
        return TwoMatmulGLU
    if config.feed_forward == "fused_glu":
        return FusedGLU
    return ModuleSpec(
        module=MLP,
        params={"ffn_hidden_size": config.ffn_size},
        submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear),
    )
