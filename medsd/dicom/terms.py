"""Words and codes of the standard that name a view, a body part and a species, and what they mean to the gate.

The tables are in terms.yaml. Only what stands there is ever taken from a header or shown in a message: any free-text
element may hold a patient's name.
"""

import re
import unicodedata
from functools import cache, partial

from medsd import files

packaged = partial(files.packaged, "medsd.dicom")


@cache
def words_listed(key: str) -> frozenset[str]:
    """The words of a list in terms.yaml."""
    return frozenset(packaged("terms.yaml")[key].split())


# "posterior anterior" and "postero-antérieur", whatever stands between the two.
_TWO_WORDS = {"PA": re.compile("POSTER(O|IOR|IORE|IEUR)?ANTER"), "AP": re.compile("ANTER(O|IOR|IORE|IEUR)?POSTER")}
_WHOLE_LETTERS = str.maketrans({"Ł": "L", "Ø": "O", "Đ": "D", "Ð": "D", "Æ": "AE", "Œ": "OE", "ẞ": "SS"})


def normalised(text: str) -> str:
    """`text` in capitals without accents and ligatures, words and numbers with one space between.

    >>> normalised("Tórax, ap/PA")
    'TORAX AP PA'
    """
    plain = unicodedata.normalize("NFKD", text.upper().translate(_WHOLE_LETTERS))
    bare = "".join(character for character in plain if not unicodedata.combining(character))
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFC", bare)))


def words_of(text: str) -> list[str]:
    """The words of `text`, normalised and without the digits beside them."""
    return re.findall(r"[^\W\d_]+", normalised(text))


@cache
def _rows(table: str) -> list[tuple[str, re.Pattern[str]]]:
    """Each entry of a table: what it stands for, and a pattern for its words."""
    return [
        (term, re.compile("|".join(r"\w*".join(map(normalised, stem.split("*"))) for stem in stems.split())))
        for term, stems in packaged("terms.yaml")[table].items()
    ]


def _term(word: str, *tables: str) -> str:
    """What a normalised word stands for, "" if it is in no table."""
    return next((term for table in tables for term, words in _rows(table) if words.fullmatch(word)), "")


def term_of_code(code: str, table: str) -> str:
    """What a code value stands for in `view_codes` or `region_codes` of terms.yaml, "" if it is not there."""
    return next((term for term, codes in packaged("terms.yaml")[table].items() if code in codes.split()), "")


def view_in(text: str, *, free: bool = False) -> str:
    """The view that `text` names: PA, AP, FRONTAL, LATERAL, OTHER, or "" if it names none or several.

    It is of View Position or a code's meaning, or, `free`, a description, in which short words may be something else.
    """
    tables = ("views",) if free else ("views", "views_in_element")
    joined = re.sub(r"[-./]", "", text)  # "antero-posterior" and "P.A.", but "frontal-oblique" too
    words = [*words_of(text), *words_of(joined)]
    if any(word.startswith("SUPIN") for word in words):  # "decúbito supino" is how patients lie for an AP view
        words = [word for word in words if not word.startswith("DECUB")]
    found = {_term(word, *tables) for word in words}
    found |= {view for view, two in _TWO_WORDS.items() if two.search("".join(words_of(text)))}
    found.discard("")
    if "OTHER" in found:  # an oblique or decubitus image is not frontal, whatever stands beside it
        return "OTHER"
    if "BOTH" in found:
        return ""
    if "LATERAL" in found:
        return "LATERAL" if found == {"LATERAL"} else ""
    precise = found - {"FRONTAL"}
    return precise.pop() if len(precise) == 1 else "FRONTAL" if found else ""


def body_parts_in(text: str, *, free: bool = False) -> str:
    """The known body parts that `text` names, space between them; "OTHER" if it has no known word.

    It is "" for an empty text or one like "unknown". In a description (`free`) some words are something else, and
    unknown ones say nothing.
    """
    words = words_of(text)
    if not normalised(text) or _term("".join(words), "says_nothing"):
        return ""
    tables = ("body_synonyms",) if free else ("body_synonyms", "body_synonyms_in_element")
    terms = [word if word in words_listed("body_parts") else _term(word, *tables) for word in words]
    if any(_term(word, "spines") for word in words):
        terms = [term if term == word or not term else "TSPINE" for term, word in zip(terms, words, strict=True)]
    known = [term for term in terms if term and not (free and term in words_listed("unsure_in_text"))]
    if known:
        return " ".join(dict.fromkeys(known))
    return "" if free else "OTHER"


def names_one_of(key: str, text: str) -> bool:
    """Whether a text (upper case) has one of the words `human_words` or `animal_words` of terms.yaml."""
    return not words_listed(key).isdisjoint(re.findall(r"[A-Z]+", text))
