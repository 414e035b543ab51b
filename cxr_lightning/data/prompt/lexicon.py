"""The words that prompts are read with: kind of word -> meaning -> phrases, separated by commas.

Phrases are written in lower case and in the singular, without hyphens; the longest that fits wins.
The triggers of negation follow NegEx (Chapman et al. 2001, doi 10.1006/jbin.2001.1029), those of
uncertainty NegBio (Peng et al. 2018, arXiv 1712.05898), that of history ConText (Harkema et al.
2009, doi 10.1016/j.jbi.2009.05.002); the wording is this file's own.
"""

import itertools
from typing import Literal

from cxr_lightning.data.prompt.synonyms import FINDINGS, ORGANS, PREDICATES

Kind = Literal[
    "finding",  # names observations, several joined by "+"
    "organ",  # says nothing alone, only with a predicate: "heart" + "enlarged"
    "predicate",
    "cue",  # gives a state to what follows, else to what stands before
    "cue_after",  # gives a state to what stands before, else to what follows
    "side",
    "severity",
    "view",
    "sex",
    "link",  # joins phrases; a cue may reach across it
    "stop",  # ends every scope
    "exception",  # makes "normal" mean "the rest is normal"
    "place",  # prepositions: "in the right lung" belongs to what stands before
    "degree",  # joins a negation: "no definite"
    "filler",  # carries no meaning here
    "unused",  # carries meaning that a condition cannot hold
]

CUES = {
    "absent": "no, nil, not, without, w/o, negative for, negative, free of, free from, clear of, "
    "absence of, lack of, lacking, neither, never, resolution of, removal of, no longer, "
    "rather than, instead of, negative cxr for, negative chest for, negative study for, "
    "negative film for, negative radiograph for, negative x ray for, does not, do not, did not, "
    "don't, doesn't, didn't, isn't, aren't",
    "uncertain": "possible, possibly, probable, probably, likely, suspected, suspect, "
    "suspicion of, suspicion for, suspicious for, suspicious of, concern for, "
    "concerning for, concern of, worrisome for, question of, questionable, may represent, "
    "may reflect, may be, may have, might represent, might reflect, might be, could represent, "
    "could reflect, could be, can represent, suggestive of, suggesting, suggest, borderline, "
    "equivocal, potential, perhaps, maybe, presumed, cannot exclude, can't exclude, "
    "can not exclude, could not exclude, cannot rule out, can't rule out, can not rule out, "
    "could not rule out, not rule out, cannot entirely exclude, cannot completely exclude, "
    "difficult to exclude, not exclude, does not exclude, do not exclude, does not rule out, r/o, "
    "rule out, to exclude, exclude, evaluate for, assess for, uncertain, unlikely, doubtful, "
    "question, query",
    "present": "positive for, partial resolution of, incomplete resolution of, "
    "near complete resolution of",
    "history": "history of, h/o, hx of, previous, prior",
}

CUES_AFTER = {
    "absent": "absent, ruled out, excluded, not seen, not present, not identified, not visible, "
    "not visualized, not visualised, not evident, not detected, not demonstrated, cannot be seen, "
    "can't be seen, can not be seen, none, resolved, cleared, removed, no longer seen, "
    "no longer present, no longer visible, no longer evident, disappeared, removal",
    "uncertain": "cannot be excluded, can't be excluded, can not be excluded, "
    "could not be excluded, cannot be ruled out, can't be ruled out, can not be ruled out, "
    "not excluded, not ruled out, not entirely excluded, cannot be entirely excluded, "
    "cannot be completely excluded, cannot be assessed, cannot be evaluated, not well assessed",
    "present": "not resolved, not yet resolved, not completely resolved, not fully resolved, "
    "not cleared, not yet cleared, not completely cleared, nearly resolved, partially resolved, "
    "partly resolved, incompletely resolved, mostly resolved, almost resolved, "
    "almost completely resolved, nearly completely resolved",
}

SIDES = {
    "left": "left, left sided, left side, L, lt",
    "right": "right, right sided, right side, R, rt",
    "bilateral": "bilateral, bilaterally, bilat, bibasilar, bibasal, bi basilar, bi basal, "
    "biapical, bi apical, both, both side, b/l",
}

SEVERITIES = {
    "mild": "mild, mildly, trace, tiny, small, minimal, minimally, slight, slightly, minor, "
    "subtle, sm, small volume, small sized",
    "moderate": "moderate, mod, moderately, moderate sized, medium, medium sized",
    "severe": "severe, severely, large, massive, massively, marked, markedly, huge, extensive, "
    "big, gross, large volume, large sized, very large",
}

VIEWS = {
    "PA": "pa, posteroanterior, postero anterior, posterior anterior",
    "AP": "ap, anteroposterior, antero posterior, anterior posterior, portable, supine, bedside",
}
"""Portable and supine radiographs are taken from front to back."""

SEXES = {
    "Female": "female, woman, women, lady, girl, F, she, her, mrs",
    "Male": "male, man, men, gentleman, boy, M, he, his, him, mr",
}

