"""``python -m pelagos``, and so ``torchrun -m pelagos train ...``."""

import sys

from pelagos.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
