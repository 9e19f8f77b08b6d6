"""Open-i's MeSH headings, carried over into the names of nih14, against the labels of `findings14.csv`.

Run `python tests/bench/bench_mesh.py --data FOLDER`; it prints a Markdown table: for each finding the reports of each,
F1 and Cohen's kappa over the reports that both know. It checks the map, not a reader: both come from one indexing.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from sklearn.metrics import cohen_kappa_score

from medsd.findings import finding_set
from medsd.settings import OpeniSource, SplitSettings
from medsd.studies.sources import in_findings, openi

NIH14 = finding_set("nih14")


def main() -> None:
    """Print the table."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MEDSD_DATA") or beside))
    root = parser.parse_args().data / "openi_reports"
    if not root.is_dir():
        print(f"no folder {root}; set MEDSD_DATA")
        return
    checked = openi.read(OpeniSource(source="openi", root=root), SplitSettings())
    headed = openi.read(OpeniSource(source="openi", root=root, labels="mesh"), SplitSettings())
    mapped = in_findings(headed, NIH14).labels
    print("| finding | reports | checked | MeSH | both | F1 | kappa |\n|---|---|---|---|---|---|---|")
    for name, one, other in zip(NIH14, checked.labels.T, mapped.T, strict=True):
        known = ~np.isnan(one) & ~np.isnan(other)
        a, b = one[known] == 1, other[known] == 1
        both, either = int((a & b).sum()), int(a.sum() + b.sum())
        scores = f"{2 * both / either:.3f} | {cohen_kappa_score(a, b):.3f}" if either else "– | –"
        print(f"| {name} | {known.sum()} | {a.sum()} | {b.sum()} | {both} | {scores} |")
    labelled = {key: in_findings(headed, finding_set(key)).labels for key in ("nih14", "chexpert14")}
    for key, labels in labelled.items():
        known = np.mean(~np.isnan(labels), axis=0)
        told = ", ".join(f"{name} {share:.0%}" for name, share in zip(finding_set(key), known, strict=True))
        print(f"\nKnown in {key}: {told}")


if __name__ == "__main__":
    main()
