"""What the tests of modules share."""

from compiling import quick_compile

__all__ = ["quick_compile"]
