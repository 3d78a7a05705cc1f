"""Put a soup's folder on the Hugging Face hub, by huggingface_hub and the credentials that it knows."""

from __future__ import annotations

from pathlib import Path

from radin.errors import RadinError, printable


def require_hub(repository: str) -> None:
    """Raise RadinError where pushing could not work: no library, or no name that a repository has."""
    try:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
    except ImportError:
        raise RadinError("--push-to-hub needs huggingface_hub: pip install huggingface_hub") from None
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise RadinError(f"--push-to-hub {repository}: {error}") from None


def push(folder: Path, repository: str) -> str:
    """Upload a folder, as a private repository where there is none yet; the address.

    Raises RadinError when the hub cannot be reached or refuses; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    if not folder.is_dir():
        raise RadinError(
            f"{folder} is no folder: --push-to-hub is for soups of folders (Hugging Face models, adapters). Upload the "
            f"file: hf upload {repository} {folder}"
        )
    api = HfApi()
    try:
        # Checkpoints are nobody else's affair until their owner says so.
        made = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Add a model soup")
    except Exception as error:  # those of the library, and of whichever library it reaches the network by
        reason = printable(" ".join(str(error).split()))[:300] or type(error).__name__
        raise RadinError(
            f"could not push to {repository}: {reason}. The soup is whole in {folder}; once the hub can be reached and "
            f"you are logged in (hf auth login): hf upload {repository} {folder}"
        ) from None
    return str(made)
