"""``python -m apnb`` and the command ``apnb``."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; a user's mistake is one sentence on standard error and exit status 2."""
    from apnb.cli import call
    from apnb.errors import Invalid

    try:
        return call(sys.argv[1:])
    except Invalid as error:
        print(f"apnb: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("apnb: stopped; what was finished is stored, and the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
