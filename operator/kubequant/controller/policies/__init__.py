"""One policy, one file: each a pure function from a case to an answer, or to None.

The order in which they are asked stands in `decide`.
"""
