from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    # Triton's interpreter computes the kernels on the CPU. Chosen when they are imported, so here.
    os.environ["TRITON_INTERPRET"] = "1"
