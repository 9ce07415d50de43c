"""`python -m qoetap`."""

import sys

from qoetap.cli import main

sys.exit(main())
