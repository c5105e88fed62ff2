"""Manifests whose fields, values or shapes are wrong by themselves (see `cases`)."""

from __future__ import annotations

from tests.api.table import Bad, Server

UNKNOWN = (
    Bad(
        "a misspelt field",
        "modle: {uri: 'hf://a/b'}",
        "spec.modle",
        "is not a field; did you mean model?",
        Server.REFUSES,
    ),
    Bad(
        "a field in snake case",
        "calibration: {sequence_length: 512}",
        "spec.calibration.sequence_length",
        "is not a field; did you mean sequenceLength?",
        Server.REFUSES,
    ),
    Bad(
        "a field in the wrong place",
        "types: [Q4_K_M]",
        "spec.types",
        "is not a field",
        Server.REFUSES,
    ),
    Bad(
        "a misspelt method",
        "method: GGFU",
        "spec.method",
        "must be one of INT8, INT4, FP8, GPTQ, AWQ, BitsAndBytes, GGUF, Prune, Distill, TensorRT,"
        ' Auto, not "GGFU"; did you mean GGUF?',
        Server.REFUSES,
    ),
    Bad(
        "a method in lower case",
        "method: gptq",
        "spec.method",
        "must be one of",
        Server.REFUSES,
    ),
    Bad(
        "a misspelt GGUF type",
        "gguf: {types: [Q8_0, Q4_KM]}",
        "spec.gguf.types[1]",
        "must be one of Q2_K, ",
        Server.REFUSES,
    ),
    Bad(
        "a number of bits that is not there",
        "method: GPTQ, gptq: {bits: 5}",
        "spec.gptq.bits",
        "must be one of 2, 3, 4, 8, not 5",
        Server.REFUSES,
    ),
    Bad(
        "a method given as a list",
        "method: [GGUF]",
        "spec.method",
        "must be one of",
        Server.REFUSES,
    ),
)

MISSING = (
    Bad(
        "no model",
        "model: (removed)",
        "spec.model",
        "is required: the model to quantize",
        Server.REFUSES,
    ),
    Bad(
        "no method",
        "method: (removed)",
        "spec.method",
        "is required",
        Server.REFUSES,
    ),
    Bad(
        "no output",
        "output: (removed)",
        "spec.output",
        "is required: where the artifact is published",
        Server.REFUSES,
    ),
    Bad(
        "a model without an address",
        "model: {uri: (removed)}",
        "spec.model.uri",
        "is required",
        Server.REFUSES,
    ),
    Bad(
        "no GGUF type at all",
        "gguf: {types: []}",
        "spec.gguf.types",
        "must have at least 1 item",
        Server.REFUSES,
    ),
    Bad(
        "Auto without a goal",
        "method: Auto",
        "spec.goal",
        "is required when method is Auto: say hardware and priority",
    ),
    Bad(
        "half a goal",
        "method: Auto, goal: {hardware: CPU}",
        "spec.goal.priority",
        "is required: what matters most",
        Server.REFUSES,
    ),
)

