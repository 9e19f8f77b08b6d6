"""What `medsd compare` measures: the keys of the figures in results.json, and their titles in the report."""

from collections.abc import Mapping

GROUPS = ("head", "middle", "tail")  # of the findings, by how often they occur in the training part
RANKINGS: Mapping[str, str] = {"precision": "P@10", "ranking_map": "mAP"}  # and their names in metrics.retrieval

MAIN: Mapping[str, str] = {
    "ndcg": "nDCG@{k}",
    "recall": "recall@{k}",
    "precision": "precision@10",
    "ranking_map": "mAP of the ranking",
    "map": "mAP",
    "micro_f1": "micro-F1",
    "macro_f1": "macro-F1",
    "auroc": "macro AUROC",
}
BY_FREQUENCY: Mapping[str, str] = {
    f"{metric}_{group}": f"{title}, {group}"
    for metric, title in (
        ("precision", "precision@10"),
        ("ranking_map", "mAP of the ranking"),
        ("map", "mAP"),
        ("macro_f1", "macro-F1"),
        ("auroc", "AUROC"),
    )
    for group in GROUPS
}
BEFORE_PROJECTION = {"ndcg_embedding": "nDCG@{k}, embedding"}
ALL_METRICS: Mapping[str, str] = {**MAIN, **BY_FREQUENCY, **BEFORE_PROJECTION}
