"""The Hub: published files by name, repositories fetched and pushed, folders with a model card. Knows no model.

A folder of ours holds model.safetensors (its header says all that loading needs), config.json (the same, for people and
for the Hub's counting of downloads) and README.md, the model card.
"""

import json
import os
import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory

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
MISSING = "the Hub needs huggingface_hub: pip install 'llamagen[hub]'"
REFERENCE = """@article{sun2024autoregressive,
  title   = {Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation},
  author  = {Sun, Peize and Jiang, Yi and Chen, Shoufa and Zhang, Shilong and Peng, Bingyue and Luo, Ping and
             Yuan, Zehuan},
  journal = {arXiv preprint arXiv:2406.06525},
  year    = {2024}
}"""


def repository(name: str) -> str:
    """Where the file is published; ValueError with near names where there is no such file."""
    if name not in PUBLISHED:
        near = get_close_matches(name, PUBLISHED, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"choose from {', '.join(PUBLISHED)}"
        raise ValueError(f"{name}: not among the published files; {hint}")
    return PUBLISHED[name]


def page_of(repo: str) -> str:
    return f"{os.environ.get('HF_ENDPOINT', HUB).rstrip('/')}/{repo}"


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
        raise ValueError(MISSING) from error
    page = page_of(repo)
    by_hand = f"Fetch it by hand from {page}/resolve/main/{name} (the page is {page}) and put it at {path}"
    try:
        return Path(hf_hub_download(repo, name, local_dir=folder))
    except LocalEntryNotFoundError as error:
        raise OSError(f"{name}: could not reach the Hub ({error.__cause__ or error}). {by_hand}") from error
    except EntryNotFoundError as error:
        raise ValueError(f"{name}: the repository {repo} has no such file now; see {page}") from error
    except OSError as error:
        raise OSError(f"{name}: could not be fetched ({error}). {by_hand}") from error


def fetch(name: str | Path, folder: str | Path = "pretrained_models") -> str:
    """The path of weights. name: a file or folder of this machine, which is taken as it is; a published file's name
    (fetched into `folder`); or a repository of the Hub, USER/NAME (into huggingface_hub's cache)."""
    name = str(name)
    if Path(name).exists():
        return name
    if "/" not in name:
        return str(download(name, folder))
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) or name.endswith((".pt", ".pth", ".safetensors")):
        raise ValueError(f"{name}: there is no such file or folder")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError as error:
        raise ValueError(MISSING) from error
    try:
        path = snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.md"])
    except RepositoryNotFoundError as error:
        raise ValueError(f"{name}: neither a path of this machine nor a repository that the Hub shows you at "
                         f"{page_of(name)}; a private one needs `hf auth login` or HF_TOKEN") from error  # fmt: skip
    except LocalEntryNotFoundError as error:
        raise OSError(f"{name}: no path of this machine, and the Hub could not be reached "
                      f"({error.__cause__ or error})") from error  # fmt: skip
    except (OSError, HTTPError) as error:
        reason = str(error).partition("\n")[0]
        raise OSError(f"{name}: could not be fetched from {page_of(name)} ({reason})") from error
    if not (Path(path) / "model.safetensors").is_file():
        raise ValueError(f"{name}: the repository at {page_of(name)} has no model.safetensors; fetch the file that you "
                         "want by hand and give its path")  # fmt: skip
    return path


def write_folder(folder: str | Path, state: dict, meta: dict, card: str, flag: str = "folder") -> None:
    """A folder as it lies on the Hub, whole or not at all; one that holds something is refused, blaming `flag`."""
    from engine.checkpoint import HUB_WEIGHTS, save_safetensors, write_json, write_text  # torch: not to fetch
    from engine.folders import made_whole

    with made_whole(folder, flag) as aside:
        save_safetensors(aside / HUB_WEIGHTS, state, meta)
        write_json(aside / "config.json", meta)
        write_text(aside / "README.md", card)


def push(folder: str | Path, repo: str, private: bool = False) -> str:
    """Upload a folder into the repository USER/NAME, which is made where there is none; its page."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
    except ImportError as error:
        raise ValueError(MISSING) from error
    try:
        api = HfApi()
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise ValueError(f"{repo}: is there already, and public; nothing was sent. Make it private on its page, or "
                             "take another name")  # fmt: skip
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Weights and model card")
    except HFValidationError as error:
        raise ValueError(f"{repo}: not the name of a repository; give USER/NAME ({error})") from error
    except (OSError, HTTPError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        remedy = ("log in by `hf auth login`, or set HF_TOKEN to a token that may write there" if status in (401, 403)
                  else "is there a network?" if not status else "see the Hub's message")  # fmt: skip
        reason = str(error).partition("\n")[0]
        raise OSError(f"{repo}: could not be pushed ({reason}): {remedy}") from error
    return page_of(repo)


def upload(write: Callable[[Path], None], repo: str, private: bool = False) -> str:
    """Push what `write` writes into a folder that is not there yet."""
    with TemporaryDirectory() as place:
        write(Path(place) / "folder")
        return push(Path(place) / "folder", repo, private)


def model_card(title: str, about: str, facts: dict, usage: str, config: dict, license: str, task: str,
               tags: list[str]) -> str:  # fmt: skip
    """README.md of a repository. facts: the rows of its table, those of None are left out. task: the Hub's name of
    what the model does (pipeline_tag)."""
    front = {"license": license, "library_name": "llamagen", "pipeline_tag": task, "tags": ["llamagen", *tags]}
    # JSON is YAML, whatever a value holds.
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in front.items()]
    rows = [f"| {name} | {str(value).replace('|', '&#124;')} |"
            for name, value in facts.items() if value is not None]  # fmt: skip
    blocks = ["\n".join(["---", *lines, "---"]), f"# {title}", about, "\n".join(["| | |", "| --- | --- |", *rows]),
              f"## Use\n\n{usage}", f"## Configuration\n\n```json\n{json.dumps(config, indent=1)}\n```",
              f"## Reference\n\n[Sun et al. 2024](https://arxiv.org/abs/2406.06525)\n\n```bibtex\n{REFERENCE}\n```"]
    return "\n\n".join(blocks) + "\n"


def told(trained: dict) -> str | None:
    """How long weights were trained, in words."""
    parts = [f"{trained[unit]:,.4g} {unit}" if unit == "epochs" else f"{trained[unit]:,} {unit}"
             for unit in ("steps", "epochs") if unit in trained]  # fmt: skip
    return ", ".join(parts) or None