ADDRESSES = (
    Bad(
        "a model without a scheme",
        "model: {uri: owner/name}",
        "spec.model.uri",
        "must be a model's address: hf://owner/name, s3://bucket/prefix, pvc://claim/path or, for"
        " a local run, file://path",
    ),
    Bad(
        "a model over the web",
        "model: {uri: 'https://example.com/model'}",
        "spec.model.uri",
        "must be a model's address",
    ),
    Bad(
        "an output on the Hub",
        "output: {uri: 'hf://owner/name'}",
        "spec.output.uri",
        "must be a place to publish to: s3://bucket/prefix, pvc://claim/path or, for a local run,"
        " file://path",
    ),
    Bad(
        "a bucket in capitals",
        "output: {uri: 's3://Bucket/x'}",
        "spec.output.uri",
        "must be a place to publish to",
    ),
    Bad(
        "an address with a blank",
        "output: {uri: 's3://bucket/a b'}",
        "spec.output.uri",
        "must be a place to publish to",
    ),
    Bad(
        "an address with a newline at its end",
        "output: {uri: 's3://bucket/x\n\n      '}",
        "spec.output.uri",
        "must be a place to publish to",
    ),
    Bad(
        "an address that leaves its claim",
        "model: {uri: 'pvc://claim/../other'}",
        "spec.model.uri",
        "must not contain '..' as a part of its path",
    ),
    Bad(
        "a model on this machine",
        "model: {uri: 'file:///models/a'}",
        "spec.model.uri",
        "must not be a file:// address, which only a run on your own machine can read; use s3://,"
        " pvc:// or, for models and datasets, hf://",
    ),
    Bad(
        "an output on this machine",
        "output: {uri: 'file:///out'}",
        "spec.output.uri",
        "must not be a file:// address",
    ),
    Bad(
        "a calibration text on this machine",
        "calibration: {dataset: {uri: 'file://a.txt'}}",
        "spec.calibration.dataset.uri",
        "must not be a file:// address",
    ),
    Bad(
        "an evaluation text on this machine",
        "evaluation: {perplexity: {dataset: {uri: 'file://a.txt'}}}",
        "spec.evaluation.perplexity.dataset.uri",
        "must not be a file:// address",
    ),
    Bad(
        "files of tasks on this machine",
        "evaluation: {benchmarks: [{task: mine}], taskFiles: {uri: 'file://tasks'}}",
        "spec.evaluation.taskFiles.uri",
        "must not be a file:// address",
    ),
    Bad(
        "a revision of a bucket",
        "model: {uri: 's3://models/a', revision: main}",
        "spec.model.revision",
        "is only for hf:// addresses; remove it",
    ),
    Bad(
        "S3 options for the Hub",
        "model: {s3: {region: eu-1}}",
        "spec.model.s3",
        "is only for s3:// addresses; remove it",
    ),
    Bad(
        "S3 options for a claim",
        "output: {uri: 'pvc://claim', s3: {}}",
        "spec.output.s3",
        "is only for s3:// addresses; remove it",
    ),
    Bad(
        "a secret for a claim",
        "model: {uri: 'pvc://claim/a', secretRef: {name: a}}",
        "spec.model.secretRef",
        "is only for hf:// and s3:// addresses; remove it",
    ),
    Bad(
        "an endpoint without a scheme",
        "output: {s3: {endpoint: 'minio:9000'}}",
        "spec.output.s3.endpoint",
        "must be an address like https://s3.example.com:9000, without user name, password or query",
    ),
    Bad(
        "a key without encryption by it",
        "output: {s3: {kmsKeyId: a, serverSideEncryption: AES256}}",
        "spec.output.s3.kmsKeyId",
        "needs serverSideEncryption aws:kms or aws:kms:dsse",
    ),
    Bad(
        "a Secret's name in capitals",
        "model: {secretRef: {name: HF-Token}}",
        "spec.model.secretRef.name",
        "must be a Kubernetes object's name",
    ),
)

