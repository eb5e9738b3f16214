"""`python -m robustgen`."""

from robustgen.cli import main

main()
