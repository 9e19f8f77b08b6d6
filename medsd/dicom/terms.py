"""Words and codes of the standard that name a view, a body part and a species, and what they mean to the gate.

Only what stands in these tables is ever taken from a header or shown in a message: any free-text element may hold a
patient's name. Start at `view_in`, `body_parts_in` and `names_animal`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import cache

# PS3.3 C.7.3.1.1.1, the defined terms that meet a chest reader, retired ones, and what makers write instead.
MODALITIES = {
    "CR", "DX", "RG", "DR", "XR", "RX", "CT", "MR", "NM", "PT", "US", "XA", "RF", "MG", "IO", "PX", "OT", "SC", "BMD",
    "ES", "GM", "SM", "XC", "OP", "OCT", "ECG", "HD", "SR", "PR", "KO", "SEG", "REG", "DOC", "RTIMAGE", "RTDOSE",
    "RTSTRUCT", "RTPLAN", "RTRECORD", "DF", "DG", "IVUS", "LS", "TG", "VL", "MA", "MS",
}  # fmt: skip

# PS3.16 annex L and what modalities write instead of it; shown in messages, so nothing else is.
_BODY_WORDS = {
    "ABDOMEN", "ANKLE", "ARM", "BREAST", "BRAIN", "CALCANEUS", "CHEST", "CLAVICLE", "COCCYX", "CSPINE", "ELBOW",
    "EXTREMITY", "FACE", "FEMUR", "FINGER", "FOOT", "FOREARM", "HAND", "HEAD", "HEART", "HIP", "HUMERUS", "JAW",
    "KNEE", "LEG", "LSPINE", "LUNG", "LUNGS", "MANDIBLE", "NECK", "PATELLA", "PELVIS", "PULMONARY", "RIB", "RIBS",
    "RIBCAGE", "SACRUM", "SCAPULA", "SHOULDER", "SINUS", "SKULL", "SPINE", "STERNUM", "STOMACH", "TIBIA", "THIGH",
    "THORAX", "TSPINE", "TOE", "WHOLEBODY", "WRIST", "ZYGOMA",
}  # fmt: skip
# The tables below name what their lines begin with in other languages: words as `normalised` leaves them, `*` for any
# letters. The first line that fits a word counts. Descriptions are searched for the words of the first table of each
# pair alone; those of the second are too short for them, or part of other words ("Manchester") there.
_BODY_SYNONYMS = """
TSPINE BWS THORACOL* THORAKOL* TORACOL* TORAKOL* BRUSTWIRBEL* *胸椎* *흉추*
THORAX THORAX* THORAC* THORAK* TORAX* TORAC* TORAK*
CHEST  CXR BRUST BRUSTKORB* BORST BORSTKAS* BROST BROSTKORG* BRYST* RINTA RINTAKEHA* RINDKERE* KRUTINE* KRUTIS BRJOST*
CHEST  KRUSKURV* PECHO POITRINE PETTO PEITO PIEPT KLATKA HRUD HRUDN* PRSA PRSNI PRSNIK* GRUD* MELLKAS* GOGUS* NGUC
CHEST  ГРУДЬ ГРУДИ ГРУДН* ГРЪД* ОГК ОГП ΘΩΡΑΚ* صدر الصدر חזה ทรวงอก *胸* *흉부* *가슴*
LUNG   LUNGE LUNGEN* LUNGER LUNGOR LUNGA PULM* POUMON* POLMON* LONGEN PLUCA PLUC PLICE KEUHKO* KOPSUD PLAUC* PLAUS*
LUNG   AKCIGER* TUDO TUDOK PLAMAN* PARU PHOI ЛЕГК* ЛЕГЕН* ΠΝΕΥΜΟΝ* *肺* *폐*
"""
_BODY_SYNONYMS_IN_ELEMENT = """
CHEST  *CHEST* CH CHE CHS CHST CHX DADA
LUNG   LUNG*
THORAX *THORAX* *TORAX* *TORAKS* TH THO THX THRX TRX TX KLP
"""
# Beside one of these an adjective of the chest means the thoracic spine.
_SPINES = """
SPINE  SPINE *WIRBEL* RACHIS COLUMNA COLONNE COLONNA COLUNA KREGOSLUP* PATER PATERE VERTEBR* OMURGA* WERVEL*
SPINE  ПОЗВОНОЧН* ХРЕБ*
"""
_SAYS_NOTHING = """
NOTHING UNKNOWN UNK UNDEFINED UNSPECIFIED NOTSPECIFIED OTHER OT NONE NA NULL NIL MISC DEFAULT UNBEKANNT SONSTIGE ANDERE
NOTHING INCONNU AUTRE DESCONOCIDO OTRO OTROS SCONOSCIUTO ALTRO DESCONHECIDO OUTRO OUTROS ONBEKEND OVERIG OVERIGE ANDERS
NOTHING OKAND OVRIGT UKENDT UKJENT ANDET NIEZNANE NIEZNANY INNE INNY NEZNAMY NEZNAMO JINE BILINMIYOR DIGER НЕИЗВЕСТНО
NOTHING ДРУГОЕ ДРУГАЯ 未知 其他 不明 その他 미상 기타
"""
# These words say something else in a description: "face" is frontal in French, a head or a leg may be up or raised.
_UNSURE_IN_TEXT = {"ARM", "FACE", "HEAD", "HEART", "LEG", "NECK", "SPINE", "STOMACH"}

_VIEWS = """
BOTH    *正侧* *正側*
OTHER   RLD LLD DECUB* OBL OBLIQ* OBLIC* OBLIK* LORDOT* RLO LLO SCHRAG* SCHRAEG* SCHUIN* SNED SKOSN* SIKM*
OTHER   КОСА* КОСО* КОСЫ* ΛΟΞ* *斜* *侧卧* *側臥* *사위*
LATERAL LL LAT LATERAL LATERALE LATERALES LATERALIS LATERALI LATERALA LATERAAL LATERALN* LATERO* LLAT RLAT LATL LATR
LATERAL SAGITTAL* PROFIL PROFILE PROFILO PROFILL* PERFIL PERFILES SEITLICH* SEITL SEITENBILD SEITENAUFNAHME* SEITENANS*
LATERAL ZIJDEL* ZIJW* ZIJAANZICHT DWARS* BOCZN* BOCN* SIDOBILD* SIDOPROJ* SIDEBILLEDE* SIDEBILDE SIVUKUVA* OLDALIRANY*
LATERAL OLDALFELV* YANAL NGHIENG БОКОВ* БІЧН* ПРОФИЛ* ПРОФІЛ* ΠΛΑΓΙ* ΠΡΟΦΙΛ* جانبي جانبية צדדי צדי *ด้านข้าง*
LATERAL *侧位* *側位* *側面* *侧面* *側方* *측면*
PA      PA POSTEROANT* DORSOVENTRAL* ZADOPREDN* TYLNOPRZEDN* ЗАДНЕПЕРЕДН* *后前* *後前*
AP      AP ANTEROPOST* VENTRODORSAL* PREDOZADN* PREDNEZADN* PRZEDNIOTYLN* ПЕРЕДНЕЗАДН* *前后* *前後*
FRONTAL FRONTAL* FRENTE FRONTE FACE ПРЯМ* ФРОНТАЛ* *正位* *正面* *정면*
"""
_VIEWS_IN_ELEMENT = """
OTHER   RAO LAO RPO LPO OAD OAI
LATERAL RL LATERALAUFN* LATERALBILD* LATERALPROJ* *SEITLICH* *PROFIL* *PERFIL*
LATERAL SIDE SIDA SIVU ZIJ YAN YANDAN BOK БОК SAMPING PROF PERF צד
PA      DV
AP      VD
FRONTAL FRONT
"""
# "posterior anterior" and "postero-antérieur", whatever stands between the two.
_TWO_WORDS = {"PA": re.compile("POSTER(O|IOR|IORE|IEUR)?ANTER"), "AP": re.compile("ANTER(O|IOR|IORE|IEUR)?POSTER")}

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


def normalised(text: str) -> str:
    """`text` in capitals without accents and ligatures, words and numbers with one space between.

    Compatibility forms are those of NFKD; letters that it leaves whole (Ł, Ø, Đ) lose their strokes too.

    >>> normalised("Tórax, ap/PA")
    'TORAX AP PA'
    """
    plain = unicodedata.normalize("NFKD", text.upper().translate(_WHOLE_LETTERS))
    bare = "".join(character for character in plain if not unicodedata.combining(character))
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFC", bare)))


_WHOLE_LETTERS = str.maketrans({"Ł": "L", "Ø": "O", "Đ": "D", "Ð": "D", "Æ": "AE", "Œ": "OE", "ẞ": "SS"})


def words_of(text: str) -> list[str]:
    """The words of `text`, normalised and without the digits beside them."""
    return re.findall(r"[^\W\d_]+", normalised(text))


@cache
def _rows(table: str) -> list[tuple[str, re.Pattern[str]]]:
    """Each line of a table: what it stands for, and a pattern for its words."""
    rows = []
    for term, *stems in map(str.split, table.strip().splitlines()):
        words = [r"\w*".join(map(normalised, stem.split("*"))) for stem in stems]
        rows.append((term, re.compile("|".join(words))))
    return rows


def _term(word: str, *tables: str) -> str:
    """What a normalised word stands for, "" where it is in no table."""
    return next((term for table in tables for term, words in _rows(table) if words.fullmatch(word)), "")


def view_in(text: str, *, free: bool = False) -> str:
    """The view that `text` names: PA, AP, FRONTAL, LATERAL, OTHER, or "" where it names none or several.

    Args:
        text: of View Position or a code's meaning, or a description, in one of some twenty languages.
        free: a description, in which short words may be something else.
    """
    tables = (_VIEWS,) if free else (_VIEWS, _VIEWS_IN_ELEMENT)
    joined = re.sub(r"[-./]", "", text)  # "antero-posterior" and "P.A.", but "frontal-oblique" too
    words = [*words_of(text), *words_of(joined)]
    if any(word.startswith("SUPIN") for word in words):  # "decúbito supino" is how patients lie for an AP view
        words = [word for word in words if not word.startswith("DECUB")]
    found = {_term(word, *tables) for word in words}
    found |= {view for view, two in _TWO_WORDS.items() if two.search("".join(words_of(text)))}
    found.discard("")
    if "OTHER" in found:  # an oblique or decubitus image is no frontal one, whatever stands beside it
        return "OTHER"
    if "BOTH" in found:
        return ""
    if "LATERAL" in found:
        return "LATERAL" if found == {"LATERAL"} else ""
    precise = found - {"FRONTAL"}
    return precise.pop() if len(precise) == 1 else "FRONTAL" if found else ""


def view_of_code(code: str) -> str:
    """The view that a code value of (0054,0220) View Code Sequence stands for, "" where it is none of CID 4010's."""
    return _VIEW_CODES.get(code, "")


