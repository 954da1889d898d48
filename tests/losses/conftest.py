"""What the tests of losses share."""

from compiling import quick_compile

__all__ = ["quick_compile"]
