"""Side-by-side measurements of rlbook and its peers: ``python -m benchmarks.run --help``."""

import os

# One thread each, no pool of compiler processes; read when torch and NumPy are imported, so before they are.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
    os.environ.setdefault(name, "1")
