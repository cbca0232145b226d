"""Draw the loss of several training runs over their compute, and the FID of their checkpoints over epochs.

    python3 evaluations/plot_scaling.py --runs GPT-B=results/000-GPT-B GPT-L=results/001-GPT-L \
        --scores GPT-B=samples/B50.json GPT-B=samples/B300.json GPT-L=samples/L50.json --output scaling.png
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.config import run
from evaluations.options import PlotScaling


def main(options: PlotScaling) -> None:
    from evaluations.plots import named_runs
    from evaluations.scaling import named_scores, plot_scaling

    runs = named_runs(options.runs)
    plot_scaling(runs, named_scores(options.scores, runs), Path(options.output))
    print(f"{len(runs)} runs, {len(options.scores)} scores -> {options.output}")


if __name__ == "__main__":
    run(main, PlotScaling)
