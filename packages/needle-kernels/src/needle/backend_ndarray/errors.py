"""The errors that the array front end raises, before any work is done.

Every message reads `op: what: got: rule` and names the numbers, for example
`add: shapes do not broadcast: got (2, 3) and (4,): need equal sizes, or 1, from the right`.
"""


class ShapeError(ValueError):
    """Shapes, sizes or axes that do not fit."""


class AxisError(ShapeError, IndexError):
    """An axis that the array does not have; like NumPy's, also an IndexError."""


class SizeError(ShapeError, MemoryError):
    """More elements than any memory holds; like a failure to allocate, also a MemoryError."""


class DTypeError(TypeError):
    """An element type that is not supported, or not by this operation."""


class DeviceError(RuntimeError):
    """Arrays on different devices, or a device that this machine does not offer."""