def body_parts_in(text: str, *, free: bool = False) -> str:
    """The known body parts that `text` names, space between them.

    Args:
        text: of Body Part Examined or a code's meaning, or a description.
        free: a description, in which some words are something else and unknown ones say nothing.

    Returns:
        the words; "" for an empty text or one like "unknown"; "OTHER" for one without a known word, "" if it is a
        description.
    """
    words = words_of(text)
    if not normalised(text) or _term("".join(words), _SAYS_NOTHING):
        return ""
    tables = (_BODY_SYNONYMS,) if free else (_BODY_SYNONYMS, _BODY_SYNONYMS_IN_ELEMENT)
    terms = [word if word in _BODY_WORDS else _term(word, *tables) for word in words]
    if any(_term(word, _SPINES) for word in words):
        terms = [term if term == word or not term else "TSPINE" for term, word in zip(terms, words, strict=True)]
    known = [term for term in terms if term and not (free and term in _UNSURE_IN_TEXT)]
    if known:
        return " ".join(dict.fromkeys(known))
    return "" if free else "OTHER"


def region_of_code(code: str) -> str:
    """The body part that a code value of (0008,2218) Anatomic Region Sequence stands for, "" where it is not known."""
    return _REGION_CODES.get(code, "")


def names_human(text: str) -> bool:
    """Whether a species' description (upper case) is that of man."""
    return bool(_HUMAN_WORDS.intersection(re.findall(r"[A-Z]+", text)))


def names_animal(text: str) -> bool:
    """Whether a description (upper case) speaks of an animal."""
    return bool(_ANIMAL_WORDS.intersection(re.findall(r"[A-Z]+", text)))
