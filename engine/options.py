"""What every training command can be told, whatever it trains."""

from dataclasses import dataclass

from engine.config import Auto

MODES = ("ddp", "fsdp", "sdp", "hsdp")


def at_least(options, lowest: float, *names: str) -> None:
    """ValueError for a number below `lowest` (or not a number); fields that are None or 'auto' are let be."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value != "auto" and not lowest <= value < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be at least {lowest}")


def check_max_bad(options) -> None:
    """ValueError unless its max_bad is a share."""
    if not 0 <= options.max_bad <= 1:
        raise ValueError(f"--max-bad {options.max_bad}: is a share, from 0 to 1")


@dataclass
class OptimOptions:
    """How the weights are trained."""

    epochs: int = 300
    """Passes over the data."""
    max_steps: int | None = None
    """Stop after this many optimizer steps, whatever --epochs says."""
    lr: float = 1e-4
    """Learning rate for the global batch."""
    lr_schedule: str = "constant"
    """constant, or cosine (down to --lr-final times --lr at the last step)."""
    lr_final: float = 0.1
    """Where the cosine schedule ends, as a share of --lr."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    weight_decay: float | Auto = 0.05
    """Decay of matrices, convolutions and embeddings (gains and biases have none); auto: the published recipe's, which
    is 0.05 for GPTs and 0 for tokenizers."""
    beta1: float = 0.9
    beta2: float = 0.95
    max_grad_norm: float = 1.0
    """Clip gradients to this global norm (0: never)."""
    global_batch_size: int = 256
    """Samples of one optimizer step, over all processes and accumulation steps."""
    gradient_accumulation_steps: int = 1
    """Cut each process's share of the batch into this many parts, to save memory."""
    mixed_precision: str = "auto"
    """bf16, fp16, tf32 or none (float32); auto: bf16 where the device computes in it."""
    ema: bool = False
    """Keep a moving average of the weights too (entry "ema" of a checkpoint)."""
    ema_decay: float = 0.9999
    compile: bool = False
    """torch.compile on a GPU."""
    compile_on_cpu: bool = False
    """With --compile: on a CPU, too. It pays in long runs: 20 s to begin with, then a tenth off a step of GPT-25M."""
    global_seed: int = 0
    """Decides initial weights, order of samples, crops, and dropped conditions."""
    device: str = "auto"
    """cuda, mps or cpu; auto takes the first that is there."""

    def __post_init__(self):
        at_least(self, 1, "epochs", "max_steps", "global_batch_size", "gradient_accumulation_steps")
        at_least(self, 0, "lr", "lr_final", "warmup_steps", "weight_decay", "max_grad_norm")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 0 and below 1")

    def compiles(self, device: str) -> bool:
        """device: its kind, "cuda" or "cpu"."""
        return self.compile and (device == "cuda" or self.compile_on_cpu)


@dataclass
class ParallelOptions:
    """How training is spread over processes."""

    data_parallel: str = "ddp"
    """ddp: each process holds everything. fsdp: each holds a part of weights, gradients and moments; sdp: gathered
    weights stay until the backward pass; hsdp: parts within a node, copies across nodes."""
    grad_precision: str | None = None
    """Sharded: what gradients are summed in over processes, bf16, fp16 or fp32 (default)."""
    reduce_every_part: bool = False
    """With --gradient-accumulation-steps: sum gradients over processes after every part, not the last alone: more
    traffic, but sharded processes need not hold whole gradients in between."""
    activation_checkpointing: bool = False
    """Compute the blocks' activations again in the backward pass instead of keeping them: a third more work, far less
    memory."""
    async_ckpt: bool = False
    """Sharded: go on training while a checkpoint is written from a copy in main memory."""

    def __post_init__(self):
        if self.data_parallel not in MODES:
            raise ValueError(f"--data-parallel {self.data_parallel}: choose one of {', '.join(MODES)}")


@dataclass
class RunOptions:
    """Where a run keeps its files, how often it writes them, and when it stops."""

    results_dir: str = "results"
    """Runs are folders in here, named NNN-MODEL, each with log.txt, metrics.jsonl, previews and checkpoints."""
    run_name: str | None = None
    """The run's folder, instead of NNN-MODEL."""
    cloud_save_path: str | None = None
    """A second folder for checkpoints, such as a mounted bucket."""
    local_save: bool = True
    """Keep checkpoints in the run's own folder; --no-local-save: in --cloud-save-path alone."""
    resume: bool = False
    """Go on from the newest whole checkpoint of --run-name (without it: of the newest run of this model), if there is
    one."""
    log_every: int = 100
    """Steps between lines of the log (0: none)."""
    ckpt_every: int = 5000
    """Steps between checkpoints (0: the last step alone, which is always saved)."""
    keep_ckpts: int = 0
    """Keep the newest so many checkpoints (0: all)."""
    keep_every: int = 0
    """With --keep-ckpts: keep those of every so many steps for good, too."""
    preview_every: int = 1000
    """Steps between preview pictures (0: none)."""
    val_every: int = 1000
    """Steps between validations, where there is held-out data (0: none)."""
    max_minutes: float | None = None
    """Stop after so many minutes with everything saved; --resume goes on."""
    timeout_minutes: float = 30
    """Of several processes, one whose step, checkpoint, validation or preview takes longer says where it stands and
    ends, which lets torchrun --max-restarts start all again; so long processes wait for one another, too."""
    wandb: bool = False
    """Log to Weights & Biases too."""
    wandb_project: str = "llamagen"

    def __post_init__(self):
        at_least(self, 0, "log_every", "ckpt_every", "keep_ckpts", "keep_every")
        at_least(self, 0, "preview_every", "val_every", "max_minutes")
        if not self.timeout_minutes > 0:
            raise ValueError(f"--timeout-minutes {self.timeout_minutes}: must be above 0")
