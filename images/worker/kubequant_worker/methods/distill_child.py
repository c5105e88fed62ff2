"""The child that trains students: `python -m kubequant_worker.methods.distill_child`.

A plain loop of torch by accelerate, on one device. It tells the parent of every step, leaves
checkpoints where the parent wants them, and stops with one more when it is told to. The parent's
half is `distill`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from accelerate import Accelerator

from kubequant.api.outcome import FailureReason
from kubequant_worker.errors import BadRequestError
from kubequant_worker.methods import remote_code
from kubequant_worker.methods.distill_layers import (
    layer_lists,
    read_config,
    require_same_layers,
)
from kubequant_worker.methods.distill_loss import losses
from kubequant_worker.methods.distill_schedule import Curve, Order, learning_rate
from kubequant_worker.methods.distill_state import Progress, load_state, random_state, save_state
from kubequant_worker.methods.engine_child import (
    Work,
    bound_gpu,
    save_pretrained,
    serve_engine,
    write_logits,
)
from kubequant_worker.methods.precision import has_bfloat16
from kubequant_worker.methods.shards import FLOATS
from kubequant_worker.methods.student_layers import FIELD
from kubequant_worker.methods.transformers_model import (
    Loading,
    context_length,
    load_model,
    load_tokenizer,
)
from kubequant_worker.methods.vocabulary import require_same
from kubequant_worker.sources.safetensors_header import read_header

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kubequant_worker.methods.child import Operation, Parent

# AdamW (Loshchilov and Hutter 2019) as language models are usually trained; vectors, which are
# norms and biases, are not decayed.
BETAS: Final = (0.9, 0.95)
WEIGHT_DECAY: Final = 0.01
LARGEST_NORM: Final = 1.0
# The student's logits of what goes through the models at once, in float32.
AT_ONCE_BYTES: Final = 256 << 20


class StoppedError(Exception):
    """The parent wants the training to stop."""


class DistillWork(Work):
    """Trains students."""

    def operations(self) -> Mapping[str, Operation]:
        """Return what the parent may ask for."""
        return {**super().operations(), "compare": self.compare, "layers": self.layers}

    def layers(self, teacher: str, count: int, trusted: bool) -> dict[str, list[Any]]:  # noqa: FBT001 - crosses a pipe
        """Return what transformers tells of each of the teacher's `count` layers."""
        remote_code.decide(trusted=trusted)
        return layer_lists(teacher, count, trusted=trusted)

    def compare(
        self,
        teacher: str,
        student: str,
        kept: Sequence[int] | None,
        trusted: bool,  # noqa: FBT001 - crosses a pipe
    ) -> dict[str, Any]:
        """Return how many numbers of a row of logits both models have, and each one's context.

        `kept` are the teacher's layers that the student is made of, None where it is another model.

        Raises:
            BadRequestError: Their tokenizers do not give the same tokens the same numbers, or a
                layer is of another kind than the one it is made of.
        """
        remote_code.decide(trusted=trusted)
        words, configs = [], []
        for path, field in ((teacher, "spec.model"), (student, FIELD)):
            configs.append(read_config(path, field, trusted=trusted))
            tokenizer = load_tokenizer(Path(path), trust_remote_code=trusted)
            words.append(tokenizer.get_vocab())
        require_same(*words)
        if kept is not None:
            require_same_layers(configs[0], configs[1], kept, trusted=trusted)
        widths = [int(config.get_text_config().vocab_size) for config in configs]
        contexts = {
            role: context_length(Path(path), trust_remote_code=trusted)
            for role, path in (("teacher", teacher), ("student", student))
        }
        return {"width": min(widths), "contexts": contexts}

    def quantize(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Train the student as `job` (see `distill.Distiller`) describes, save it, and tell of it.

        Stopped on the way, it leaves a checkpoint and returns nothing.
        """
        remote_code.decide(trusted=job["loading"]["trust_remote_code"])
        bound_gpu(job["gpu_bytes"])
        try:
            training = Training(self._parent, job)
            training.run()
        except StoppedError:
            return {}
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error).splitlines()[0]) from error
        self._parent.event("saving")
        training.save()
        return training.told()


class Training:
    """One student and its teacher."""

    def __init__(self, parent: Parent, job: Mapping[str, Any]) -> None:
        """Load both models, and go on from a checkpoint where there is one."""
        self._parent, self._job = parent, job
        torch.manual_seed(job["seed"])
        loading = Loading(**job["loading"])
        on_cpu = loading.device == "cpu"
        self._precision = _precision(on_cpu=on_cpu)
        self._accelerator = Accelerator(mixed_precision=self._precision, cpu=on_cpu)
        self._device: torch.device = self._accelerator.device
        self._teacher = load_model(Path(job["model"]), loading).requires_grad_(requires_grad=False)
        full = Loading(**{**job["loading"], "dtype": "float32"})
        student = load_model(Path(job["student"]), full).train()
        if job["low_memory"] and student.supports_gradient_checkpointing:
            student.activation_checkpointing_enable()
        self._student, self._optimizer = self._accelerator.prepare(student, _optimizer(student))
        self._samples = np.load(job["samples"], mmap_mode="r")
        self._require_known_tokens()
        self._order = Order(len(self._samples), job["batch"], job["seed"])
        self._progress = Progress(0, Curve(job["steps"]))
        self._kept_at = time.monotonic()
        self._kept_step: int | None = None
        self._left: Path | None = None
        self._at_once = self._sequences_at_once()
        if job["resume"]:
            self._go_on(Path(job["resume"]))
        self._random = random_state(self._device)

    def run(self) -> None:
        """Take every step that is left.

        Raises:
            StoppedError: The parent wanted it; a checkpoint was left.
            BadRequestError: The loss is no finite number.
        """
        job = self._job
        while self._progress.step < job["steps"]:
            step = self._progress.step
            rate = learning_rate(step, steps=job["steps"], peak=job["learning_rate"])
            found = self._step(step, rate)
            self._progress.step = step + 1
            self._progress.curve.add(step + 1, found, rate)
            self._random = random_state(self._device)
            self._parent.event("step", step + 1, *found)
            if time.monotonic() - self._kept_at >= job["checkpoint_seconds"]:
                self._keep()
        if self._kept_step is not None:
            # What took long enough to leave one is not trained again, whatever happens next.
            self._keep(anyway=True)

    def save(self) -> None:
        """Write the student in the types that it is stored in, and what it computes as it loads."""
        job = self._job
        target, source = Path(job["target"]), Path(job["student"])
        model = self._accelerator.unwrap_model(self._student, keep_fp32_wrapper=False).eval()
        spans = (span for path in source.glob("*.safetensors") for span in read_header(path))
        stored = {span.name: FLOATS[span.dtype] for span in spans if span.dtype in FLOATS}
        usual, computed = getattr(torch, job["stored"]), getattr(torch, job["loading"]["dtype"])
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(stored.get(name, usual)).float()
        save_pretrained(model, target, source)
        if job["probe"]:
            for parameter in model.parameters():
                parameter.data = parameter.data.to(computed)
            write_logits(model, self._device, Path(job["probe"]), Path(job["expected"]))

    def told(self) -> dict[str, Any]:
        """Return what the report says of the training."""
        count, length = self._samples.shape
        return {
            "steps": self._progress.step,
            "sequences": int(count),
            "sequence_length": int(length),
            "sequences_at_once": self._at_once,
            "precision": {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[self._precision],
            "resumed_at": self._progress.resumed_at,
            "points": self._progress.curve.points,
        }

    def _step(self, step: int, rate: float) -> tuple[float, float, float]:
        """Take a step and return its loss, divergence and hard loss, each a mean over tokens."""
        job = self._job
        rows = self._samples[self._order.batch_of(step)].astype(np.int64)
        tokens = rows.shape[0] * (rows.shape[1] - 1)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        divergence = hard = 0.0
        for first in range(0, len(rows), self._at_once):
            self._require_wanted()
            ids = torch.from_numpy(rows[first : first + self._at_once]).to(self._device)
            parts = losses(*self._logits(ids), ids[:, 1:], job["temperature"])
            share = job["hard_weight"]
            self._accelerator.backward(((1 - share) * parts[0] + share * parts[1]) / tokens)
            divergence += float(parts[0].detach()) / tokens
            hard += float(parts[1].detach()) / tokens
        loss = (1 - job["hard_weight"]) * divergence + job["hard_weight"] * hard
        if not np.isfinite(loss):
            raise BadRequestError(
                f"spec.distill.learningRate: at step {step + 1} the loss is no finite number any "
                f"more; {job['learning_rate']:g} is too much for this student",
                reason=FailureReason.VERIFICATION_FAILED,
                advice="set a lower learningRate, like a tenth of it",
            )
        self._accelerator.clip_grad_norm_(self._student.parameters(), LARGEST_NORM)
        self._optimizer.step()
        return loss, divergence, hard

    def _logits(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the student and the teacher predict after each token but the last."""
        with torch.no_grad(), self._accelerator.autocast():
            teacher = self._teacher(input_ids=ids, use_cache=False).logits
        student = self._student(input_ids=ids, use_cache=False).logits
        # A checkpoint may pad the rows of its output beyond the vocabulary.
        width = self._job["width"]
        return student[:, :-1, :width], teacher[:, :-1, :width]

    def _sequences_at_once(self) -> int:
        """Return how many sequences of a step go through the models together."""
        if self._job["low_memory"]:
            return 1
        row_bytes = 4 * self._job["width"] * int(self._samples.shape[1])
        return int(max(1, min(self._job["batch"], AT_ONCE_BYTES // row_bytes)))

    def _require_known_tokens(self) -> None:
        largest = int(self._samples.max())
        if largest >= self._job["width"]:
            raise BadRequestError(
                f"spec.distill.student: the text holds token {largest} of the teacher's, and the "
                f"student has {self._job['width']} tokens",
                reason=FailureReason.UNSUPPORTED_MODEL,
                advice="take a student with the teacher's whole vocabulary",
            )

    def _require_wanted(self) -> None:
        """Leave a last checkpoint and raise StoppedError where the parent wants to end this.

        It says only one thing while a training runs.
        """
        if self._parent.has_said():
            self._parent.receive()
            self._keep(anyway=True)
            raise StoppedError

    def _keep(self, *, anyway: bool = False) -> None:
        """Leave a checkpoint as of the last whole step, where there is none of it yet.

        While the parent still takes the one before to the store, only `anyway`: its file is gone
        when that is done.
        """
        step = self._progress.step
        is_busy = self._left is not None and self._left.exists()
        if step in {0, self._kept_step} or (is_busy and not anyway):
            return
        path = Path(self._job["checkpoints"]) / f"{step}.safetensors"
        scaler = self._accelerator.scaler
        save_state(
            path,
            identity=self._job["identity"],
            progress=self._progress,
            model=self._accelerator.unwrap_model(self._student),
            optimizer=self._optimizer.optimizer,
            random=self._random,
            scaler=scaler.state_dict() if scaler is not None else None,
        )
        self._kept_at, self._kept_step, self._left = time.monotonic(), step, path
        self._parent.event("checkpoint", step, str(path))

    def _go_on(self, path: Path) -> None:
        """Take the state of a checkpoint."""
        self._progress, scaler = load_state(
            path,
            model=self._accelerator.unwrap_model(self._student),
            optimizer=self._optimizer.optimizer,
            device=self._device,
            steps=self._job["steps"],
        )
        if scaler is not None and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(dict(scaler))
        self._kept_step = self._progress.step


def _precision(*, on_cpu: bool) -> str:
    """Return the type to compute products in, by accelerate's names; weights stay in float32."""
    if on_cpu:
        return "bf16" if has_bfloat16() else "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def _optimizer(student: Any) -> torch.optim.Optimizer:
    learning = [one for one in student.parameters() if one.requires_grad]
    decayed = [one for one in learning if one.ndim > 1]
    plain = [one for one in learning if one.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=BETAS)


if __name__ == "__main__":
    serve_engine(DistillWork)
