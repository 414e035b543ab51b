"""Texts that are health conditions, and texts that are prompts."""

import pytest
import torch

from cxr_lightning.data.prompt import Prompt, parse_prompt, parse_request
from cxr_lightning.data.vocabulary import CONDITIONS, HealthCondition, parse_condition
from cxr_lightning.errors import UserError


@pytest.mark.parametrize(
    "text",
    [*CONDITIONS, "Pneumonia", "pleural effusion", "pneumonia + Pleural_Effusion", " healthy "],
)
def test_the_syntax_of_the_option_condition_is_a_condition(text):
    read = parse_request(text)
    assert isinstance(read, HealthCondition)
    assert read == parse_condition(text)


@pytest.mark.parametrize(
    "text",
    [
        "mild pleural effusion, PA view, 60-year-old man",
        "no pneumothorax",
        "normal chest",
        "pneumonia and effusion",
        "pneumonia+oedema",  # a synonym is no name of a condition
    ],
)
def test_every_other_text_is_a_prompt(text):
    read = parse_request(text)
    assert isinstance(read, Prompt)
    assert read == parse_prompt(text)


@pytest.mark.parametrize("name", [name for name in CONDITIONS if name != "no_finding"])
def test_the_name_of_a_condition_means_the_same_as_a_prompt(name):
    condition = parse_condition(name).request(1)
    prompt = parse_prompt(name.replace("_", " ")).condition(1)
    assert all(torch.equal(a, b) for a, b in zip(condition, prompt, strict=True))


def test_no_finding_alone_may_show_devices_as_no_prompt_for_a_normal_chest_does():
    assert parse_condition("no_finding").absent == ()
    assert parse_prompt("no finding").name == "healthy"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("healthy+edema", "condition: 'healthy\\+edema' contradicts itself"),
        ("banana", "prompt: 'banana' names no finding"),
        ("", "prompt: '' names no finding"),
        ("no edema, edema", "states Edema as present"),
    ],
)
def test_mistakes_are_one_sentence(text, message):
    with pytest.raises(UserError, match=message) as info:
        parse_request(text)
    assert "\n" not in str(info.value)
