"""Elementwise functions that are one kernel on CUDA.

Written in torch, SwiGLU and the rotation of queries and keys read and write a long row several times over, in float32.
On CUDA torch.compile makes one kernel of each, for any shape, which rounds once; elsewhere they run as written.
"""

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Result = TypeVar("Result", bound=Tensor | tuple[Tensor, Tensor])


class CompiledOnCuda(Generic[Result]):
    """Decorator for functions of tensors; all of them are on the device of the first.

    Where no kernel can be made (a machine without triton or a C compiler), the function runs as written, after a
    warning.
    """

    def __init__(self, function: Callable[..., Result]):
        self.function: Callable[..., Result] = function
        self._on_cuda: Callable[..., Result] | None = (
            None  # made when it is first needed: torch's compiler loads slowly
        )

    def __call__(self, *tensors: Tensor) -> Result:
        """The function's result."""
        if not tensors[0].is_cuda or torch.compiler.is_compiling():
            return self.function(*tensors)
        if self._on_cuda is None:
            self._on_cuda = torch.compile(self.function, dynamic=True)
        try:
            return self._on_cuda(*tensors)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            name = self.function.__name__
            logger.warning("%s is not fused, which makes steps slower: %s", name, error.inner_exception)
            self._on_cuda = self.function
            return self.function(*tensors)
