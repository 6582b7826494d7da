"""Keys and values of the tokens seen so far, for decoding. Legend: B batch, G key/value heads, K tokens, D width."""

from __future__ import annotations

from torch import Tensor


class KeyValueCache:
    """Buffers that double when full; what is handed out are views of the filled part."""

    def __init__(self, num_layers: int) -> None:
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers
        self._lengths = [0] * num_layers

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._lengths[-1]

    def update(self, key_BGSD: Tensor, value_BGSD: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append the tokens of one layer; returns all of its keys and values [B, G, K, D]."""
        start, stop = self._lengths[layer], self._lengths[layer] + key_BGSD.shape[2]
        self._keys[layer] = keys = _with_room(self._keys[layer], key_BGSD, start, stop)
        self._values[layer] = values = _with_room(self._values[layer], value_BGSD, start, stop)
        keys[:, :, start:stop], values[:, :, start:stop] = key_BGSD, value_BGSD
        self._lengths[layer] = stop
        return keys[:, :, :stop], values[:, :, :stop]

    def all(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every layer, each [B, G, K, D]."""
        found = []
        for keys, values, length in zip(self._keys, self._values, self._lengths, strict=True):
            if keys is None or values is None:
                raise ValueError("nothing has been fed yet")
            found.append((keys[:, :, :length], values[:, :, :length]))
        return found


def _with_room(buffer: Tensor | None, new: Tensor, start: int, stop: int) -> Tensor:
    if buffer is not None and buffer.shape[2] >= stop:
        return buffer
    batch, heads, _, width = new.shape
    larger = new.new_empty(batch, heads, max(stop, 2 * start), width)
    if buffer is not None:
        larger[:, :, :start] = buffer[:, :, :start]
    return larger


def flat(keys_or_values: Tensor) -> Tensor:
    """[B, G, K, D] -> [B, K, G*D], as the action expert reads them."""
    return keys_or_values.transpose(1, 2).flatten(2)
