"""Good and bad manifests as data: one table for the models and for a real API server.

A case changes the smallest manifest. What is bad names the path and the sentence that the models
answer with, and how an API server that holds our CRD answers to the same body.
"""

from __future__ import annotations

from tests.api.bad_combinations import BAD_COMBINATIONS
from tests.api.bad_forms import BAD_FORMS
from tests.api.good import GOOD
from tests.api.table import REMOVED, SMALLEST, Bad, Good, Server, merged, with_spec

__all__ = ["BAD", "GOOD", "REMOVED", "SMALLEST", "Bad", "Good", "Server", "merged", "with_spec"]

BAD = (*BAD_FORMS, *BAD_COMBINATIONS)
