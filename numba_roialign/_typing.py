"""What the public functions take and return, for type checkers.

A result is of the family of the array it is computed from, which `Array` says. It cannot say two
things: of a subclass of NumPy's array, and of an object that NumPy converts, the result is a plain
NumPy array.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, SupportsFloat, SupportsIndex, TypeAlias, TypeVar


class AnyArray(Protocol):
    """An array of NumPy, PyTorch, CuPy or Numba."""

    @property
    def shape(self) -> Any: ...

    @property
    def dtype(self) -> Any: ...


Array = TypeVar("Array", bound=AnyArray)
RoIs: TypeAlias = AnyArray | list[Any] | tuple[AnyArray, ...]
# One number, or those of y and x.
Integers: TypeAlias = SupportsIndex | tuple[SupportsIndex, SupportsIndex] | list[int]
Floats: TypeAlias = SupportsFloat | tuple[SupportsFloat, SupportsFloat] | list[float]
Shape: TypeAlias = tuple[SupportsIndex, ...] | list[int]
Mode: TypeAlias = Literal["avg", "max", "corner_max"]
Layout: TypeAlias = Literal["NCHW", "NHWC"]