LOBES = {
    "rul": "right upper lobe",
    "rml": "right middle lobe",
    "rll": "right lower lobe",
    "lul": "left upper lobe",
    "lll": "left lower lobe",
    "lingular": "left lingula",
    "lingula": "left lingula",
}
"""Short names that hold a side, written out before anything is looked up."""

LINKS = {
    "and": "and, &, +, /, as well as",
    "or": "or, nor, and / or, and or",
    "versus": "versus, vs, vs.",
}

STOPS = {
    ".": "with, w/, but, however, although, though, while, along with, together with, due to, "
    "secondary to, after, following, post",
    "exception": "except, except for, apart from, aside from, other than, besides, "
    "save for, with the exception of",
}

PUNCTUATION: dict[str, tuple[Kind, str]] = {
    **dict.fromkeys(",()", ("link", ",")),
    **dict.fromkeys(".;!", ("stop", ".")),
    "-": ("link", ","),
    "?": ("cue", "uncertain"),
    "? ": ("cue_after", "uncertain"),
}
"""A question mark belongs to the word that it touches: `?pneumonia`, `pneumonia?`."""

DEGREES = {
    "": "focal, discrete",
    "recent": "acute, active, new, suspicious",
    "marked": "definite, convincing, obvious, overt, frank, significant, florid",
}
"""What a negation takes along without a change of its meaning: "no acute fracture". The absence of
something marked leaves room for less of it ("mild congestion without overt edema"), that of
something recent for what is old ("no acute fracture, old rib fractures")."""

FILLER = (
    "a, an, the, is, are, was, were, be, been, has, have, had, there, this, that, which, it, of, "
    "for, x ray, xray, radiograph, cxr, film, image, picture, photo, scan, study, exam, "
    "examination, view, projection, patient, person, subject, adult, show, shown, showing, "
    "demonstrate, demonstrating, reveal, revealing, see, seen, noted, identified, visible, "
    "present, evident, appear, represent, reflect, evidence, sign, impression, result, report, "
    "yes, please, generate, generating, create, make, draw, synthesize, synthesise, produce, give, "
    "i, me, us, want, need, like, would, my, synthetic, realistic, artificial, frontal, "
    "cardiopulmonary, intrathoracic, thoracic, radiographic, in place, in situ, consistent with, "
    "compatible with, c/w, in keeping with, some, any, also, now, then, sex, gender, age, year, "
    "old, who, as, to, s/p, status post, by, from, contour, silhouette, size, its, their, "
    "greater than, less than, only, not only, associated, side, sided, either, volunteer, control, "
    "pt, pl, pulm, cardiopulm"
)

CHANGES = ", ".join(
    " ".join(filter(None, words))
    for words in itertools.product(
        ("no", "without"),
        (
            "",
            "significant",
            "substantial",
            "relevant",
            "appreciable",
            "major",
            "further",
            "definite",
        ),
        ("", "interval"),
        (
            "change",
            "increase",
            "decrease",
            "improvement",
            "worsening",
            "progression",
            "enlargement",
        ),
    )
)
COMPARISONS = ", ".join(
    " ".join(filter(None, words))
    for words in itertools.product(
        ("compared to", "compared with", "comparison to", "from", "than", "on", "since", "to"),
        ("", "the", "a"),
        ("prior", "previous"),
        ("", "exam", "examination", "study", "radiograph", "film", "cxr", "image"),
    )
)
UNUSED = (
    f"{CHANGES}, {COMPARISONS}, "
    "not changed, not increased, low lung volume, lung volume, lateral, pulmonary artery, "
    "main pa, enlarged pa, enlarged main pa, pa pressure, ap diameter, non portable, not portable, "
    "right pulmonary artery, left pulmonary artery, right atrium, right ventricle, left atrium, "
    "left ventricle, mass effect, minor fissure, major fissure, plate like, mass like, "
    "ap window, aortopulmonary window, aorto pulmonary window, "
    "pericardial effusion, joint effusion, peripheral edema, leg edema, soft tissue edema"
)
"""Phrases that would be misread word by word; among them NegEx's pseudo-negations: what "no change
in" is said of is there, and so is what is larger "than prior"."""

PATIENT = "elderly, young, middle aged, infant, child, kid, baby, toddler, teenager, pediatric"

LEXICON: dict[Kind, dict[str, str]] = {
    "finding": FINDINGS,
    "organ": ORGANS,
    "predicate": PREDICATES,
    "cue": CUES,
    "cue_after": CUES_AFTER,
    "side": SIDES,
    "severity": SEVERITIES,
    "view": VIEWS,
    "sex": SEXES,
    "link": LINKS,
    "stop": STOPS,
    "exception": {"": "otherwise, other, additional, further, remaining, rest"},
    "place": {"": "in, on, at, within, over, along, involving, near"},
    "degree": DEGREES,
    "filler": {"": FILLER, "request": "can you, could you, would you, will you, can i, could i"},
    "unused": {"": UNUSED, "patient": PATIENT},
}
