"""Published files from the Hub, by name."""

import os
from difflib import get_close_matches
from pathlib import Path

C2I, T2I = "FoundationVision/LlamaGen", "peizesun/llamagen_t2i"
# file -> repository
PUBLISHED: dict[str, str] = {
    "vq_ds16_c2i.pt": C2I,
    "vq_ds8_c2i.pt": C2I,
    "c2i_B_256.pt": C2I,
    "c2i_B_384.pt": C2I,
    "c2i_L_256.pt": C2I,
    "c2i_L_384.pt": C2I,
    "c2i_XL_384.pt": C2I,
    "c2i_X_384L.pt": C2I,  # c2i_XL_384.pt, as it is called in places
    "c2i_XXL_384.pt": C2I,
    "c2i_3B_384.pt": C2I,
    "vq_ds16_t2i.pt": T2I,
    "t2i_XL_stage1_256.pt": T2I,
    "t2i_XL_stage2_512.pt": T2I,
}
HUB = "https://huggingface.co"


def repository(name: str) -> str:
    """Where the file is published; ValueError with near names where there is no such file."""
    if name not in PUBLISHED:
        near = get_close_matches(name, PUBLISHED, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"choose from {', '.join(PUBLISHED)}"
        raise ValueError(f"{name}: not among the published files; {hint}")
    return PUBLISHED[name]


def download(name: str, folder: str | Path = "pretrained_models") -> Path:
    """Fetch one published file into `folder`, whole or not at all; a stopped download goes on where it was.

    HF_ENDPOINT (a mirror), HF_TOKEN and HF_HUB_OFFLINE are read by huggingface_hub.
    """
    repo = repository(name)
    path = Path(folder) / name
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise ValueError("fetching from the Hub needs huggingface_hub: pip install 'llamagen[hub]'") from error
    page = f"{os.environ.get('HF_ENDPOINT', HUB).rstrip('/')}/{repo}"
    by_hand = f"Fetch it by hand from {page}/resolve/main/{name} (the page is {page}) and put it at {path}"
    try:
        return Path(hf_hub_download(repo, name, local_dir=folder))
    except LocalEntryNotFoundError as error:
        raise OSError(f"{name}: could not reach the Hub ({error.__cause__ or error}). {by_hand}") from error
    except EntryNotFoundError as error:
        raise ValueError(f"{name}: the repository {repo} has no such file now; see {page}") from error
    except OSError as error:
        raise OSError(f"{name}: could not be fetched ({error}). {by_hand}") from error
