"""kubequant: quantize models on Kubernetes, and prove what was lost and won."""

__version__ = "0.1.0"
