"""llama.cpp in this process, as its server answers: ids and embeddings of texts."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import xllamacpp
from torch import Tensor

from recipes.common.errors import UserError


class Server:
    """A model of embeddings in llama.cpp, on the CPU.

    Args:
        file: a GGUF file.
        longest: tokens of the longest text.

    Raises:
        UserError: llama.cpp cannot load it.
    """

    def __init__(self, file: Path, longest: int):
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.embedding = True
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        # An encoder sees a text in one piece.
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = longest
        parameters.n_parallel = 1
        parameters.n_gpu_layers = 0
        parameters.warmup = False
        parameters.verbosity = -1
        try:
            self._server = xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise UserError(f"{file}: llama.cpp cannot load it: {error}") from None
        # Never through a proxy of the environment's.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del self._server  # ends its threads

    def tokenize(self, text: str) -> list[int]:
        """Cut a text into ids, with what stands at its ends."""
        question = {"content": text, "add_special": True, "parse_special": False}
        request = urllib.request.Request(
            f"{self._server.listening_address}/tokenize",
            json.dumps(question).encode(),
            {"Content-Type": "application/json"},
        )
        with self._opener.open(request, timeout=60) as answer:
            ids: list[int] = json.load(answer)["tokens"]
        return ids

    def embed(self, ids: list[int]) -> Tensor:
        """Compute the embedding of a text, fp32 [hidden], of length 1.

        Raises:
            UserError: llama.cpp says that it cannot.
        """
        answer: Any = self._server.handle_embeddings({"input": ids, "model": "m"})
        answer = json.loads(answer) if isinstance(answer, str) else answer
        if "data" not in answer:
            raise UserError(f"llama.cpp computes no embedding: {answer}")
        return torch.tensor(answer["data"][0]["embedding"])
