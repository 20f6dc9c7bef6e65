"""Random generators of a process: their states at some moment, to which they can be set back."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class GeneratorStates:
    """States of the global generators of Python, numpy and torch; of the GPU where there is one."""

    python: tuple[object, ...]
    numpy: dict[str, object]
    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def read(cls) -> "GeneratorStates":
        """The states now."""
        # Asking for a GPU's state would initialise CUDA in a process that does not use it.
        has_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
        cuda = torch.cuda.get_rng_state() if has_cuda else None
        return cls(random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """Set the generators back."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)
