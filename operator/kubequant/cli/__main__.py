"""`python -m kubequant.cli` is the `kubequant` command."""

from kubequant.cli.app import main

main()
