"""Moves OOD images onto ID features by small perturbations of their pixels."""

from clip_ood.adversarial.budget import Budget
from clip_ood.adversarial.perturb import Attack, perturb
from clip_ood.adversarial.smoothness import roughness, total_variation

__all__ = ["Attack", "Budget", "perturb", "roughness", "total_variation"]
