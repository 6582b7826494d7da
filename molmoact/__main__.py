"""`python -m molmoact ...` is the command `molmoact ...`."""

from cli import main

if __name__ == "__main__":
    main()
