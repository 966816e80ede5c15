"""The command `tritonbn`: tune kernels, look into them, see what is installed and what is known."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..compiling import processes
from . import cache, exits, info, inspect, tune

EPILOG = f"""\
examples:
  tritonbn tune --suite resnet50            time the foremost configs of every layer on this GPU, and keep that
  tritonbn tune --model-only --target h100  what should be fast on an H100, without having one
  tritonbn inspect --shape 32,256,56,56     registers, spills, occupancy, access widths, compiled without a GPU
  tritonbn info                             versions, GPU, backend, caches
  tritonbn cache ranking                    how well the model ranks what was timed

Each command explains itself: tritonbn tune -h. Results go to stdout, all else to stderr.
{exits.MEANING}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default the process's own, and return its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = command_line().parse_args(given)
    arguments.given = given[1:]
    processes.share_imports("tritonbn.cli")
    try:
        code = arguments.run(arguments)
        print(end="", flush=True)  # so that what cannot be written is known here
        return code
    except exits.ExitError as error:
        print(f"tritonbn: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("tritonbn: interrupted", file=sys.stderr)
        return exits.INTERRUPTED
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # then whoever read stdout has seen enough
            print(f"tritonbn: {error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left in its buffer
        return exits.FAILED


def command_line() -> argparse.ArgumentParser:
    """What may be given."""
    parser = argparse.ArgumentParser(
        prog="tritonbn",
        description="Batch normalization on Triton kernels: tune them, and look into them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tritonbn {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (tune, inspect, info, cache):
        command.add(commands)
    return parser
