"""Ages in a prompt."""

import re

OLDEST = 120.0
NEWBORN = 0.1
YEARS = {"y": 1.0, "m": 1 / 12, "w": 7 / 365.25, "d": 1 / 365.25}
DECADE = {"early": 2.0, "mid": 5.0, "late": 8.0}
"""Years into a decade of life."""

NUMBER = r"(?P<age>\d{1,3}(?:\.\d+)?)"
BARE = r"(?P<cut>(?P<age>\d{2,3}))"
SEX = r"(?:female|male|woman|man|lady|gentleman|girl|boy)"
UNIT = r"(?P<unit>years?|yrs?|y|months?|mos?|weeks?|wks?|days?)\b"
NO_AGE = r"ago|later|prior|earlier|follow|histor|course|interval|of|smok"
"""What makes years before it a span of time."""
LAST = rf"\b(?:for|past|last)\s+\d+\s*(?:years?|yrs?|y)\b(?!\s+{SEX}\b)"
"""A span of time, as in "a smoker for 40 years"."""
FRENCH = (
    r"\d{1,2}\s*(?i:f|fr|french)\b(?=\s+(?i:(?:left|right|chest|pleural|pigtail|feeding)\s+)*"
    r"(?i:pigtail|catheter|cannula|drain|sheath|tube)s?\b)"
)
"""The width of a tube, as in "14F pigtail catheter"."""
THING = (
    r"(?:rib\s+)?(?:fracture|pneumothorax|effusion|pneumonia|consolidation|pacemaker|device|tube|"
    r"line|infarct|surgery|scar|film|study|exam|radiograph|image|cxr)"
)
"""What can be some days old without being the patient."""
DEGREES = r"(?:3[5-9]|4[0-2]|9[5-9]|10\d)(?:\.\d+)?\s*(?:degrees?\s*)?°?\s*"
TEMPERATURE = (
    rf"\b(?:t|temp|temperature|fever|febrile)(?:[\s:=]|\bof\b|\bto\b)+{DEGREES}[fc]?\b"
    rf"|\b{DEGREES}[fc]\s+fever\b"
)
FORMS = (
    # 70-year-old, 6 months old; 70 yo, 83 y.o.; aged 70; her 70s; 45 y; 70F; 70 female; M 70
    rf"\b(?P<cut>{NUMBER}[\s-]*(?P<unit>y|mo|w|d)[a-z]*[\s-]*(?:old|of age))\b(?!\s+{THING})",
    rf"\b(?P<cut>{NUMBER}[\s-]*(?:y/?o\b|y\.\s?o\.?))",
    rf"\b(?P<cut>aged?\s*:?\s*{NUMBER}(?:[\s-]*{UNIT})?)",
    r"\b(?P<cut>(?:(?P<part>early|mid|late)[\s-]+)?(?P<decade>[1-9]0)'?s)\b",
    rf"{LAST}|\b(?P<cut>{NUMBER}\s*(?:years?|yrs?|y))\b(?![\s-]*(?:{NO_AGE}))",
    rf"\b(?!{FRENCH})(?P<cut>{NUMBER}\s*[-/]?\s*(?P<letter>[fm]))\b",
    rf"\b{BARE}(?=[\s-]+{SEX}\b)",
    r"\b(?P<cut>(?P<letter>[fm])[,/\s]*(?P<age>\d{2,3}))\b(?!\s*[cm]m)",
    rf"\b{SEX},?\s+{BARE}\b(?!\s*[cm]m)",
    r"\b(?P<cut>newborn|neonate)\b",
)


def cut_ages(text: str) -> tuple[list[float], str]:
    """Finds the ages of a text, in years.

    Returns:
        The ages, and the text with a comma and spaces in their place: what stands around them does
        not belong together. A letter for the sex stays.
    """
    ages: list[float] = []
    text = re.sub(TEMPERATURE, "fever", text, flags=re.IGNORECASE)

    def cut(match: re.Match[str]) -> str:
        groups = match.groupdict()
        age = _years(groups)
        if age > OLDEST or groups["cut"] is None:
            return match.group()
        ages.append(age)
        start, end = (place - match.start() for place in match.span("cut"))
        letter = (groups.get("letter") or "").upper()
        blank = "," + " " * (end - start - 1 - len(letter)) + letter
        return match.group()[:start] + blank + match.group()[end:]

    for form in FORMS:
        text = re.sub(form, cut, text, flags=re.IGNORECASE)
    if any(0.0 < age < NEWBORN for age in ages):
        ages = [age for age in ages if age > 0.0]  # "a 3-day-old newborn" has one
    return ages, text


def _years(groups: dict[str, str | None]) -> float:
    """The age that the named groups of a form say; 0 for a newborn."""
    if decade := groups.get("decade"):
        part = groups["part"]
        return float(decade) + DECADE[part.lower() if part else "mid"]
    unit = (groups.get("unit") or "y")[0].lower()
    return float(groups.get("age") or 0) * YEARS[unit]