NUMBERS = (
    Bad(
        "a decimal without quotes",
        "gates: [{metric: Perplexity, max: 2.5}]",
        "spec.gates[0].max",
        'must be a string; write it in quotes: "2.5"',
        Server.REFUSES,
    ),
    Bad(
        "a decimal that is a word",
        "gates: [{metric: Perplexity, max: low}]",
        "spec.gates[0].max",
        'must be a decimal number in quotes, like "2.5"',
    ),
    Bad(
        "a decimal with an exponent",
        "method: Distill, distill: {learningRate: 1e-4}",
        "spec.distill.learningRate",
        'must be a decimal number in quotes, like "2.5"',
    ),
    Bad(
        "a decimal with a comma",
        "method: Prune, prune: {sparsity: '0,5'}",
        "spec.prune.sparsity",
        'must be a decimal number in quotes, like "2.5"',
    ),
    *(
        Bad(
            f"modules by what is no regular expression, {word}",
            f"method: {method}, {member}: {{ignore: [lm_head, '{word}']}}",
            f"spec.{member}.ignore[1]",
            "must be a regular expression that Python compiles where it begins with re:; close "
            "what it opens",
            Server.LETS_PASS,
        )
        for method, member, word in (
            ("INT4", "int4", "re:("),
            ("Prune", "prune", "re:*head"),
            ("TensorRT", "tensorRT", "re:[a"),
        )
    ),
    Bad(
        "a fraction above one",
        "method: INT8, int8: {smoothingStrength: '1.000000001'}",
        "spec.int8.smoothingStrength",
        "must be a decimal number from 0 to 1, in quotes",
    ),
    Bad(
        "a sparsity of one",
        "method: Prune, prune: {sparsity: '1.0'}",
        "spec.prune.sparsity",
        "must be a decimal number above 0 and below 1, in quotes",
    ),
    Bad(
        "a damping of zero",
        "method: GPTQ, gptq: {dampingFraction: '0'}",
        "spec.gptq.dampingFraction",
        "must be a decimal number above 0 and below 1, in quotes",
    ),
    Bad(
        "a whole number in quotes",
        "calibration: {samples: '128'}",
        "spec.calibration.samples",
        'must be a whole number, not "128"',
        Server.REFUSES,
    ),
    Bad(
        "a whole number with a fraction",
        "calibration: {samples: 1.5}",
        "spec.calibration.samples",
        "must be a whole number, not 1.5",
        Server.REFUSES,
    ),
    Bad(
        "no samples",
        "calibration: {samples: 0}",
        "spec.calibration.samples",
        "must be at least 1, not 0",
        Server.REFUSES,
    ),
    Bad(
        "too many retries",
        "backoffLimit: 11",
        "spec.backoffLimit",
        "must be at most 10, not 11",
        Server.REFUSES,
    ),
    Bad(
        "a word for yes",
        "suspend: 'yes'",
        "spec.suspend",
        'must be true or false, not "yes"',
        Server.REFUSES,
    ),
    Bad(
        "a number for yes",
        "gguf: {importanceMatrix: 1}",
        "spec.gguf.importanceMatrix",
        "must be true or false, not 1",
        Server.REFUSES,
    ),
    Bad(
        "a quantity in words",
        "memory: {maxGPUMemory: 20 GB}",
        "spec.memory.maxGPUMemory",
        'must be an amount of bytes as a Kubernetes quantity, like "500M" or "20Gi"',
    ),
    Bad(
        "a quantity without quotes",
        "pod: {resources: {requests: {cpu: 4}}}",
        "spec.pod.resources.requests.cpu",
        'must be a string; write it in quotes: "4"',
        Server.REFUSES,
    ),
)

SHAPES = (
    Bad(
        "a list for an object",
        "gguf: [Q4_K_M]",
        "spec.gguf",
        "must be an object, not a list",
        Server.REFUSES,
    ),
    Bad(
        "a word for a list",
        "gguf: {types: Q4_K_M}",
        "spec.gguf.types",
        'must be a list, not "Q4_K_M"',
        Server.REFUSES,
    ),
    Bad(
        "a word for a map",
        "pod: {labels: a=b}",
        "spec.pod.labels",
        'must be an object, not "a=b"',
        Server.REFUSES,
    ),
    Bad(
        "too many gates",
        "gates: [" + "{metric: Perplexity, max: '9'}, " * 17 + "]",
        "spec.gates",
        "must have at most 16 items",
        Server.REFUSES,
    ),
    Bad(
        "a prompt of nothing",
        "evaluation: {generations: {prompts: ['']}}",
        "spec.evaluation.generations.prompts[0]",
        "must not be empty",
        Server.REFUSES,
    ),
    Bad(
        "a prompt as long as a book",
        "evaluation: {generations: {prompts: [" + "x" * 2049 + "]}}",
        "spec.evaluation.generations.prompts[0]",
        "must be at most 2048 characters long",
        Server.REFUSES,
    ),
)

BAD_FORMS = (*UNKNOWN, *MISSING, *ADDRESSES, *NUMBERS, *SHAPES)
