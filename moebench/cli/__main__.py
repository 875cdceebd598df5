"""`python -m moebench.cli`: the command line without the installed script."""

from moebench.cli import main

if __name__ == "__main__":
    main()
