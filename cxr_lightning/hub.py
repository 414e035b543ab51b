"""The Hugging Face Hub: products that others shared, and sharing one."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from cxr_lightning import __version__
from cxr_lightning.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""Of a model on the Hub: `org/name`."""

FILES = ("*config.json", "*manifest.json", "*model.safetensors", "README.md")
"""What is downloaded: a product and its card, nothing else that may lie there."""

PARTS = ("autoencoder", "prior", "denoiser")
"""Folders of a generator product."""

HTTP_ERROR: type[BaseException] = HfHubHTTPError.__bases__[0]
"""What the Hub's client raises without a connection; its HTTP library has changed its name."""

TROUBLE = (LocalEntryNotFoundError, OfflineModeIsEnabled, HTTP_ERROR, HFValidationError)
"""What the Hub's client raises for names, permissions and connections."""

DENIED = (401, 403)


class ProductSource(NamedTuple):
    """Where a product is.

    Attributes:
        folder: Its folder, or that of its copy in the Hub's cache.
        commit: Its commit on the Hub; None for a folder of the user's.
    """

    folder: Path
    commit: str | None = None


def find_product(model: Path | str, argument: str, revision: str | None = None) -> ProductSource:
    """The folder of a product, after a download where it is on the Hub; what is in it is not read.

    A text is a name on the Hub if it looks like `org/name` and no such file or folder exists; a
    `Path` is a folder. What was downloaded before is taken from the Hub's cache, which works
    offline too (`HF_HUB_OFFLINE=1`, and where there is no connection).

    Args:
        model: A folder, or a name on the Hub.
        argument: The argument that named it, for the message.
        revision: Branch, tag or commit on the Hub; by default `main`.

    Raises:
        UserError: If the Hub does not give it, or `revision` is given for a folder.
    """
    named = isinstance(model, str) and NAME.fullmatch(model) and not Path(model).exists()
    if not named and revision is not None:
        raise UserError(
            f"revision: {revision!r} is of a model on the Hugging Face Hub, but {argument} is "
            f"{str(model)!r}; leave it out, or give a name such as 'org/name'."
        )
    if not named:
        return ProductSource(Path(model).expanduser())
    name = str(model)
    with _explained(argument, name, f"there is no folder {name}, and ", revision):
        copy = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(FILES),
            library_name="cxr_lightning",
            library_version=__version__,
        )
    folder = Path(copy)
    if not (folder / "manifest.json").is_file():
        raise UserError(
            f"{argument}: {name} on the Hugging Face Hub is no product of cxr_lightning, since it "
            "has no manifest.json; give another name, or a folder."
        )
    return ProductSource(folder, folder.name)


def share(files: Mapping[str, Path | bytes], repo: str, *, private: bool, message: str) -> str:
    """Uploads files to a model repository on the Hub in one commit, and makes it if needed.

    Files of an earlier product that are not among the new ones are deleted; others stay.

    Args:
        files: Path in the repository to a file, or to its content.
        repo: `org/name`.
        private: Whether only its owners may see it.
        message: Of the commit.

    Returns:
        The address of its page.

    Raises:
        UserError: If nobody is logged in, the Hub refuses, or it cannot be reached; or if it is to
            be private and exists as a public one.
    """
    if not NAME.fullmatch(repo):
        raise UserError(f"repo: {repo!r} is no name on the Hugging Face Hub; give one as org/name.")
    if get_token() is None:
        raise UserError(
            f"repo: {repo} cannot be written without a token; log in with 'hf auth login', or set "
            "HF_TOKEN to a token that may write."
        )
    api = HfApi(library_name="cxr_lightning", library_version=__version__)
    with _explained("repo", repo, ""):
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise UserError(
                f"private: {repo} exists on the Hugging Face Hub and is public; make it private in "
                "its settings, or give another name."
            )
        there = api.list_repo_files(repo)
        product = [path for path in there if _is_of_product(path)]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationDelete(path) for path in product if path not in files
        ]
        operations += [
            CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
            for path, content in files.items()
        ]
        try:
            api.create_commit(repo, operations, commit_message=message)
        except HFValidationError:
            raise
        except ValueError as error:  # the client's, after the Hub looked at the card
            lines = " ".join(str(error).split())
            raise UserError(
                f"license: the Hugging Face Hub refuses the first lines of the card ({lines}); "
                "give a licence that it knows, such as cc-by-nc-4.0, or correct README.md."
            ) from error
        except RuntimeError as error:  # the client's, around what went wrong with one large file
            raise UserError(
                f"repo: the upload to {repo} broke off ({_first_line(error)}); nothing of it is "
                "visible there, so give the same command again."
            ) from error
    return str(url)


def _is_of_product(path: str) -> bool:
    """Whether a file of a repository is one that a product consists of, its card aside."""
    *folders, name = Path(path).parts
    is_part = not folders or (len(folders) == 1 and folders[0] in PARTS)
    return is_part and name in {pattern.removeprefix("*") for pattern in FILES[:-1]}


@contextmanager
def _explained(
    argument: str, name: str, before: str, revision: str | None = None
) -> Iterator[None]:
    """Turns what the Hub's client raises into one sentence."""
    try:
        yield
    except TROUBLE as error:
        raise UserError(f"{argument}: {before}{_explain(error, name, revision)}") from error


def _explain(error: BaseException, name: str, revision: str | None) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, HFValidationError):
        return f"{name!r} is no name on the Hugging Face Hub; give one as org/name."
    if isinstance(error, GatedRepoError):
        return (
            f"{name} on the Hugging Face Hub is given only to those who accept its terms; accept "
            f"them at {constants.ENDPOINT}/{name} and log in with 'hf auth login'."
        )
    if isinstance(error, RevisionNotFoundError):
        return (
            f"{name} on the Hugging Face Hub has no revision {revision!r}; give a branch, tag or "
            "commit that it has."
        )
    if isinstance(error, RepositoryNotFoundError) or status in DENIED:
        return (
            f"the Hugging Face Hub has no model {name} that you may use this way; correct the "
            "name, or log in with 'hf auth login' as somebody who may."
        )
    if status is not None and 400 <= status < 500:
        return f"the Hugging Face Hub refused this for {name} ({_first_line(error)})."
    return (
        f"the Hugging Face Hub does not answer at {constants.ENDPOINT} for {name} "
        f"({_first_line(error)}); give the same command again where there is a connection."
    )


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    if isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    lines = str(cause).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(cause).__name__
