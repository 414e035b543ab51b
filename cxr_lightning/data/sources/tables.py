"""Tables of text from a data set's files: every row is kept, with what is wrong with it.

A table has text in all columns, blank as "", and one column more, `PROBLEM`: blank, or why the row
cannot be used. Such rows are not dropped: `cxr prepare` lists them in `failures.csv`. The index
says where a row stands, such as `train.csv, line 17`.
"""

import csv
import gzip
import posixpath
import zlib
from collections.abc import Callable, Iterable, Iterator
from io import TextIOWrapper
from pathlib import Path

import pandas as pd

from cxr_lightning.data.split import SPLITS
from cxr_lightning.errors import UserError
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

PROBLEM = "problem"

LABELS = {
    **dict.fromkeys(("1", "1.0"), 1.0),
    **dict.fromkeys(("0", "0.0", "-0.0"), 0.0),
    **dict.fromkeys(("-1", "-1.0"), -1.0),
    **dict.fromkeys(("", "nan"), float("nan")),
    "n/a": NOT_ANNOTATED,
}
"""What a cell of an observation means: positive, negative, uncertain, not mentioned (blank), not
annotated in this data set."""

PEOPLE: dict[str, dict[str, str]] = {
    "Sex": {
        **dict.fromkeys(("male", "m"), "Male"),
        **dict.fromkeys(("female", "f"), "Female"),
        **dict.fromkeys(("unknown", "u", "other", "o", "nan", ""), "Unknown"),
    },
    "Frontal/Lateral": {
        **dict.fromkeys(("frontal", "f"), "Frontal"),
        **dict.fromkeys(("lateral", "lat", "l"), "Lateral"),
        **dict.fromkeys(("nan", ""), ""),
    },
    "AP/PA": {
        **{view.lower(): view for view in ("AP", "PA", "LL", "RL")},
        **dict.fromkeys(("unknown", "nan", ""), ""),
    },
}
"""What a cell of sex or view may say, in lower case, and what it means."""

MAX_AGE = 150
NO_NUMBER = float("inf")

SPLIT_NAMES = {**{s: s for s in SPLITS}, "val": "valid", "validate": "valid", "validation": "valid"}
"""Names that data sets have for the splits."""

FIELD_LIMIT = 2**24
"""Longest cell, in characters: above any report."""


def read_csv(file: Path) -> pd.DataFrame:
    """Reads a CSV file, also a gzipped one (`.gz`); spaces around column names are dropped.

    A row with too few or too many cells has a problem; nothing is filled in or cut off in silence.

    Raises:
        UserError: If it is missing, not a CSV in UTF-8, names a column twice, or has no rows.
    """
    try:
        with _open_text(file) as stream:
            rows = list(_records(stream))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"root: {file} cannot be read as a CSV file in UTF-8 ({error}).") from error
    if len(rows) < 2:
        raise UserError(f"root: {file} has no rows; give a CSV file with one row an image.")
    header = [name.strip() for name in rows[0][1]]
    for delimiter in (";", "\t"):
        if len(header) == 1 and delimiter in header[0]:
            raise UserError(
                f"root: {file} has {delimiter!r} between its cells; save it with commas."
            )
    for name in header:
        if header.count(name) > 1:
            raise UserError(f"root: {file} names the column {name!r} twice; keep one of them.")
    lines = [f"{file.name}, line {number}" for number, _ in rows[1:]]
    cells = [(row + [""] * len(header))[: len(header)] for _, row in rows[1:]]
    table = pd.DataFrame(cells, index=pd.Index(lines), columns=pd.Index(header), dtype=str)
    counts = pd.Series([len(row) for _, row in rows[1:]], index=table.index)
    table[PROBLEM] = ""
    expected = f" cells where the header has {len(header)}"
    return flag(table, counts != len(header), counts.astype(str) + expected)


def find_csv(root: Path, *patterns: str) -> Path:
    """The CSV file in a folder whose name fits the first of some patterns that any file fits.

    Args:
        root: The folder.
        patterns: Names with `*`, without suffix; `.csv` goes before `.csv.gz`.

    Raises:
        UserError: If there is no such folder, or no such file in it, or several.
    """
    if not root.is_dir():
        raise UserError(f"root: there is no folder {root}; give the folder of the data set.")
    for pattern in patterns:
        for suffix in (".csv", ".csv.gz"):
            found = sorted(root.glob(pattern + suffix))
            if len(found) > 1:
                raise UserError(
                    f"root: {root} holds {found[0].name} and {found[1].name}; keep one of them."
                )
            if found:
                return found[0]
    names = " or ".join(f"{pattern}.csv" for pattern in patterns)
    raise UserError(f"root: there is no {names} (or .csv.gz) in {root}; put it there.")


def shown_path(path: Path) -> tuple[str, str]:
    """A path as text, and what is wrong with it."""
    name = path.as_posix()
    shown = name.encode("utf-8", "backslashreplace").decode()
    return shown, "" if name == shown else f"{shown}: the name is not UTF-8"


