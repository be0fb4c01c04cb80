"""``python -m nngeo_core``: the command line without the facade."""

from nngeo_core.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
