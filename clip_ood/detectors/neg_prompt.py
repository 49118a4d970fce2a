"""NegPrompt's score, in which the learnt negative prompts of each class take part in the softmax."""

from __future__ import annotations

from typing import ClassVar

from clip_ood.detectors.eoe import EOE
from clip_ood.outputs import NegativeLabels, Reference


class NegPrompt(EOE):
    """Maximum concept matching beside negative prompts: max_c p_c, p = softmax over ID classes and negative prompts of cos(h, t) / τ.

    h: embeddings (N, E); t: the ID classes (C, E) and their learnt negative prompts (C · M, E) of the reference; τ: `tau` > 0. It is
    EOE's score with β = 0. Raises ValueError for another tau and for a reference without negative prompts.
    Li et al., 2024 (arXiv 2404.03248); τ = 1 is that of their code (mala-lab/NegPrompt, its score msp).
    """

    name: ClassVar[str] = "negprompt"
    requires: ClassVar[tuple[str, ...]] = ("embeddings", "negprompt")

    def __init__(self, reference: Reference | None = None, *, tau: float = 1.0) -> None:
        super().__init__(reference, beta=0.0, tau=tau)

    @property
    def outliers(self) -> NegativeLabels:
        return self.reference.negprompt
