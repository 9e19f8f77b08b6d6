"""One spelling for text that is searched: `normalise_text` for notes, `fold` to find a name in any spelling.

Every note passes `normalise_text` once, where it enters: in training in `medsd.studies.manifest.complete`, in serving
in `medsd.preprocessing.notes.clean_note`. So scrubbing, masking, the labeller and the tokenizer see the same text.

References:
    Unicode Standard Annex 15 (NFKC); Unicode Standard, section 5.21 (default ignorable code points).
"""

import re
import unicodedata
from functools import lru_cache

# Invisible characters of other categories than Cf (format), which are found by their category.
_INVISIBLE = {*"\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"} | {
    chr(code) for codes in ((0x180B, 0x1810), (0xFE00, 0xFE10), (0xE0100, 0xE01F0)) for code in range(*codes)
}
_ALIKE = {"\u2010": "-", "\u2011": "-", "\u2212": "-", **dict.fromkeys("\u2018\u2019\u02bc\u00b4", "'")}
_ALIKE |= dict.fromkeys("\x0b\x0c\x85\u2028\u2029", "\n") | {"\u1680": " "}
_LETTER = r"[^\W\d_]"
# A word broken at a line's end. A hyphen stays before a capital ("Smith-/Jones"), unless all letters are capitals.
_BROKEN = re.compile(rf"(?<={_LETTER})-[ \t]*\n[ \t]*(?={_LETTER})")
_SOFTLY_BROKEN = re.compile(r"\u00ad[ \t]*\n[ \t]*")
# Letters that Unicode does not decompose, as they are written without them (ICAO 9303, part 3, section 6).
_PLAIN = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i", "ŋ": "n", "ħ": "h"}
)

_LEFT_OUT = {" ": (" ",), "e": ("a", "o", "u"), "a": ("a",)}  # a letter, and those after which it does not count


def normalise_text(text: str) -> str:
    """`text` in the one spelling that rules and tokenizers are written for; a second time, it changes nothing.

    Format characters (soft hyphens, zero-width characters, byte order marks, marks of direction) are removed.
    Ligatures, full width, odd spaces and decomposed letters are put in NFKC; quotes and hyphens become ASCII. Every
    line ends in ``\\n``, and a word that is hyphenated at a line's end is joined. Look-alikes of other scripts stay.

    >>> normalise_text("e\\ufb00u\\u00adsion and pneumo-\\nthorax")
    'effusion and pneumothorax'
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii():
        text = _SOFTLY_BROKEN.sub("", text)
        text = "".join(_ALIKE.get(c, c) for c in text if not _is_invisible(c))
        text = unicodedata.normalize("NFKC", text)
    return _BROKEN.sub(_joint, text)


def _joint(broken: re.Match[str]) -> str:
    before, after = broken.string[max(0, broken.start() - 2) : broken.start()], broken.string[broken.end() :][:2]
    capitals = len(before) == len(after) == 2 and (before + after).isupper()
    return "" if capitals or after[0].islower() else "-"


def _is_invisible(character: str) -> bool:
    return character in _INVISIBLE or unicodedata.category(character) == "Cf"


def fold(text: str) -> tuple[str, list[int]]:
    """`text` as it is compared with a name: case, accents, invisible characters, hyphens and line breaks do not count.

    Umlauts equal their vowel with an e and without one ("Müller", "Mueller", "Muller"); so in every word an e after
    a, o or u, and an a after an a, are left out. With the folded text comes, for each of its characters, the place in
    `text` that it comes from, then the length of `text`.

    >>> fold("Mu\\u0308l\\u00adler-Lüdenscheidt")[0] == fold("MUELLER LUDENSCHEIDT")[0]
    True
    """
    letters: list[str] = []
    places: list[int] = []
    last = ""
    for place, folded in enumerate(map(_folded, text)):
        for letter in folded:
            if letter in _LEFT_OUT and last in _LEFT_OUT[letter]:
                continue
            letters.append(letter)
            places.append(place)
            last = letter
    return "".join(letters), [*places, len(text)]


@lru_cache(maxsize=4096)
def _folded(character: str) -> str:
    if character.isspace() or character in "-'\u2010\u2011\u2018\u2019\u02bc\u00b4`":
        return " "
    if _is_invisible(character):
        return ""
    parts = unicodedata.normalize("NFKD", character.casefold()).translate(_PLAIN)
    return unicodedata.normalize("NFC", "".join(part for part in parts if unicodedata.category(part) != "Mn"))
