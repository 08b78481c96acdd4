"""Tensors of a file that somebody else wrote, every one of which must be used or left out by name.

Nothing here runs code of a file's author: ``torch.load`` is called with ``weights_only``, which
builds tensors and plain containers and refuses everything else.
"""

import hashlib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

WRAPPERS = ("module.", "_orig_mod.")
"""What ``nn.DataParallel`` and ``torch.compile`` put before every name."""


class ImportingError(Exception):
    """A model cannot be imported; the message names the file, the key and what is wrong."""


class Weights:
    """Named tensors, with account kept of which have been used.

    Args:
        file: their file, named in every error.
        tensors: the tensors by name.
    """

    def __init__(self, file: Path, tensors: Mapping[str, Tensor]) -> None:
        self.file = file
        self._tensors = dict(tensors)
        for wrapper in WRAPPERS:
            if self._tensors and all(name.startswith(wrapper) for name in self._tensors):
                self._tensors = {
                    name.removeprefix(wrapper): tensor for name, tensor in self._tensors.items()
                }
        self._unused = dict.fromkeys(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        """Names of the tensors that are not used yet."""
        return iter(list(self._unused))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor.

        Raises:
            ImportingError: there is none of this name.
        """
        if name not in self._tensors:
            raise ImportingError(f"{self.file}: {name} is missing")
        return tuple(self._tensors[name].shape)

    def take(self, name: str, *shape: int, why: str = "") -> Tensor:
        """Use a tensor, in float32.

        Args:
            name: which one.
            shape: that it must have.
            why: where that is not plain, for the error.

        Raises:
            ImportingError: it is missing, of another shape, not floating point or not finite.
        """
        found = self.shape(name)
        if found != shape:
            raise ImportingError(
                f"{self.file}: {name} has shape {list(found)}, but {list(shape)} is wanted"
                + (f", {why}" if why else "")
            )
        tensor = self._tensors[name]
        if not tensor.is_floating_point():
            raise ImportingError(f"{self.file}: {name} holds {tensor.dtype}, not floating point")
        if not torch.isfinite(tensor).all():
            raise ImportingError(f"{self.file}: {name} holds values that are not finite")
        self._unused.pop(name, None)
        return tensor.detach().float()

    def take_or_zeros(self, name: str, *shape: int) -> Tensor:
        """Use a tensor that may be missing, as a bias may: zeros then."""
        return self.take(name, *shape) if name in self else torch.zeros(*shape)

    def rename(self, places: Mapping[str, str]) -> None:
        """Give tensors other names.

        Args:
            places: a name, or the part of names before a dot, to what stands instead of it; an
                empty string leaves those tensors out.

        Raises:
            ImportingError: nothing has such a name, or two tensors would get one name.
        """
        for theirs, ours in places.items():
            found = [n for n in self._tensors if n == theirs or n.startswith(f"{theirs}.")]
            if not found:
                raise ImportingError(f"{self.file}: nothing is called {theirs}")
            for name in found:
                tensor = self._tensors.pop(name)
                del self._unused[name]
                if not ours:
                    continue
                new = ours + name.removeprefix(theirs)
                if new in self._tensors:
                    raise ImportingError(f"{self.file}: two tensors would be called {new}")
                self._tensors[new] = tensor
                self._unused[new] = None

    def require_all_used(self, advice: str) -> None:
        """Refuse a file in which something is left over.

        Raises:
            ImportingError: naming what is left over, with the advice behind.
        """
        if self._unused:
            named = ", ".join(f"{name} {list(self.shape(name))}" for name in list(self)[:3])
            more = f" and {len(self._unused) - 3} more" if len(self._unused) > 3 else ""
            raise ImportingError(
                f"{self.file}: {named}{more} would be left over, so the model is not what it was "
                f"taken for; {advice}"
            )


def file_sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def load_plainly(file: Path, allowed: Sequence[Any] = (), advice: str = "") -> Any:
    """What ``torch.save`` wrote, as tensors and plain containers.

    Args:
        file: to read.
        allowed: harmless classes that it may hold besides, as ``torch.serialization.safe_globals``
            takes them.
        advice: what to do where it holds others.

    Raises:
        ImportingError: it holds other objects, or was written by something else.
        OSError: it cannot be read.
    """
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error).lower():
            raise ImportingError(f"{file}: is not a file of torch.save, or is damaged") from error
        raise ImportingError(
            f"{file}: holds objects other than tensors, which Gatehouse never unpickles; {advice}"
        ) from error
    except OSError:
        raise
    except Exception as error:  # whatever the unpickler stumbles over in damaged bytes
        raise ImportingError(f"{file}: is not a file of torch.save, or is damaged") from error


def load_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file.

    Raises:
        ImportingError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ImportingError(f"{file}: is not a readable safetensors file: {error}") from error


def only_tensors(file: Path, content: Any) -> dict[str, Tensor]:
    """Check that something is a state_dict: tensors by name.

    Raises:
        ImportingError: it is not.
    """
    if not isinstance(content, Mapping) or not content:
        raise ImportingError(f"{file}: holds no state_dict, that is, no tensors by name")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ImportingError(
                f"{file}: {name} is a {type(tensor).__name__}, where a state_dict has a tensor"
            )
    return dict(content)
