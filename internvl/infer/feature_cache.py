"""Feature cache: visual features of images that many questions share, least recently used out first."""

from collections import OrderedDict
from collections.abc import Hashable

from jaxtyping import Float
from torch import Tensor


class FeatureCache:
    """A map from an image (file and tiling) to its features.

    Args:
        max_bytes: Limit for all features together; 0 keeps none. Features larger than that are not kept.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._features: OrderedDict[Hashable, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._features)

    def get(self, key: Hashable) -> Float[Tensor, "..."] | None:
        """Features stored for `key`, or None."""
        if key not in self._features:
            return None
        self._features.move_to_end(key)
        return self._features[key]

    def put(self, key: Hashable, features: Float[Tensor, "..."]) -> None:
        """Keep features, dropping the least recently used ones if needed."""
        if features.nbytes > self.max_bytes:
            return
        if key in self._features:
            self.num_bytes -= self._features.pop(key).nbytes
        self._features[key] = features
        self.num_bytes += features.nbytes
        while self.num_bytes > self.max_bytes:
            _, dropped = self._features.popitem(last=False)
            self.num_bytes -= dropped.nbytes

    def clear(self) -> None:
        """Drop everything."""
        self._features.clear()
        self.num_bytes = 0
