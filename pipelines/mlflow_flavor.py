"""What MLflow loads a registered model with: `mlflow.pyfunc.load_model("models:/NAME@champion").predict(texts)`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.corpus import Document
from pipelines.encoder import Encoder


class Codes:
    """A trained model as a function from texts to codes."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def predict(self, texts: Any, params: dict[str, Any] | None = None) -> Any:
        """A row for each text: its code in hex, its component, and how sure the model is of the code.

        `texts` are strings, or a data frame with a column `text`.
        """
        import pandas as pd

        del params
        column: Sequence[str] = texts["text"].tolist() if hasattr(texts, "columns") else list(texts)
        table = self.encoder.table([Document(str(n), text, [], {}, "", n) for n, text in enumerate(column)])
        found = self.encoder.encode(table)
        codes = [bytes(row).hex() for row in found.codes.bytes_NC.numpy()]
        sure = found.confidence.astype("float64")
        return pd.DataFrame({"code": codes, "component": found.components.astype("int64"), "confidence": sure})


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> Codes:
    del model_config
    return Codes(Encoder.load(Path(path)))