def flag(table: pd.DataFrame, wrong: pd.Series, problem: pd.Series | str) -> pd.DataFrame:
    """States a problem of the rows where `wrong`; an earlier problem stays."""
    new = wrong & (table[PROBLEM] == "")
    if not new.any():
        return table
    said = problem[new] if isinstance(problem, pd.Series) else problem
    where = table.index[new].to_series(index=table.index[new]).astype(str)
    problems = table[PROBLEM].to_numpy(dtype=object, copy=True)
    problems[new.to_numpy()] = (where + ": " + said).to_numpy()
    return table.assign(**{PROBLEM: pd.Series(problems, index=table.index, dtype=str)})


def flag_repeated_paths(table: pd.DataFrame) -> pd.DataFrame:
    """Keeps the first of the rows that name the same image; blank paths are problems too.

    `./a.png` and `a.png` are the same.
    """
    table = flag(table, table["Path"] == "", "no path")
    same = pd.Series([posixpath.normpath(path) for path in table["Path"]], index=table.index)
    return flag(table, same.duplicated(), "an earlier row names the same image")


def require_columns(table: pd.DataFrame, columns: Iterable[str], file: Path) -> None:
    """Raises a UserError that names the columns that are missing."""
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise UserError(
            f"root: {file} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; add "
            "them or leave them blank."
        )


def parse_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Observations and Age as float, blank as NaN; a cell that is neither is a problem.

    Whole numbers may be written with decimals (`1.0`), as CheXpert does.
    """
    for column in OBSERVATIONS:
        table = _parse_column(table, column, _parse_label, "not 1, 0, -1 or blank")
    return _parse_column(table, "Age", _parse_age, "not a number of years")


def parse_people(table: pd.DataFrame) -> pd.DataFrame:
    """Sex, view, patient and study without spaces, in the words of CheXpert.

    A cell that is none of `PEOPLE` is a problem. Columns that are absent stay so.
    """
    for column, names in PEOPLE.items():
        parsed = {text: names.get(text.strip().lower()) for text in set(table[column])}
        values = pd.Series([parsed[text] for text in table[column]], index=table.index)
        wrong = values.isna()
        if wrong.any():
            expected = ", ".join(dict.fromkeys(name for name in names.values() if name))
            problem = column + " is '" + table[column] + f"', not {expected} or blank"
            table = flag(table, wrong, problem)
        table = table.assign(**{column: values.fillna("").astype(str)})
    stripped = {c: table[c].str.strip() for c in ("patient", "study") if c in table.columns}
    return table.assign(**stripped)


def with_split(table: pd.DataFrame, names: pd.Series) -> pd.DataFrame:
    """Adds the split by its name in the data set (`validate` is `valid`); blank stays blank."""
    splits = names.str.strip().str.lower().map({**SPLIT_NAMES, "": ""})
    wrong = "split is '" + names + f"', not {', '.join(SPLITS)} or blank"
    return flag(table, splits.isna(), wrong).assign(split=splits.fillna(""))


def leave_unannotated(table: pd.DataFrame) -> pd.DataFrame:
    """Marks observations that are blank in every row as not annotated in this data set."""
    blank = [o for o in OBSERVATIONS if table[o].isna().all()]
    return table.assign(**dict.fromkeys(blank, NOT_ANNOTATED))


def _parse_column(
    table: pd.DataFrame, column: str, parse: Callable[[str], float], expected: str
) -> pd.DataFrame:
    """Puts numbers in place of a column; where `parse` gives `NO_NUMBER`, that is a problem.

    Each different text is parsed once.
    """
    parsed = {text: parse(text.strip().lower()) for text in table[column].unique()}
    numbers = table[column].map(parsed).astype(float)
    wrong = numbers == NO_NUMBER
    if wrong.any():
        table = flag(table, wrong, column + " is '" + table[column] + f"', {expected}")
    return table.assign(**{column: numbers.mask(wrong)})


def _parse_label(text: str) -> float:
    return LABELS.get(text, NO_NUMBER)


def _parse_age(text: str) -> float:
    """Years; NaN for blank."""
    if text in ("", "nan"):
        return float("nan")
    try:
        age = float(text)
    except ValueError:
        return NO_NUMBER
    return age if 0 <= age <= MAX_AGE else NO_NUMBER


def _open_text(file: Path) -> TextIOWrapper:
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="utf-8-sig", newline="")
    return file.open(encoding="utf-8-sig", newline="")


def _records(stream: TextIOWrapper) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, each with the number of its first line.

    A NUL character, at which some versions of pandas end a text, becomes U+FFFD; a line break
    within a cell becomes a line feed.
    """
    csv.field_size_limit(FIELD_LIMIT)
    reader = csv.reader((line.replace("\0", "\ufffd") for line in stream), strict=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, [c.replace("\r\n", "\n").replace("\r", "\n") for c in row]
            line = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(f"line {line}: {error}") from error
