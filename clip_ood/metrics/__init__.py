"""Metrics of out-of-distribution detection; names are loaded on first use, so importing this imports no torch."""

from importlib import import_module

_MODULE_OF = {
    "Ranking": "ranking",
    "rank_scores": "ranking",
    "METRICS": "curves",
    "curve_metrics": "curves",
    "pr_curve": "curves",
    "roc_curve": "curves",
    "Influence": "influence",
    "auroc_influence": "influence",
    "precision_influence": "influence",
    "standard_error": "influence",
    "interval": "intervals",
    "Estimate": "ood",
    "mean_over_sets": "ood",
    "ood_metrics": "ood",
    "OODMetrics": "metric",
    "RiskCoverage": "joint",
    "OpenSetMetrics": "joint",
    "auoscr": "open_set",
    "auoscr_influence": "open_set",
    "oscr_curve": "open_set",
    "augrc": "risk_coverage",
    "aurc": "risk_coverage",
    "scod_aurc": "risk_coverage",
    "scod_losses": "risk_coverage",
    "selective_risks": "risk_coverage",
    "ImageScores": "image_scores",
    "weighted_vote": "knn_accuracy",
}
__all__ = list(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_MODULE_OF)}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
