"""Formulas as MathML, made when the site is built, so that no page needs a script to show them.

`latex2mathml` does the work. What it gives is then put right for MathML Core, which is what browsers draw: limits go under their
operator, bold letters are letters of their own, and signs are operators. What it cannot read, it often passes on as text; such a
formula is refused.
"""

from __future__ import annotations

import re
import unicodedata
import xml.etree.ElementTree as ET
from itertools import zip_longest

from apnb.errors import Invalid

NAMESPACE = "http://www.w3.org/1998/Math/MathML"
WRITTEN = (
    (r"\\begin\{(aligned|align\*?)\}", r"\\begin{split}"),
    (r"\\end\{(aligned|align\*?)\}", r"\\end{split}"),
    (
        r"\\operatorname\*?\{\s*arg\s*(?:\\[,;: ])?\s*(min|max)\s*\}|\\arg\s*(?:\\[,;:!])?\s*\\(min|max)(?![a-zA-Z])",
        r"\\arg\1\2 ",
    ),
    (r"\\arg(?![a-zA-Z])", r"\\operatorname{arg}"),
    (r"\\operatorname\*", r"\\operatorname"),
    (r"(?<=[a-zA-Z])\\text\{-\}(?=[a-zA-Z])", "-"),
    (r"\\(?:nonumber|notag)(?![a-zA-Z])", ""),
    (r"\\not\s*=", r"\\neq "),
    (r"\\(?:begin|end)\{equation\*?\}", ""),
)
"""What is written in formulas and what the converter understands instead, as regular expressions."""
LIMITS = {"max", "min", "lim", "sup", "inf", "arg min", "arg max"}
UNDER = {"msub": "munder", "msup": "mover", "msubsup": "munderover"}
CHILDREN = {"mfrac": 2, "mroot": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2, "msubsup": 3, "munderover": 3}
SIGNS = {"~": "\u223c", "\u29f5": "\u2216"}
"""Signs that the converter takes for others that look like them."""
LONG = {"\u2192": "\u27f6", "\u2190": "\u27f5"}

ET.register_namespace("", NAMESPACE)


def mathml(latex: str, display: bool = False) -> str:
    """A formula as a ``<math>`` element, with its LaTeX as alternative text.

    Raises:
        Invalid: it cannot be converted.
    """
    from latex2mathml.converter import convert

    given = latex.strip()
    written = re.sub(r"(\\text\{)([^{}]*)\}", lambda m: m[1] + re.sub(r"\\([%_&#])", r"\1", m[2]) + "}", given)
    for pattern, understood in WRITTEN:
        written = re.sub(pattern, understood, written)
    written = re.sub(r"\\operatorname\{([^{}]*)\}", lambda m: _operator(m[1]), written)
    if why := _unreadable(written):
        raise Invalid(f"the formula {given!r} cannot be converted: {why}")
    try:
        root = ET.fromstring(convert(written, display="block" if display else "inline"))
    except Exception as error:  # the converter has a dozen kinds of them, and none of them has a message
        raise Invalid(f"the formula {given!r} cannot be converted ({type(error).__name__})") from None
    for parent in list(root.iter()):
        _put_right(parent, display)
    for parent in list(root.iter()):
        _together(parent)
    if why := _wrong(root):
        raise Invalid(f"the formula {given!r} cannot be converted: {why}")
    root.set("alttext", " ".join(given.split()))
    return ET.tostring(root, encoding="unicode")


def _unreadable(latex: str) -> str:
    """Why the converter would pass over something without a word."""
    from latex2mathml.commands import MATRICES

    for name in re.findall(r"\\begin\{([^}]*)\}", latex):
        if f"\\{name}" not in MATRICES:
            return f"the environment {name!r} is unknown there"
    braces = re.sub(r"\\.", "", latex)
    return "" if braces.count("{") == braces.count("}") else "its braces do not match"


def _operator(name: str) -> str:
    """An operator's name that has no commands in it; the converter loses others."""
    name = re.sub(r"\\[,;: ]", " ", name)
    return rf"\operatorname{{{name}}}" if name.isalpha() else rf"\mathop{{\text{{{name}}}}}"


