"""Text of others in Markdown."""

import re


def escape(text: object) -> str:
    """Text from a file as Markdown shows it: no markup, no HTML, one line."""
    plain = " ".join(str(text).split())
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|`\[\]*])", r"\\\1", plain)
