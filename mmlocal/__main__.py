"""``python -m mmlocal`` is the command ``mmlocal``."""

from mmlocal.cli import main

if __name__ == "__main__":
    main()
