"""Prompts: radiology phrases to a structured condition."""

from cxr_lightning.data.prompt.parse import parse_prompt
from cxr_lightning.data.prompt.prompt import UNFOLLOWED, Finding, Prompt
from cxr_lightning.data.prompt.request import parse_request

__all__ = ["UNFOLLOWED", "Finding", "Prompt", "parse_prompt", "parse_request"]
