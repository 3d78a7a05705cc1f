"""python -m radin"""

from radin.cli import main

if __name__ == "__main__":
    main()
