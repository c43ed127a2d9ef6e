"""Try the settings that a method was chosen from: `python -m tests.bench.peers.choose NASH [BITS]`, a line an epoch.

On the validation part of 20 Newsgroups by date; what came out is told in each method's file.
"""

import json
import sys
from itertools import islice
from typing import Any

from tests.bench.bench_peers import METHODS
from tests.bench.peers.protocol import precision, task

GRIDS: dict[str, list[dict[str, Any]]] = {
    "VDSH": [
        {"layers": 2, "dropout": 0.2, "learning_rate": 1e-3, "epochs": 12},
        {"layers": 1, "dropout": 0.2, "learning_rate": 3e-3, "epochs": 9},
        {"layers": 1, "dropout": 0.5, "learning_rate": 3e-3, "epochs": 9},
    ],
    "NASH": [
        {"layers": 2, "dropout": 0.2, "rounding": "stochastic", "epochs": 12},
        {"layers": 2, "dropout": 0.2, "epochs": 12},
        {"layers": 2, "dropout": 0.2, "learning_rate": 1e-3, "kl_weight": 0.1, "epochs": 6},
        {"layers": 1, "dropout": 0.2, "epochs": 12},
        {"layers": 1, "dropout": 0.5, "epochs": 9},
        {"layers": 1, "dropout": 0.7, "epochs": 9},
    ],
    "BMSH": [{"layers": 1, "dropout": 0.5, "epochs": 9}, {"layers": 1, "dropout": 0.7, "epochs": 9}],
    "AMMI": [
        {"entropy_weight": 3.5, "epochs": 10},
        {"entropy_weight": 2.0, "epochs": 12},
        {"entropy_weight": 5.0, "epochs": 9},
        {"entropy_weight": 3.5, "learning_rate": 0.01, "epochs": 9},
    ],
}
"""What differs from the settings that were chosen, and for how long it was watched."""


def main(name: str, bits: int = 64) -> None:
    """Print P@100, by Hamming distance and by log-odds, as each setting learns."""
    asked, method = task("ng20 by date"), METHODS[name]
    if asked is None:
        raise SystemExit("ng20.parquet is not here; set LATENTBITS_DATA to the folder that has it")
    for changed in GRIDS[name]:
        settings = method.Settings(**changed)
        for epoch, encode in enumerate(islice(method.fits(asked.database, bits, 0, settings), settings.epochs), 1):
            print(json.dumps(changed | {"epoch": epoch} | precision(encode, asked)._asdict()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
