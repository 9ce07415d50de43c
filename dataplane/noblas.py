"""numba without scipy: before numba compiles or loads a first function it loads scipy.linalg, where that is installed,
to see whether there is a BLAS. That is a fifth of the time that a start takes, for what no kernel uses.

Importing this has numba find none. What looks for one later finds it (`np.dot` in others' detectors), but for
`np.convolve` and `np.correlate`, which are slower without.
"""

import contextlib
import sys

BLAS = "scipy.linalg.cython_blas"

if BLAS not in sys.modules:
    sys.modules[BLAS] = None  # so that to import it fails at once
    try:
        with contextlib.suppress(ImportError):  # in another version of numba: then it finds what there is
            import numba.np.arraymath  # noqa: F401  where numba looks for it
    finally:
        del sys.modules[BLAS]
