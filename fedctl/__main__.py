"""`python -m fedctl` is `fedctl`."""

from fedctl.cli import main

main()
