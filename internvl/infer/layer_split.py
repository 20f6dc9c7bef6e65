"""Layer split: a model too large for one device, its layers on several, which work one after the other.

    first device    vision tower, projector, token embeddings, layers 0 ... k-1
    others          layers, equally many
    last device     layers, final norm, output layer (on the first one when it shares its weights with the embeddings)

accelerate's hooks move what passes between devices. This makes room, not speed. Where the weights fit on every device,
context_parallel.py answers a long prompt faster and with less memory for keys and values per device.
"""

from collections.abc import Sequence

import torch
from accelerate import dispatch_model

from internvl.errors import ConfigError
from internvl.model.modeling_internvl_chat import InternVLChatModel


def build_device_map(model: InternVLChatModel, devices: Sequence[str]) -> dict[str, torch.device]:
    """Device of every module, by its name.

    Args:
        model: On any device, `meta` included.
        devices: Names such as `cuda:0`, in the order in which the model passes through them; 1 to number of layers.

    Raises:
        ConfigError: No device, or more than layers.
    """
    decoder = model.language_model.model
    num_layers = len(decoder.layers)
    if not 1 <= len(devices) <= num_layers:
        raise ConfigError(
            f"{num_layers} layers cannot be split over {len(devices)} devices; choose a smaller GPUS_PER_TASK"
        )
    first, *_, last = [*devices, devices[-1]]
    names = {name: first for name, _ in model.named_children() if name != "language_model"}
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    head = first if is_tied else last
    names |= {f"language_model.{name}": head for name, _ in model.language_model.named_children() if name != "model"}
    for name, _ in decoder.named_children():
        if name == "layers":
            names |= {
                f"language_model.model.layers.{index}": devices[index * len(devices) // num_layers]
                for index in range(num_layers)
            }
        else:
            names[f"language_model.model.{name}"] = last if name == "norm" else first
    return {name: torch.device(device) for name, device in names.items()}


def split_over_devices(model: InternVLChatModel, devices: Sequence[str]) -> None:
    """Move every part of the model to its device, and hook what passes between them.

    The model, loaded in main memory, is changed in place. Devices and errors are those of `build_device_map`.
    """
    device_map = build_device_map(model, devices)
    dispatch_model(
        model,
        device_map,
        main_device=torch.device(devices[0]),
        skip_keys="past_key_values",
        force_hooks=True,
    )
