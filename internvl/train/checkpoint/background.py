"""Writing in the background: state is copied to main memory, and a thread writes the copies while training goes on."""

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor

if TYPE_CHECKING:  # importing DeepSpeed takes seconds, and few runs need it
    from deepspeed.runtime.checkpoint_engine import CheckpointEngine

State = TypeVar("State")


class BackgroundJobs:
    """Jobs that a thread runs one after the other; the first error ends them.

    The thread does not outlive its process: what it had not finished is a leftover of a killed run.
    """

    def __init__(self, jobs: Sequence[Callable[[], None]]):
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(jobs,), name="checkpoint", daemon=True)
        self._thread.start()

    def _run(self, jobs: Sequence[Callable[[], None]]) -> None:
        try:
            for job in jobs:
                job()
        except BaseException as error:  # any: it is raised again where somebody waits
            self._error = error

    @property
    def are_running(self) -> bool:
        """Whether a job is not done yet."""
        return self._thread.is_alive()

    def wait(self) -> None:
        """Wait for the end, and raise the error of the job that failed."""
        self._thread.join()
        if self._error is not None:
            raise self._error


def copy_to_main_memory(state: State) -> State:
    """A copy of a nested state that no later step changes, its tensors in main memory.

    Tensors that are the same stay the same (tied weights are copied, and later written, once).
    """
    copies: dict[tuple[object, ...], Tensor] = {}

    def copy_tensor(tensor: Tensor) -> Tensor:
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if key not in copies or not tensor.numel():
            # Copies from a GPU to pinned memory do not wait for each other; `synchronize` waits for all.
            target = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False)
            copies[key] = target.copy_(tensor.detach(), non_blocking=True)
        return copies[key]

    def copy_value(value: object) -> object:
        if isinstance(value, Tensor):
            return copy_tensor(value)
        if isinstance(value, dict) and type(value) in (dict, OrderedDict):
            return type(value)((key, copy_value(item)) for key, item in value.items())
        if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
            return type(value)(copy_value(item) for item in value)
        return copy.deepcopy(value)

    copied = cast(State, copy_value(state))
    if any(tensor.is_pinned() for tensor in copies.values()):
        torch.cuda.synchronize()
    return copied


def defer_saves(checkpoint_engine: "CheckpointEngine", save: Callable[[object, str], None]) -> None:
    """Let DeepSpeed hand the files of a checkpoint to `save(state_dict, path)`, which copies them and writes later.

    An engine that DeepSpeed's file asks for (fast, decoupled) writes as it does.
    """
    if checkpoint_engine.name == "TorchCheckpointEngine":
        checkpoint_engine.save = save
        # Copies have storage of their own, so DeepSpeed need not clone what is cut out of larger tensors.
        checkpoint_engine.preserves_storage_sharing = lambda: False
