"""The base class of what JAX takes apart: dataclasses whose trees are equal only to those of their own class."""

from typing import Any

from flax import struct


class PyTree(struct.PyTreeNode):
    """A frozen dataclass whose fields are subtrees, but for those that `struct.field(pytree_node=False)` excepts.

    JAX (0.10 and 0.11) compares trees of two dataclasses without their classes, though it hashes them with these: it
    would now and then take what it had traced for the one for the other. So each carries its class's name as well.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        cls.__annotations__["class_name"] = str
        cls.class_name = struct.field(pytree_node=False, default=cls.__qualname__, repr=False, kw_only=True)
        super().__init_subclass__(**kwargs)
