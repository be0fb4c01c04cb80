"""The command line: `nngeo` and `python -m nngeo`."""

from nngeo_core.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
