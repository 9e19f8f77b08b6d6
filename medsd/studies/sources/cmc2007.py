"""The 2007 Computational Medicine Challenge: short radiology reports with ICD-9-CM codes, notes without images.

The note is history and impression, the labels are the majority's codes (finding set cmc2007), and a fixed fifth is the
test set, the same that `medsd compare` uses. One report is taken as one patient.
"""

import pandas as pd

from medsd.errors import DataError
from medsd.findings import finding_set
from medsd.settings import Cmc2007Source, SplitSettings
from medsd.studies.manifest import Manifest
from medsd.studies.published_reports import CMC2007_FILE, coded, read_coded_reports, tested_fifth
from medsd.studies.sources.tables import find_table, limited, manifest_of

_OWNER = "the 2007 Computational Medicine Challenge"


def read(settings: Cmc2007Source, splits: SplitSettings) -> Manifest:
    path = find_table(settings.root, (CMC2007_FILE,), _OWNER)
    reports, findings = read_coded_reports(path), finding_set("cmc2007")
    if strange := sorted(set().union(*(report.codes for report in reports)) - set(findings)):
        raise DataError(f"{path}: the code {strange[0]} is none of the challenge's; take the file as published")
    names = [report.name for report in reports]
    table = pd.DataFrame({"study": names, "patient": names, "note": [report.text for report in reports]})
    table = table.assign(source="cmc2007", tested=tested_fifth(reports))
    table[list(findings)] = coded(reports, findings.names)
    table = limited(table, settings.limit)
    return manifest_of(table, findings, settings.root, splits, table["tested"].to_numpy())
