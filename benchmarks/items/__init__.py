"""One file per item: ``cases(size)`` yields what is measured; ``size`` is ``"full"``, ``"quick"`` or ``"tiny"`` (for tests)."""
