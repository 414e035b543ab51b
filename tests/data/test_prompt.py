"""Prompts: a table of phrases with what they mean, written before the parser was tuned."""

import csv
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from cxr_lightning.data.phantom import report, sample_findings, truth
from cxr_lightning.data.prompt import Finding, Prompt, parse_prompt
from cxr_lightning.data.prompt.age import cut_ages
from cxr_lightning.data.prompt.clean import clean
from cxr_lightning.data.prompt.lexicon import LEXICON
from cxr_lightning.data.prompt.synonyms import FINDINGS
from cxr_lightning.data.prompt.tokens import find_items, tokenize
from cxr_lightning.data.vocabulary import CONDITIONS, SYNONYMS, find_observation, parse_condition
from cxr_lightning.errors import UserError
from cxr_lightning.types import FIELDS, OBSERVATIONS

EXAMPLE = (
    "mild left pleural effusion with bibasilar pneumonia, no pneumothorax, PA view, "
    "70-year-old woman"
)
NUMBERS = {"present": "1", "absent": "0", "uncertain": "-1"}

with (Path(__file__).parent / "prompt_phrases.csv").open(newline="") as file:
    TABLE = list(csv.DictReader(file))
"""Columns: set (`held_out` was looked at only after the parser was tuned on the others), phrase,
findings (observation = 1, 0 or -1 for uncertain / side / severity), view, sex, age, unused."""


def written(finding: Finding) -> str:
    """A finding as the table writes it."""
    state = f"{finding.observation}={NUMBERS[finding.state]}"
    return "/".join(part for part in (state, finding.side, finding.severity) if part)


def known(condition):
    """Known fields of a condition whose rows are alike."""
    assert (condition.value == condition.value[:1]).all()
    fields = enumerate(FIELDS)
    return {f: round(float(condition.value[0, i]), 4) for i, f in fields if condition.known[0, i]}


def uncertain(condition):
    return [FIELDS[i] for i in condition.uncertain[0].nonzero().flatten()]


@pytest.mark.parametrize("row", TABLE, ids=[row["phrase"] for row in TABLE])
def test_phrase(row):
    prompt = parse_prompt(row["phrase"])
    assert "; ".join(map(written, prompt.findings)) == row["findings"]
    assert (prompt.view or "", prompt.sex or "") == (row["view"], row["sex"])
    assert prompt.age == (pytest.approx(float(row["age"]), abs=1e-3) if row["age"] else None)
    assert "; ".join(prompt.unused) == row["unused"]
    text = " ".join(clean(row["phrase"]).split())
    assert all(part in text for f in prompt.findings for part in f.words.split(", "))


def test_the_table_covers_every_observation_in_every_state():
    assert Counter(row["set"] for row in TABLE)["table"] >= 150
    assert len({row["phrase"] for row in TABLE}) == len(TABLE)
    stated = {part.split("/")[0].strip() for row in TABLE for part in row["findings"].split(";")}
    for observation in OBSERVATIONS:
        assert f"{observation}=1" in stated


def test_case_and_space_do_not_matter():
    for row in TABLE:
        prompt = parse_prompt(row["phrase"])
        changed = parse_prompt(f" {row['phrase'].upper().replace(' ', '  ')} ")
        assert list(map(written, changed.findings)) == list(map(written, prompt.findings))
        assert (changed.view, changed.sex, changed.age) == (prompt.view, prompt.sex, prompt.age)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "no effusion, large effusion",
            "prompt: 'no effusion, large effusion' states Pleural Effusion as present "
            "('large effusion') and as absent ('no effusion'); leave one of them out.",
        ),
        (
            "normal chest with pneumonia",
            "prompt: 'normal chest with pneumonia' asks for a healthy radiograph ('normal chest') "
            "and for Pneumonia ('pneumonia'); leave one of them out.",
        ),
        (
            "hello world",
            "prompt: 'hello world' names no finding, view, sex or age that a condition can hold; "
            "write for example 'mild left pleural effusion, no pneumothorax, PA view, 70-year-old "
            "woman'.",
        ),
        (
            "AP and PA views, edema",
            "prompt: 'AP and PA views, edema' states more than one view (AP, PA); leave one.",
        ),
    ],
)
def test_message(text, message):
    with pytest.raises(UserError) as error:
        parse_prompt(text)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "text",
    [
        "pneumothorax. No evidence of pneumothorax.",
        "PTX ruled out, right PTX",
        "no left effusion, bilateral effusions",
        "enlarged heart, heart size is normal",
        "intubated, no support devices",
    ],
)
def test_present_and_absent(text):
    with pytest.raises(UserError, match=r"states .* as present .* and as absent .*; leave one"):
        parse_prompt(text)


