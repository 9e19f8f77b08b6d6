"""Reports as other programs read them."""

from typing import Any

from highdicom.sr import sop
from pydicom import Dataset
from pydicom.uid import Comprehensive3DSRStorage

from medsd.results.codes import REPORT


def findings_of(document: Dataset) -> dict[tuple[str, str], tuple[float | None, str]]:
    """What a measurement report says: scheme and value of each finding's code → probability and meaning of the call."""
    three = document.SOPClassUID == Comprehensive3DSRStorage
    content: Any = (sop.Comprehensive3DSR if three else sop.ComprehensiveSR).from_dataset(document).content
    groups = [*content.get_image_measurement_groups(), *content.get_planar_roi_measurement_groups()]
    said = {}
    for group in groups:
        if group.finding_type is None:
            continue
        number = group.get_measurements(name=REPORT["probability"])
        call = group.get_qualitative_evaluations(name=REPORT["call"])[0]
        key = (group.finding_type.scheme_designator, group.finding_type.value)
        said[key] = (number[0].value if number else None, call.value.meaning)
    return said
