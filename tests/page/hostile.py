"""Texts that would run, break out or break a page if one place forgot that they are not ours."""

from __future__ import annotations

from typing import Any

from tests.page.reports import SHA, whole_report

from kubequant.api.contract import RunReport
from kubequant.api.problems import parse

SCRIPT = (
    "</script></pre></style></svg><img src=x onerror=\"document.title='run'\">"
    "<script>document.title='run'</script>"
)
QUOTES = "\"'><svg onload=document.title='run'>"
FORMULA = r"$\frac{1}{0$ & <b> ]]> --> {{ 7 * 7 }} {% raw %}"
ODD = "\x00\x1b[31m\u202ereversed\ufffe\U0001f600 \u65e5\u672c\u8a9e"
TEXTS = (SCRIPT, QUOTES, FORMULA, ODD)


def hostile_report() -> RunReport:
    """Return a report in which every free text is hostile."""
    content = whole_report().to_json()
    variant: dict[str, Any] = content["variants"][0]
    names = [text[:63] for text in TEXTS]
    content["variants"] = [
        {
            **variant,
            "name": name,
            "setting": text[:96],
            "generations": [
                {"prompt": text, "original": f"one {text}", "quantized": f"two {text}"},
                {
                    "prompt": f"{text} again",
                    "original": text,
                    "quantized": text,
                    "degenerate": True,
                    "degenerateReason": text,
                },
            ],
            "files": [
                {"path": "javascript:document.title='run'", "sizeBytes": 1, "sha256": SHA},
                {"path": f"a/{name}.gguf", "sizeBytes": 1, "sha256": SHA},
            ],
            "notes": [text],
        }
        for name, text in zip(names, TEXTS, strict=True)
    ]
    content["gates"] = [{**content["gates"][0], "variant": name} for name in names]
    content["files"] = content["variants"][0]["files"]
    content |= {
        "name": SCRIPT[:253],
        "warnings": list(TEXTS),
        "recommendations": list(TEXTS),
        "usage": {"runtime": QUOTES, "command": SCRIPT},
        "recommended": names[0],
    }
    content["source"] |= {"uri": f"hf://{QUOTES}", "architecture": SCRIPT[:253]}
    content["source"]["card"] = {"license": QUOTES, "languages": [QUOTES]}
    content["resolved"] |= {"engine": QUOTES, "reason": SCRIPT}
    content["environment"] |= {"cpu": SCRIPT[:253], "image": QUOTES}
    content["artifact"] |= {"uri": f"s3://{SCRIPT}"}
    return parse(RunReport, content, local=True)
