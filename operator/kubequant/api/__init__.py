"""The QuantizationJob API and the worker contract as pydantic models; imports nothing of ours."""
