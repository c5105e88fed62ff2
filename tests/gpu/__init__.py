"""What only a GPU can show: `python -m tests.gpu`, or `make gpu-check`.

It needs Python and packages that are there already: no package index, no test runner, no `make
setup`.
"""
