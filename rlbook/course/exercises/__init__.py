"""One file per lesson, with two lists that are found by themselves: ``EXERCISES`` and ``QUESTIONS``."""
