"""The exercises, one file per lesson: each has a list ``EXERCISES``, which ``check`` finds by itself."""
