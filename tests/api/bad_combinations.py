"""Manifests whose fields are right by themselves and wrong together (see `cases`)."""

from __future__ import annotations

from tests.api.table import Bad, Server

MEMBERS = (
    Bad(
        "a goal without Auto",
        "goal: {hardware: CPU, priority: Speed}",
        "spec.goal",
        "is only for method Auto; remove it or set method: Auto",
    ),
    Bad(
        "the member int8 with method GGUF",
        "method: GGUF, int8: {}",
        "spec.int8",
        "is only for method INT8; remove it or set method: INT8",
    ),
    Bad(
        "the member int4 with method GGUF",
        "method: GGUF, int4: {}",
        "spec.int4",
        "is only for method INT4; remove it or set method: INT4",
    ),
    Bad(
        "the member fp8 with method GGUF",
        "method: GGUF, fp8: {}",
        "spec.fp8",
        "is only for method FP8; remove it or set method: FP8",
    ),
    Bad(
        "the member gptq with method AWQ",
        "method: AWQ, gptq: {}",
        "spec.gptq",
        "is only for method GPTQ; remove it or set method: GPTQ",
    ),
    Bad(
        "the member awq with method GPTQ",
        "method: GPTQ, awq: {}",
        "spec.awq",
        "is only for method AWQ; remove it or set method: AWQ",
    ),
    Bad(
        "the member bitsAndBytes with method GGUF",
        "method: GGUF, bitsAndBytes: {}",
        "spec.bitsAndBytes",
        "is only for method BitsAndBytes; remove it or set method: BitsAndBytes",
    ),
    Bad(
        "the member gguf with method GPTQ",
        "method: GPTQ, gguf: {}",
        "spec.gguf",
        "is only for method GGUF; remove it or set method: GGUF",
    ),
    Bad(
        "the member prune with method GGUF",
        "method: GGUF, prune: {}",
        "spec.prune",
        "is only for method Prune; remove it or set method: Prune",
    ),
    Bad(
        "the member distill with method GGUF",
        "method: GGUF, distill: {}",
        "spec.distill",
        "is only for method Distill; remove it or set method: Distill",
    ),
    Bad(
        "the member tensorRT with method GGUF",
        "method: GGUF, tensorRT: {}",
        "spec.tensorRT",
        "is only for method TensorRT; remove it or set method: TensorRT",
    ),
)

