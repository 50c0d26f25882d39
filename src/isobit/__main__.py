"""`python -m isobit`."""

from isobit.cli import main

if __name__ == "__main__":
    main()
