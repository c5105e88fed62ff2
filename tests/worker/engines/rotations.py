"""Says how checkpoints rotate positions, by the transformers of the environment that runs it.

Run by an image's interpreter with {name: folder} as JSON on standard input; only config.json is
read. Prints {name: {frequencies, scaling}} as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM


def rotation(folder: str) -> dict[str, Any]:
    """Return what a model of random weights multiplies positions and cosines by."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    found = model.model.rotary_emb
    return {"frequencies": found.inv_freq.tolist(), "scaling": float(found.attention_scaling)}


def main() -> None:
    asked: dict[str, str] = json.load(sys.stdin)
    print(json.dumps({name: rotation(folder) for name, folder in asked.items()}))


if __name__ == "__main__":
    main()
