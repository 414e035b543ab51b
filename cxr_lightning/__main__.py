"""python -m cxr_lightning: the same as cxr."""

from cxr_lightning.cli import main

if __name__ == "__main__":
    main()
