"""`python -m medsd.cli`, for `torchrun` and for tests."""

from medsd.cli import main

if __name__ == "__main__":
    main()
