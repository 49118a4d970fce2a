"""`python -m clip_ood COMMAND` is the command `clip-ood COMMAND`."""

from clip_ood.cli import main

if __name__ == "__main__":
    main()
