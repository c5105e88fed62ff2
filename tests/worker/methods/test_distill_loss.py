"""The losses of distillation against the formulas, and a training's state there and back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from kubequant_worker.methods import distill_loss
from kubequant_worker.methods.distill_identity import identity, is_of
from kubequant_worker.methods.distill_loss import losses
from kubequant_worker.methods.distill_schedule import Curve
from kubequant_worker.methods.distill_state import Progress, load_state, random_state, save_state
from kubequant_worker.sources.safetensors_header import read_header, read_metadata

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")


def softmax(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers = np.exp(rows - rows.max(-1, keepdims=True))
    found: np.ndarray[Any, Any] = powers / powers.sum(-1, keepdims=True)
    return found


def logits(seed: int) -> torch.Tensor:
    return torch.randn((2, 5, 11), generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_losses_are_those_of_the_paper(temperature: float) -> None:
    student, teacher = logits(1), logits(2)
    labels = torch.arange(10).reshape(2, 5) % 11

    divergence, hard = losses(student, teacher, labels, temperature)

    ours, theirs = (softmax(one.double().numpy() / temperature) for one in (student, teacher))
    expected = temperature**2 * (theirs * (np.log(theirs) - np.log(ours))).sum()
    likely = softmax(student.double().numpy()).reshape(-1, 11)
    assert float(divergence) == pytest.approx(expected, rel=1e-5)
    assert float(hard) == pytest.approx(
        -np.log(likely[np.arange(10), labels.reshape(-1).numpy()]).sum(), rel=1e-5
    )


def test_a_student_that_is_its_teacher_has_no_divergence() -> None:
    divergence, _ = losses(logits(1), logits(1), torch.zeros((2, 5), dtype=torch.int64), 2.0)

    assert float(divergence) == pytest.approx(0, abs=1e-5)


def test_pieces_give_the_same_losses_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for piece_bytes in (1 << 20, 3 * 4 * 11):  # all rows at once, and three at once
        monkeypatch.setattr(distill_loss, "PIECE_BYTES", piece_bytes)
        student = logits(1).requires_grad_()
        parts = losses(student, logits(2), torch.ones((2, 5), dtype=torch.int64), 2.0)
        (0.9 * parts[0] + 0.1 * parts[1]).backward()
        assert student.grad is not None
        found.append((float(parts[0].detach()), float(parts[1].detach()), student.grad))

    assert found[0][:2] == pytest.approx(found[1][:2])
    assert torch.allclose(found[0][2], found[1][2])


class Learner:
    """A small model with dropout, so that random numbers matter, and its optimizer."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(8, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1, bias=False)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.ones(4, 8)).square().mean().backward()
        self.optimizer.step()

    def weights(self) -> list[torch.Tensor]:
        return [one.detach().clone() for one in self.model.parameters()]

    def keep(self, path: Path, step: int, **changes: Any) -> None:
        save_state(
            path,
            **{
                "identity": "a",
                "progress": Progress(step, Curve(10), [1]),
                "model": self.model,
                "optimizer": self.optimizer,
                "random": random_state(CPU),
                "scaler": None,
                **changes,
            },
        )


def test_a_training_goes_on_from_its_state_as_if_nothing_had_happened(tmp_path: Path) -> None:
    path = tmp_path / "3.safetensors"
    first = Learner()
    for _ in range(3):
        first.step()
    first.keep(path, 3, scaler={"scale": 2.0, "_growth_tracker": 7})
    for _ in range(3):
        first.step()

    second = Learner()
    progress, scaler = load_state(
        path, model=second.model, optimizer=second.optimizer, device=CPU, steps=10
    )
    for _ in range(3):
        second.step()

    assert all(
        one.equal(other) for one, other in zip(first.weights(), second.weights(), strict=True)
    )
    assert (progress.step, progress.resumed_at) == (3, [1, 3])
    assert scaler == {"scale": 2.0, "_growth_tracker": 7}


def test_a_state_holds_tensors_and_json_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "1.safetensors"
    learner = Learner()
    learner.step()
    learner.keep(path, 1)

    assert {span.name.partition("/")[0] for span in read_header(path)} == {
        "weight", "exp_avg", "exp_avg_sq", "random",
    }  # fmt: skip
    metadata = read_metadata(path)
    assert metadata.keys() == {"identity", "state"}
    assert json.loads(metadata["state"])["step"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "1.safetensors"
    learner = Learner()
    learner.step()
    learner.keep(path, 1)
    other = Learner()
    other.model[0] = torch.nn.Linear(8, 9)

    with pytest.raises(ValueError, match="has the shape"):
        load_state(path, model=other.model, optimizer=other.optimizer, device=CPU, steps=10)


def test_only_a_whole_state_of_the_same_work_is_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "1.safetensors"
    Learner().keep(path, 1)

    assert is_of(path, "a")
    assert not is_of(path, "b")
    path.write_bytes(path.read_bytes()[:-1])
    assert not is_of(path, "a")


def test_what_a_training_computes_from_names_it(tmp_path: Path) -> None:
    from kubequant.api.params import DistillParameters  # noqa: PLC0415 - beside its only use
    from kubequant_worker.file_digest import FileDigest  # noqa: PLC0415 - as above

    samples = tmp_path / "samples.npy"
    np.save(samples, np.arange(8, dtype=np.int32))
    other = tmp_path / "other.npy"
    np.save(other, np.arange(9, dtype=np.int32))
    files = {"model": [FileDigest("m", 1, "0" * 64)]}
    usual = DistillParameters()

    def named(
        parameters: DistillParameters = usual, path: Path = samples, seed: int = 0, **more: Any
    ) -> str:
        return identity(parameters, seed=seed, samples=path, models={**files, **more})

    others = (
        named(DistillParameters(steps=2)),
        named(path=other),
        named(seed=1),
        named(model=[FileDigest("m", 1, "1" * 64)]),
        named(student=[FileDigest("m", 1, "0" * 64)]),
    )
    assert len({named(), *others}) == 1 + len(others)
    assert named(DistillParameters(checkpoint_seconds=1)) == named()
