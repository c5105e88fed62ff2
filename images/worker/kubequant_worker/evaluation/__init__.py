"""Measures what a quantized model lost: perplexity, divergence, agreement, generations, gates.

Everything here works on the `Runtime` protocol and on numpy arrays. No engine is imported here.
"""
