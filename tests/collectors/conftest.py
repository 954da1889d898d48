"""What the tests of collectors share."""

from compiling import quick_compile

__all__ = ["quick_compile"]
