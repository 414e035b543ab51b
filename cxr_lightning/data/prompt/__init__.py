"""Prompts: radiology phrases to a structured condition."""

from cxr_lightning.data.prompt.parse import parse_prompt
from cxr_lightning.data.prompt.prompt import Finding, Prompt

__all__ = ["Finding", "Prompt", "parse_prompt"]
