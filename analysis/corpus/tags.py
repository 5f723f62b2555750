"""Tags of tokens by their text and place, without any model: kind, script, segment, closed class of the word, flags.

All of a document's tokens are tagged together: what is said of single characters is looked up in tables, and what
stands before them in the text comes from running sums and maxima. Time is linear in the text.
"""

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise

import numpy as np

from ..trace.chat_turns import Turn, turns_of
from ..trace.sentences import asks, sentence_ends, visible_parts
from ..trace.token_classes import script_of
from .closed_classes import CHINESE, ENGLISH
from .schema import FIRST_TOKENS, KINDS, SCRIPTS, SEGMENTS, WORDS, Flag

_ALPHA, _LETTER, _ALNUM, _DECIMAL, _NUMERIC, _SPACE, _UPPER = (1 << bit for bit in range(8, 15))  # above the script
_SCRIPT = 0xFF
_UNSPACED = ("Han", "Hiragana", "Katakana", "Thai", "Khmer")  # scripts that are written without spaces between words
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_LONGEST_CHINESE = max(map(len, CHINESE))
_PARAGRAPH = re.compile(r"\n[ \t\r]{0,200}\n")
_FENCE = "```"
_CODE_ENDS = ("{", "}", "};", "},", "],", ");", "):", "*/", "/>", "->")
_CODE_BEGINS = ("#include", "#define", "#!/", "//", "/*", "</", "<!--", ">>>", "@", "});", '{"', '[{"')
_CODE_SIGNS = ("==", "!=", "->", "=>", "+=", "::", "&&", "||", "()", "</", " = ", '":', "](", "[]", " := ")


@dataclass(frozen=True, eq=False)
class Tags:
    """Tags of T tokens, as the columns of `analysis.corpus.schema.token_schema`.

    Attributes:
        kind: (T,) uint8, of `KINDS`.
        script: (T,) uint8, of `SCRIPTS`.
        segment: (T,) uint8, of `SEGMENTS`.
        word: (T,) uint8, of `WORDS`.
        flags: (T,) uint16, without those that depend on the window, which `window_flags` adds.
    """

    kind: np.ndarray
    script: np.ndarray
    segment: np.ndarray
    word: np.ndarray
    flags: np.ndarray


def tags_of(text: str, starts: np.ndarray, ends: np.ndarray, special: np.ndarray) -> Tags:
    """Tag the tokens of a document.

    Args:
        text: of the document.
        starts: (T,) index of each token's first character, ascending.
        ends: (T,) index after its last character.
        special: (T,) True for special tokens.
    """
    place = _Places(text, np.asarray(starts, dtype=np.int64), np.asarray(ends, dtype=np.int64))
    turns = list(turns_of(text))
    silent = special | (place.starts == place.ends)  # tokens that show no text of the document
    kind = np.where(silent, KINDS.index("punctuation"), _kinds(place)).astype(np.uint8)
    script = np.where(silent, SCRIPTS.index("symbols"), _scripts(place)).astype(np.uint8)
    word = np.where(silent, WORDS.index("none"), _words(text, place, script)).astype(np.uint8)
    flags = np.where(silent, 0, _flags(text, place, script, turns)).astype(np.uint16)
    flags |= np.where(special, np.uint16(Flag.SPECIAL), np.uint16(0))
    return Tags(kind, script, _segments(turns, place), word, flags)


