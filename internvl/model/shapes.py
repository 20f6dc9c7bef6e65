"""Shapes in signatures: jaxtyping's names, or stand-ins that mean a plain Tensor where it is not installed.

    def embed(ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length hidden"]

Tests check them at every call (tests/conftest.py); elsewhere they cost nothing. A saved checkpoint carries this code
and has to load without jaxtyping, which is the reason for the stand-ins.
"""

try:
    from jaxtyping import Bool, Float, Float32, Float64, Int, Int64, Num, Shaped, UInt8
except ImportError:

    class _AnyShape:
        """`Float[Tensor, "batch length"]` is Tensor."""

        def __class_getitem__(cls, parameters: tuple[type, str]) -> type:
            return parameters[0]

    Bool = Float = Float32 = Float64 = Int = Int64 = Num = Shaped = UInt8 = _AnyShape  # type: ignore[assignment]

__all__ = ["Bool", "Float", "Float32", "Float64", "Int", "Int64", "Num", "Shaped", "UInt8"]