def _tag(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _text(element: ET.Element) -> str:
    return "".join(element.itertext()).replace("\u2009", " ").replace("\xa0", " ").strip()


def _put_right(parent: ET.Element, display: bool) -> None:
    """Make the children of an element what MathML Core knows."""
    children = list(parent)
    if len(children) > 1 and all(_tag(c) == "mi" and c.get("mathvariant") == "normal" for c in children):
        word = ET.Element(f"{{{NAMESPACE}}}mi")  # letters of an upright word
        word.text = _text(parent)
        parent[:] = [word]
        return
    if _tag(parent) == "mover" and len(children) == 2 and children[1].get("voffset"):  # a label on an arrow
        arrow, label = children
        long = LONG.get(_text(arrow), _text(arrow))  # of a fixed length: browsers lose the heads of arrows that they stretch
        parent[0] = ET.Element(f"{{{NAMESPACE}}}mo", {"stretchy": "false", "lspace": "0.28em", "rspace": "0.28em"})
        parent[0].text = long
        label.tag = f"{{{NAMESPACE}}}mrow"
        label.attrib.clear()
        for part in [p for p in label if _tag(p) == "mspace"]:
            label.remove(part)
        return
    if (
        _tag(parent) == "mover" and len(children) == 2 and _text(children[1]) == "\u2015"
    ):  # a bar: browsers do not stretch the sign
        parent.tag = f"{{{NAMESPACE}}}mrow"
        parent.set("class", "overlined")
        parent.remove(children[1])
        return _put_right(parent, display)
    for child, following in zip_longest(children, children[1:]):
        tag, text = _tag(child), _text(child)
        if tag in UNDER and _text(child[0]) in LIMITS and display:
            child.tag = f"{{{NAMESPACE}}}{UNDER[tag]}"
        elif tag in ("mi", "mn") and (variant := child.get("mathvariant", "normal")) != "normal" and len(text) == 1:
            child.text = _letter(text, variant)
            child.attrib.pop("mathvariant")
        elif tag == "mi" and len(text) == 1 and unicodedata.category(text) in ("Sm", "Ps", "Pe", "Sk", "So") and text != "\u221e":
            child.tag = f"{{{NAMESPACE}}}mo"
            child.text = text = SIGNS.get(text, text)
        elif tag == "mi" and (text == ":" or (re.fullmatch("[a-z]{2,}", text) and "mathvariant" not in child.attrib)):
            child.tag = f"{{{NAMESPACE}}}mo"  # a colon, or a function like log
        elif tag == "mi" and text and all("\u0391" <= c <= "\u03a9" for c in text):
            child.set("mathvariant", "normal")  # capitals in Greek stand upright
        if _tag(child) == "mo" and text in ("|", "\u2016") and child.get("fence") != "true":
            more = {} if child.get("minsize") else {"stretchy": "false"}
            child.attrib |= {"lspace": "0", "rspace": "0", **more}  # in TeX these are letters, not relations
        if _tag(child) == "mo" and len(text) == 1 and unicodedata.category(text) in ("Ps", "Pe") and not child.get("form"):
            child.set("form", "prefix" if unicodedata.category(text) == "Ps" else "postfix")  # also where it carries an exponent
        if _tag(child) == "mo" and re.fullmatch(r"[a-zA-Z][a-zA-Z ]+", text):
            opening = following is not None and (_text(following) or " ")[0] in "([{"
            tight = opening or (_tag(parent) in CHILDREN and text not in LIMITS)
            child.attrib |= {"lspace": "0.1667em", "rspace": "0" if tight else "0.1667em"}


def _together(parent: ET.Element) -> None:
    """Put what stands between large brackets into the base of the exponent behind them; a bracket alone would not grow there."""
    for child in list(parent):
        if _tag(child) not in UNDER or not child[0].get("minsize") or child[0].get("form") != "postfix":
            continue
        before = list(parent)[: list(parent).index(child)]
        start = next(
            (i for i in reversed(range(len(before))) if before[i].get("form") == "prefix" and before[i].get("minsize")), None
        )
        if start is None:
            continue
        base = ET.Element(f"{{{NAMESPACE}}}mrow")
        base[:] = [*before[start:], child[0]]
        child[0] = base
        for part in before[start:]:
            parent.remove(part)


def _letter(letter: str, variant: str) -> str:
    """A letter or digit of Unicode's mathematical alphabets; the letter itself where there is none."""
    name = unicodedata.name(letter, "").replace("LATIN ", "").replace("GREEK ", "").replace(" LETTER", "")
    kind = variant.replace("-", " ").upper().replace("DOUBLE STRUCK", "DOUBLE-STRUCK").replace("SANS SERIF", "SANS-SERIF")
    try:
        return unicodedata.lookup(f"MATHEMATICAL {kind} {name}")
    except KeyError:
        return letter


def _wrong(root: ET.Element) -> str:
    """Why a converted formula would be drawn as something else, or nothing."""
    for element in root.iter():
        tag, text = _tag(element), element.text or ""
        if found := re.search(r"\\[a-zA-Z]*|\$", text):
            return f"{found[0]!r} is unknown there"
        if len(element) != CHILDREN.get(tag, len(element)):
            return f"a part of {text or tag!r} is missing"
        if tag == "mo" and not text and not len(element) and not element.get("form"):
            return "an operator has no name"
    return "" if _text(root) or root.find(f".//{{{NAMESPACE}}}mspace") is not None else "nothing is left of it"