def window_flags(ids: np.ndarray, window: int) -> np.ndarray:
    """(T,) uint16 `Flag.REPEATED` and `Flag.WINDOW_START` of a document's tokens.

    Args:
        ids: (T,) ids.
        window: tokens of a window.
    """
    places = np.arange(len(ids))
    keys = np.stack([places // window, ids.astype(np.int64)])
    order = np.lexsort((places, keys[1], keys[0]))
    again = np.zeros(len(ids), dtype=np.bool_)
    again[order[1:]] = (keys[:, order[1:]] == keys[:, order[:-1]]).all(0)
    first = places % window < FIRST_TOKENS
    found: np.ndarray = again * np.uint16(Flag.REPEATED) + first * np.uint16(Flag.WINDOW_START)
    return found.astype(np.uint16)


class _Places:
    """Characters of a text and where tokens stand among them. Arrays over characters have one more at the end."""

    def __init__(self, text: str, starts: np.ndarray, ends: np.ndarray) -> None:
        self.starts, self.ends = starts, ends
        self.codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        self.length = len(self.codes)
        self.properties = _properties(self.codes)
        self.visible = ~self.has(_SPACE)
        before = np.concatenate([[0], ends[:-1]])
        self.fresh = starts >= before  # not a further token of the same character

    def has(self, bit: int) -> np.ndarray:
        """(C,) whether each character has a property."""
        found: np.ndarray = (self.properties & bit) > 0
        return found

    def first(self, of: np.ndarray) -> np.ndarray:
        """(T,) index of each token's first character that `of` (C,) names; the token's end if there is none."""
        following = np.append(np.where(of, np.arange(self.length), self.length), self.length)
        following = np.minimum.accumulate(following[::-1])[::-1]
        return np.minimum(following[self.starts], self.ends)

    def count(self, of: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """(T,) number of characters that `of` (C,) names, from `starts` (T,) to each token's end."""
        total = np.concatenate([[0], np.cumsum(of)])
        found: np.ndarray = total[self.ends] - total[starts]
        return found

    def at(self, of: np.ndarray, places: np.ndarray) -> np.ndarray:
        """(T,) values of `of` (C,) at places that may be the text's end, where they are 0."""
        found: np.ndarray = np.append(of, np.zeros(1, of.dtype))[places]
        return found


def _properties(codes: np.ndarray) -> np.ndarray:
    """(C,) properties and script of characters (C,)."""
    blocks = np.flatnonzero(np.bincount(codes >> 8))
    table = np.zeros((blocks[-1] + 1 if len(blocks) else 1, 256), dtype=np.uint16)
    for block in blocks.tolist():
        table[block] = _block(block)
    found: np.ndarray = table[codes >> 8, codes & 255]
    return found


@cache
def _block(number: int) -> np.ndarray:
    """(256,) properties of a block of characters."""
    return np.array([_property(chr(256 * number + low)) for low in range(256)], dtype=np.uint16)


def _property(character: str) -> int:
    tests = (
        (_ALPHA, character.isalpha()),
        (_LETTER, character.isalnum() and not character.isdecimal()),
        (_ALNUM, character.isalnum()),
        (_DECIMAL, character.isdecimal()),
        (_NUMERIC, character.isnumeric()),
        (_SPACE, character.isspace()),
        (_UPPER, character.isupper()),
    )
    return _script(character) | sum(bit for bit, holds in tests if holds)


def _script(character: str) -> int:
    """Code in `SCRIPTS` of a character."""
    if character.isalpha():
        name = script_of(character)
        return SCRIPTS.index(name if name in SCRIPTS else "other")
    if character.isnumeric():
        return SCRIPTS.index("digits")
    return SCRIPTS.index("spaces" if character.isspace() else "symbols")


def _kinds(place: _Places) -> np.ndarray:
    """(T,) codes in `KINDS`, as `analysis.trace.token_classes.kinds_of` has them."""
    seen = place.first(place.visible)
    lengths = place.ends - seen
    alpha = place.has(_ALPHA)
    letters = (place.count(place.has(_LETTER), seen) == lengths) & (lengths > 0)
    digits = (place.count(place.has(_DECIMAL), seen) == lengths) & (lengths > 0)
    before = np.concatenate([[-1], place.ends[:-1] - 1])  # last character of the token before
    inside = np.where(before < 0, False, place.at(alpha, np.maximum(before, 0))) & place.at(alpha, place.starts)
    return np.select(
        [letters & ~inside, letters, digits, lengths == 0],
        [KINDS.index(name) for name in ("beginning", "continuation", "digit", "space")],
        KINDS.index("punctuation"),
    )


def _scripts(place: _Places) -> np.ndarray:
    """(T,) codes in `SCRIPTS`: of the first letter, or what the token is without one."""
    letter = place.first(place.has(_ALPHA))
    own = place.at(place.properties & _SCRIPT, letter).astype(np.int64)
    return np.select(
        [
            letter < place.ends,
            place.count(place.has(_NUMERIC), place.starts) > 0,
            place.count(place.visible, place.starts) == 0,
        ],
        [own, SCRIPTS.index("digits"), SCRIPTS.index("spaces")],
        SCRIPTS.index("symbols"),
    )


def _words(text: str, place: _Places, script: np.ndarray) -> np.ndarray:
    """(T,) codes in `WORDS` of the word that each token's first letter or digit is part of."""
    alnum = place.has(_ALNUM)
    first = place.first(alnum)
    spans = [(match.start(), match.end(), _english(match[0])) for match in _WORD.finditer(text)]
    of_character = np.zeros(place.length + 1, dtype=np.uint8)
    if spans:
        begin, end, code = np.array(spans).T
        of_character[np.repeat(begin - np.cumsum(end - begin) + (end - begin), end - begin) + np.arange(
            (end - begin).sum()
        )] = np.repeat(code, end - begin)  # fmt: skip
    found: np.ndarray = np.where(first < place.ends, of_character[first], WORDS.index("none"))
    chinese = (script == SCRIPTS.index("Han")) & (place.ends - first <= _LONGEST_CHINESE)
    content = WORDS.index("content")
    for token in np.flatnonzero(chinese & (first < place.ends)).tolist():
        found[token] = CHINESE.get(text[first[token] : place.ends[token]], content)
    return found


@lru_cache(maxsize=1 << 16)
def _english(word: str) -> int:
    """Code in `WORDS` of a word."""
    plain = word.lower().replace("’", "'")
    content = WORDS.index("content")
    found = ENGLISH.get(plain)
    return ENGLISH.get(plain.partition("'")[0], content) if found is None else found


def _segments(turns: list[Turn], place: _Places) -> np.ndarray:
    """(T,) codes in `SEGMENTS` by each token's first character."""
    if not turns:
        return np.zeros(len(place.starts), dtype=np.uint8)
    cuts, codes = [0], [SEGMENTS.index("text")]
    for turn in turns:
        cuts += [turn.mark, turn.start, turn.end]
        codes += [SEGMENTS.index("mark"), SEGMENTS.index(turn.role), SEGMENTS.index("mark")]
    return np.array(codes, dtype=np.uint8)[np.searchsorted(cuts, place.starts, side="right") - 1]


def _flags(text: str, place: _Places, script: np.ndarray, turns: list[Turn]) -> np.ndarray:
    """(T,) all flags that do not depend on the window."""
    shown = place.first(place.visible)  # the first visible character, or the token's end
    visible = shown < place.ends
    alpha, alnum = place.first(place.has(_ALPHA)), place.first(place.has(_ALNUM))
    in_word = (alnum < place.ends) & ~np.isin(script, [SCRIPTS.index(name) for name in _UNSPACED])
    joined = np.where(alnum > 0, place.at(place.has(_ALNUM), np.maximum(alnum - 1, 0)), False)
    inside = (joined & (alnum == place.starts)) | ~place.fresh
    last_line, last_seen = _last(place.codes == ord("\n")), _last(place.visible)
    opening = np.concatenate([[-1], last_seen]) <= np.append(last_line, place.length)  # nothing visible before
    last = np.maximum(place.ends - 1, 0)
    blank = np.isin(place.at(place.codes, last), [ord(" "), ord("\t")]) & ~visible
    flags = {
        Flag.WORD_START: in_word & ~inside,
        Flag.WORD_INSIDE: in_word & inside,
        Flag.LINE_START: visible & place.fresh & opening[shown],
        Flag.INDENT: blank & opening[last],
        Flag.QUOTED: visible & place.at(_quoted(text, place.codes), shown),
        Flag.BRACKETED: visible & place.at(_bracketed(text, place.codes), shown),
        Flag.CODE: place.at(_code(text, place.length), np.where(visible, shown, place.starts)),
        Flag.QUESTION: visible & place.at(_asked(text, turns), shown),
        Flag.CAPITAL: (alpha < place.ends) & place.at(place.has(_UPPER), alpha),
    }
    total = np.zeros(len(place.starts), dtype=np.uint16)
    for flag, holds in flags.items():
        total |= holds.astype(np.uint16) * np.uint16(flag)
    return total


def _last(of: np.ndarray) -> np.ndarray:
    """(C,) index of the last character up to each one that `of` (C,) names; -1 if there is none."""
    return np.maximum.accumulate(np.where(of, np.arange(len(of)), -1)) if len(of) else np.zeros(0, dtype=np.int64)


def _depth(
    text: str, codes: np.ndarray, opening: str, closing: str, *, paragraphs: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(C,) depth of brackets before each character, in its paragraph or in the text; and (C,) whether it is one."""
    opens, closes = (np.isin(codes, [ord(character) for character in marks]) for marks in (opening, closing))
    depth = np.concatenate([[0], np.cumsum(opens.astype(np.int64) - closes)])
    starts = _paragraphs(text, len(codes)) if paragraphs else np.zeros(len(codes), dtype=np.int64)
    relative = depth[:-1] - depth[starts]
    if len(codes):  # what closes more than was opened counts for nothing: the lowest depth so far in the part is 0
        steps = starts * (2 * len(codes) + 1)
        relative = relative - np.minimum(0, np.minimum.accumulate(relative - steps) + steps)
    return relative, opens | closes


def _paragraphs(text: str, length: int) -> np.ndarray:
    """(C,) index of the first character of each character's paragraph."""
    begins = np.zeros(length, dtype=np.int64)
    for match in _PARAGRAPH.finditer(text):
        if match.end() < length:
            begins[match.end()] = match.end()
    return np.maximum.accumulate(begins) if length else begins


def _asked(text: str, turns: list[Turn]) -> np.ndarray:
    """(C,) whether each character stands in a sentence that asks; no sentence is of two turns."""
    edges = {edge for turn in turns for edge in (turn.mark, turn.start, turn.end) if edge < len(text)}
    cuts = visible_parts(text, sorted(edges.union(sentence_ends(text))))
    found = np.zeros(len(text), dtype=np.bool_)
    for start, end in pairwise([*cuts, len(text)]):
        found[start:end] = asks(text[start:end])
    return found


def _quoted(text: str, codes: np.ndarray) -> np.ndarray:
    """(C,) whether each character stands between quotation marks of its paragraph, and is none."""
    escaped = np.concatenate([[False], codes[:-1] == ord("\\")]) if len(codes) else np.zeros(0, dtype=np.bool_)
    straight = (codes == ord('"')) & ~escaped
    count = np.concatenate([[0], np.cumsum(straight)])
    odd = (count[:-1] - count[_paragraphs(text, len(codes))]) % 2 == 1
    depth, marks = _depth(text, codes, "“«「『", "”»」』", paragraphs=True)
    found: np.ndarray = (odd | (depth > 0)) & ~straight & ~marks
    return found


def _bracketed(text: str, codes: np.ndarray) -> np.ndarray:
    """(C,) whether each character stands between brackets, and is none; round ones end with their paragraph."""
    round_depth, round_marks = _depth(text, codes, "(（", ")）", paragraphs=True)
    depth, marks = _depth(text, codes, "[{【", "]}】", paragraphs=False)
    found: np.ndarray = ((round_depth > 0) | (depth > 0)) & ~round_marks & ~marks
    return found


def _code(text: str, length: int) -> np.ndarray:
    """(C,) whether each character stands on a line of code or JSON, or in a fenced block."""
    fenced, marks, lengths = False, [], []
    for line in text.split("\n"):
        plain = line.strip()
        fence = plain.startswith(_FENCE)
        marks.append(fenced or fence or _is_code(plain))
        lengths.append(len(line) + 1)
        fenced ^= fence
    return np.repeat(np.array(marks, dtype=np.bool_), lengths)[:length]


def _is_code(line: str) -> bool:
    """Whether a line looks like code or JSON, by its beginning, its end and the signs on it."""
    if not line:
        return False
    signs = sum(sign in line for sign in _CODE_SIGNS)
    return (
        signs >= 2
        or line.endswith(_CODE_ENDS)
        or line.startswith(_CODE_BEGINS)
        or (line.endswith((";", ":", ",")) and signs == 1)
    )
