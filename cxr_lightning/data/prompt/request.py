"""A text that asks for images: a health condition by its name, or else a prompt."""

from cxr_lightning.data.prompt.parse import parse_prompt
from cxr_lightning.data.prompt.prompt import Prompt
from cxr_lightning.data.vocabulary import (
    CONDITIONS,
    HealthCondition,
    condition_keys,
    parse_condition,
)


def parse_request(text: str) -> HealthCondition | Prompt:
    """Reads `pneumonia+pleural_effusion`, or "mild pleural effusion, PA view, 60-year-old man".

    Whatever is written as `cxr generate --condition` takes one is a health condition; every other
    text is a prompt.

    Raises:
        UserError: If the health condition contradicts itself, or as `parse_prompt` does.
    """
    if all(key in CONDITIONS for key in condition_keys(text)):
        return parse_condition(text)
    return parse_prompt(text)
