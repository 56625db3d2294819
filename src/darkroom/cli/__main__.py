"""`python -m darkroom.cli` is the command `darkroom`."""

from darkroom.cli.app import main

if __name__ == "__main__":
    main()
