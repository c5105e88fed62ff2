"""What each method does, in one short sentence for people: documents and listings take it here."""

from __future__ import annotations

from typing import Final

from kubequant.api.enums import Method

SUMMARIES: Final[dict[Method, str]] = {
    Method.GGUF: "one file per llama.cpp level, Q2_K to Q8_0, with or without importance matrix",
    Method.INT8: "weights and activations in 8 bits, or weights alone",
    Method.INT4: "weights in 4 bits: rounded to nearest without data, or as text teaches",
    Method.FP8: "weights and activations as 8-bit floating-point numbers",
    Method.GPTQ: "weights in 2, 3, 4 or 8 bits, each column's error made up by the next ones",
    Method.AWQ: "weights in 4 bits, the columns that activations need most kept finest",
    Method.BITS_AND_BYTES: "weights in 8 or 4 bits (NF4, FP4) while the model loads, without data",
    Method.PRUNE: "weights set to zero, any or two of every four; the files stay as large",
    Method.DISTILL: "a smaller model taught by the original",
    Method.TENSOR_RT: "a checkpoint in FP8, INT8 or INT4, and an engine for the GPU that builds it",
    Method.AUTO: "one of the others, chosen by hardware and priority",
}
"""A phrase that ends a sentence which begins with the method's name; every method has one."""