@pytest.mark.parametrize(
    "text",
    [
        "healthy, cardiomegaly",
        "no finding, fracture",
        "clear lungs, consolidation in the left lung",
        "no acute cardiopulmonary process but large pneumothorax",
        "unremarkable chest x-ray of a man with a rib fracture",
    ],
)
def test_healthy_and_ill(text):
    with pytest.raises(UserError, match=r"^text: .* asks for a healthy radiograph .* leave one"):
        parse_prompt(text, "text")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "?",
            "no",
            "left",
            "x-ray",
            "lateral view",
            "emphysema",
            "no emphysema",
            "heart",
        ),
        *("history of pneumonia", "not normal", "otherwise", "abnormal chest", "effusión"),
    ],
)
def test_nothing_usable(text):
    with pytest.raises(UserError, match=r"^prompt: .* names no finding, view, sex or age"):
        parse_prompt(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing " * 200, "names no finding"),
        ("edema " * 400, "has 2400 characters; write at most"),
    ],
)
def test_a_long_prompt_is_cut_in_messages(text, message):
    with pytest.raises(UserError, match=message) as error:
        parse_prompt(text)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("text", ["man and woman", "70-year-old man, aged 80", "portable PA film"])
def test_two_of_what_there_is_one_of(text):
    with pytest.raises(UserError, match="states more than one"):
        parse_prompt(text)


def test_one_side_or_size_absent_is_no_contradiction():
    sides = parse_prompt("no left effusion, right effusion")
    assert known(sides.condition(1)) == {"No Finding": 0, "Pleural Effusion": 1}
    sizes = parse_prompt("No large effusion. Small left effusion.")
    assert known(sizes.condition(1)) == {"No Finding": 0, "Pleural Effusion": 1}


def test_condition_of_the_example():
    condition = parse_prompt(EXAMPLE).condition(3)
    assert condition.value.shape == (3, 17)
    expected = {"No Finding": 0, "Pneumonia": 1, "Pneumothorax": 0, "Pleural Effusion": 1}
    assert known(condition) == expected | {"PA": 1, "Male": 0, "Age": 0.7}
    assert not condition.uncertain.any()


@pytest.mark.parametrize("name", list(CONDITIONS))
def test_condition_names_are_prompts(name):
    """`no_finding` among them is said by people who mean healthy."""
    prompt, asked = parse_prompt(name), parse_condition(name)
    asked = parse_condition("healthy") if name == "no_finding" else asked
    assert prompt.name == asked.name
    for given, expected in zip(prompt.condition(2), asked.request(2), strict=True):
        torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("name", [*SYNONYMS, *OBSERVATIONS])
def test_names_of_the_vocabulary_are_prompts(name):
    assert list(parse_prompt(name).states) == [find_observation(name)]


def test_healthy_with_devices_if_asked():
    stated = known(parse_prompt("normal chest with a pacemaker, AP").condition(1))
    assert stated.pop("PA") == 0
    assert stated == dict.fromkeys(OBSERVATIONS, 0) | {"No Finding": 1, "Support Devices": 1}


def test_uncertain_is_a_class_of_its_own():
    condition = parse_prompt("possible pneumonia, no effusion").condition(2)
    assert known(condition) == {"Pleural Effusion": 0}
    assert uncertain(condition) == ["Pneumonia"]
    assert not condition.value[:, OBSERVATIONS.index("Pneumonia")].any()


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("right effusion, possible left effusion", "present"),
        ("no effusion; tiny effusion cannot be excluded", "uncertain"),
    ],
)
def test_one_state_an_observation(text, state):
    assert parse_prompt(text).states == {"Pleural Effusion": state}


def test_ages_beyond_the_field():
    assert parse_prompt("aged 105").age == 105
    assert known(parse_prompt("aged 105").condition(1)) == {"Age": 1}
    assert parse_prompt("150-year-old woman").age is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (EXAMPLE, "pleural_effusion+pneumonia-pneumothorax"),
        ("possible edema with cardiomegaly", "cardiomegaly+possible_edema"),
        ("normal chest", "healthy"),
        ("normal chest with a pacemaker", "healthy+support_devices"),
        ("no pneumothorax", "any-pneumothorax"),
        ("woman", "any"),
    ],
)
def test_name(text, name):
    assert parse_prompt(text).name == name


