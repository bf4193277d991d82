"""`python -m mmrt`: the command line."""

from mmrt.cli.main import main

if __name__ == "__main__":
    main()
