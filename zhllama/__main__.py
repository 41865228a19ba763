"""`python -m zhllama` is `zhllama`."""

from zhllama.cli import main

if __name__ == "__main__":
    main()
