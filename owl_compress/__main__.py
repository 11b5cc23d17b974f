"""`python -m owl_compress` is the command line."""

from owl_compress.cli import main

if __name__ == "__main__":
    main()
