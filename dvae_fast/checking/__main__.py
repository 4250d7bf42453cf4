"""``python -m dvae_fast.checking``: the check, with torch and numpy alone."""

from dvae_fast.checking.command import main

if __name__ == "__main__":
    raise SystemExit(main())
