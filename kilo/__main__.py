"""``python -m kilo`` is ``kg``."""

import sys

from kilo.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
