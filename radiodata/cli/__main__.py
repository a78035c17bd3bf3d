"""``python -m radiodata.cli``."""

from radiodata.cli import main

main()
