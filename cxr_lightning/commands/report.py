"""`cxr report`: evaluations as one self-contained HTML page, with Markdown and JSON beside it."""

from pathlib import Path

from cxr_lightning.errors import UserError
from cxr_lightning.report.read import read_evaluations


def report(evaluation: list[Path], out: Path) -> None:
    """Writes one or several evaluations as one HTML file, and as Markdown and JSON next to it.

    The HTML file holds its images and styles, needs no network and prints well. Several
    evaluations stand side by side, named by their folders.

    Args:
        evaluation: Folders made by 'cxr evaluate', one or more.
        out: The HTML file; Markdown and JSON have the same name with the suffixes .md and .json.

    Raises:
        UserError: If a folder holds no evaluation or `out` cannot be written; nothing is written.
    """
    if out.suffix != ".html" or out.is_dir():
        raise UserError(f"out: {out} is no name of an HTML file; give one such as report.html.")
    read = read_evaluations(evaluation)
    from cxr_lightning.report.render import write_report  # its template engine takes a while

    try:
        page, *beside = write_report(read, out)
    except OSError as error:
        raise UserError(f"out: {out} cannot be written ({error}); give another place.") from error
    print(f"report in {page}, {' and '.join(str(path) for path in beside)}")
