import sys

from numba_roialign.cli import main

if __name__ == "__main__":
    sys.exit(main())
