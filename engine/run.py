"""Where a training run leaves its things."""

import os
import socket
from pathlib import Path

from engine.checkpoint import CheckpointFolder, write_text
from engine.distributed import Context
from engine.options import RunOptions

LAUNCH = "launch.txt"  # in a run's folder: the torchrun that its processes are of


class Run:
    """The folders of one run. `begun`: it has checkpoints, from the newest of which --resume goes on.

    `resumes`: --resume was given, or torchrun has started the processes again that had begun this run.
    """

    def __init__(self, options: RunOptions, model: str, context: Context):
        self.options = options
        # A node that takes a lost one's place has not started anything again itself.
        restarted = context.any(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0)
        if not options.local_save and not options.cloud_save_path:
            raise ValueError("--no-local-save: give --cloud-save-path a folder for the checkpoints")
        self.name, own = context.on_main(lambda: self._name(model, restarted))
        self.resumes = options.resume or own
        self.folder = Path(options.results_dir) / self.name
        roots = [options.results_dir] * options.local_save + [options.cloud_save_path] * bool(options.cloud_save_path)
        self.stores = [CheckpointFolder(Path(root) / self.name / "checkpoints", options.keep_ckpts, options.keep_every)
                       for root in roots]  # fmt: skip
        # One rank looks: without a shared folder, the others have no checkpoints.
        saved = context.on_main(lambda: any(store.paths() for store in self.stores))
        if options.run_name and not self.resumes and saved:
            raise ValueError(f"--run-name {self.name}: that run has checkpoints; add --resume to go on, "
                             "or take another name")  # fmt: skip
        self.begun = self.resumes and saved
        if launch():
            context.on_main(lambda: write_text(self.folder / LAUNCH, launch()))

    def _name(self, model: str, restarted: bool) -> tuple[str, bool]:
        """The run's name, and whether the torchrun that has started its processes again had begun it."""

        def own(name: str) -> bool:
            path = Path(self.options.results_dir) / name / LAUNCH
            return restarted and path.is_file() and path.read_text() == launch()

        if self.options.run_name:
            return self.options.run_name, own(self.options.run_name)
        roots = [self.options.results_dir, self.options.cloud_save_path]
        taken = {p.name for root in roots if root for p in Path(root).glob("[0-9][0-9][0-9]-*")}
        mine = sorted(name for name in taken if name[4:] == model)
        if found := mine if self.options.resume else list(filter(own, mine)):
            return found[-1], own(found[-1])
        return f"{max((int(name[:3]) for name in taken), default=-1) + 1:03d}-{model}", False


def launch() -> str:
    """Which torchrun has started this process, the same however often it does; nothing where none has."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{name} {socket.gethostname()} {os.getppid()}\n" if name else ""