def test_description():
    text = "mild left effusion, no large  PTX,\n?COVID, possible edema, PA and lateral, 70M"
    assert parse_prompt(text).describe().splitlines() == [
        "prompt: mild left effusion, no large PTX, ?COVID, possible edema, PA and lateral, 70M",
        "present: Pleural Effusion",
        "uncertain: Edema",
        "absent: Pneumothorax",
        "view: PA",
        "sex: Male",
        "age: 70 years",
        "side and severity: Pleural Effusion left, mild; Pneumothorax severe (absent)",
        "not used: COVID, lateral",
    ]
    assert parse_prompt("edema").describe() == "prompt: edema\npresent: Edema"


def test_words():
    findings = parse_prompt(EXAMPLE).findings
    words = ["mild left pleural effusion", "bibasilar pneumonia", "no pneumothorax"]
    assert [finding.words for finding in findings] == words


@pytest.mark.parametrize("seed", range(100))
def test_reports_of_the_phantom(seed):
    """Their text and their truth come from the same findings, and from other code than this."""
    findings = sample_findings(np.random.default_rng(seed), portable=seed % 2 == 0)
    shown = {name for name, value in truth(findings).items() if value}
    prompt = parse_prompt(report(findings))
    states = prompt.states
    assert {o for o, state in states.items() if state == "present"} <= shown
    assert not shown & {o for o, state in states.items() if state == "absent"}
    for name in ("No Finding", "Pneumonia", "Pneumothorax", "Pleural Effusion", "Cardiomegaly"):
        assert (states.get(name) == "present") == (name in shown)
    parts = {"Pleural Effusion": findings.effusion, "Pneumothorax": findings.pneumothorax}
    parts |= {"Lung Opacity": findings.pneumonia}
    sides = {f.observation: f.side for f in prompt.findings if f.state == "present"}
    for name, part in parts.items():
        assert part is None or sides[name] == part.side


def test_each_phrase_of_the_lexicon_has_one_meaning():
    phrases = Counter()
    for kind, meanings in LEXICON.items():
        for value, text in meanings.items():
            for phrase in text.split(", "):
                phrases[tuple(token.key for token in tokenize(phrase))] += 1
                (item,) = find_items(phrase)
                assert (item.kind, item.value) == (kind, value), phrase
    assert phrases.most_common(1)[0][1] == 1
    named = {observation for value in FINDINGS for observation in value.split("+")}
    assert named == set(OBSERVATIONS) - {"No Finding"}


@pytest.mark.parametrize(
    ("text", "ages"),
    [
        ("3 cm nodule", []),
        ("5 years ago", []),
        ("woman, 3 nodules", []),
        ("F 62", [62]),
        ("62/F", [62]),
        ("2 weeks old", [14 / 365.25]),
        ("late 60s", [68]),
        ("30-year-old, aged 31", [30, 31]),
    ],
)
def test_ages(text, ages):
    found, rest = cut_ages(text)
    assert found == pytest.approx(ages)
    assert len(rest) == len(text)


def test_parsing_is_deterministic():
    for row in TABLE:
        assert parse_prompt(row["phrase"]) == parse_prompt(row["phrase"])


def understood(text):
    """The prompt, or the message of its error."""
    try:
        return parse_prompt(text)
    except UserError as error:
        return str(error)


def test_anything_is_understood_or_a_user_error():
    generator = random.Random(0)
    phrases = [row["phrase"] for row in TABLE]
    words = sorted({word for phrase in phrases for word in phrase.split()})
    marks = [*".,;:?!()/+-–&%\n\t'\"", "é", "肺", "😀", "½", "ﬁ"]
    results = []
    for _ in range(300):
        parts = generator.choices(generator.choice([phrases, words, words + marks]), k=6)
        results.append(understood(generator.choice([" ", ", ", ". ", ""]).join(parts)))
    prompts = [result for result in results if isinstance(result, Prompt)]
    assert 50 < len(prompts) < 250
    assert all(str(result).startswith(("prompt: ", "Prompt(")) for result in results)
    for prompt in prompts:
        condition = prompt.condition(1)
        assert prompt.describe().startswith("prompt: ")
        assert prompt.name
        assert not (condition.known & condition.uncertain).any()
