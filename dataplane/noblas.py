"""numba without a BLAS: as it is loaded it looks for one, and so loads scipy.linalg, where that is installed. That is a
fifth of the time that a start takes, and no kernel multiplies matrices. memory.py imports this, for all kernels.
"""

import sys

BLAS = "scipy.linalg.cython_blas"

if BLAS not in sys.modules:
    sys.modules[BLAS] = None  # so that to import it fails at once
    import numba.np.arraymath  # noqa: F401  where numba looks for it

    del sys.modules[BLAS]
