"""Captions as the published text encoder was fed with them: the cleaning of DeepFloyd-IF and PixArt.

Their captions come from web pages: the steps take out what addresses, markup, shops and file names leave behind. A
model that was trained on cleaned captions wants its prompts cleaned the same way, so each step, and their order, is as
published, where it does too much, too ("6640vc" is a shop's number there, and "foo.ru" an address).
"""

import html
import re
from collections.abc import Callable, Iterable
from functools import cache
from urllib.parse import unquote_plus

FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
# A bare name of a web site, with its path.
SITE = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)"
DASHES = (
    r"\-\u058A\u05BE\u1400\u1806\u2010-\u2015\u2E17\u2E1A\u2E3A\u2E3B\u2E40\u301C\u3030\u30A0\uFE31\uFE32\uFE58\uFE63"
    r"\uFF0D"
)
MARKS = r"#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*"

# (pattern, replacement, what it is)
BEFORE_MARKUP = [
    (r"<person>", "person", "a face that a data set has blotted out; not markup"),
    (rf"\b(?:https?:(?:\/{{1,3}}|[a-zA-Z0-9%])|{SITE})", "", "web addresses"),
    (rf"\b(?:www:(?:\/{{1,3}}|[a-zA-Z0-9%])|{SITE})", "", "web addresses that the step before has laid bare"),
]
AFTER_MARKUP = [
    (r"@\w+\b", "", "names of users"),
    (r"[\u31C0-\u9FFF]+", "", "CJK strokes, letters in circles, and characters"),
    (rf"[{DASHES}]+", "-", "every kind of dash"),
    (r"[`\u00B4\u00AB\u00BB\u201C\u201D\u00A8]", '"', "every kind of double quote"),
    (r"[\u2018\u2019]", "'", "every kind of single quote"),
    (r"&quot;?", "", "what is left of HTML"),
    (r"&amp", "", "what is left of HTML"),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " ", "IP addresses"),
    (r"\d:\d\d\s+$", "", "numbers of articles"),
    (r"\\n", " ", "a line's end that was written out"),
    (r"#\d{1,3}\b", "", "numbers in a series"),
    (r"#\d{5,}\b", "", "numbers in a shop"),
    (r"\b\d{6,}\b", "", "numbers in a shop"),
    (rf"\S+\.(?:{FILES})", "", "names of files"),
    (r"[\"']{2,}", '"', "doubled quotes"),
    (r"\.{2,}", " ", "dots for what is left out"),
    (rf"[{MARKS}]+", " ", "marks that name nothing in a picture"),
    (r"\s+\.\s+", " ", "a full stop by itself"),
]
AFTER_DASHES = [
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", "", "numbers in a shop: jc6640"),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", "", "jc6640vc"),
    (r"\b\d+[a-zA-Z]+\d+\b", "", "6640vc231"),
    (r"(worldwide\s+)?(free\s+)?shipping", "", "what shops say"),
    (r"(free\s)?download(\sfree)?", "", "what shops say"),
    (r"\bclick\b\s(?:for|on)\s\w+", "", "what web pages say"),
    (rf"\b(?:{FILES})(\simages?)?", "", "kinds of files"),
    (r"\bpage\s+\d+\b", "", "numbers of pages"),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " ", "long mixed names: j2d1a2a"),
    (r"\b\d+\.?\d*[x\u0445\u00D7]\d+\.?\d*\b", "", "sizes, with a Latin x, a Cyrillic one, or a cross"),
    (r"\b\s+\:\s+", ": ", "a colon stands at its word"),
    (r"(\D[,\./])\b", r"\1 ", "after a comma, a full stop or a stroke comes a space"),
    (r"\s+", " ", "white space"),
]
AT_THE_ENDS = [
    (r"^[\"']([\w\W]+)[\"']$", r"\1", "quotes around the whole"),
    (r"^['_,\-:;]", "", "a mark that opens nothing"),
    (r"['_,\-:+]$", "", "a mark that closes nothing"),
    (r"^\.\S+$", "", "the ending of a file's name alone"),
]
LONGEST = 10_000  # characters that are looked at: of a text without spaces, some steps take the square of its length
FEW_DASHES = 3  # more of them stand for spaces: this-is-my-cute-cat


def clean_caption(text: str) -> str:
    """The caption as the encoder takes it. The published code cleans twice: a pass may lay bare what the next takes."""
    return _once(_once(text[:LONGEST]))


def _once(text: str) -> str:
    plain, mended = _libraries()
    text = _apply(BEFORE_MARKUP, unquote_plus(text).strip().lower())
    text = _apply(AFTER_MARKUP, plain(text))
    if len(re.findall(r"[-_]", text)) > FEW_DASHES:
        text = re.sub(r"[-_]", " ", text)
    text = html.unescape(html.unescape(mended(text))).strip()
    text = _apply(AFTER_DASHES, text).strip()
    return _apply(AT_THE_ENDS, text).strip()


def _apply(steps: Iterable[tuple[str, str, str]], text: str) -> str:
    for pattern, replacement, _ in steps:
        text = re.sub(pattern, replacement, text)
    return text


@cache
def _libraries() -> tuple[Callable[[str], str], Callable[[str], str]]:
    """HTML -> its text; text that was decoded wrongly -> text."""
    try:
        from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning
        from bs4.exceptions import ParserRejectedMarkup
        from ftfy import fix_text
    except ImportError as error:
        raise ValueError("cleaning captions needs ftfy and beautifulsoup4: pip install 'llamagen[t2i]'") from error
    import warnings

    # It takes a caption such as "a.jpg" for a file that one forgot to open.
    warnings.filterwarnings("ignore", category=MarkupResemblesLocatorWarning)

    def plain(text: str) -> str:
        # Without these two there is no markup, and the parser takes most of the time.
        if "<" not in text and "&" not in text:
            return text
        try:
            return BeautifulSoup(text, "html.parser").text
        except ParserRejectedMarkup:  # "<![" and the like, which no web page holds either
            return text

    return plain, fix_text
