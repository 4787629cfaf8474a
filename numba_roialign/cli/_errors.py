"""Errors that the user of the command can mend, reported without a traceback."""

import importlib


class CommandError(Exception):
    """Ends the command with exit status 2 and this message."""


def os_error_text(error):
    """Return ``file: reason`` for an `OSError`, without its number."""
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def import_extra(name):
    """Import a module that only the extra ``demo`` installs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise CommandError(
            f"this command needs {package}, which could not be imported ({error}); "
            'install it with: pip install "numba-roialign[demo]"'
        ) from error


def check_output_path(path):
    """Refuse an output path that cannot be written, before any work is done."""
    if path.is_dir():
        raise CommandError(f"{path}: is a directory, not a file to write")
    if path.exists() and not path.is_file():
        raise CommandError(f"{path}: is no regular file, which the output would replace")
    if not path.parent.is_dir():
        raise CommandError(f"{path}: there is no directory {path.parent} to write to")
