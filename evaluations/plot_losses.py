"""Draw the loss curves of training runs.

    python3 evaluations/plot_losses.py --runs tokenizer=results_tokenizer_image/000-VQ-16 gpt=results/000-GPT-B
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.config import run
from evaluations.options import PlotLosses


def main(options: PlotLosses) -> None:
    from evaluations.plots import named_runs, plot_losses

    plot_losses(named_runs(options.runs), Path(options.output))
    print(f"{len(options.runs)} runs -> {options.output}")


if __name__ == "__main__":
    run(main, PlotLosses)
