"""Tasks of the lm-evaluation-harness, asked of whatever runtime measures.

The harness runs in a child of its own (`harness_child`, the only module that imports it), which
asks us for every answer; `answers` gets them from the loaded model. `task_files` reads tasks of the
user's own, of which nothing is executed.
"""
