"""The two losses of distillation, in pieces of bounded memory.

Hinton, Vinyals and Dean 2015 (https://arxiv.org/abs/1503.02531): the divergence of the teacher's
and the student's distributions at a temperature, times its square so that gradients keep their
size, and the negative log-likelihood of the text itself. torch is imported here, so only children
import this module.
"""

from __future__ import annotations

from typing import Final

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.utils.checkpoint import checkpoint

# The rows that are compared at once, in float32; what is computed of them is computed again on the
# way back instead of being kept.
PIECE_BYTES: Final = 64 << 20


def losses(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the divergence and the hard loss, each summed over all tokens, in nats.

    `student` and `teacher` are logits of shape (sequences, tokens, vocabulary), `labels` the tokens
    that follow, of shape (sequences, tokens).
    """
    width = student.shape[-1]
    rows = max(1, PIECE_BYTES // (4 * width))
    pairs = zip(
        torch.split(student.reshape(-1, width), rows),
        torch.split(teacher.reshape(-1, width), rows),
        torch.split(labels.reshape(-1), rows),
        strict=True,
    )
    found = [_piece(one, other, follows, temperature, rows) for one, other, follows in pairs]
    divergence, hard = (torch.stack(part).sum() for part in zip(*found, strict=True))
    return divergence, hard


def _piece(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    rows: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    if len(student) < rows:
        return _compared(student, teacher, labels, temperature)
    pair: tuple[torch.Tensor, torch.Tensor] = checkpoint(
        _compared, student, teacher, labels, temperature, use_reentrant=False
    )
    return pair


def _compared(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    student, teacher = student.float(), teacher.float()
    ours = log_softmax(student / temperature, dim=-1)
    theirs = log_softmax(teacher / temperature, dim=-1)
    divergence = kl_div(ours, theirs, reduction="sum", log_target=True) * temperature**2
    return divergence, cross_entropy(student, labels, reduction="sum")
