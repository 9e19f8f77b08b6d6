"""Words and codes of the standard that name a view, a body part and a species, and what they mean to the gate.

Only what stands in these tables is ever taken from a header or shown in a message: any free-text element may hold a
patient's name. Start at `view_in`, `body_parts_in` and `names_animal`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# PS3.3 C.7.3.1.1.1, the defined terms that meet a chest reader, and retired ones.
MODALITIES = {
    "CR", "DX", "RG", "CT", "MR", "NM", "PT", "US", "XA", "RF", "MG", "IO", "PX", "DR", "OT", "SC", "BMD", "ES", "GM",
    "SM", "XC", "OP", "OCT", "ECG", "HD", "SR", "PR", "KO", "SEG", "REG", "DOC", "RTIMAGE", "RTDOSE", "RTSTRUCT",
    "RTPLAN", "RTRECORD", "DF", "DG", "IVUS", "LS", "TG", "VL", "MA", "MS",
}  # fmt: skip

# PS3.16 annex L and what modalities write instead of it; shown in messages, so nothing else is.
_BODY_WORDS = {
    "ABDOMEN", "ANKLE", "ARM", "BREAST", "BRAIN", "CALCANEUS", "CHEST", "CLAVICLE", "COCCYX", "CSPINE", "ELBOW",
    "EXTREMITY", "FACE", "FEMUR", "FINGER", "FOOT", "FOREARM", "HAND", "HEAD", "HEART", "HIP", "HUMERUS", "JAW",
    "KNEE", "LEG", "LSPINE", "LUNG", "LUNGS", "MANDIBLE", "NECK", "PATELLA", "PELVIS", "PULMONARY", "RIB", "RIBS",
    "RIBCAGE", "SACRUM", "SCAPULA", "SHOULDER", "SINUS", "SKULL", "SPINE", "STERNUM", "STOMACH", "TIBIA", "THIGH",
    "THORAX", "TSPINE", "TOE", "WHOLEBODY", "WRIST", "ZYGOMA",
}  # fmt: skip
# The chest in other languages, as consoles write it.
_BODY_SYNONYMS = {
    "TORAX": "THORAX", "TORACE": "THORAX", "THORACIC": "THORAX", "CXR": "CHEST", "LUNGE": "LUNG", "PULMON": "LUNG",
    "POUMON": "LUNG", "POUMONS": "LUNGS", "POLMONE": "LUNG", "POLMONI": "LUNGS",
}  # fmt: skip
# These words say something else in a description: «face» is frontal in French, a head or a leg may be up or raised.
_UNSURE_IN_TEXT = {"ARM", "FACE", "HEAD", "HEART", "LEG", "NECK", "SPINE", "STOMACH"}

_VIEW_WORDS = {
    "PA": "PA", "AP": "AP", "POSTEROANTERIOR": "PA", "ANTEROPOSTERIOR": "AP", "FRONTAL": "FRONTAL",
    "LL": "LATERAL", "RL": "LATERAL", "LAT": "LATERAL", "LATERAL": "LATERAL", "LLAT": "LATERAL", "RLAT": "LATERAL",
    "SAGITTAL": "LATERAL", "LATERALE": "LATERAL", "SEITLICH": "LATERAL", "PROFIL": "LATERAL",
    "RLD": "OTHER", "LLD": "OTHER", "DECUB": "OTHER", "DECUBITUS": "OTHER", "OBLIQUE": "OTHER", "OBL": "OTHER",
    "LORDOTIC": "OTHER", "RLO": "OTHER", "LLO": "OTHER", "RAO": "OTHER", "LAO": "OTHER", "RPO": "OTHER", "LPO": "OTHER",
}  # fmt: skip
# Initials and abbreviations of two letters mean a view only in the element that is made for it.
_UNSURE_VIEWS_IN_TEXT = {"RL", "LAO", "RAO", "LPO", "RPO"}

# PS3.16 CID 4010 DX View (and the decubitus views of CID 501): SNOMED CT, and the SRT codes of before 2017.
_VIEW_CODES: Mapping[str, str] = {
    "272479007": "PA", "R-40888": "PA", "R-10214": "PA", "399348003": "AP", "R-10206": "AP",
    "399033003": "FRONTAL", "R-10202": "FRONTAL",
    "399067008": "LATERAL", "R-102CD": "LATERAL", "399173006": "LATERAL", "R-10236": "LATERAL",
    "399198007": "LATERAL", "R-10232": "LATERAL", "30730003": "LATERAL", "G-A145": "LATERAL",
    "399352003": "LATERAL", "R-10228": "LATERAL", "399260004": "LATERAL", "R-10224": "LATERAL",
    "399312000": "OTHER", "R-10208": "OTHER", "399160007": "OTHER", "R-10204": "OTHER", "399132005": "OTHER",
    "R-10252": "OTHER", "260427002": "OTHER", "R-40783": "OTHER", "399135007": "OTHER", "R-10220": "OTHER",
    "399184004": "OTHER", "R-10238": "OTHER", "399006002": "OTHER", "R-10212": "OTHER", "399182000": "OTHER",
    "R-102C1": "OTHER", "399059000": "OTHER", "R-10216": "OTHER", "399356000": "OTHER", "R-40985": "OTHER",
    "399236003": "OTHER", "R-10234": "OTHER", "399038007": "OTHER", "R-10210": "OTHER",
}  # fmt: skip

# PS3.16 CID 4009 DX Anatomy Imaged: what meets a chest reader, SNOMED CT and SRT. Others are told by their meaning.
_REGION_CODES: Mapping[str, str] = {
    "816094009": "CHEST", "51185008": "CHEST", "T-D3000": "CHEST", "43799004": "CHEST", "T-D3200": "CHEST",
    "39607008": "LUNG", "T-28000": "LUNG", "416550000": "CHEST ABDOMEN", "R-FAB55": "CHEST ABDOMEN",
    "417437006": "NECK CHEST", "R-FAB52": "NECK CHEST", "416152001": "NECK CHEST ABDOMEN",
    "R-FAB53": "NECK CHEST ABDOMEN", "113197003": "RIB", "T-11300": "RIB", "56873002": "STERNUM", "T-11210": "STERNUM",
    "818981001": "ABDOMEN", "T-D4000": "ABDOMEN", "816092008": "PELVIS", "T-D6000": "PELVIS", "89546000": "SKULL",
    "T-11100": "SKULL", "85562004": "HAND", "T-D8700": "HAND", "122495006": "TSPINE", "T-11502": "CSPINE",
}  # fmt: skip

# PS3.16 CID 7454 Animal Taxonomic Rank Values: man, SNOMED CT and SRT.
HUMAN_CODES = {"337915000", "L-85003", "L-85B00"}
_HUMAN_WORDS = {"HUMAN", "HOMO", "SAPIENS", "MENSCH", "HUMAIN", "UMANO", "HUMANO"}
_ANIMAL_WORDS = {"ANIMAL", "AVIAN", "BOVINE", "CANINE", "EQUINE", "FELINE", "OVINE", "PORCINE", "VETERINARY"}


def view_in(text: str, *, free: bool = False) -> str:
    """The view that `text` (upper case) names: PA, AP, FRONTAL, LATERAL, OTHER, or "" where it names none or several.

    Args:
        text: of View Position or a code's meaning, or a description.
        free: a description, in which short words may be something else.
    """
    joined = text.replace("-", "")  # «antero-posterior», but «frontal-oblique» too
    words = set(re.findall(r"[A-Z]+", f"{text} {joined}")) - (_UNSURE_VIEWS_IN_TEXT if free else set())
    found = {_VIEW_WORDS[word] for word in words if word in _VIEW_WORDS}
    if "OTHER" in found:  # an oblique or decubitus film is no frontal one, whatever stands beside it
        return "OTHER"
    if "LATERAL" in found:
        return "LATERAL" if found == {"LATERAL"} else ""
    precise = found - {"FRONTAL"}
    return precise.pop() if len(precise) == 1 else "FRONTAL" if found else ""


def view_of_code(code: str) -> str:
    """The view that a code value of (0054,0220) View Code Sequence stands for, "" where it is none of CID 4010's."""
    return _VIEW_CODES.get(code, "")


def body_parts_in(text: str, *, free: bool = False) -> str:
    """The known body parts that `text` (upper case) names, space between them.

    Args:
        text: of Body Part Examined or a code's meaning, or a description.
        free: a description, in which some words are something else and unknown ones say nothing.

    Returns:
        the words; "" for an empty text; "OTHER" for one without a known word, "" if it is a description.
    """
    words = [_BODY_SYNONYMS.get(word, word) for word in re.findall(r"[A-Z]+", text)]
    known = [word for word in words if word in _BODY_WORDS and not (free and word in _UNSURE_IN_TEXT)]
    if known:
        return " ".join(dict.fromkeys(known))
    return "OTHER" if text and not free else ""


def region_of_code(code: str) -> str:
    """The body part that a code value of (0008,2218) Anatomic Region Sequence stands for, "" where it is not known."""
    return _REGION_CODES.get(code, "")


def names_human(text: str) -> bool:
    """Whether a species' description (upper case) is that of man."""
    return bool(_HUMAN_WORDS.intersection(re.findall(r"[A-Z]+", text)))


def names_animal(text: str) -> bool:
    """Whether a description (upper case) speaks of an animal."""
    return bool(_ANIMAL_WORDS.intersection(re.findall(r"[A-Z]+", text)))