CONTRADICTIONS = (
    Bad(
        "a GGUF type twice",
        "gguf: {types: [Q4_K_M, Q8_0, Q4_K_M]}",
        "spec.gguf.types",
        "must name each type once",
    ),
    Bad(
        "a measurement skipped twice",
        "evaluation: {skip: [Generations, Generations]}",
        "spec.evaluation.skip",
        "must name each measurement once",
    ),
    Bad(
        "a benchmark twice",
        "evaluation: {benchmarks: [{task: a}, {task: b}, {task: a, fewShot: 5}]}",
        "spec.evaluation.benchmarks",
        "must name each task once",
    ),
    Bad(
        "a batch size twice",
        "evaluation: {performance: {batchSizes: [4, 8, 4]}}",
        "spec.evaluation.performance.batchSizes",
        "must name each size once",
    ),
    Bad(
        "files of tasks without a task",
        "evaluation: {taskFiles: {uri: 's3://tests/tasks'}}",
        "spec.evaluation.taskFiles",
        "is only for benchmarks; name its tasks there or remove it",
    ),
    Bad(
        "text and messages",
        "calibration: {dataset: {uri: 'hf://owner/text', textField: text, messagesField: chat}}",
        "spec.calibration.dataset.messagesField",
        "must not be set together with textField; keep the one that the dataset has",
    ),
    Bad(
        "one text that calibrates and measures, written in two ways",
        "calibration: {dataset: {uri: 's3://bucket/text'}}, evaluation: {perplexity: {dataset: "
        "{uri: 's3://bucket/text/'}}}",
        "spec.evaluation.perplexity.dataset",
        "must not be the text of calibration.dataset: what calibrates never measures; name "
        "another dataset or split",
    ),
    Bad(
        "one text that calibrates and measures",
        "calibration: {dataset: {uri: 'hf://owner/text'}}, evaluation: {perplexity: {dataset: "
        "{uri: 'hf://owner/text'}}}",
        "spec.evaluation.perplexity.dataset",
        "must not be the text of calibration.dataset: what calibrates never measures; name "
        "another dataset or split",
    ),
    Bad(
        "one text, its defaults written out on one side",
        "calibration: {dataset: {uri: 'hf://owner/text'}}, evaluation: {perplexity: {dataset: "
        "{uri: 'hf://owner/text', split: train, revision: main}}}",
        "spec.evaluation.perplexity.dataset",
        "must not be the text of calibration.dataset",
    ),
    Bad(
        "a gate without an end",
        "gates: [{metric: Perplexity}]",
        "spec.gates[0]",
        "needs max or min",
    ),
    Bad(
        "a gate that nothing passes",
        "gates: [{metric: Perplexity, min: '10', max: '9.5'}]",
        "spec.gates[0].min",
        "must not be larger than max",
    ),
    Bad(
        "a gate on a skipped perplexity",
        "evaluation: {skip: [Perplexity]}, gates: [{metric: MeanKLDivergence, max: '0.1'}]",
        "spec.gates",
        "must not hold what evaluation.skip leaves out: Perplexity gives Perplexity, "
        "PerplexityIncreasePercent, MeanKLDivergence, TopTokenAgreementPercent",
    ),
    Bad(
        "a gate on a skipped performance",
        "evaluation: {skip: [Performance]}, gates: [{metric: Speedup, min: '1'}]",
        "spec.gates",
        "must not hold what evaluation.skip leaves out: Performance gives TokensPerSecond, "
        "Speedup, PeakMemoryBytes",
    ),
    Bad(
        "a gate for a type that is not made",
        "gguf: {types: [Q8_0]}, gates: [{metric: Perplexity, max: '9', variant: Q4_K_M}]",
        "spec.gates",
        "must name only variants that gguf.types makes",
    ),
    Bad(
        "a gate for a type that is not made by default",
        "gates: [{metric: Perplexity, max: '9', variant: Q2_K}]",
        "spec.gates",
        "must name only variants that gguf.types makes",
    ),
    Bad(
        "a gate for a type of another method",
        "method: GPTQ, gates: [{metric: Perplexity, max: '9', variant: Q4_K_M}]",
        "spec.gates",
        "must name a variant only with method GGUF, whose types the spec names",
    ),
    Bad(
        "a gate on a benchmark without its task",
        "evaluation: {benchmarks: [{task: hellaswag}]}, "
        "gates: [{metric: BenchmarkScore, min: '1'}]",
        "spec.gates[0].task",
        "is for BenchmarkScore and BenchmarkChange, which need it: name a task of "
        "evaluation.benchmarks, or leave it out with another metric",
    ),
    Bad(
        "a gate on a size with a task",
        "evaluation: {benchmarks: [{task: hellaswag}]}, "
        "gates: [{metric: SizeBytes, max: '1', task: hellaswag}]",
        "spec.gates[0].task",
        "is for BenchmarkScore and BenchmarkChange, which need it: name a task of "
        "evaluation.benchmarks, or leave it out with another metric",
    ),
    Bad(
        "a gate on a benchmark that is not run",
        "evaluation: {benchmarks: [{task: hellaswag}]}, "
        "gates: [{metric: BenchmarkScore, min: '0.5', task: arc_easy}]",
        "spec.gates",
        "must name only tasks that evaluation.benchmarks lists",
    ),
    Bad(
        "a gate on a benchmark where none is run",
        "gates: [{metric: BenchmarkChange, min: '-0.01', task: arc_easy}]",
        "spec.gates",
        "must name only tasks that evaluation.benchmarks lists",
    ),
    Bad(
        "a threshold for 4 bits",
        "method: BitsAndBytes, bitsAndBytes: {bits: 4, threshold: '6.0'}",
        "spec.bitsAndBytes.threshold",
        "is only for 8 bits; remove it or set bits: 8",
    ),
    Bad(
        "a set of levels for 8 bits",
        "method: BitsAndBytes, bitsAndBytes: {quantType: NF4}",
        "spec.bitsAndBytes.quantType",
        "is only for 4 bits; remove it or set bits: 4",
    ),
    Bad(
        "double quantization for 8 bits",
        "method: BitsAndBytes, bitsAndBytes: {doubleQuantization: false}",
        "spec.bitsAndBytes.doubleQuantization",
        "is only for 4 bits; remove it or set bits: 4",
    ),
    Bad(
        "a type of products for 8 bits",
        "method: BitsAndBytes, bitsAndBytes: {computeDType: Float32}",
        "spec.bitsAndBytes.computeDType",
        "is only for 4 bits; remove it or set bits: 4",
    ),
    Bad(
        "the layout GEMV by GPTQModel",
        "method: AWQ, awq: {engine: GPTQModel, version: GEMV}",
        "spec.awq.version",
        "GEMV is written by AutoAWQ alone; set version: GEMM or engine: AutoAWQ",
    ),
    Bad(
        "the layout GEMV by whichever engine",
        "method: AWQ, awq: {version: GEMV}",
        "spec.awq.version",
        "GEMV is written by AutoAWQ alone; set version: GEMM or engine: AutoAWQ",
    ),
    Bad(
        "smoothing by TorchAO",
        "method: INT8, int8: {engine: TorchAO, smoothingStrength: '0.8'}",
        "spec.int8.smoothingStrength",
        "TorchAO smooths nothing; remove it or set engine: LLMCompressor",
    ),
    Bad(
        "smoothing by ONNXRuntime",
        "method: INT8, int8: {engine: ONNXRuntime, smoothingStrength: '0.8'}",
        "spec.int8.smoothingStrength",
        "ONNXRuntime smooths nothing; remove it or set engine: LLMCompressor",
    ),
    Bad(
        "smoothing where activations stay as they are",
        "method: INT8, int8: {scheme: WeightOnly, smoothingStrength: '0.8'}",
        "spec.int8.smoothingStrength",
        "is only for scheme WeightAndActivation, since it is activations that are smoothed; "
        "remove it or set scheme: WeightAndActivation",
    ),
    Bad(
        "ONNXRuntime on a GPU",
        "method: INT8, int8: {engine: ONNXRuntime}, device: GPU",
        "spec.device",
        "must be CPU with engine ONNXRuntime, which quantizes for processors",
    ),
    Bad(
        "tuned rounding by LLMCompressor",
        "method: INT4, int4: {engine: LLMCompressor, rounding: Tuned}",
        "spec.int4.engine",
        "LLMCompressor rounds to nearest; set rounding: Nearest or engine: AutoRound",
    ),
    Bad(
        "nearest rounding by AutoRound",
        "method: INT4, int4: {engine: AutoRound}",
        "spec.int4.engine",
        "AutoRound tunes the rounding; set rounding: Tuned or engine: LLMCompressor",
    ),
    Bad(
        "iterations of rounding to nearest",
        "method: INT4, int4: {iterations: 50}",
        "spec.int4.iterations",
        "is only for rounding Tuned; remove it or set rounding: Tuned",
    ),
    Bad(
        "two of four with another sparsity",
        "method: Prune, prune: {pattern: TwoOfFour, sparsity: '0.6'}",
        "spec.prune.sparsity",
        'must be "0.5" with pattern TwoOfFour, which drops two weights of four',
    ),
    Bad(
        "a student of two origins",
        "method: Distill, distill: {student: {uri: 'hf://a/b', keepLayers: 4}}",
        "spec.distill.student",
        "must have exactly one of uri and keepLayers",
    ),
    Bad(
        "a revision of a student in a bucket",
        "method: Distill, distill: {student: {uri: 's3://models/b', revision: main}}",
        "spec.distill.student.revision",
        "is only for an hf:// uri; remove it",
    ),
    Bad(
        "S3 options of a student by layers",
        "method: Distill, distill: {student: {keepLayers: 4, s3: {endpoint: ''}}}",
        "spec.distill.student.s3",
        "is only for an s3:// uri; remove it",
    ),
    Bad(
        "a Secret for a student on a claim",
        "method: Distill, distill: {student: {uri: 'pvc://claim/b', secretRef: {name: a}}}",
        "spec.distill.student.secretRef",
        "is only for an hf:// or s3:// uri; remove it",
    ),
    Bad(
        "a student of no origin",
        "method: Distill, distill: {student: {}}",
        "spec.distill.student",
        "must have exactly one of uri and keepLayers",
    ),
    Bad(
        "TensorRT on a CPU",
        "method: TensorRT, device: CPU",
        "spec.device",
        "must be GPU: TensorRT builds its engine on the GPU that will serve it; set "
        "tensorRT.build: Checkpoint to stop before",
    ),
    Bad(
        "an engine of TensorRT on a CPU, asked for by its word",
        "method: TensorRT, tensorRT: {build: Engine}, device: CPU",
        "spec.device",
        "must be GPU: TensorRT builds its engine on the GPU that will serve it",
    ),
    Bad(
        "a checkpoint that no runtime reads",
        "method: TensorRT, tensorRT: {build: Checkpoint, precision: INT8}",
        "spec.tensorRT.precision",
        "INT8 needs build: Engine, since no runtime reads its checkpoint",
    ),
    Bad(
        "a checkpoint that is the original",
        "method: TensorRT, tensorRT: {build: Checkpoint, precision: FP16}",
        "spec.tensorRT.precision",
        "FP16 needs build: Engine, since the checkpoint would be the original's copy",
    ),
    *(
        Bad(
            f"{field} without an engine",
            f"method: TensorRT, tensorRT: {{build: Checkpoint, {field}: {value}}}",
            f"spec.tensorRT.{field}",
            "is only for an engine; remove it or set build: Engine",
        )
        for field, value in (
            ("maxBatchSize", "8"),
            ("maxInputLength", "64"),
            ("maxOutputLength", "64"),
            ("tensorParallel", "1"),
            ("gpuProduct", "NVIDIA-L4"),
        )
    ),
    Bad(
        "fewer GPUs than parts of a layer",
        "method: TensorRT, tensorRT: {tensorParallel: 4}, pod: {gpu: {count: 2}}",
        "spec.pod.gpu.count",
        "must not be less than tensorRT.tensorParallel",
    ),
    Bad(
        "a node with another GPU than the engine's",
        "method: TensorRT, tensorRT: {gpuProduct: NVIDIA-L4}, "
        "pod: {nodeSelector: {nvidia.com/gpu.product: NVIDIA-A10}}",
        "spec.pod.nodeSelector",
        "must not name another nvidia.com/gpu.product than tensorRT.gpuProduct",
        Server.LETS_PASS,
    ),
    Bad(
        "AutoGPTQ on a CPU",
        "method: GPTQ, gptq: {engine: AutoGPTQ}, device: CPU",
        "spec.device",
        "must be GPU with engine AutoGPTQ, which refuses a CPU",
    ),
)

