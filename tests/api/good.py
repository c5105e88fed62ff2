"""Manifests that are taken (see `cases`)."""

from __future__ import annotations

from tests.api.table import Good

_MEMBERS = {
    "INT8": "int8",
    "INT4": "int4",
    "FP8": "fp8",
    "GPTQ": "gptq",
    "AWQ": "awq",
    "BitsAndBytes": "bitsAndBytes",
    "GGUF": "gguf",
    "Prune": "prune",
    "Distill": "distill",
    "TensorRT": "tensorRT",
}

GOOD = (
    *(Good(f"method {method} without its member", f"method: {method}") for method in _MEMBERS),
    *(
        Good(f"method {method} with its member empty", f"method: {method}, {member}: {{}}")
        for method, member in _MEMBERS.items()
    ),
    Good(
        "the smallest manifest",
        "",
    ),
    Good(
        "Auto with a goal",
        "method: Auto, goal: {hardware: CPU, priority: Speed}",
    ),
    Good(
        "every GGUF type once",
        "gguf: {types: [Q2_K, Q3_K_S, Q3_K_M, Q3_K_L, Q4_0, Q4_1, Q4_K_S, Q4_K_M, Q5_0, Q5_1, "
        "Q5_K_S, Q5_K_M, Q6_K, Q8_0, F16, BF16], importanceMatrix: true, outputTensorType: Q8_0, "
        "tokenEmbeddingType: F16}",
    ),
    Good(
        "the ends of a fraction",
        "method: INT8, int8: {smoothingStrength: '1'}",
    ),
    Good(
        "weights alone, with the smoothing that the API server writes out",
        "method: INT8, int8: {scheme: WeightOnly, smoothingStrength: '0.5'}",
    ),
    Good(
        "a module whose name would be no regular expression",
        "method: INT4, int4: {ignore: ['(', 're:(up|down)_proj']}",
    ),
    Good(
        "a fraction with many digits",
        "method: INT8, int8: {smoothingStrength: '0.000000001'}",
    ),
    Good(
        "GPTQ with one scale per row",
        "method: GPTQ, gptq: {bits: 2, groupSize: -1}",
    ),
    Good(
        "BitsAndBytes in 8 bits with a threshold",
        "method: BitsAndBytes, bitsAndBytes: {threshold: '5.5'}",
    ),
    Good(
        "BitsAndBytes in 4 bits with its own fields",
        "method: BitsAndBytes, bitsAndBytes: {bits: 4, quantType: FP4, doubleQuantization: false,"
        " computeDType: Float16}",
    ),
    Good(
        "pruning two of four",
        "method: Prune, prune: {pattern: TwoOfFour}",
    ),
    Good(
        "a student that is given",
        "method: Distill, distill: {student: {uri: 'hf://a/b'}}",
    ),
    Good(
        "a student at a commit, with a token of its own",
        "method: Distill, distill: {student: {uri: 'hf://a/b', revision: v2, "
        "secretRef: {name: student}}}",
    ),
    Good(
        "a student of another store",
        "method: Distill, distill: {student: {uri: 's3://models/b', "
        "s3: {endpoint: 'http://b:9000'}, secretRef: {name: student}}, checkpointSeconds: 60}",
    ),
    Good(
        "a student of this machine",
        "method: Distill, distill: {student: {uri: 'file://models/b'}}",
        local_only=True,
    ),
    Good(
        "a student by layers",
        "method: Distill, distill: {student: {keepLayers: 8}}",
    ),
    Good(
        "a checkpoint for TensorRT-LLM, on a CPU",
        "method: TensorRT, tensorRT: {build: Checkpoint, precision: INT4AWQ}, device: CPU",
    ),
    Good(
        "an engine for one kind of GPU, over two of them",
        "method: TensorRT, tensorRT: {precision: INT8, maxBatchSize: 64, maxInputLength: 4096, "
        "maxOutputLength: 1024, tensorParallel: 2, gpuProduct: NVIDIA-H100-80GB-HBM3}, "
        "pod: {gpu: {count: 2}, nodeSelector: {nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3}}",
    ),
    Good(
        "a model in a bucket of another store",
        "model: {uri: 's3://models/a/b', s3: {endpoint: 'http://10.0.0.1:9000', region: eu-1}, "
        "secretRef: {name: keys}}",
    ),
    Good(
        "a model on a claim",
        "model: {uri: 'pvc://claim/models/a'}",
    ),
    Good(
        "a model at a commit",
        "model: {revision: 0e9e39f249a16976918f6564b8830bc894c89659}",
    ),
    Good(
        "empty options, as the reference writes them",
        "model: {uri: 's3://models/a', s3: {endpoint: '', region: ''}}, output: {s3: {endpoint: "
        "'', region: '', serverSideEncryption: '', kmsKeyId: ''}}, pod: {serviceAccountName: '', "
        "scratch: {size: 200Gi, storageClassName: ''}}",
    ),
    Good(
        "an encrypted output",
        "output: {s3: {serverSideEncryption: 'aws:kms', kmsKeyId: "
        "'arn:aws:kms:eu-central-1:1:key/ab-cd'}}",
    ),
    Good(
        "one dataset in two splits",
        "calibration: {dataset: {uri: 'hf://owner/text'}}, evaluation: {perplexity: {dataset: "
        "{uri: 'hf://owner/text', split: test}}}",
    ),
    Good(
        "one dataset at two revisions",
        "calibration: {dataset: {uri: 'hf://owner/text'}}, evaluation: {perplexity: {dataset: "
        "{uri: 'hf://owner/text', revision: v2}}}",
    ),
    Good(
        "a folder inside a dataset's repository",
        "calibration: {dataset: {uri: 'hf://owner/text/part-1'}}",
    ),
    Good(
        "a dataset of chats",
        "calibration: {dataset: {uri: 'hf://owner/text', messagesField: messages}, "
        "applyChatTemplate: true}",
    ),
    Good(
        "gates with both ends, for one type and below zero",
        "gates: [{metric: PerplexityIncreasePercent, min: '-1.5', max: '2.0', variant: Q4_K_M}, "
        "{metric: SizeReductionPercent, min: '70'}]",
    ),
    Good(
        "gates on a benchmark's score and on its change",
        "evaluation: {benchmarks: [{task: hellaswag}]}, gates: [{metric: BenchmarkScore, min: "
        "'0.5', task: hellaswag}, {metric: BenchmarkChange, min: '-0.01', task: hellaswag}]",
    ),
    Good(
        "a gate on what is not skipped",
        "evaluation: {skip: [Performance]}, gates: [{metric: Perplexity, max: '10'}]",
    ),
    Good(
        "benchmarks with files of their own",
        "evaluation: {benchmarks: [{task: mine, fewShot: 2, limit: 10}], "
        "taskFiles: {uri: 's3://tests/tasks', s3: {region: eu-1}, secretRef: {name: reader}}, "
        "performance: {promptTokens: 64, newTokens: 16, repetitions: 5, batchSizes: [16]}}",
    ),
    Good(
        "no batches",
        "evaluation: {performance: {batchSizes: []}}",
    ),
    Good(
        "every field of the pod",
        "pod: {resources: {requests: {cpu: '4', memory: 1.5Gi}, limits: {cpu: 500m}}, gpu: "
        "{resourceName: amd.com/gpu, count: 2}, nodeSelector: {kubernetes.io/arch: amd64}, "
        "tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}], affinity: "
        "{nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: "
        "[{matchExpressions: [{key: zone, operator: In, values: [a]}]}]}}, podAntiAffinity: "
        "{preferredDuringSchedulingIgnoredDuringExecution: [{weight: 10, podAffinityTerm: "
        "{labelSelector: {matchLabels: {app: web}}, topologyKey: kubernetes.io/hostname}}]}}, "
        "serviceAccountName: worker, priorityClassName: low, runtimeClassName: nvidia, "
        "imagePullSecrets: [{name: registry}], labels: {team: a}, annotations: {example.com/note:"
        " 'anything, of any form', cluster-autoscaler.kubernetes.io/safe-to-evict: 'false'}, "
        "env: [{name: HF_ENDPOINT, value: 'https://hub.example.com'}], scratch: {size: 200Gi, "
        "storageClassName: fast}, modelCache: {claimName: models}}",
    ),
    Good(
        "every field of the run",
        "method: GPTQ, suspend: true, backoffLimit: 0, activeDeadlineSeconds: 60, "
        "pendingDeadlineSeconds: 60, ttlSecondsAfterFinished: 0, onGateFailure: Escalate, "
        "memory: {offload: Disk, maxGPUMemory: 20Gi, lowMemory: true}, device: GPU",
    ),
    Good(
        "a null, which is an absent field",
        "device: null, calibration: {samples: null}",
    ),
    Good(
        "a model and an output on this machine",
        "model: {uri: 'file://../models/tiny llama'}, output: {uri: 'file:///tmp/öut'}",
        local_only=True,
    ),
)
