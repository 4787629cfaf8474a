"""The ``numba-roialign`` command: ``demo``, ``run`` and ``info``."""

import argparse
import sys

from numba_roialign.cli import _demo, _info, _run
from numba_roialign.cli._errors import CommandError, os_error_text


def main(argv=None):
    """Run the command on `argv` (default: ``sys.argv[1:]``) and return its exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except CommandError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(os_error_text(error))
    except KeyboardInterrupt:
        return _fail("interrupted", status=130)
    return 0


def build_parser():
    from numba_roialign import __version__

    parser = argparse.ArgumentParser(
        prog="numba-roialign", description="RoIAlign on the CPU and the GPU with Numba."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (_demo, _run, _info):
        module.add_parser(subparsers)
    return parser


def _fail(message, status=2):
    print(f"numba-roialign: error: {message}", file=sys.stderr)
    return status