POD = (
    Bad(
        "a credential in the open",
        "pod: {env: [{name: HF_TOKEN, value: hf_secret}]}",
        "spec.pod.env[0].name",
        "must not be a credential, which anyone who may read the manifest could read; put it in a"
        " Secret and name that by secretRef",
    ),
    Bad(
        "a variable of ours",
        "pod: {env: [{name: KUBEQUANT_RUN, value: '{}'}]}",
        "spec.pod.env[0].name",
        "must not be a variable of kubequant's own (KUBEQUANT_...)",
    ),
    Bad(
        "a variable with a dash",
        "pod: {env: [{name: A-B, value: x}]}",
        "spec.pod.env[0].name",
        "must be a variable's name: letters, digits and '_'",
    ),
    Bad(
        "a variable twice",
        "pod: {env: [{name: A}, {name: A, value: x}]}",
        "spec.pod.env",
        "must name each variable once",
        Server.REFUSES,
    ),
    Bad(
        "a label of Kubernetes' own",
        "pod: {labels: {batch.kubernetes.io/job-name: x}}",
        "spec.pod.labels",
        "must not set keys of kubernetes.io, k8s.io or kubequant.dev",
        Server.LETS_PASS,
    ),
    Bad(
        "an annotation of ours",
        "pod: {annotations: {kubequant.dev/digest: x}}",
        "spec.pod.annotations",
        "must not set keys of kubernetes.io, k8s.io or kubequant.dev",
        Server.LETS_PASS,
    ),
    Bad(
        "a label's key of another form",
        "pod: {labels: {a/b/c: x}}",
        'spec.pod.labels["a/b/c"]',
        "must be a Kubernetes key, like example.com/name",
        Server.LETS_PASS,
    ),
    Bad(
        "a label's value with a blank",
        "pod: {labels: {team: a b}}",
        "spec.pod.labels.team",
        "must be a Kubernetes label value",
    ),
    Bad(
        "a node's condition without values",
        "pod: {affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: "
        "{nodeSelectorTerms: [{matchExpressions: [{key: zone, operator: In}]}]}}}}",
        "spec.pod.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].values",
        "must be given with every operator but Exists and DoesNotExist, which take none",
    ),
    Bad(
        "scratch without a size",
        "pod: {scratch: {storageClassName: fast}}",
        "spec.pod.scratch.size",
        "is required",
        Server.REFUSES,
    ),
    Bad(
        "a name with no room for the digest",
        "",
        "metadata",
        "name must be at most 54 characters long: a run's Job adds a digest to it",
        name="x" * 55,
    ),
)

BAD_COMBINATIONS = (*MEMBERS, *CONTRADICTIONS, *POD)
