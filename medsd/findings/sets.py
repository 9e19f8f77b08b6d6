"""The vocabularies of the public data sets, of the phantom and of Open-i's MeSH headings, with their codes.

SNOMED CT and RadLex identifiers are given where a concept of that name exists and was looked up: SNOMED CT by its
fully specified name in published maps and value sets, RadLex 4.3 by its preferred label. Where a data set's label is
wider than any one concept (NIH's «Infiltration», CheXpert's «Support Devices»), the nearest one is given; where none
was found, the code is empty. Tubes, lines and pacemakers have the codes of the objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from medsd.errors import DataError
from medsd.findings.icd9 import CMC2007
from medsd.findings.vocabulary import Finding, FindingSet

_ATELECTASIS = Finding("Atelectasis", "Atelectasis", "46621007", "RID28493", ("collapse", "volume loss"))
# RadLex 4.3 has no class for a large heart; RID35057, often seen for it, is the «boxlike heart» of Ebstein's anomaly.
_CARDIOMEGALY = Finding("Cardiomegaly", "Cardiomegaly", "8186001", "", ("enlarged heart", "cardiac enlargement"))
_CONSOLIDATION = Finding("Consolidation", "Consolidation", "95436008", "RID43255", ("airspace disease",))
_EDEMA = Finding("Edema", "Pulmonary oedema", "19242006", "RID4866", ("pulmonary edema", "vascular congestion"))
_EFFUSION = Finding("Effusion", "Pleural effusion", "60046008", "RID34539", ("pleural effusion", "pleural fluid"))
_EMPHYSEMA = Finding("Emphysema", "Emphysema", "87433001", "RID4799", ("hyperinflation",))
_FIBROSIS = Finding("Fibrosis", "Fibrosis", "51615001", "RID3820", ("pulmonary fibrosis", "scarring"))
_HERNIA = Finding("Hernia", "Hiatal hernia", "84089009", "", ("hiatus hernia",))
_INFILTRATION = Finding("Infiltration", "Infiltration", "409609008", "", ("infiltrate", "opacity"))
_MASS = Finding("Mass", "Mass", "309529002", "RID39056", ("lung mass",))
_NODULE = Finding("Nodule", "Nodule", "427359005", "RID50149", ("pulmonary nodule",))
_PLEURAL_THICKENING = Finding("Pleural_Thickening", "Pleural thickening", "", "", ("pleural plaque",))
_PNEUMONIA = Finding("Pneumonia", "Pneumonia", "233604007", "RID5350", ("infection",))
_PNEUMOTHORAX = Finding("Pneumothorax", "Pneumothorax", "36118008", "RID5352", ())
_SUPPORT_DEVICES = Finding(
    "Support Devices", "Support devices", "", "RID29033", ("tube", "line", "pacemaker", "catheter")
)
_FRACTURE = Finding("Fracture", "Fracture", "125605004", "RID4650")
_LUNG_OPACITY = Finding("Lung Opacity", "Lung Opacity", "", "RID28530")
_ILD = Finding("ILD", "ILD", "233703007")
_COPD = Finding("COPD", "COPD", "13645005")
_SCOLIOSIS = Finding("scoliosis", "Scoliosis", "298382003")
_NIH14 = (
    _ATELECTASIS,
    _CARDIOMEGALY,
    _CONSOLIDATION,
    _EDEMA,
    _EFFUSION,
    _EMPHYSEMA,
    _FIBROSIS,
    _HERNIA,
    _INFILTRATION,
    _MASS,
    _NODULE,
    _PLEURAL_THICKENING,
    _PNEUMONIA,
    _PNEUMOTHORAX,
)


def _plain(*names: str) -> tuple[Finding, ...]:
    """Findings without codes, titled by their own names."""
    return tuple(Finding(name, name[:1].upper() + name[1:]) for name in names)


def _heading(finding: Finding, name: str, *others: str) -> Finding:
    """A MeSH heading for `finding`; `others` are further headings that the annotators used for the same."""
    return replace(finding, name=name, synonyms=others)


# Demner-Fushman et al., JAMIA 2016: the manually coded headings («major») of Open-i's reports that name a finding. A
# heading fits a finding when its first part is the name's and its qualifiers include the name's: «Opacity/lung/base/
# left» fits «Opacity/lung». Headings of fewer than about ten reports are left out, unless another set has the finding.
_MESH = (
    *_plain("Airspace Disease"),
    Finding("Aorta/tortuous", "Tortuous aorta", synonyms=("aorta, thoracic/tortuous",)),
    *_plain("Calcified Granuloma"),
    _heading(_CARDIOMEGALY, "Cardiomegaly", "cardiac shadow/enlarged"),
    Finding("Catheters, Indwelling", "Indwelling catheter", "", "RID5576"),
    Finding("Cicatrix/lung", "Lung scar"),
    _heading(_CONSOLIDATION, "Consolidation"),
    Finding("Costophrenic Angle/blunted", "Blunted costophrenic angle"),
    Finding("Diaphragm/elevated", "Elevated diaphragm"),
    _heading(_EMPHYSEMA, "Emphysema", "pulmonary emphysema", "bullous emphysema"),
    _heading(_FRACTURE, "Fractures, Bone"),
    *_plain("Granulomatous Disease"),
    _heading(_HERNIA, "Hernia, Hiatal"),
    Finding("Implanted Medical Device", "Implanted device", "", "RID5429", ("medical device",)),
    _heading(_INFILTRATION, "Infiltrate"),
    _heading(replace(_ILD, title="Interstitial lung disease"), "Lung Diseases, Interstitial"),
    Finding("Lung/hyperdistention", "Hyperdistended lungs"),
    Finding("Lung/hypoinflation", "Low lung volumes"),
    _heading(_MASS, "Mass/lung"),
    Finding("Mediastinum/enlarged", "Enlarged mediastinum"),
    _heading(_NODULE, "Nodule"),
    _heading(_LUNG_OPACITY, "Opacity/lung"),
    _heading(_EFFUSION, "Pleural Effusion", "hydropneumothorax"),
    _heading(_PNEUMONIA, "Pneumonia"),
    _heading(_PNEUMOTHORAX, "Pneumothorax", "hydropneumothorax"),
    _heading(_ATELECTASIS, "Pulmonary Atelectasis"),
    *_plain("Pulmonary Congestion"),
    _heading(replace(_COPD, title="Chronic obstructive disease"), "Pulmonary Disease, Chronic Obstructive"),
    _heading(_EDEMA, "Pulmonary Edema"),
    _heading(_FIBROSIS, "Pulmonary Fibrosis", "idiopathic pulmonary fibrosis"),
    _heading(_SCOLIOSIS, "Scoliosis"),
    *_plain("Surgical Instruments"),
    _heading(_PLEURAL_THICKENING, "Thickening/pleura"),
    *_plain("Tube, Inserted"),
)

FINDING_SETS: Mapping[str, FindingSet] = {
    # Wang et al., ChestX-ray8, CVPR 2017; fourteen labels in the 2017 extension, alphabetical order.
    "nih14": FindingSet("nih14", _NIH14, negatives=("No Finding",)),
    # What the synthetic thorax of `medsd.studies.phantom` can draw.
    "phantom8": FindingSet(
        "phantom8",
        (
            _ATELECTASIS,
            _CARDIOMEGALY,
            _CONSOLIDATION,
            _EDEMA,
            _EFFUSION,
            _MASS,
            _PNEUMOTHORAX,
            _SUPPORT_DEVICES,
        ),
        negatives=("No Finding",),
    ),
    # The labels of the Open-i reports that NegBio was tested on have the names of nih14 (Peng et al., AMIA 2018).
    "openi14": FindingSet("openi14", _NIH14, negatives=("normal",)),
    "mesh": FindingSet("mesh", _MESH, negatives=("normal",)),
    # Irvin et al., CheXpert, AAAI 2019, in the order of its table; MIMIC-CXR-JPG has the same labels. Its fourteenth
    # observation, «No Finding», is the negative; it says nothing of support devices.
    "chexpert14": FindingSet(
        "chexpert14",
        (
            *_plain("Enlarged Cardiomediastinum"),
            _CARDIOMEGALY,
            _LUNG_OPACITY,
            *_plain("Lung Lesion"),
            _EDEMA,
            _CONSOLIDATION,
            _PNEUMONIA,
            _ATELECTASIS,
            _PNEUMOTHORAX,
            replace(_EFFUSION, name="Pleural Effusion"),
            *_plain("Pleural Other"),
            _FRACTURE,
            _SUPPORT_DEVICES,
        ),
        negatives=("No Finding",),
    ),
    # Nguyen et al., VinDr-CXR, Scientific Data 2022: twenty-two local labels, then the global ones (diagnoses).
    "vindr": FindingSet(
        "vindr",
        (
            *_plain("Aortic enlargement"),
            _ATELECTASIS,
            Finding("Calcification", "Calcification", "", "RID5196"),
            _CARDIOMEGALY,
            Finding("Clavicle fracture", "Clavicle fracture", "58150001"),
            _CONSOLIDATION,
            _EDEMA,
            _EMPHYSEMA,
            *_plain("Enlarged PA"),
            _ILD,
            _INFILTRATION,
            _LUNG_OPACITY,
            *_plain("Lung cavity", "Lung cyst", "Mediastinal shift", "Nodule/Mass"),
            replace(_EFFUSION, name="Pleural effusion"),
            replace(_PLEURAL_THICKENING, name="Pleural thickening"),
            _PNEUMOTHORAX,
            replace(_FIBROSIS, name="Pulmonary fibrosis"),
            Finding("Rib fracture", "Rib fracture", "33737001"),
            *_plain("Other lesion"),
            _COPD,
            Finding("Lung tumor", "Lung tumor", "126713003"),
            _PNEUMONIA,
            Finding("Tuberculosis", "Tuberculosis", "154283005"),
            *_plain("Other diseases"),
        ),
        negatives=("No finding",),
    ),
    "cmc2007": CMC2007,
    # Bustos et al., PadChest, Medical Image Analysis 2020: of its 174 findings those that are common on frontal films.
    "padchest": FindingSet(
        "padchest",
        (
            Finding("air trapping", "Air trapping", "76171001", "RID28537"),
            *_plain("alveolar pattern", "aortic elongation"),
            replace(_ATELECTASIS, name="atelectasis"),
            *_plain("calcified granuloma"),
            replace(_CARDIOMEGALY, name="cardiomegaly"),
            Finding("central venous catheter", "Central venous catheter", "52124006", "RID5578"),
            *_plain("COPD signs"),
            replace(_CONSOLIDATION, name="consolidation"),
            *_plain("costophrenic angle blunting"),
            replace(_EMPHYSEMA, name="emphysema"),
            Finding("endotracheal tube", "Endotracheal tube", "26412008", "RID5557"),
            *_plain("hemidiaphragm elevation"),
            replace(_HERNIA, name="hiatal hernia"),
            replace(_INFILTRATION, name="infiltrates"),
            *_plain("interstitial pattern"),
            replace(_NODULE, name="nodule"),
            Finding("NSG tube", "NSG tube", "", "RID5566"),
            Finding("pacemaker", "Pacemaker", "14106009", "RID5436"),
            replace(_EFFUSION, name="pleural effusion"),
            replace(_PLEURAL_THICKENING, name="pleural thickening"),
            replace(_PNEUMONIA, name="pneumonia"),
            replace(_PNEUMOTHORAX, name="pneumothorax"),
            replace(_EDEMA, name="pulmonary edema"),
            replace(_FIBROSIS, name="pulmonary fibrosis"),
            replace(_MASS, name="pulmonary mass"),
            _SCOLIOSIS,
        ),
        negatives=("normal",),
    ),
}


def finding_set(key: str) -> FindingSet:
    """The vocabulary called `key`.

    Raises:
        DataError: there is none of that name.
    """
    try:
        return FINDING_SETS[key]
    except KeyError:
        raise DataError(f"there is no finding set '{key}'; medsd has {', '.join(sorted(FINDING_SETS))}") from None
